"""What rollup processes tell each other, and the stillness of audits."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meter_members",
        sa.Column("member", sa.String(64), primary_key=True),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("said_ms", sa.BigInteger, nullable=False),
        comment="What each rollup process has told last of its buckets.",
    )
    stillness = op.create_table(
        "meter_stillness",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.String(64), nullable=False, server_default=""),
        sa.Column("until_ms", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("free_ms", sa.BigInteger, nullable=False, server_default="0"),
        comment="One row: until when no slice may be claimed, for whom, and when the next may ask for it.",
    )
    op.bulk_insert(stillness, [{"one": 1}])


def downgrade() -> None:
    op.drop_table("meter_stillness")
    op.drop_table("meter_members")
