"""On replicas every table is made everywhere and replicates. No server with Keeper is here: the engine reads the words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import clickhouse_connect
import pytest

from meter.adapters.clickhouse import migrate, slices
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.replicas import SETTINGS, everywhere, on_cluster
from meter.core.sequence import Range
from meter.errors import WarehouseUnavailableError
from meter.ports.marks import Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

CLUSTER = "metering-1"


class Told(ClickHouse):
    """Keeps statements instead of sending them; answers that nothing is there."""

    def __init__(self, cluster: str) -> None:
        super().__init__("http://nowhere", "writer", cluster)
        self.told: list[str] = []

    async def command(
        self,
        sql: str,
        settings: Mapping[str, str | int] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Mapping[str, str]:
        self.told.append(sql)
        return {}

    async def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        self.told.append(sql)
        return [] if "FROM migrations" in sql else [[0]]


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ClickHouse]:
    engine = ClickHouse(f"chdb:{tmp_path}", "reader")
    yield engine
    await engine.close()


async def read(engine: ClickHouse, sql: str) -> str:
    """The statement as the engine understands it; an error for one that it does not."""
    return str((await engine.rows("SELECT formatQuery({sql:String})", {"sql": sql}))[0][0])


async def test_every_migration_makes_its_table_on_all_replicas(engine: ClickHouse) -> None:
    there, alone = Told(CLUSTER), Told("")
    count = await migrate.migrate(there)
    assert count == await migrate.migrate(alone) == len(migrate._migrations())
    schema = [sql for sql in there.told if not re.match(r"\s*(INSERT|SELECT)\b", sql)]
    assert len(schema) == count + 1
    for sql in schema:
        understood = await read(engine, sql)
        assert f"ON CLUSTER `{CLUSTER}`" in understood
        if understood.startswith("CREATE"):
            assert re.search(r"\nENGINE = Replicated\w*MergeTree\n", understood)
            assert "Replicated" not in understood.replace("ENGINE = Replicated", "", 1)
    assert "CLUSTER" not in "".join(alone.told)
    assert "Replicated" not in "".join(alone.told)
    # And nothing else has changed.
    bare = [re.sub(rf" ON CLUSTER '{CLUSTER}'|Replicated(?=\w*MergeTree)", "", sql) for sql in there.told]  # fmt: skip
    assert bare == alone.told


async def test_a_slice_in_doubt_is_looked_for_on_all_replicas(engine: ClickHouse) -> None:
    manifest = Manifest(7, "slice-7", (Range(0, 1, 0, 5),))
    for cluster, where in ((CLUSTER, f"clusterAllReplicas('{CLUSTER}', system.processes)"), ("", "system.processes")):  # fmt: skip
        writer = Told(cluster)
        await slices._until_ended(writer, manifest)
        (asked,) = writer.told
        assert f" FROM {where} WHERE" in asked
        assert f"FROM {where}" in (await read(engine, asked)).replace("\n    ", " ").replace("\n", " ")  # fmt: skip


async def test_the_engine_knows_the_settings_that_replicas_need(
    engine: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = await engine.rows(
        "SELECT name FROM system.settings WHERE has({names:Array(String)}, name)",
        {"names": list(SETTINGS)},
    )
    assert {row[0] for row in known} == SETTINGS.keys()
    given: list[Any] = []

    def connect(**options: Any) -> Any:
        given.append(options.get("settings"))
        raise OSError

    monkeypatch.setattr(clickhouse_connect, "get_client", connect)
    for cluster, settings in ((CLUSTER, SETTINGS), ("", {})):
        client = ClickHouse("http://nowhere", "writer", cluster)
        with pytest.raises(WarehouseUnavailableError):
            await client.rows("SELECT 1")
        await client.close()
        assert given.pop() == settings


def test_what_cannot_be_said_for_a_cluster_is_refused() -> None:
    assert on_cluster("DROP TABLE x", "") == "DROP TABLE x"
    assert everywhere("system.parts", "") == "system.parts"
    for sql in ("DROP TABLE x", "CREATE TABLE IF NOT EXISTS x (a Int8) ENGINE = Log"):
        with pytest.raises(ValueError, match="not known how"):
            on_cluster(sql, CLUSTER)
