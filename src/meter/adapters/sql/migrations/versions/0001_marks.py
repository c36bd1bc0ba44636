"""Marks and manifests of the rollup."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "meter_marks",
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("repeats", sa.BigInteger, nullable=False, server_default="0"),
        comment="How far each bucket is claimed by manifests; moved by compare-and-set.",
    )
    op.create_table(
        "meter_manifests",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("token", sa.String(64), nullable=False, unique=True),
        sa.Column("ranges", sa.Text, nullable=False),
        sa.Column("applied", sa.Boolean, nullable=False),
        sa.Column(
            "claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
        ),
        comment="Slices of records, each added to the rollups once.",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_meter_manifests_applied", "meter_manifests", ["applied"])


def downgrade() -> None:
    op.drop_table("meter_manifests")
    op.drop_table("meter_marks")
