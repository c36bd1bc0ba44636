"""Count the changes of a tenant's products and features: who has read them knows whether they are out of date."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "tenants", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0")
    )
