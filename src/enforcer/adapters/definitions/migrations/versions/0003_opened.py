"""Remember which buckets were ever opened: only those can have lost anything."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "bucket_generations",
        sa.Column("opened", sa.Boolean, nullable=False, server_default=sa.false()),
    )
