"""Applies the numbered migrations, each once, in order."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import structlog

from meter.adapters.clickhouse.replicas import on_cluster
from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from meter.adapters.clickhouse.client import ClickHouse

__all__ = ["migrate"]

_log = structlog.get_logger(__name__)

_GRAINS_BEFORE: Final = 10
"""Databases with fewer migrations may be older than the hours, days and months beside the quarter hours."""
_NEEDS_SINCE: Final = 12
"""From this migration on the table says which number a version has to know at least."""
_NEEDS: Final = re.compile(r"^-- needs: (\d+)$", re.MULTILINE)

_APPLIED = """
CREATE TABLE IF NOT EXISTS migrations
(number UInt32, name String, applied DateTime('UTC') DEFAULT now('UTC'))
ENGINE = MergeTree ORDER BY number SETTINGS fsync_after_insert = 1
"""


def _migrations() -> dict[int, tuple[str, str]]:
    folder = files("meter.adapters.clickhouse") / "migrations"
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found[int(number)] = (name, file.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


async def migrate(clickhouse: ClickHouse) -> int:
    """Bring the schema up to date; return how many migrations ran.

    Each file is one statement that may run again: a crash before it is noted repeats it.
    Raise `MisconfiguredError` when a newer version has migrated the database to what this one cannot work on.
    """
    await clickhouse.command(on_cluster(_APPLIED, clickhouse.cluster))
    applied = {row[0] for row in await clickhouse.rows("SELECT number FROM migrations")}
    known = _migrations()
    if unknown := applied - known.keys():
        await _work_on_newer(clickhouse, max(unknown), max(known))
    if applied and max(applied) < _GRAINS_BEFORE:
        await _must_have_grains(clickhouse)
    todo = [number for number in known if number not in applied]
    for number in todo:
        name, sql = known[number]
        await clickhouse.command(on_cluster(sql, clickhouse.cluster))
        # The name is that of our own file.
        note = f"INSERT INTO migrations (number, name) VALUES ({number}, '{name}')"  # noqa: S608
        if number >= _NEEDS_SINCE:
            needs = _NEEDS.search(sql)
            values = f"({number}, '{name}', {int(needs[1]) if needs else 0})"
            note = f"INSERT INTO migrations (number, name, needs) VALUES {values}"  # noqa: S608
        await clickhouse.command(note)
    return len(todo)


async def _must_have_grains(clickhouse: ClickHouse) -> None:
    """The first tables kept quarter hours alone. Their keys, which no migration can change, lack the grain."""
    sql = (
        "SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = 'usage'"
    )
    ((columns,),) = await clickhouse.rows(sql)
    ((grains,),) = await clickhouse.rows(f"{sql} AND name = 'grain'")
    if columns and not grains:
        raise MisconfiguredError(
            "METERGATE_CLICKHOUSE_URL: its tables are of a first version that kept quarter hours alone; they cannot be "
            "brought up to date (docs/upgrade.md): begin with an empty database"
        )


async def _work_on_newer(clickhouse: ClickHouse, found: int, known: int) -> None:
    """Raise `MisconfiguredError` unless a version that knows `known` can work on the schema `found`."""
    ((needs,),) = await clickhouse.rows("SELECT max(needs) FROM migrations")
    this = f"this version ({version('metergate')}) knows schema {known} at most"
    if needs > known:
        raise MisconfiguredError(
            f"METERGATE_CLICKHOUSE_URL: the database has schema {found} and needs a version that knows {needs}; "
            f"{this}. Start the newer version again, or restore the backup made before the upgrade (docs/upgrade.md)"
        )
    _log.warning("the schema is newer", database="clickhouse", what=f"it has {found}; {this}")
