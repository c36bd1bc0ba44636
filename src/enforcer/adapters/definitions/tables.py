"""The tables. A change here needs a migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

__all__ = [
    "accounts",
    "api_keys",
    "audit_log",
    "entitlements",
    "features",
    "generations",
    "metadata",
    "nodes",
    "numbers",
    "plans",
    "products",
    "secrets",
    "subscriptions",
    "tenants",
]

metadata = MetaData()

_ID = BigInteger().with_variant(Integer, "sqlite")


def _tenant() -> Column[str]:
    return Column("tenant", String, ForeignKey("tenants.key"), nullable=False)


tenants = Table(
    "tenants",
    metadata,
    Column("key", String, primary_key=True),
    Column("name", String, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    _tenant(),
    # SHA-256 of the whole key, which has 256 random bits: nothing to guess, so no salt.
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)

products = Table(
    "products",
    metadata,
    _tenant(),
    Column("key", String, nullable=False),
    # version → release time in ms
    Column("releases", JSON, nullable=False),
    UniqueConstraint("tenant", "key"),
)

features = Table(
    "features",
    metadata,
    Column("id", _ID, primary_key=True),
    _tenant(),
    Column("key", String, nullable=False),
    Column("definition", JSON, nullable=False),
    UniqueConstraint("tenant", "key"),
    sqlite_autoincrement=True,
)

plans = Table(
    "plans",
    metadata,
    _tenant(),
    Column("key", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("items", JSON, nullable=False),
    UniqueConstraint("tenant", "key"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", _ID, primary_key=True),
    _tenant(),
    Column("key", String, nullable=False),
    # Chosen at creation and never changed: the home of the account's counters.
    Column("bucket", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    # The epoch that the counters are known to have; behind `epoch` while a change is on its way.
    Column("projected", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("tenant", "key"),
    Index(
        "accounts_unprojected",
        "id",
        postgresql_where=text("projected < epoch"),
        sqlite_where=text("projected < epoch"),
    ),
    sqlite_autoincrement=True,
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", _ID, primary_key=True),
    _tenant(),
    Column("account_id", _ID, ForeignKey("accounts.id"), nullable=False),
    Column("parent_id", _ID, ForeignKey("nodes.id")),
    Column("key", String, nullable=False),
    Column("name", String, nullable=False),
    Column("suspended", Boolean, nullable=False),
    UniqueConstraint("tenant", "key"),
    Index("nodes_by_account", "account_id"),
    sqlite_autoincrement=True,
)

entitlements = Table(
    "entitlements",
    metadata,
    # From `numbers`; the counter's name, never used again.
    Column("id", _ID, primary_key=True, autoincrement=False),
    _tenant(),
    Column("account_id", _ID, ForeignKey("accounts.id"), nullable=False),
    Column("node_id", _ID, ForeignKey("nodes.id"), nullable=False),
    Column("key", String, nullable=False),
    Column("feature", String, nullable=False),
    # As enforcer.catalog.model has it.
    Column("definition", JSON, nullable=False),
    # Key of a credit grant → its number.
    Column("grants", JSON, nullable=False),
    # Key of the subscription it comes from; empty if it is the node's own.
    Column("source", String, nullable=False),
    UniqueConstraint("node_id", "key"),
    Index("entitlements_by_account", "account_id"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    _tenant(),
    Column("account_id", _ID, ForeignKey("accounts.id"), nullable=False),
    Column("node_id", _ID, ForeignKey("nodes.id"), nullable=False),
    Column("key", String, nullable=False),
    Column("plan", String, nullable=False),
    Column("definition", JSON, nullable=False),
    UniqueConstraint("node_id", "key"),
    Index("subscriptions_by_plan", "tenant", "plan"),
)

numbers = Table(
    "numbers",
    metadata,
    Column("name", String, primary_key=True),
    Column("last", BigInteger, nullable=False),
)

generations = Table(
    "bucket_generations",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    # Whether Redis was ever seen to have the bucket: only then can it have lost it.
    Column("opened", Boolean, nullable=False, server_default=false()),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    _tenant(),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("key", String, nullable=False),
    sqlite_autoincrement=True,
)
