"""Answers questions about seats and denials over time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from meter.core.windows import QUARTER
from meter.ports.series import DenialKey, DenialRow, SeatGroup, SeatKey, SeatRow
from meter.questions import (
    DEFAULT_PAGE,
    Pages,
    Question,
    check,
    check_sums,
    starts_of,
    window_end,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meter.ports.series import SeriesReader

__all__ = ["DenialQuery", "Line", "SeatQuery", "Series", "SeriesPage"]

MAX_WINDOWS = 10_000

R = TypeVar("R", SeatRow, DenialRow)


@dataclass(frozen=True, slots=True)
class SeatQuery(Question):
    """About seats; `group`: whose are counted together."""

    group: SeatGroup = SeatGroup.CUSTOMER

    @property
    def more(self) -> tuple[object, ...]:
        """See `Question`."""
        return (self.group.name,)


@dataclass(frozen=True, slots=True)
class DenialQuery(Question):
    """About what was refused."""


@dataclass(frozen=True, slots=True)
class Line(Generic[R]):
    """A row of the answer: its window, in ms since 1970, cut at the ends of the range."""

    start_ms: int
    end_ms: int
    row: R


@dataclass(frozen=True, slots=True)
class SeriesPage(Generic[R]):
    """One page of the answer."""

    lines: Sequence[Line[R]]
    next_page_token: str
    fresh_until_ms: int | None


class Series:
    """As `Reports`: for one tenant at a time. Raises what that raises.

    What is not over is told as of the moment up to which all records are counted in, or else of now.
    """

    def __init__(
        self,
        reader: SeriesReader,
        fresh_until: Callable[[], Awaitable[int | None]],
        secret: bytes,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reader, self._fresh_until, self._now = reader, fresh_until, now
        self._seats, self._denials = Pages(secret, SeatKey), Pages(secret, DenialKey)

    async def seats(self, query: SeatQuery) -> SeriesPage[SeatRow]:
        """Answer one page: windows in which a seat was held, at least for a moment."""
        check(query)
        token = self._seats.open(query)
        start = token.start if token else query.start
        fresh = await self._fresh_until()
        if start is None:
            first = await self._reader.first_seat(query.scope)
            start = None if first is None else first // 1000 // QUARTER * QUARTER
        end_ms = token.end if token else self._end_ms(query, fresh)
        if start is None or start * 1000 >= end_ms:
            return SeriesPage([], "", fresh)
        starts = starts_of(query, start, -(-end_ms // 1000), MAX_WINDOWS)
        size = query.page_size or DEFAULT_PAGE
        rows = await self._reader.seats(
            query.scope, query.group, starts, end_ms, token.key if token else None, size + 1
        )
        check_sums(number for row in rows for number in row[1:])
        following = ""
        if len(rows) > size:
            rows = rows[:size]
            following = self._seats.seal(query, start, end_ms, rows[-1].key)
        return SeriesPage(_lines(rows, starts, end_ms), following, fresh)

    async def denials(self, query: DenialQuery) -> SeriesPage[DenialRow]:
        """Answer one page: windows in which something was refused."""
        check(query)
        token = self._denials.open(query)
        start = token.start if token else query.start
        fresh = await self._fresh_until()
        if start is None:
            start = await self._reader.first_denial(query.scope)
        end = query.end if query.end is not None else int(self._now())
        end_ms = token.end if token else end * 1000
        if start is None or start * 1000 >= end_ms:
            return SeriesPage([], "", fresh)
        starts = starts_of(query, start, end_ms // 1000, MAX_WINDOWS)
        size = query.page_size or DEFAULT_PAGE
        rows = await self._reader.denials(
            query.scope, starts, end_ms, token.key if token else None, size + 1
        )
        check_sums(number for row in rows for number in row[1:])
        following = ""
        if len(rows) > size:
            rows = rows[:size]
            following = self._denials.seal(query, start, end_ms, rows[-1].key)
        return SeriesPage(_lines(rows, starts, end_ms), following, fresh)

    def _end_ms(self, query: Question, fresh: int | None) -> int:
        known = int(self._now() * 1000) if fresh is None else fresh
        return known if query.end is None else min(query.end * 1000, known)


def _lines(rows: Sequence[R], starts: Sequence[int], end_ms: int) -> Sequence[Line[R]]:
    end = -(-end_ms // 1000)
    return [
        Line(
            row.key.start * 1000,
            min(window_end(row.key.start, starts, end) * 1000, end_ms),
            row,
        )
        for row in rows
    ]
