"""Remember which changes have reached the counters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "accounts",
        sa.Column("projected", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_index(
        "accounts_unprojected",
        "accounts",
        ["id"],
        postgresql_where=sa.text("projected < epoch"),
        sqlite_where=sa.text("projected < epoch"),
    )
