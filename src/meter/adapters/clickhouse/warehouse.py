"""Raw records, slices and the ledger in ClickHouse: the writing side. See `slices` for exactly once."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from meter.adapters.clickhouse.aggregates import Aggregates
from meter.adapters.clickhouse.grains import EACH_GRAIN
from meter.adapters.clickhouse.series import SeriesWriter
from meter.adapters.clickhouse.slices import (
    USAGE_TYPES,
    add_once,
    buckets_of,
    covers,
    window_marker,
)
from meter.core.records import RecordType
from meter.core.sequence import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meter.core.sequence import Position
    from meter.ports.marks import Manifest

__all__ = ["ClickHouseWarehouse", "effects_of", "entry_of"]

DENIAL, UNACCOUNTED = f"{RecordType.DENIAL:d}", f"{RecordType.UNACCOUNTED:d}"

RAW_COLUMNS = ("bucket", "generation", "seq", "body", "effects", "rest")
_PLACE = struct.Struct("<IQQ")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS = [_varint(number) for number in range(4096)]


def _sized(data: bytes) -> bytes:
    size = len(data)
    return (_VARINTS[size] if size < len(_VARINTS) else _varint(size)) + data


def _encode(records: Sequence[tuple[int, Entry]]) -> bytes:
    """RowBinary of RAW_COLUMNS. The doubles of the effects are already what Array(Float64) wants."""
    parts: list[bytes] = []
    add, pack, varints, known = parts.append, _PLACE.pack, _VARINTS, len(_VARINTS)
    for bucket, (generation, seq, body, effects) in records:
        add(pack(bucket, generation, seq))
        size = len(body)
        add(varints[size] if size < known else _varint(size))
        add(body)
        count, odd = divmod(len(effects), 8)
        if odd or count >= known:
            add(b"\0" + _sized(effects))
        else:
            add(varints[count])
            add(effects)
            add(b"\0")
    return b"".join(parts)


class ClickHouseWarehouse(Aggregates, SeriesWriter):
    """The rollup's side of ClickHouse. See the port for what each method promises."""

    async def store(self, records: Sequence[tuple[int, Entry]]) -> None:
        if records:
            await self._writer.insert("raw", RAW_COLUMNS, _encode(records))

    async def stored_beyond(self, marks: Mapping[int, Position]) -> set[tuple[int, int, int]]:
        beyond = " OR ".join(
            f"(bucket = {bucket:d} AND (generation > {generation:d}"
            f" OR (generation = {generation:d} AND seq >= {sequence + 1:d})))"
            for bucket, (generation, sequence) in marks.items()
        )
        rows = await self._writer.rows(
            f"SELECT DISTINCT bucket, generation, seq FROM raw WHERE {beyond or 'false'}"  # noqa: S608
        )
        return {(row[0], row[1], row[2]) for row in rows}

    async def review(self, manifest: Manifest) -> int:
        flawed = f"FROM raw FINAL WHERE ({covers(manifest.ranges)}) AND flaw != ''"
        count = int((await self._writer.rows(f"SELECT count() {flawed}"))[0][0])
        if count:
            await self._writer.command(
                "INSERT INTO review (bucket, generation, seq, reason, body, effects, rest)"
                f" SELECT bucket, generation, seq, flaw, body, effects, rest {flawed}"
            )
        return count

    async def review_late(self, records: Sequence[tuple[int, Entry]]) -> None:
        if records:
            encoded = b"".join(_encode([record]) + _sized(b"late generation") for record in records)
            await self._writer.insert("review", (*RAW_COLUMNS, "reason"), encoded)

    async def add_usage(self, manifest: Manifest) -> None:
        await add_once(
            self._writer,
            manifest,
            "usage",
            (
                "tenant, grain, meter, window, customer, account, dimensions, adjusted, "
                "quantity, events, overage, denied_quantity, denied_events, adjustment, "
                "unaccounted, manifest"
            ),
            window_marker(manifest),
            f"""
                SELECT tenant, step.1 AS grain, meter, step.2 AS window, customer, account,
                    dimensions, adjusted, sum(sums.quantity), sum(sums.events), sum(sums.overage_),
                    sum(sums.denied_quantity), sum(sums.denied_events), sum(sums.adjustment),
                    sum(sums.unaccounted), toUInt64({manifest.number:d})
                FROM (
                    SELECT CAST(who.t, 'LowCardinality(String)') AS tenant, who.a AS account,
                        CAST(who.m, 'LowCardinality(String)') AS meter, window AS quarter,
                        who.c AS customer,
                        arraySort(CAST(who.d, 'Array(Tuple(String, String))')) AS dimensions,
                        toDateTime(if(adjusts, intDiv(who.at, 900000) * 900, 0), 'UTC') AS adjusted,
                        sumIf(toInt128(granted), type IN ({USAGE_TYPES}) AND NOT adjusts)
                            AS quantity,
                        sumIf(count, type IN ({USAGE_TYPES}) AND NOT adjusts) AS events,
                        sumIf(toInt128(overage), type IN ({USAGE_TYPES}) AND NOT adjusts)
                            AS overage_,
                        sumIf(toInt128(raw.quantity), type = {DENIAL}) AS denied_quantity,
                        toUInt64(sumIf(count, type = {DENIAL})) AS denied_events,
                        sumIf(toInt128(granted), adjusts) AS adjustment,
                        sumIf(toInt128(granted), type = {UNACCOUNTED}) AS unaccounted
                    FROM raw FINAL
                    WHERE ({covers(manifest.ranges)}) AND type IN ({USAGE_TYPES}, {DENIAL}, {UNACCOUNTED})
                        AND flaw = ''
                    GROUP BY tenant, account, meter, quarter, customer, dimensions, adjusted
                ) AS sums
                {EACH_GRAIN}
                GROUP BY tenant, grain, meter, window, customer, account, dimensions, adjusted
                UNION ALL
                SELECT CAST('', 'LowCardinality(String)'), toUInt8(0),
                    CAST('', 'LowCardinality(String)'), toDateTime(0, 'UTC'),
                    toString(arrayJoin({buckets_of(manifest)})), '',
                    CAST([], 'Array(Tuple(String, String))'), toDateTime(0, 'UTC'), toInt128(0),
                    toInt64(0), toInt128(0), toInt128(0), toUInt64(0), toInt128(0),
                    toInt128(0), toUInt64({manifest.number:d})
            """,  # noqa: S608
        )

    async def add_ledger(self, manifest: Manifest) -> None:
        marker = f"limit = 0 AND period = 0 AND bucket = {manifest.ranges[0].bucket:d}"
        buckets = sorted({part.bucket for part in manifest.ranges})
        await add_once(
            self._writer,
            manifest,
            "ledger",
            "bucket, limit, period, used, held, manifest",
            marker,
            f"""
                SELECT bucket, toInt64(e.1) AS limit, toInt64(e.2) AS period,
                    sum(toInt64(e.3)) AS used, sum(toInt64(e.4)) AS held,
                    toUInt64({manifest.number:d}) AS manifest
                FROM ({effects_of(covers(manifest.ranges))}) WHERE e.1 != 0
                GROUP BY bucket, limit, period
                UNION ALL
                SELECT toUInt32(arrayJoin({buckets})), toInt64(0), toInt64(0), toInt64(0), toInt64(0),
                    toUInt64({manifest.number:d})
            """,  # noqa: S608
        )


def entry_of(
    generation: int, seq: int, body: str | bytes, effects: Sequence[float], rest: str | bytes
) -> Entry:
    """A row of raw as it lay in the log."""
    packed = struct.pack(f"<{len(effects)}d", *effects) if effects else _bytes(rest)
    return Entry(generation, seq, _bytes(body), packed)


def _bytes(text: str | bytes) -> bytes:
    """What is no UTF-8 comes as the hexadecimal digits that the driver makes of it."""
    return text.encode() if isinstance(text, str) else text


def effects_of(condition: str) -> str:
    """A query of (bucket, e) with e = (limit, period, used, held), for every effect in raw."""
    return (
        "SELECT bucket, arrayJoin(arrayMap(i -> (effects[10 + 4 * i], effects[11 + 4 * i],"  # noqa: S608
        " effects[12 + 4 * i], effects[13 + 4 * i]), range(intDiv(length(effects) - 9, 4)))) AS e"
        f" FROM raw FINAL WHERE ({condition}) AND flaw = '' AND length(effects) > 9"
        # What a repair changed brought the counters to the ledger; with a quantity, the ledger to the leases.
        f" AND (type != {RecordType.REPAIR:d} OR effects[8] = 1)"
    )
