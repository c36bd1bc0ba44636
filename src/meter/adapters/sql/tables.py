"""The tables of marks and manifests. Changed by Alembic migrations only."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
)

__all__ = [
    "accepted_gaps",
    "manifests",
    "marks",
    "members",
    "metadata",
    "schema_needs",
    "stillness",
]

metadata = MetaData()

# SQLite numbers rows by itself only where the key is INTEGER.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

marks = Table(
    "meter_marks",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False, server_default="0"),
    comment="How far each bucket is claimed by manifests; moved by compare-and-set.",
)

manifests = Table(
    "meter_manifests",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("token", String(64), nullable=False, unique=True),
    Column("ranges", Text, nullable=False),
    Column("applied", Boolean, nullable=False, index=True),
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    comment="Slices of records, each added to the rollups once.",
    # A number is never given out again: markers in ClickHouse compare by it.
    sqlite_autoincrement=True,
)

accepted_gaps = Table(
    "meter_accepted_gaps",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, primary_key=True, autoincrement=False),
    Column("actor", Text, nullable=False),
    Column("accepted_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    comment="Places [first, last) of a sequence that are missing, and who decided to go on behind them.",
)

members = Table(
    "meter_members",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("said", Text, nullable=False),
    Column("said_ms", BigInteger, nullable=False),
    comment="What each rollup process has told last of its buckets.",
)

stillness = Table(
    "meter_stillness",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("holder", String(64), nullable=False, server_default=""),
    Column("until_ms", BigInteger, nullable=False, server_default="0"),
    Column("free_ms", BigInteger, nullable=False, server_default="0"),
    comment="One row: until when no slice may be claimed, for whom, and when the next may ask for it.",
)

schema_needs = Table(
    "meter_schema_needs",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("needs", String(4), nullable=False),
    comment="One row: the schema's number that a version has to know at least.",
)
