"""Answers questions about usage from the rollup: checks them, cuts windows, turns pages."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from bisect import bisect_right
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import msgspec

from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.windows import QUARTER, Window, boundaries, zone
from meter.errors import InvalidRequestError, ReportOverflowError
from meter.ports.usage import Key  # noqa: TC001  # msgspec reads annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meter.ports.usage import Row, Scope, UsageReader, Values

__all__ = ["Page", "Reports", "UsageLine", "UsageQuery"]

MAX_PAGE, DEFAULT_PAGE = 10_000, 1_000
MAX_GROUPS = 4
MAX_FILTERS = 16
MAX_VALUES = 1_000
MAX_CUSTOMERS = 100_000
MAX_WINDOWS = 100_000
MAX_NAME = 1_024
"""Bytes of a name or value."""
END_OF_TIME = 2**32 - QUARTER
INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A question as asked. Times in seconds since 1970; None: from the first record, until now."""

    scope: Scope
    window: Window = Window.WHOLE
    zone: str = ""
    start: int | None = None
    end: int | None = None
    page_size: int = 0
    page_token: str = ""
    aggregations: tuple[MeterAggregation, ...] = ()
    """Of the meters that do not sum."""


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


class _Token(msgspec.Struct, array_like=True):
    """Where a page ended, in which range. Bound to the query by its digest."""

    query: str
    start: int
    end: int
    key: Key


