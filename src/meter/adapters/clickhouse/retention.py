"""Dropping raw by whole days, and what is kept of them for audits, in ClickHouse."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from meter.adapters.clickhouse.slices import ONE_BLOCK, USAGE_TYPES
from meter.core.sequence import Position
from meter.core.windows import QUARTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meter.adapters.clickhouse.client import ClickHouse

__all__ = ["LIVE", "Retention", "retained_since"]

LIVE = "toDate(ingested) > (SELECT max(day) FROM expired)"
"""A condition on raw: what `expired` does not stand for."""


async def retained_since(client: ClickHouse) -> int:
    """See `Warehouse`."""
    rows = await client.rows("SELECT count(), max(day) FROM expired")
    count, day = rows[0]
    if not count:
        return 0
    # An event may be five minutes ahead: a window's first records can be of the day before.
    return int(datetime.combine(day + timedelta(days=1), time(), UTC).timestamp()) + QUARTER


class Retention:
    """Part of the warehouse. See its port for what each method promises."""

    def __init__(self, writer: ClickHouse) -> None:
        self._writer = writer

    async def retained_since(self) -> int:
        return await retained_since(self._writer)

    async def old_days(self, days: int) -> Sequence[date]:
        rows = await self._writer.rows(
            "SELECT DISTINCT toDate(partition) AS day FROM system.parts WHERE active AND table = 'raw'"  # noqa: S608
            f" AND database = currentDatabase() AND day < toDate(now('UTC')) - {days:d} ORDER BY day"
        )
        return [row[0] for row in rows]

    async def places(self, day: date) -> Mapping[int, Position]:
        rows = await self._writer.rows(
            "SELECT bucket, max((generation, seq)) FROM raw"
            " WHERE toDate(ingested) = {day:Date} GROUP BY bucket",
            {"day": day},
        )
        return {row[0]: Position(*row[1]) for row in rows}

    async def keep_sums(self, day: date) -> None:
        known = await self._writer.rows(
            "SELECT 1 FROM expired WHERE day = {day:Date} LIMIT 1", {"day": day}
        )
        if known:
            return
        stored = "toDate(ingested) = {day:Date}"
        again = (
            "(bucket, generation, seq) IN (SELECT bucket, generation, seq FROM raw"  # noqa: S608
            " WHERE toDate(ingested) > {day:Date} AND (bucket, generation, seq)"
            f" <= (SELECT max((bucket, generation, seq)) FROM raw WHERE {stored}))"
        )
        # What was stored once more on a later day is left to that day: here it is a repeat.
        where = f"{stored} AND NOT {again}"
        await self._writer.command(
            f"""
            INSERT INTO expired (day, bucket, generation, tenant, meter, first, last, rows, granted)
            SELECT * FROM (
                SELECT {{day:Date}} AS day, bucket, generation, '' AS tenant, '' AS meter,
                    min(seq) AS first, max(seq) AS last, sum(copies) AS rows, toInt128(0) AS granted
                FROM (
                    SELECT bucket, generation, seq, copies, toInt64(seq) - row_number() OVER
                        (PARTITION BY bucket, generation ORDER BY seq) AS run
                    FROM (
                        SELECT bucket, generation, seq, count() AS copies FROM raw WHERE {where}
                        GROUP BY bucket, generation, seq
                    )
                ) GROUP BY bucket, generation, run
                UNION ALL
                SELECT {{day:Date}}, bucket, generation, '', 'repeats', toUInt64(1), toUInt64(0),
                    count(), toInt128(0)
                FROM raw WHERE {stored} AND {again} GROUP BY bucket, generation
                UNION ALL
                SELECT {{day:Date}}, bucket, generation, who.t, who.m, toUInt64(0), toUInt64(0),
                    toUInt64(0), sum(toInt128(raw.granted))
                FROM raw FINAL
                WHERE {where} AND type IN ({USAGE_TYPES}) AND flaw = ''
                GROUP BY bucket, generation, who.t, who.m
            )
            """,  # noqa: S608
            ONE_BLOCK | {"insert_deduplicate": 0, "deduplicate_insert_select": "disable"},
            {"day": day},
        )

    async def drop_day(self, day: date) -> None:
        await self._writer.command(f"ALTER TABLE raw DROP PARTITION ID '{day:%Y%m%d}'")
