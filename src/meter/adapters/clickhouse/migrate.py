"""Applies the numbered migrations, each once, in order."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from meter.adapters.clickhouse.replicas import on_cluster
from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from meter.adapters.clickhouse.client import ClickHouse

__all__ = ["migrate"]

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
    Raise `MisconfiguredError` when the database was migrated further by a newer version.
    """
    await clickhouse.command(on_cluster(_APPLIED, clickhouse.cluster))
    applied = {row[0] for row in await clickhouse.rows("SELECT number FROM migrations")}
    known = _migrations()
    if unknown := applied - known.keys():
        raise MisconfiguredError(
            f"METERGATE_CLICKHOUSE_URL: migration {max(unknown)} was applied by a newer version"
        )
    todo = [number for number in known if number not in applied]
    for number in todo:
        name, sql = known[number]
        await clickhouse.command(on_cluster(sql, clickhouse.cluster))
        # The name is that of our own file.
        note = f"INSERT INTO migrations (number, name) VALUES ({number}, '{name}')"  # noqa: S608
        await clickhouse.command(note)
    return len(todo)
