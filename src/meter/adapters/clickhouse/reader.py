"""Usage, ledger and raw records in ClickHouse: the reading side."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from meter.adapters.clickhouse.aggregates import AggregateReader, current_of
from meter.adapters.clickhouse.grains import grain_difference, within
from meter.adapters.clickhouse.retention import LIVE, retained_since
from meter.adapters.clickhouse.scope import beginning, chosen, key_of, split
from meter.adapters.clickhouse.slices import USAGE_TYPES
from meter.adapters.clickhouse.slices import upto as _upto
from meter.adapters.clickhouse.warehouse import effects_of, entry_of
from meter.core.grains import Grain
from meter.core.records import RecordType
from meter.core.sequence import Entry, Range
from meter.ports.usage import Key, Row, SetAside
from meter.ports.warehouse import Choice, Counter, RowCount

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meter.core.sequence import Position
    from meter.ports.usage import Scope

__all__ = ["ClickHouseReader"]

CORRECTIONS = f"{RecordType.VOID:d}, {RecordType.AMEND:d}, {RecordType.BACKFILL:d}"

CHUNK = 10_000
"""Counters asked for in one query."""
STARTS = f"{RecordType.HOLD:d}, {RecordType.LEASE_START:d}, {RecordType.ALLOWANCE:d}"
ENDS = ", ".join(
    f"{kind:d}"
    for kind in (
        RecordType.COMMIT,
        RecordType.RELEASE,
        RecordType.HOLD_EXPIRED,
        RecordType.LEASE_END,
        RecordType.LEASE_EXPIRED,
        RecordType.ALLOWANCE_USE,
        RecordType.UNACCOUNTED,
    )
)
LEASE_ENDS = f"{RecordType.LEASE_END:d}, {RecordType.LEASE_EXPIRED:d}"
KEYED = f"{RecordType.USAGE:d}, {STARTS}"
COUNTED = f"{RecordType.USAGE:d}, {RecordType.EMERGENCY:d}"
SETTLED = f"{RecordType.COMMIT:d}, {RecordType.RELEASE:d}, {RecordType.ALLOWANCE_USE:d}"


class ClickHouseReader(AggregateReader):
    """Answers reports and audits. Users' words reach the engine as bound parameters only."""

    async def first(self, scope: Scope) -> int | None:
        where, parameters = chosen(scope, "usage")
        # The first month first: its quarter hours are few beside all.
        month = f"SELECT min(window) FROM usage WHERE {where} AND grain = {Grain.MONTH:d}"  # noqa: S608
        rows = await self._reader.rows(
            f"SELECT count(), toUInt32(min(window)) FROM usage WHERE {where}"  # noqa: S608
            f" AND grain = {Grain.QUARTER:d} AND window >= ({month})"
            f" AND window < ({month}) + INTERVAL 1 MONTH",
            parameters,
        )
        count, first = rows[0]
        return int(first) if count else None

    async def rows(
        self,
        scope: Scope,
        start: int,
        end: int,
        starts: Sequence[int] | None,
        after: Key | None,
        limit: int,
    ) -> tuple[Sequence[Row], int]:
        where, parameters = chosen(scope, "usage")
        parameters |= {"start": start, "limit": limit}
        begin = beginning("window", starts, parameters)
        values = split(scope, parameters)
        beyond = ""
        if after is not None:
            beyond = (
                f"WHERE (begin, customer, meter, values) > {key_of('after', after, parameters)}"
            )
        found = await self._reader.rows(
            f"""
            SELECT * FROM (
                SELECT *, sum(total_quantity) OVER () AS total FROM (
                    SELECT {begin} AS begin, customer, toString(usage.meter) AS meter,
                        {values} AS values,
                        sum(quantity) AS total_quantity, sum(events) AS total_events,
                        sum(overage) AS total_overage, sum(denied_quantity) AS total_denied_quantity,
                        sum(denied_events) AS total_denied_events,
                        sum(adjustment) AS total_adjustment,
                        sum(unaccounted) AS total_unaccounted
                    FROM usage
                    WHERE {where} AND {within(starts, start, end)}
                    GROUP BY begin, customer, meter, values
                )
            )
            {beyond}
            ORDER BY begin, customer, meter, values LIMIT {{limit:UInt32}}
            """,  # noqa: S608
            parameters,
        )
        rows = [
            Row(Key(row[0], row[1], row[2], tuple(row[3])), *map(int, row[4:11])) for row in found
        ]
        return rows, int(found[0][11]) if found else 0

    async def ledger(
        self, bucket: int, counters: Sequence[Counter]
    ) -> Mapping[Counter, tuple[int, int]]:
        out: dict[Counter, tuple[int, int]] = {}
        for at in range(0, len(counters), CHUNK):
            chunk = counters[at : at + CHUNK]
            rows = await self._reader.rows(
                "SELECT limit, period, sum(used), sum(held) FROM ledger"
                " WHERE bucket = {bucket:UInt32} AND (limit, period) IN (SELECT arrayJoin("
                "arrayZip({limits:Array(Int64)}, {periods:Array(Int64)}))) GROUP BY limit, period",
                {
                    "bucket": bucket,
                    "limits": [counter.limit for counter in chunk],
                    "periods": [counter.period for counter in chunk],
                },
            )
            out |= {Counter(row[0], row[1]): (row[2], row[3]) for row in rows}
        return out

    async def effects_between(
        self, bucket: int, after: Position, upto: Position
    ) -> Mapping[Counter, tuple[int, int]]:
        rows = await self._reader.rows(
            "SELECT toInt64(e.1) AS limit, toInt64(e.2) AS period, sum(toInt64(e.3)), sum(toInt64(e.4))"  # noqa: S608
            f" FROM ({effects_of(f'({_upto({bucket: upto})}) AND NOT ({_upto({bucket: after})})')})"
            " WHERE e.1 != 0 GROUP BY limit, period"
        )
        return {Counter(row[0], row[1]): (row[2], row[3]) for row in rows}

    async def sums(
        self, bucket: int, limits: Sequence[int], periods: int
    ) -> Sequence[tuple[Counter, tuple[int, int]]]:
        if not limits:
            return []
        newest = (
            "SELECT limit, period, sum(used), sum(held) FROM ledger WHERE bucket = {bucket:UInt32}"
            " AND limit IN {limits:Array(Int64)} AND period %s 0 GROUP BY limit, period"
        )
        rows = await self._reader.rows(
            f"SELECT * FROM (({newest % '!='} ORDER BY limit, period DESC LIMIT {periods:d} BY limit)"  # noqa: S608
            f" UNION ALL ({newest % '='})) AS both ORDER BY limit, period DESC",
            {"bucket": bucket, "limits": list(limits)},
        )
        return [(Counter(row[0], row[1]), (row[2], row[3])) for row in rows]

    async def recall(
        self, bucket: int, after: Position, choice: Choice, since_ms: int, most: int
    ) -> Sequence[Entry]:
        own = f"bucket = {bucket:d} AND NOT ({_upto({bucket: after})})"
        where = f"{own} AND effects[3] >= {since_ms:d}" if since_ms else own
        if choice is not Choice.ALL:
            where += " AND flaw = ''"
        if choice is Choice.OPEN:
            where += (
                f" AND type IN ({STARTS}) AND JSONExtractString(body, 'id') NOT IN (SELECT"  # noqa: S608
                f" JSONExtractString(body, 'id') FROM raw WHERE {own} AND type IN ({ENDS}))"
            )
        elif choice is Choice.KEYED:
            where += f" AND ((type IN ({KEYED}) AND JSONHas(body, 'k'))"
            where += f" OR type IN ({SETTLED}) OR JSONHas(body, 'j') OR JSONHas(body, 'n'))"
        elif choice is Choice.BOUND:
            holder = "JSONExtractString(body, 'h')"
            where += (
                f" AND (generation, seq) IN (SELECT max((generation, seq)) FROM raw WHERE {own}"  # noqa: S608
                f" AND (type = {RecordType.LEASE_START:d} OR (type IN ({LEASE_ENDS})"
                f" AND effects[8] = 1)) AND {holder} != '' GROUP BY type = {RecordType.LEASE_START:d},"
                f" who.t, who.c, JSONExtractString(body, 'f'), {holder})"
            )
        elif choice is Choice.JOURNALED:
            where += (
                f" AND (generation, seq) IN (SELECT max((generation, seq)) FROM raw WHERE {own}"  # noqa: S608
                f" AND type IN ({COUNTED}) AND JSONHas(body, 'j')"
                " GROUP BY JSONExtractString(body, 'j'))"
            )
        rows = await self._reader.rows(
            "SELECT generation, seq, body, effects, rest FROM raw FINAL"  # noqa: S608
            f" WHERE {where} ORDER BY bucket, generation, seq LIMIT {most:d}"
        )
        return [entry_of(*row) for row in rows]

    async def counts(self, upto: Mapping[int, Position]) -> Sequence[RowCount]:
        rows = await self._reader.rows(
            f"""
            SELECT bucket, generation, sum(copies), sum(places), max(end) FROM (
                SELECT bucket, generation, toInt64(count()) AS copies,
                    toInt64(uniqExact(seq)) AS places, toInt64(max(seq)) AS end
                FROM raw WHERE ({_upto(upto)}) AND {LIVE} GROUP BY bucket, generation
                UNION ALL
                SELECT bucket, generation, toInt64(sum(expired.rows)),
                    toInt64(sum(last - first + 1)),
                    toInt64(max(last))
                FROM expired FINAL
                WHERE tenant = '' AND bucket IN {{buckets:Array(UInt32)}}
                GROUP BY bucket, generation
            ) GROUP BY bucket, generation ORDER BY bucket, generation
            """,  # noqa: S608
            {"buckets": list(upto)},
        )
        return [RowCount(*map(int, row)) for row in rows]

    async def told(self, buckets: Iterable[int]) -> Mapping[tuple[int, int], int]:
        rows = await self._reader.rows(
            "SELECT bucket, toUInt64(effects[9]) AS previous, max(toInt64(effects[8])) FROM raw"  # noqa: S608
            f" WHERE bucket IN {{buckets:Array(UInt32)}} AND type = {RecordType.GENERATION:d}"
            " AND flaw = '' AND effects[9] > 0 GROUP BY bucket, previous",
            {"buckets": list(buckets)},
        )
        return {(row[0], row[1]): row[2] for row in rows}

    async def find(self, bucket: int, place: Position) -> tuple[str, Entry] | None:
        rows = await self._reader.rows(
            "SELECT who.t, body, effects FROM raw FINAL WHERE bucket = {bucket:UInt32}"
            " AND generation = {generation:UInt64} AND seq = {seq:UInt64} AND flaw = ''",
            {"bucket": bucket, "generation": place.generation, "seq": place.sequence},
        )
        if not rows:
            return None
        tenant, body, effects = rows[0]
        packed = struct.pack(f"<{len(effects)}d", *effects)
        return tenant, Entry(*place, body.encode(), packed)

    async def set_aside(
        self, tenant: str, after: tuple[int, int, int], limit: int
    ) -> Sequence[SetAside]:
        rows = await self._reader.rows(
            f"""
            SELECT bucket, generation, seq, toString(reason), toUnixTimestamp(seen),
                JSONExtractString(body, 'c'), JSONExtractString(body, 'f'),
                toInt64(if(isFinite(effects[4]), effects[4], 0))
            FROM review FINAL
            WHERE JSONExtractString(body, 't') IN ('', {{tenant:String}})
                AND (bucket, generation, seq) > ({after[0]:d}, {after[1]:d}, {after[2]:d})
            ORDER BY bucket, generation, seq LIMIT {limit:d} WITH TIES
            """,  # noqa: S608
            {"tenant": tenant},
        )
        return [SetAside(*row) for row in rows]

    async def is_dropped(self, bucket: int, place: Position) -> bool:
        rows = await self._reader.rows(
            "SELECT 1 FROM expired WHERE bucket = {bucket:UInt32} AND generation = {generation:UInt64}"
            " AND tenant = '' AND meter = '' AND first <= {seq:UInt64} AND last >= {seq:UInt64} LIMIT 1",
            {"bucket": bucket, "generation": place.generation, "seq": place.sequence},
        )
        return bool(rows)

    async def retained_since(self) -> int:
        return await retained_since(self._reader)

    async def keyed(
        self, tenant: str, bucket: int, keys: Sequence[str], stored: tuple[int, int]
    ) -> Sequence[Entry]:
        rows = await self._reader.rows(
            f"SELECT generation, seq, body FROM raw FINAL WHERE bucket = {{bucket:UInt32}}"  # noqa: S608
            f" AND ingested >= toDateTime({{start:UInt32}}, 'UTC')"
            f" AND ingested < toDateTime({{end:UInt32}}, 'UTC')"
            f" AND type IN ({RecordType.USAGE:d}, {RecordType.COMMIT:d}, {RecordType.ALLOWANCE_USE:d}) AND flaw = ''"
            " AND who.t = {tenant:String}"
            " AND JSONExtractString(body, 'k') IN {keys:Array(String)}",
            {
                "bucket": bucket,
                "start": stored[0] // 1000,
                "end": -(-stored[1] // 1000),
                "tenant": tenant,
                "keys": list(keys),
            },
        )
        return [Entry(row[0], row[1], row[2].encode(), b"") for row in rows]

    async def corrections(self, bucket: int, after: int, stored_from: int) -> Sequence[Entry]:
        rows = await self._reader.rows(
            "SELECT generation, seq, body, effects FROM raw FINAL WHERE bucket = {bucket:UInt32}"  # noqa: S608
            " AND ingested >= toDateTime({start:UInt32}, 'UTC')"
            f" AND type IN ({CORRECTIONS}) AND flaw = ''"
            " AND JSONExtractInt(body, 'n') > {after:Int64} ORDER BY JSONExtractInt(body, 'n')",
            {"bucket": bucket, "start": stored_from // 1000, "after": after},
        )
        return [entry_of(row[0], row[1], row[2], row[3], "") for row in rows]

    async def gaps(self, bucket: int, generation: int, last: int) -> Sequence[Range]:
        rows = await self._reader.rows(
            "SELECT end, following FROM (SELECT end, leadInFrame(begin, 1, {last:Int64}) OVER (ORDER BY"  # noqa: S608
            " begin ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS following FROM ("
            "SELECT DISTINCT toInt64(seq) AS begin, begin AS end FROM raw WHERE bucket ="
            " {bucket:UInt32} AND generation = {generation:UInt64} AND seq < {last:Int64}"
            f" AND {LIVE} UNION ALL SELECT toInt64(first), toInt64(expired.last) FROM expired FINAL"
            " WHERE bucket = {bucket:UInt32} AND generation = {generation:UInt64} AND tenant = ''"
            " AND meter = ''"
            " UNION ALL SELECT toInt64(-1), toInt64(-1)"
            ")) WHERE following > end + 1 ORDER BY end LIMIT 1000",
            {"bucket": bucket, "generation": generation, "last": last},
        )
        return [Range(bucket, generation, row[0] + 1, row[1]) for row in rows]

    async def rollup_difference(self, marks: Mapping[int, Position]) -> int:
        rows = await self._reader.rows(
            f"""
            SELECT sum(abs(difference)) FROM (
                SELECT sum(part) AS difference FROM (
                    SELECT toString(who.t) AS tenant, toString(who.m) AS meter,
                        sum(toInt128(granted)) AS part
                    FROM raw FINAL
                    WHERE ({_upto(marks)}) AND {LIVE} AND type IN ({USAGE_TYPES}) AND flaw = ''
                    GROUP BY tenant, meter
                    UNION ALL
                    SELECT expired.tenant AS tenant, expired.meter AS meter, sum(granted) AS part
                    FROM expired FINAL WHERE expired.tenant != '' GROUP BY tenant, meter
                    UNION ALL
                    SELECT toString(usage.tenant) AS tenant, toString(usage.meter) AS meter,
                        -sum(quantity) - sum(adjustment) AS part
                    FROM usage WHERE usage.tenant != '' AND grain = 0 GROUP BY tenant, meter
                ) GROUP BY tenant, meter
            )
            """  # noqa: S608
        )
        current = current_of("tenant != ''")
        return int(rows[0][0] or 0) + await grain_difference(self._reader, current)