class Reports:
    """Answers for one tenant at a time; the tenant comes from the caller's identity, never from a query.

    `fresh_until` gives the moment up to which all records are counted in; `secret` seals page tokens.
    """

    def __init__(
        self,
        reader: UsageReader,
        fresh_until: Callable[[], int | None],
        secret: bytes,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reader, self._fresh_until, self._now = reader, fresh_until, now
        self._secret = hashlib.sha256(b"page tokens\0" + secret).digest()

    async def query(self, query: UsageQuery) -> Page:
        """Answer one page.

        Raise `InvalidRequestError` with the reason of what is wrong, `ReportOverflowError` when a sum
        exceeds 2^63 - 1, `WarehouseUnavailableError` when there is no answer now.
        """
        _check(query)
        fresh = self._fresh_until()
        size = query.page_size or DEFAULT_PAGE
        token = self._open(query) if query.page_token else None
        start = token.start if token else query.start
        end = token.end if token else query.end
        if start is None:
            start = await self._reader.first(query.scope)
        if end is None:
            end = int(self._now())
        if start is None or start >= end:
            return Page([], "", 0, fresh)
        starts = _starts(query, start, end)
        after = token.key if token else None
        rows, total = await self._reader.rows(query.scope, start, end, starts, after, size + 1)
        _check_sums(rows, total)
        following = ""
        if len(rows) > size:
            rows = rows[:size]
            following = self._seal(_Token(_digest(query), start, end, rows[-1].key))
        lines = await self._aggregated(query, start, end, starts, rows)
        return Page(lines, following, total, fresh)

    async def _aggregated(
        self,
        query: UsageQuery,
        start: int,
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
            found = await self._reader.values(query.scope, start, end, starts, between, distinct)
        lines = []
        for row in rows:
            way = ways[row.key.meter].aggregation if row.key.meter in ways else Aggregation.SUM
            value = _value(way, row, found.get(row.key))
            ends = _end(row.key.start, starts, end)
            lines.append(UsageLine(row.key.start, ends, row, way, value))
        return lines

    def _seal(self, token: _Token) -> str:
        data = msgspec.msgpack.encode(token)
        return base64.urlsafe_b64encode(self._mac(data) + data).decode()

    def _open(self, query: UsageQuery) -> _Token:
        try:
            sealed = base64.urlsafe_b64decode(query.page_token.encode())
        except ValueError:
            sealed = b""
        data = sealed[16:]
        if not hmac.compare_digest(sealed[:16], self._mac(data)):
            raise InvalidRequestError("PAGE_TOKEN_INVALID", "page_token is none of ours")
        token = msgspec.msgpack.decode(data, type=_Token)
        if token.query != _digest(query):
            raise InvalidRequestError(
                "PAGE_TOKEN_INVALID",
                "page_token belongs to another query: only page_size may differ",
            )
        return token

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")[:16]


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


def _digest(query: UsageQuery) -> str:
    """What a page token is bound to: everything of the query but the page."""
    data = msgspec.json.encode(
        [
            *(astuple(query.scope), query.window.name, query.zone, query.start, query.end),
            query.aggregations,
        ]
    )
    return hashlib.sha256(data).hexdigest()[:32]


def _starts(query: UsageQuery, start: int, end: int) -> Sequence[int] | None:
    if query.window is Window.QUARTER_HOUR:
        return None
    try:
        local = zone(query.zone)
        return boundaries(start, end, query.window, local, MAX_WINDOWS)
    except ValueError as error:
        raise InvalidRequestError("TOO_MANY_WINDOWS", f"window: {error}") from error


def _end(start: int, starts: Sequence[int] | None, end: int) -> int:
    if starts is None:
        return min(start + QUARTER, end)
    at = bisect_right(starts, start)
    return starts[at] if at < len(starts) else end


def _check_sums(rows: Sequence[Row], total: int) -> None:
    for number in (total, *(number for row in rows for number in row[1:])):
        if number > INT64:
            raise ReportOverflowError(
                "a sum is beyond 2^63 - 1: ask for smaller windows or fewer customers"
            )


def _check(query: UsageQuery) -> None:
    """Raise `InvalidRequestError` with the reason of the first fault found."""
    _check_range(query)
    if not 0 <= query.page_size <= MAX_PAGE:
        raise InvalidRequestError("PAGE_SIZE_INVALID", f"page_size must be 1 to {MAX_PAGE}")
    try:
        zone(query.zone)
    except ValueError as error:
        raise InvalidRequestError("ZONE_UNKNOWN", f"zone: {error}", zone=query.zone) from error
    _check_scope(query.scope)
    _check_aggregations(query.aggregations)


def _check_range(query: UsageQuery) -> None:
    for name, value in (("start", query.start), ("end", query.end)):
        if value is None:
            continue
        if value % QUARTER:
            raise InvalidRequestError(
                "TIME_OFF_QUARTER_HOUR", f"{name} must be on a quarter hour", field=name
            )
        if not 0 <= value <= END_OF_TIME:
            raise InvalidRequestError(
                "TIME_OUT_OF_RANGE", f"{name} must be in the years 1970 to 2106", field=name
            )
    if query.start is not None and query.end is not None and query.start >= query.end:
        raise InvalidRequestError("RANGE_EMPTY", "start must be before end")


def _check_scope(scope: Scope) -> None:
    if len(scope.group_by) > MAX_GROUPS:
        raise InvalidRequestError("TOO_MANY_DIMENSIONS", f"group_by: at most {MAX_GROUPS}")
    if len(set(scope.group_by)) != len(scope.group_by):
        raise InvalidRequestError("DIMENSION_REPEATED", "group_by names a dimension twice")
    if len(scope.filters) > MAX_FILTERS:
        raise InvalidRequestError("TOO_MANY_FILTERS", f"filters: at most {MAX_FILTERS}")
    if len(scope.customers) > MAX_CUSTOMERS:
        raise InvalidRequestError("TOO_MANY_CUSTOMERS", f"customers: at most {MAX_CUSTOMERS}")
    for dimension, values in scope.filters:
        if not 0 < len(values) <= MAX_VALUES:
            raise InvalidRequestError(
                "FILTER_VALUES_INVALID", f"filters: 1 to {MAX_VALUES} values", dimension=dimension
            )
    names = (*scope.group_by, *(name for name, _ in scope.filters), *scope.customers)
    if not all(names):
        raise InvalidRequestError("NAME_EMPTY", "customers and dimensions need names")
    texts = (scope.meter, *names, *(value for _, values in scope.filters for value in values))
    if any(len(text) > MAX_NAME or "\0" in text for text in texts):
        raise InvalidRequestError(
            "NAME_INVALID", f"names and values have at most {MAX_NAME} characters and no NUL"
        )


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
