"""The four grains of a window in statements: a slice is added to each, a report reads each instant from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.core.grains import Grain, Span, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter.adapters.clickhouse.client import ClickHouse

__all__ = ["EACH_GRAIN", "beginning_of", "grain_difference", "within"]

FEW = 5
"""Spans that are a condition each."""
DAY = 86_400


def beginning_of(grain: Grain, window: str) -> str:
    """Where the row of this grain begins that has the quarter hour `window`, as a DateTime."""
    return {
        Grain.QUARTER: window,
        Grain.HOUR: f"toStartOfHour({window}, 'UTC')",
        Grain.DAY: f"toDateTime(toStartOfDay({window}, 'UTC'), 'UTC')",
        Grain.MONTH: f"toDateTime(toStartOfMonth({window}, 'UTC'), 'UTC')",
    }[grain]


EACH_GRAIN = (
    "ARRAY JOIN ["
    + ", ".join(f"(toUInt8({grain:d}), {beginning_of(grain, 'quarter')})" for grain in Grain)
    + "] AS step"
)
"""Makes of a row with a `quarter` one for each grain: `step` is the grain and where its window begins."""


def within(starts: Sequence[int] | None, start: int, end: int) -> str:
    """A condition on grain and window: few rows that make up `[start, end)`, with edges at `starts`.

    None: quarter hours. Numbers only: nothing of a user's is in it.
    """
    found = [Span(Grain.QUARTER, start, end)] if starts is None else spans(starts, end)
    if len(found) <= FEW:
        return f"({' OR '.join(map(_between, found))})"
    # A range for each grain, the edges by their days: what the key answers. Then each instant from its own grain. A
    # range for each span took the planner 20 ms for a year of months.
    parts = []
    for grain in sorted({span.grain for span in found}):
        own = [span for span in found if span.grain is grain]
        part = _between(Span(grain, own[0].start, own[-1].end))
        if grain < Grain.DAY and len(own) > 1:
            days = {day for span in own for day in range(span.start // DAY, -(-span.end // DAY))}
            touched = ", ".join(f"toDate({day:d})" for day in sorted(days))
            part = f"({part} AND toDate(window, 'UTC') IN ({touched}))"
        parts.append(part)
    edges = [span.start for span in found]
    grains = [int(span.grain) for span in found]
    whose = f"transform(roundDown(toUInt32(window), {edges}), {edges}, {grains}, 255)"
    return f"(({' OR '.join(parts)}) AND grain = {whose})"


def _between(span: Span) -> str:
    return (
        f"(grain = {span.grain:d} AND window >= toDateTime({span.start:d}, 'UTC')"
        f" AND window < toDateTime({span.end:d}, 'UTC'))"
    )


_LEVELS = (
    "ARRAY JOIN arrayFilter(at -> at.1 BETWEEN 1 AND 3, [(toUInt8(grain), window, 1),"
    " (toUInt8(grain + 1), multiIf("
    + ", ".join(
        f"grain = {grain - 1:d}, {beginning_of(grain, 'window')}" for grain in list(Grain)[1:]
    )
    + ", window), 0)]) AS level"
)
"""Holds each coarse row (1) against the next finer ones (0) that lie in it."""


async def grain_difference(reader: ClickHouse, current: str) -> int:
    """How far hours, days and months are from the rows that they are made of; `current`: aggregates' rows that count.

    The quantity by which they differ, and 1 for a window or row that has it right but something else wrong.
    Whose the usage is counts through a weight, so that a window's sums are enough.
    """
    weight = "toInt128(cityHash64(customer, account, dimensions, adjusted) % 1000003 + 1)"
    mix = (
        "quantity + 3 * events + 5 * overage + 7 * denied_quantity + 11 * denied_events"
        " + 13 * adjustment + 17 * unaccounted"
    )
    sums = await reader.rows(
        f"""
        SELECT sum(if(amount != 0, abs(amount), mixed != 0)) FROM (
            SELECT sum(if(level.3 = 1, 1, -1) * (quantity + adjustment)) AS amount,
                sum(if(level.3 = 1, 1, -1) * {weight} * ({mix})) AS mixed
            FROM usage {_LEVELS} WHERE tenant != ''
            GROUP BY tenant, level.1, usage.meter, level.2
        )
        """  # noqa: S608
    )
    values = await reader.rows(
        f"""
        SELECT count() FROM (
            SELECT tenant FROM aggregates {_LEVELS} WHERE tenant != '' AND {current}
            GROUP BY tenant, level.1, aggregates.meter, level.2, customer, account, dimensions
            HAVING {_of_side(1)} != {_of_side(0)}
        )
        """  # noqa: S608
    )
    return int(sums[0][0] or 0) + int(values[0][0])


def _of_side(side: int) -> str:
    own = f"level.3 = {side:d}"
    return (
        f"(countIf({own}) > 0, minIf(least, {own}), maxIf(greatest, {own}), maxIf(latest, {own}))"
    )
