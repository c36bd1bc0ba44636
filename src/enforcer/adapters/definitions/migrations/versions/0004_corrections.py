"""The list of corrections, seals, and events that wait for a person."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String, sa.ForeignKey("tenants.key"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "corrections",
        sa.Column("id", ID, primary_key=True),
        _tenant(),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("scope", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("listed_ms", sa.BigInteger, nullable=False),
        sa.Column("customer", sa.String, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("target_generation", sa.BigInteger),
        sa.Column("target_sequence", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("generation", sa.BigInteger),
        sa.Column("sequence", sa.BigInteger),
        sa.Column("outcome", sa.JSON, nullable=False),
        sa.UniqueConstraint("tenant", "scope", "key"),
        sa.UniqueConstraint("bucket", "number"),
        sa.UniqueConstraint("bucket", "target_generation", "target_sequence", "version"),
        sqlite_autoincrement=True,
    )
    op.create_index("corrections_by_customer", "corrections", ["tenant", "customer", "id"])
    op.create_index("corrections_by_record", "corrections", ["bucket", "generation", "sequence"])
    op.create_index(
        "corrections_pending",
        "corrections",
        ["bucket", "number"],
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "seals",
        _tenant(),
        sa.Column("account", sa.String, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("end_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("sealed_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "account", "start_ms", "end_ms"),
    )
    op.create_table(
        "review",
        sa.Column("id", ID, primary_key=True),
        _tenant(),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
        sqlite_autoincrement=True,
    )
