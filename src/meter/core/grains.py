"""Which of the rollup's rows add up to a range: whole months, days and hours of UTC, quarter hours at the edges.

Pure. The rollup keeps each sum and value four times, by quarter hour, hour, day and month; a report reads every
instant of its range from exactly one of them, and no row reaches over an edge of its windows. So the windows
of a zone whose days begin on full hours of UTC are read by hours and days, those of others by quarter hours
at their edges too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from meter.core.windows import QUARTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MOST_SPANS", "Grain", "Span", "spans"]

_HOUR, _DAY = 3600, 86_400

MOST_SPANS = 400
"""A question with more would cost more to read than the rows that it saves."""


class Grain(IntEnum):
    """The width of a row of the rollup, as its tables have it. All begin in UTC."""

    QUARTER = 0
    HOUR = 1
    DAY = 2
    MONTH = 3


_WIDTH = {Grain.QUARTER: QUARTER, Grain.HOUR: _HOUR, Grain.DAY: _DAY}


class Span(NamedTuple):
    """Rows of one grain that begin in `[start, end)`, all of which end there too."""

    grain: Grain
    start: int
    end: int


def spans(starts: Sequence[int], end: int) -> list[Span]:
    """Return the spans of the windows that begin at `starts`, the last of which ends at `end`, in order.

    They part `[starts[0], end)`. Edges are on quarter hours, and none lies inside of a row; the end may
    lie inside of a quarter hour. With more than `MOST_SPANS` the inner edges decide for one grain in between:
    hours where they are on full hours, else quarter hours.
    """
    found: list[Span] = []
    for start, until in pairwise([*starts, end]):
        for span in _parts(Grain.MONTH, start, until):
            if found and found[-1].grain is span.grain:
                found[-1] = found[-1]._replace(end=span.end)
            else:
                found.append(span)
        if len(found) > MOST_SPANS:
            grain = Grain.QUARTER if any(at % _HOUR for at in starts[1:]) else Grain.HOUR
            return list(_parts(grain, starts[0], end))
    return found


def _parts(grain: Grain, start: int, end: int) -> Iterator[Span]:
    """The spans of `[start, end)` with rows of this grain and finer ones."""
    if grain is Grain.QUARTER:
        yield Span(grain, start, end)
        return
    finer = Grain(grain - 1)
    if end - start < _WIDTH.get(grain, 28 * _DAY):
        yield from _parts(finer, start, end)
        return
    first, last = _ceiling(grain, start), _floor(grain, end)
    if first >= last:
        yield from _parts(finer, start, end)
        return
    if start < first:
        yield from _parts(finer, start, first)
    yield Span(grain, first, last)
    if last < end:
        yield from _parts(finer, last, end)


def _floor(grain: Grain, at: int) -> int:
    if grain is Grain.MONTH:
        day = datetime.fromtimestamp(at, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
    return at - at % _WIDTH[grain]


def _ceiling(grain: Grain, at: int) -> int:
    floor = _floor(grain, at)
    if floor == at:
        return at
    # No month has more than 31 days; the 15th of the following one at the latest.
    return _floor(grain, floor + 32 * _DAY) if grain is Grain.MONTH else floor + _WIDTH[grain]
