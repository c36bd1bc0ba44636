"""A database that an earlier version made is brought up to date with what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.adapters.clickhouse import migrate
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NOW = 1_700_000_000_000
BODY = encode_body(Body("demo", "acme", "acme", "calls", "calls"))


def record(sequence: int, kind: RecordType) -> tuple[int, Entry]:
    effects = encode_effects(Effects(kind, NOW, granted=5, quantity=5))
    return 0, Entry(1, sequence, BODY, effects)


async def test_records_of_allowances_count_in_a_database_that_did_not_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrate._migrations()
    before = {number: one for number, one in known.items() if number < 10}
    clickhouse = ClickHouse(f"chdb://{tmp_path / 'db'}", "writer")
    warehouse = ClickHouseWarehouse(clickhouse)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(migrate, "_migrations", lambda: before)
            await migrate.migrate(clickhouse)
        await warehouse.store([record(0, RecordType.USAGE)])
        assert await migrate.migrate(clickhouse) == len(known) - len(before)
        assert await migrate.migrate(clickhouse) == 0
        kinds = (RecordType.ALLOWANCE, RecordType.ALLOWANCE_USE, RecordType.UNACCOUNTED)
        await warehouse.store([record(1 + place, kind) for place, kind in enumerate(kinds)])
        found = await clickhouse.rows("SELECT type, flaw FROM raw ORDER BY seq")
        assert [tuple(row) for row in found] == [(kind, "") for kind in (1, *kinds)]
        assert await clickhouse.rows("SELECT sum(unaccounted) FROM usage") == [(0,)]
    finally:
        await clickhouse.close()
