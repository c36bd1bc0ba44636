"""A version that meets a schema it cannot work on refuses it and says why; one of a newer version it names with its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.errors import DefinitionsUnavailableError
from enforcer.errors import MisconfiguredError as EnforcerMisconfiguredError
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.migrate import migrate
from meter.adapters.sql.marks import SqlMarks
from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from pathlib import Path

BOTH = "schema 0099 and needs a version that knows 0098; this version .* knows schema 0006 at most"


def write(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


async def test_definitions(tmp_path: Path) -> None:
    file = tmp_path / "definitions.db"
    url = f"sqlite+aiosqlite:///{file}"

    async def opened() -> None:
        """As an enforcer does, and whoever migrates."""
        for migrating in (False, True):
            definitions = SqlDefinitions(url, 2)
            try:
                if migrating:
                    await definitions.migrate()
                await definitions.ask()
            finally:
                await definitions.close()

    with pytest.raises(
        DefinitionsUnavailableError, match=r"no schema yet, .* needs 0006"
    ) as caught:
        await opened()
    assert caught.value.refused
    definitions = SqlDefinitions(url, 2)
    await definitions.migrate()
    await definitions.close()
    write(file, "UPDATE alembic_version SET version_num = '0005'")
    with pytest.raises(DefinitionsUnavailableError, match=r"schema 0005, .* needs 0006"):
        await opened()
    write(file, "UPDATE alembic_version SET version_num = '0099'")
    await opened()
    write(file, "UPDATE schema_needs SET needs = '0098'")
    with pytest.raises(EnforcerMisconfiguredError, match=f"METERGATE_DATABASE_URL: .* {BOTH}"):
        await opened()


async def test_marks(tmp_path: Path) -> None:
    file = tmp_path / "meter.db"

    async def migrated() -> None:
        marks = SqlMarks(f"sqlite+aiosqlite:///{file}")
        try:
            await marks.migrate()
            await marks.ask()
        finally:
            await marks.close()

    await migrated()
    write(file, "UPDATE meter_alembic_version SET version_num = '0099'")
    await migrated()
    write(file, "UPDATE meter_schema_needs SET needs = '0098'")
    with pytest.raises(MisconfiguredError, match=f"METERGATE_METER_DATABASE_URL: .* {BOTH}"):
        await migrated()


async def test_clickhouse(tmp_path: Path) -> None:
    clickhouse = ClickHouse(f"chdb:{tmp_path / 'db'}", "writer")
    try:
        await migrate(clickhouse)
        note = "INSERT INTO migrations (number, name, needs) VALUES"
        await clickhouse.command(f"{note} (98, 'expands', 0)")
        assert await migrate(clickhouse) == 0
        await clickhouse.command(f"{note} (99, 'contracts', 98)")
        with pytest.raises(
            MisconfiguredError,
            match=r"METERGATE_CLICKHOUSE_URL: the database has schema 99 and needs a version that knows 98; "
            r"this version .* knows schema 12 at most",
        ):
            await migrate(clickhouse)
    finally:
        await clickhouse.close()


async def test_tables_that_no_migration_can_mend_are_refused(tmp_path: Path) -> None:
    clickhouse = ClickHouse(f"chdb:{tmp_path / 'db'}", "writer")
    try:
        for statement in (
            "CREATE TABLE migrations (number UInt32, name String) ENGINE = MergeTree ORDER BY number",
            "INSERT INTO migrations SELECT number + 1, 'old' FROM numbers(9)",
            "CREATE TABLE usage (tenant String) ENGINE = MergeTree ORDER BY tenant",
        ):
            await clickhouse.command(statement)
        with pytest.raises(MisconfiguredError, match="begin with an empty database"):
            await migrate(clickhouse)
    finally:
        await clickhouse.close()
