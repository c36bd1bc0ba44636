"""Least, greatest, latest and distinct values by window: what no difference corrects, in ClickHouse.

A window that a correction concerns is worked out anew from raw, under a higher revision (the number of
the manifest that has the correction). Its rows are written first, the revision second: until then the
earlier rows count, from then on only the new ones. Rows of one revision may be written twice, since
neither a least, greatest or latest value nor a set changes by it. So a crash at any instant is mended by
doing it again. Later slices add at the window's revision of that time; the rollup of a bucket does one
thing after the other, and a window's records are all of one bucket.

Its hour, day and month are then made of the next finer windows, not of raw: a month of raw need not be
there. All four get the revision at the same instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.adapters.clickhouse.grains import EACH_GRAIN, beginning_of, within
from meter.adapters.clickhouse.retention import Retention
from meter.adapters.clickhouse.scope import beginning, chosen, key_of, split
from meter.adapters.clickhouse.slices import (
    ONE_BLOCK,
    add_once,
    buckets_of,
    clause,
    covers,
    upto,
    window_marker,
)
from meter.core.grains import Grain
from meter.core.records import RecordType
from meter.core.sequence import Position
from meter.errors import RawExpiredError
from meter.ports.usage import Key, Values
from meter.ports.warehouse import WindowKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meter.adapters.clickhouse.client import ClickHouse
    from meter.ports.marks import Manifest
    from meter.ports.usage import Scope

__all__ = ["VALUES", "AggregateReader", "Aggregates", "current_of"]

VALUES = (
    f"{RecordType.USAGE:d}, {RecordType.COMMIT:d}, {RecordType.BACKFILL:d},"
    f" {RecordType.ALLOWANCE_USE:d}"
)
"""Records that are events with a value of their own."""
CORRECTIONS = f"{RecordType.VOID:d}, {RecordType.AMEND:d}"

_DIMENSIONS = "arraySort(CAST(who.d, 'Array(Tuple(String, String))'))"
_COLUMNS = (
    "tenant, grain, meter, window, customer, account, revision, dimensions, least, greatest, latest"
)
_LATEST = "Tuple(Int64, UInt32, UInt64, UInt64, Int64)"

_REPEATABLE = clause(ONE_BLOCK | {"insert_deduplicate": 0, "deduplicate_insert_select": "disable"})
"""Rows that may be there twice: no token is needed."""


class Aggregates(Retention):
    """Part of the warehouse. See its port for what each method promises."""

    async def kinds(self, manifest: Manifest) -> frozenset[RecordType]:
        rows = await self._writer.rows(
            f"SELECT DISTINCT type FROM raw WHERE ({covers(manifest.ranges)}) AND flaw = ''"  # noqa: S608
        )
        return frozenset(RecordType(row[0]) for row in rows)

    async def add_aggregates(self, manifest: Manifest) -> None:
        revision, revisions = "toUInt64(0)", ""
        if await self._writer.rows("SELECT 1 FROM revisions LIMIT 1"):
            revision = "newest.revision"
            revisions = (
                " LEFT JOIN (SELECT tenant, grain, account, meter, window, max(revision) AS revision"
                " FROM revisions GROUP BY tenant, grain, account, meter, window) AS newest"
                " USING (tenant, grain, account, meter, window)"
            )
        await add_once(
            self._writer,
            manifest,
            "aggregates",
            f"{_COLUMNS}, manifest",
            window_marker(manifest),
            f"""
                SELECT tenant, grain, meter, window, customer, account, {revision} AS revision,
                    dimensions, least, greatest, latest, toUInt64({manifest.number:d}) AS manifest
                FROM (
                    SELECT tenant, step.1 AS grain, meter, step.2 AS window, customer, account,
                        dimensions, min(least) AS least, max(greatest) AS greatest,
                        max(latest) AS latest
                    FROM (
                        SELECT CAST(who.t, 'LowCardinality(String)') AS tenant, who.a AS account,
                            CAST(who.m, 'LowCardinality(String)') AS meter, window AS quarter,
                            who.c AS customer, {_DIMENSIONS} AS dimensions, min(granted) AS least,
                            max(granted) AS greatest,
                            max((happened, bucket, generation, seq, granted)) AS latest
                        FROM raw FINAL
                        WHERE ({covers(manifest.ranges)}) AND type IN ({VALUES}) AND flaw = ''
                            AND NOT adjusts
                        GROUP BY tenant, account, meter, quarter, customer, dimensions
                    ) AS values
                    {EACH_GRAIN}
                    GROUP BY tenant, grain, meter, window, customer, account, dimensions
                ) AS slice{revisions}
                UNION ALL
                SELECT CAST('', 'LowCardinality(String)'), toUInt8(0),
                    CAST('', 'LowCardinality(String)'), toDateTime(0, 'UTC'),
                    toString(arrayJoin({buckets_of(manifest)})), '', toUInt64(0),
                    CAST([], 'Array(Tuple(String, String))'), toInt64(0), toInt64(0),
                    CAST((0, 0, 0, 0, 0), '{_LATEST}'), toUInt64({manifest.number:d})
            """,  # noqa: S608
        )

    async def corrected(self, manifest: Manifest) -> Sequence[WindowKey]:
        rows = await self._writer.rows(
            "SELECT DISTINCT who.t, who.a, who.m, toUInt32(window) AS start FROM raw"  # noqa: S608
            f" WHERE ({covers(manifest.ranges)}) AND type IN ({CORRECTIONS}) AND flaw = ''"
            " AND NOT adjusts ORDER BY ALL"
        )
        return [WindowKey(*row) for row in rows]

    async def recompute(self, manifest: Manifest, windows: Sequence[WindowKey]) -> None:
        if not windows:
            return
        since = await self.retained_since()
        if expired := [window for window in windows if window.start < since]:
            raise RawExpiredError(
                f"{len(expired)} windows begin before {since}: raw has not all their records any more"
            )
        ends: dict[int, Position] = {}
        for part in manifest.ranges:
            end = Position(part.generation, part.last - 1)
            ends[part.bucket] = max(ends.get(part.bucket, end), end)
        for grain in Grain:
            if grain is Grain.QUARTER:
                rows = _recomputed(manifest.number, upto(ends))
            else:
                rows = _folded(manifest.number, grain)
            await self._writer.command(
                f"INSERT INTO aggregates ({_COLUMNS}) {_REPEATABLE} {rows}",
                parameters=_bound(windows),
            )
        await self._writer.command(
            f"INSERT INTO revisions (tenant, grain, account, meter, window, revision) {_REPEATABLE}"  # noqa: S608
            f" SELECT tenant, step.1, account, meter, step.2, toUInt64({manifest.number:d})"
            f" FROM ({_ASKED}) {EACH_GRAIN}",
            parameters=_bound(windows),
        )

    async def drop_replaced(self) -> None:
        window = "tenant, grain, account, meter, window"
        newest = f"SELECT {window}, max(revision) AS newest FROM revisions GROUP BY {window}"  # noqa: S608
        replaced = (
            f"SELECT {window}, aggregates.revision FROM aggregates INNER JOIN ({newest}) AS counting"  # noqa: S608
            f" USING ({window}) WHERE (tenant, grain, aggregates.meter, window) IN"
            " (SELECT tenant, grain, meter, window FROM revisions) AND aggregates.revision < newest"
        )
        if await self._writer.rows(f"{replaced} LIMIT 1"):
            await self._writer.command(
                f"ALTER TABLE aggregates DELETE WHERE ({window}, revision) IN ({replaced})"
                # Replicas work the rows out for themselves: a later one deletes the same, or more of the same kind.
                " SETTINGS mutations_sync = 1, allow_nondeterministic_mutations = 1"
            )


class AggregateReader:
    """The reading side. See the port `UsageReader`."""

    def __init__(self, reader: ClickHouse) -> None:
        self._reader = reader

    async def values(
        self,
        scope: Scope,
        start: int,
        end: int,
        starts: Sequence[int] | None,
        between: tuple[Key, Key],
        distinct: Mapping[str, str],
    ) -> Mapping[Key, Values]:
        where, parameters = chosen(scope, "aggregates")
        parameters["start"] = start
        begin = beginning("window", starts, parameters)
        values = split(scope, parameters)
        first, last = (
            key_of(name, key, parameters)
            for name, key in zip(("first", "last"), between, strict=True)
        )
        unique = "toUInt64(0)"
        if distinct:
            parameters |= {"counted": list(distinct), "dimensions": list(distinct.values())}
            name = (
                "transform(toString(aggregates.meter), {counted:Array(String)},"
                " {dimensions:Array(String)}, '')"
            )
            unique = (
                f"uniqExactIf(arrayFirst(p -> p.1 = {name}, aggregates.dimensions).2,"
                f" arrayExists(p -> p.1 = {name}, aggregates.dimensions))"
            )
        among = within(starts, start, end)
        of_tenant = f"tenant = {{tenant:String}} AND {among}"
        current = "revision = 0"
        any_revised = f"SELECT 1 FROM revisions WHERE {of_tenant} LIMIT 1"  # noqa: S608
        if await self._reader.rows(any_revised, parameters):
            current = current_of(of_tenant)
        found = await self._reader.rows(
            f"""
            SELECT * FROM (
                SELECT {begin} AS begin, customer, toString(aggregates.meter) AS meter,
                    {values} AS values, min(least), max(greatest), max(latest).5, {unique}
                FROM aggregates
                WHERE {where} AND {among} AND {current}
                GROUP BY begin, customer, meter, values
            )
            WHERE (begin, customer, meter, values) >= {first}
                AND (begin, customer, meter, values) <= {last}
            """,  # noqa: S608
            parameters,
        )
        return {
            Key(row[0], row[1], row[2], tuple(row[3])): Values(*map(int, row[4:8])) for row in found
        }


def current_of(of: str) -> str:
    """A condition on aggregates: rows that count. `of` narrows down which revisions are looked at."""
    window = "grain, account, meter, window"
    of_row = "grain, account, aggregates.meter, window"
    return (
        f"(({of_row}, revision) IN (SELECT {window}, max(revision) FROM revisions WHERE {of} GROUP BY {window})"  # noqa: S608
        f" OR (revision = 0 AND ({of_row}) NOT IN (SELECT {window} FROM revisions WHERE {of})))"
    )


_WINDOWS = (
    "arrayZip({tenants:Array(String)}, {accounts:Array(String)}, {meters:Array(String)},"
    " {starts:Array(UInt32)})"
)


_ASKED = (
    "SELECT w.1 AS tenant, w.2 AS account, w.3 AS meter, toDateTime(w.4, 'UTC') AS quarter"  # noqa: S608
    f" FROM (SELECT arrayJoin({_WINDOWS}) AS w)"
)
"""The windows of `_bound`, as rows."""


def _bound(windows: Sequence[WindowKey]) -> dict[str, list[str] | list[int]]:
    return {
        "tenants": [window.tenant for window in windows],
        "accounts": [window.account for window in windows],
        "meters": [window.meter for window in windows],
        "starts": [window.start for window in windows],
    }


def _recomputed(revision: int, place: str) -> str:
    """A query of the windows' rows from raw: of each record its newest version, if it is not void."""
    chosen = (
        f"({place}) AND flaw = '' AND NOT adjusts"
        " AND window IN (SELECT toDateTime(arrayJoin({starts:Array(UInt32)}), 'UTC'))"
        f" AND (who.t, who.a, who.m, toUInt32(window)) IN (SELECT arrayJoin({_WINDOWS}))"
    )
    return f"""
        SELECT CAST(t, 'LowCardinality(String)') AS tenant, toUInt8(0) AS grain,
            CAST(m, 'LowCardinality(String)') AS meter, window, c AS customer, a AS account,
            toUInt64({revision:d}) AS revision, dimensions, min(value) AS least,
            max(value) AS greatest, max((happened, bucket, generation, seq, value)) AS latest
        FROM (
            SELECT t, a, m, c, window, dimensions, happened, bucket, generation, seq,
                if(newest.version > 0, newest.amount, event.granted) AS value, newest.kind AS kind
            FROM (
                SELECT bucket, generation, seq, who.t AS t, who.a AS a, who.m AS m, who.c AS c, window,
                    {_DIMENSIONS} AS dimensions, happened, granted
                FROM raw FINAL WHERE {chosen} AND type IN ({VALUES})
            ) AS event
            LEFT JOIN (
                SELECT bucket, toUInt64(of[1]) AS generation, toUInt64(of[2]) AS seq,
                    max(number) AS version, argMax(quantity, number) AS amount,
                    argMax(type, number) AS kind
                FROM (
                    SELECT bucket, JSONExtract(body, 'of', 'Array(Int64)') AS of, quantity, type,
                        JSONExtractInt(body, 'v') AS number
                    FROM raw FINAL WHERE {chosen} AND type IN ({CORRECTIONS})
                ) GROUP BY bucket, generation, seq
            ) AS newest USING (bucket, generation, seq)
        )
        WHERE kind != {RecordType.VOID:d}
        GROUP BY t, a, m, window, c, dimensions
    """  # noqa: S608


