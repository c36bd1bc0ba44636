"""Answers questions about usage from the rollup: checks them, cuts windows, turns pages."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.windows import QUARTER, Window
from meter.errors import InvalidRequestError
from meter.ports.usage import Key
from meter.questions import (
    DEFAULT_PAGE,
    MAX_NAME,
    Pages,
    Question,
    check,
    check_sums,
    starts_of,
    window_end,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meter.ports.usage import Row, SetAside, UsageReader, Values

__all__ = ["Page", "Reports", "UsageLine", "UsageQuery"]

MAX_WINDOWS = 100_000
MOST_SET_ASIDE = 1_000


@dataclass(frozen=True, slots=True)
class UsageQuery(Question):
    """About usage; `aggregations` are those of the meters that do not sum."""

    aggregations: tuple[MeterAggregation, ...] = ()

    @property
    def more(self) -> tuple[object, ...]:
        """See `Question`."""
        return self.aggregations


@dataclass(frozen=True, slots=True)
class UsageLine:
    """A row of the answer: its window `[start, end)`, cut at the ends of the range.

    `value` is what the meter's `aggregation` makes of the row's events; None without any.
    """

    start: int
    end: int
    row: Row
    aggregation: Aggregation
    value: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the answer; `total` is the quantity over all pages."""

    lines: Sequence[UsageLine]
    next_page_token: str
    total: int
    fresh_until_ms: int | None


class Reports:
    """Answers for one tenant at a time; the tenant comes from the caller's identity, never from a query.

    `fresh_until` gives the moment up to which all records are counted in; `secret` seals page tokens.
    """

    def __init__(
        self,
        reader: UsageReader,
        fresh_until: Callable[[], Awaitable[int | None]],
        secret: bytes,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reader, self._fresh_until, self._now = reader, fresh_until, now
        self._pages = Pages(secret, Key)

    async def query(self, query: UsageQuery) -> Page:
        """Answer one page.

        Raise `InvalidRequestError` with the reason of what is wrong, `ReportOverflowError` when a sum
        exceeds 2^63 - 1, `WarehouseUnavailableError` when there is no answer now.
        """
        check(query)
        _check_aggregations(query.aggregations)
        fresh = await self._fresh_until()
        size = query.page_size or DEFAULT_PAGE
        token = self._pages.open(query)
        start = token.start if token else query.start
        end = token.end if token else query.end
        if start is None:
            start = await self._reader.first(query.scope)
        if end is None:
            end = int(self._now())
        if start is None or start >= end:
            return Page([], "", 0, fresh)
        starts = None
        if query.window is not Window.QUARTER_HOUR:
            starts = starts_of(query, start, end, MAX_WINDOWS)
        after = token.key if token else None
        rows, total = await self._reader.rows(query.scope, start, end, starts, after, size + 1)
        check_sums((total, *(number for row in rows for number in row[1:])))
        following = ""
        if len(rows) > size:
            rows = rows[:size]
            following = self._pages.seal(query, start, end, rows[-1].key)
        lines = await self._aggregated(query, end, starts, rows)
        return Page(lines, following, total, fresh)

    async def set_aside(
        self, tenant: str, page_size: int, token: str
    ) -> tuple[Sequence[SetAside], str]:
        """Records that were put aside, and the token of the next page."""
        size = page_size or DEFAULT_PAGE
        place = re.fullmatch(r"(\d{1,10})-(\d{1,15})-(\d{1,18})", token)
        if not 0 < size <= MOST_SET_ASIDE or (token and place is None):
            raise InvalidRequestError(
                "BAD_PAGE", f"page_size is 1 to {MOST_SET_ASIDE}, page_token is of this list"
            )
        after = (int(place[1]), int(place[2]), int(place[3])) if place else (0, 0, -1)
        found = await self._reader.set_aside(tenant, after, size)
        if len(found) < size:
            return found, ""
        last = found[-1]
        return found, f"{last.bucket}-{last.generation}-{last.sequence}"

    async def _aggregated(
        self,
        query: UsageQuery,
        end: int,
        starts: Sequence[int] | None,
        rows: Sequence[Row],
    ) -> Sequence[UsageLine]:
        """Add to each row what its meter's aggregation makes of it; asks once more where sums do not tell."""
        ways = {way.meter: way for way in query.aggregations}
        found: Mapping[Key, Values] = {}
        if any(_needs_values(ways, row) for row in rows):
            distinct = {name: way.dimension for name, way in ways.items() if way.dimension}
            between = rows[0].key, rows[-1].key
            # Only the windows of the page: it costs what it shows.
            first, last = (key.start for key in between)
            inside = None if starts is None else [at for at in starts if first <= at <= last]
            until = _end(last, starts, end)
            found = await self._reader.values(query.scope, first, until, inside, between, distinct)
        lines = []
        for row in rows:
            way = ways[row.key.meter].aggregation if row.key.meter in ways else Aggregation.SUM
            value = _value(way, row, found.get(row.key))
            ends = _end(row.key.start, starts, end)
            lines.append(UsageLine(row.key.start, ends, row, way, value))
        return lines


_FROM_SUMS = (Aggregation.SUM, Aggregation.COUNT)


def _needs_values(ways: Mapping[str, MeterAggregation], row: Row) -> bool:
    return row.key.meter in ways and ways[row.key.meter].aggregation not in _FROM_SUMS


def _value(way: Aggregation, row: Row, values: Values | None) -> int | None:
    if way is Aggregation.COUNT:
        return row.events
    if way is Aggregation.SUM:
        return row.quantity
    if values is None:
        return 0 if way is Aggregation.UNIQUE else None
    return {
        Aggregation.MIN: values.least,
        Aggregation.MAX: values.greatest,
        Aggregation.LATEST: values.latest,
        Aggregation.UNIQUE: values.unique,
    }[way]


def _end(start: int, starts: Sequence[int] | None, end: int) -> int:
    if starts is None:
        return min(start + QUARTER, end)
    return window_end(start, starts, end)


def _check_aggregations(ways: Sequence[MeterAggregation]) -> None:
    if len({way.meter for way in ways}) != len(ways):
        raise InvalidRequestError("AGGREGATION_REPEATED", "aggregations name a meter twice")
    for way in ways:
        if not way.meter or any(len(text) > MAX_NAME or "\0" in text for text in way):
            raise InvalidRequestError(
                "NAME_INVALID", f"meters and dimensions have 1 to {MAX_NAME} characters and no NUL"
            )
        if bool(way.dimension) != (way.aggregation is Aggregation.UNIQUE):
            raise InvalidRequestError(
                "AGGREGATION_INVALID",
                "aggregations: a dimension is needed for unique, and for nothing else",
                meter=way.meter,
            )
