"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String, sa.ForeignKey("tenants.key"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String, primary_key=True),
        _tenant(),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger),
    )
    op.create_table(
        "products",
        _tenant(),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("releases", sa.JSON, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
    )
    op.create_table(
        "features",
        sa.Column("id", ID, primary_key=True),
        _tenant(),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "plans",
        _tenant(),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
    )
    op.create_table(
        "accounts",
        sa.Column("id", ID, primary_key=True),
        _tenant(),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "nodes",
        sa.Column("id", ID, primary_key=True),
        _tenant(),
        sa.Column("account_id", ID, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("parent_id", ID, sa.ForeignKey("nodes.id")),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("suspended", sa.Boolean, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
        sqlite_autoincrement=True,
    )
    op.create_index("nodes_by_account", "nodes", ["account_id"])
    op.create_table(
        "entitlements",
        sa.Column("id", ID, primary_key=True, autoincrement=False),
        _tenant(),
        sa.Column("account_id", ID, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("node_id", ID, sa.ForeignKey("nodes.id"), nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("feature", sa.String, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("grants", sa.JSON, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.UniqueConstraint("node_id", "key"),
    )
    op.create_index("entitlements_by_account", "entitlements", ["account_id"])
    op.create_table(
        "subscriptions",
        _tenant(),
        sa.Column("account_id", ID, sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("node_id", ID, sa.ForeignKey("nodes.id"), nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("plan", sa.String, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.UniqueConstraint("node_id", "key"),
    )
    op.create_index("subscriptions_by_plan", "subscriptions", ["tenant", "plan"])
    op.create_table(
        "numbers",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "bucket_generations",
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        _tenant(),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sqlite_autoincrement=True,
    )