def _folded(revision: int, grain: Grain) -> str:
    """A query of the rows of this grain that have the windows, from the next finer rows: those of this revision are there."""
    finer = Grain(grain - 1)
    coarse, fine = beginning_of(grain, "quarter"), beginning_of(finer, "quarter")
    own = f"SELECT DISTINCT tenant, account, meter, {fine} AS window FROM ({_ASKED})"  # noqa: S608
    inside = (
        f"grain = {finer:d} AND (tenant, account, meter, {beginning_of(grain, 'window')})"  # noqa: S608
        f" IN (SELECT tenant, account, meter, {coarse} FROM ({_ASKED}))"
    )
    newest = f"""
        SELECT tenant, account, meter, window, max(revision) AS revision FROM (
            SELECT tenant, account, meter, window, revision FROM revisions WHERE {inside}
            UNION ALL SELECT *, toUInt64({revision:d}) FROM ({own})
        ) GROUP BY tenant, account, meter, window
    """  # noqa: S608
    return f"""
        SELECT tenant, toUInt8({grain:d}) AS grain, meter, {beginning_of(grain, "fine")} AS window,
            customer, account, toUInt64({revision:d}) AS revision, dimensions, min(least),
            max(greatest), max(latest)
        FROM (
            SELECT tenant, meter, window AS fine, customer, account, aggregates.revision AS of,
                dimensions, least, greatest, latest
            FROM aggregates WHERE {inside}
        ) AS rows
        LEFT JOIN ({newest}) AS newest
            ON rows.tenant = newest.tenant AND rows.account = newest.account
            AND rows.meter = newest.meter AND rows.fine = newest.window
        WHERE rows.of = newest.revision
        GROUP BY tenant, meter, window, customer, account, dimensions
    """  # noqa: S608
