"""Seats and denials over time, in ClickHouse: both sides. See `slices` for exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.adapters.clickhouse.scope import beginning, chosen
from meter.adapters.clickhouse.slices import add_once, buckets_of, covers
from meter.core.records import RecordType
from meter.ports.series import DenialKey, DenialRow, SeatGroup, SeatKey, SeatRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter.adapters.clickhouse.client import ClickHouse
    from meter.ports.marks import Manifest
    from meter.ports.usage import Scope

__all__ = ["ClickHouseSeries", "SeriesWriter"]

LEASES = ", ".join(
    f"{kind:d}" for kind in (RecordType.LEASE_START, RecordType.LEASE_END, RecordType.LEASE_EXPIRED)
)
DAY_MS = 86_400_000
_NAME = "LowCardinality(String)"
_GROUPS = {
    SeatGroup.CUSTOMER: ("account", "customer"),
    SeatGroup.ACCOUNT: ("account", "''"),
    SeatGroup.ALL: ("''", "''"),
}


class SeriesWriter:
    """Part of the warehouse. See its port for what each method promises."""

    def __init__(self, writer: ClickHouse) -> None:
        self._writer = writer

    async def add_seats(self, manifest: Manifest) -> None:
        marker = (
            "tenant = '' AND grain = 0 AND meter = ''"
            f" AND account = '' AND customer = '{manifest.ranges[0].bucket:d}'"
        )
        await add_once(
            self._writer,
            manifest,
            "seats",
            "tenant, grain, meter, account, customer, at, delta, manifest",
            marker,
            f"""
                SELECT CAST(who.t, '{_NAME}') AS tenant, toUInt8(step.1) AS grain,
                    CAST(who.m, '{_NAME}') AS meter, who.a AS account, who.c AS customer,
                    fromUnixTimestamp64Milli(step.2, 'UTC') AS at,
                    sum(if(type = {RecordType.LEASE_START:d}, 1, -1)) AS delta,
                    toUInt64({manifest.number:d}) AS manifest
                FROM raw FINAL
                ARRAY JOIN [(0, happened), (1, intDiv(happened, {DAY_MS}) * {DAY_MS})] AS step
                WHERE ({covers(manifest.ranges)}) AND type IN ({LEASES}) AND flaw = ''
                GROUP BY tenant, grain, meter, account, customer, at
                UNION ALL
                SELECT CAST('', '{_NAME}'), toUInt8(0), CAST('', '{_NAME}'), '',
                    toString(arrayJoin({buckets_of(manifest)})), fromUnixTimestamp64Milli(0, 'UTC'),
                    toInt64(0), toUInt64({manifest.number:d})
            """,  # noqa: S608
        )

    async def add_denials(self, manifest: Manifest) -> None:
        marker = f"tenant = '' AND meter = '' AND customer = '{manifest.ranges[0].bucket:d}'"
        await add_once(
            self._writer,
            manifest,
            "denials",
            ("tenant, meter, window, account, customer, reason, limit, events, quantity, manifest"),
            marker,
            f"""
                SELECT CAST(who.t, '{_NAME}') AS tenant, CAST(who.m, '{_NAME}') AS meter, window,
                    who.a AS account, who.c AS customer, reason, toInt64(effects[9]) AS limit,
                    toUInt64(sum(count)) AS events, sum(toInt128(raw.quantity)) AS refused,
                    toUInt64({manifest.number:d}) AS manifest
                FROM raw FINAL
                WHERE ({covers(manifest.ranges)}) AND type = {RecordType.DENIAL:d} AND flaw = ''
                GROUP BY tenant, meter, window, account, customer, reason, limit
                UNION ALL
                SELECT CAST('', '{_NAME}'), CAST('', '{_NAME}'), toDateTime(0, 'UTC'), '',
                    toString(arrayJoin({buckets_of(manifest)})), toInt64(0), toInt64(0), toUInt64(0),
                    toInt128(0), toUInt64({manifest.number:d})
            """,  # noqa: S608
        )


class ClickHouseSeries:
    """The reading side. Users' words reach the engine as bound parameters only."""

    def __init__(self, reader: ClickHouse) -> None:
        self._reader = reader

    async def first_seat(self, scope: Scope) -> int | None:
        where, parameters = chosen(scope, "seats")
        rows = await self._reader.rows(
            f"SELECT count(), toUnixTimestamp64Milli(min(at)) FROM seats WHERE {where} AND grain = 1",  # noqa: S608
            parameters,
        )
        return int(rows[0][1]) if rows[0][0] else None

    async def first_denial(self, scope: Scope) -> int | None:
        where, parameters = chosen(scope, "denials")
        rows = await self._reader.rows(
            f"SELECT count(), toUInt32(min(window)) FROM denials WHERE {where}",  # noqa: S608
            parameters,
        )
        return int(rows[0][1]) if rows[0][0] else None

    async def seats(
        self,
        scope: Scope,
        group: SeatGroup,
        starts: Sequence[int],
        end_ms: int,
        after: SeatKey | None,
        limit: int,
    ) -> Sequence[SeatRow]:
        where, parameters = chosen(scope, "seats")
        start_ms = starts[0] * 1000
        account, customer = _GROUPS[group]
        parameters |= {
            "start": start_ms,
            "day": start_ms // DAY_MS * DAY_MS,
            "end": end_ms,
            "starts": [second * 1000 for second in starts],
            "ends": [*(second * 1000 for second in starts[1:]), end_ms],
            "limit": limit,
        }
        beyond = ""
        if after is not None:
            beyond = (
                "HAVING (begin, meter, tree, node) > ({after_start:Int64},"
                " {after_meter:String}, {after_account:String}, {after_customer:String})"
            )
            parameters |= {
                "after_start": after.start * 1000,
                "after_meter": after.meter,
                "after_account": after.account,
                "after_customer": after.customer,
            }
        rows = await self._reader.rows(
            f"""
            WITH {{starts:Array(Int64)}} AS starts, {{ends:Array(Int64)}} AS ends,
            changes AS (
                SELECT toString(seats.meter) AS meter, {account} AS tree, {customer} AS node,
                    greatest(toUnixTimestamp64Milli(at), {{start:Int64}}) AS moment,
                    sum(delta) AS change
                FROM seats
                WHERE {where} AND ((grain = 1 AND at < fromUnixTimestamp64Milli({{day:Int64}}, 'UTC'))
                    OR (grain = 0 AND at >= fromUnixTimestamp64Milli({{day:Int64}}, 'UTC')
                        AND at < fromUnixTimestamp64Milli({{end:Int64}}, 'UTC')))
                GROUP BY meter, tree, node, moment
            ),
            levels AS (
                SELECT meter, tree, node, moment,
                    sum(change) OVER (PARTITION BY meter, tree, node ORDER BY moment
                        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS level,
                    leadInFrame(moment, 1, {{end:Int64}}) OVER (PARTITION BY meter, tree, node
                        ORDER BY moment ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
                        AS until
                FROM changes
            ),
            pieces AS (
                SELECT meter, tree, node, place, level,
                    sum(least(until, ends[place]) - greatest(moment, starts[place])) AS time
                FROM levels
                ARRAY JOIN range({_place("moment")}, {_place("until - 1")} + 1) AS place
                WHERE level > 0 AND until > moment
                GROUP BY meter, tree, node, place, level
            ),
            ranked AS (
                SELECT *, sum(time) OVER (PARTITION BY meter, tree, node, place
                    ORDER BY level DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS reached
                FROM pieces
            )
            SELECT starts[place] AS begin, meter, tree, node, max(level),
                if(sum(time) * 20 <= ends[place] - starts[place], 0,
                    minIf(level, (reached - time) * 20 <= ends[place] - starts[place])),
                sum(toInt128(level) * time)
            FROM ranked GROUP BY place, meter, tree, node {beyond}
            ORDER BY begin, meter, tree, node LIMIT {{limit:UInt32}}
            """,  # noqa: S608
            parameters,
        )
        return [
            SeatRow(SeatKey(row[0] // 1000, *row[1:4]), int(row[4]), int(row[5]), int(row[6]))
            for row in rows
        ]

    async def denials(
        self,
        scope: Scope,
        starts: Sequence[int],
        end_ms: int,
        after: DenialKey | None,
        limit: int,
    ) -> Sequence[DenialRow]:
        where, parameters = chosen(scope, "denials")
        parameters |= {"start": starts[0], "end": -(-end_ms // 1000), "limit": limit}
        begin = beginning("window", starts, parameters)
        beyond = ""
        if after is not None:
            beyond = (
                "HAVING (begin, customer, meter, reason, refused_by) > ({after_start:UInt32},"
                " {after_customer:String}, {after_meter:String}, {after_reason:Int64},"
                " {after_limit:Int64})"
            )
            parameters |= {f"after_{name}": value for name, value in after._asdict().items()}
        rows = await self._reader.rows(
            f"""
            SELECT {begin} AS begin, customer, toString(denials.meter) AS meter, reason,
                denials.limit AS refused_by, sum(events), sum(quantity)
            FROM denials
            WHERE {where} AND window >= toDateTime({{start:UInt32}}, 'UTC')
                AND window < toDateTime({{end:UInt32}}, 'UTC')
            GROUP BY begin, customer, meter, reason, refused_by {beyond}
            ORDER BY begin, customer, meter, reason, refused_by LIMIT {{limit:UInt32}}
            """,  # noqa: S608
            parameters,
        )
        return [DenialRow(DenialKey(*row[:5]), int(row[5]), int(row[6])) for row in rows]


def _place(moment: str) -> str:
    """Which window it lies in, counted from 1."""
    return f"transform(roundDown({moment}, starts), starts, arrayEnumerate(starts), 0)"
