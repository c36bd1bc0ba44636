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
    PrimaryKeyConstraint,
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
    "corrections",
    "entitlements",
    "features",
    "generations",
    "metadata",
    "nodes",
    "numbers",
    "plans",
    "products",
    "review",
    "schema_needs",
    "seals",
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
    # Counts the changes of products and features.
    Column("revision", BigInteger, nullable=False, server_default="0"),
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

corrections = Table(
    "corrections",
    metadata,
    Column("id", _ID, primary_key=True),
    _tenant(),
    Column("bucket", Integer, nullable=False),
    # Without holes in the bucket: the order in which they are carried out.
    Column("number", BigInteger, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("scope", String, nullable=False),
    Column("key", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("listed_ms", BigInteger, nullable=False),
    Column("customer", String, nullable=False),
    # account, feature, meter, dimensions, what the target counts before
    Column("definition", JSON, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("target_generation", BigInteger),
    Column("target_sequence", BigInteger),
    Column("version", BigInteger, nullable=False),
    Column("sealed", Boolean, nullable=False),
    Column("state", String, nullable=False),
    # of the correction's own record
    Column("generation", BigInteger),
    Column("sequence", BigInteger),
    # overage, what the target counts after, why it was refused
    Column("outcome", JSON, nullable=False),
    UniqueConstraint("tenant", "scope", "key"),
    UniqueConstraint("bucket", "number"),
    UniqueConstraint("bucket", "target_generation", "target_sequence", "version"),
    Index("corrections_by_customer", "tenant", "customer", "id"),
    Index("corrections_by_record", "bucket", "generation", "sequence"),
    Index(
        "corrections_pending",
        "bucket",
        "number",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
    sqlite_autoincrement=True,
)

seals = Table(
    "seals",
    metadata,
    _tenant(),
    Column("account", String, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("sealed_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "account", "start_ms", "end_ms"),
)

review = Table(
    "review",
    metadata,
    Column("id", _ID, primary_key=True),
    _tenant(),
    Column("key", String, nullable=False),
    # UsageEvent in JSON
    Column("event", String, nullable=False),
    Column("why", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    # waiting, accepted or discarded
    Column("state", String, nullable=False),
    UniqueConstraint("tenant", "key"),
    sqlite_autoincrement=True,
)

schema_needs = Table(
    "schema_needs",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("needs", String(4), nullable=False),
    comment="One row: the schema's number that a version has to know at least.",
)
