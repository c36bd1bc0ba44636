"""What a version has to know to work on this schema: older ones go on beside newer ones while an upgrade rolls.

A migration that takes something away from older versions ends with `UPDATE meter_schema_needs SET needs = '<its number>'`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    needs = op.create_table(
        "meter_schema_needs",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("needs", sa.String(4), nullable=False),
        comment="One row: the schema's number that a version has to know at least.",
    )
    op.bulk_insert(needs, [{"one": 1, "needs": "0005"}])


def downgrade() -> None:
    op.drop_table("meter_schema_needs")
