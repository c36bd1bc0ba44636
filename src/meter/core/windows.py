"""Windows of reports: quarter hours, hours, days and months of a named zone, as seconds since 1970.

Pure. The boundaries of a range are what its rows are summed between: half-open, without holes or
overlaps, also where clocks change:

- an hour ends where the local clock next shows a full hour, so that a change by half an hour makes
  one window shorter;
- a day begins at the first instant that bears its date. It has 23 to 25 hours around a change; a date
  that a zone skipped has no window;
- the first and the last window are cut at the ends of the range.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["QUARTER", "Window", "boundaries", "zone"]

QUARTER = 900
"""Seconds in the base window of the rollup."""

_HOUR = 3600
_LONGEST_CHANGE = 24 * _HOUR


class Window(Enum):
    """The width of a report's rows."""

    WHOLE = auto()
    QUARTER_HOUR = auto()
    HOUR = auto()
    DAY = auto()
    MONTH = auto()


def zone(name: str) -> ZoneInfo:
    """Return the zone of an IANA name; '' is UTC. Raise `ValueError` for what is none."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no IANA time zone") from error


def boundaries(start: int, end: int, window: Window, local: ZoneInfo, most: int) -> list[int]:
    """Return where the windows of `[start, end)` begin, `start` first. Seconds since 1970.

    Raise `ValueError` when there would be more than `most`, or when the zone's clock stood off the
    quarter hour, where the rollup's windows cannot be cut.
    """
    out = [start]
    if window is Window.WHOLE:
        return out
    for boundary in _from(start, window, local):
        if boundary >= end:
            return out
        if boundary % QUARTER:
            raise ValueError(f"{local.key} was off the quarter hour in this range")
        if boundary > out[-1]:
            out.append(boundary)
        if len(out) > most:
            raise ValueError(f"more than {most} windows")
    return out


def _from(start: int, window: Window, local: ZoneInfo) -> Iterator[int]:
    """Endless boundaries after `start`."""
    if window is Window.QUARTER_HOUR:
        return _steps(start, lambda at: at - at % QUARTER + QUARTER)
    if window is Window.HOUR:
        return _steps(start, lambda at: _next_hour(at, local))
    months = window is Window.MONTH
    return _dates(datetime.fromtimestamp(start, local).date(), local, months=months)


def _steps(at: int, following: Callable[[int], int]) -> Iterator[int]:
    while True:
        at = following(at)
        yield at


def _next_hour(at: int, local: ZoneInfo) -> int:
    shown = datetime.fromtimestamp(at, local)
    return at + _HOUR - (shown.minute * 60 + shown.second)


def _dates(first: date, local: ZoneInfo, *, months: bool) -> Iterator[int]:
    day = first
    while True:
        day = _next_month(day) if months else day + timedelta(days=1)
        yield _beginning(day, local)


def _next_month(day: date) -> date:
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def _beginning(day: date, local: ZoneInfo) -> int:
    """The first instant whose local date is `day` or later, having been earlier."""
    guess = int(datetime.combine(day, time(), local).timestamp())
    # A midnight that the clock jumped over: the day begins where it jumped.
    for earlier in range(guess - QUARTER, guess - _LONGEST_CHANGE, -QUARTER):
        if datetime.fromtimestamp(earlier, local).date() < day:
            break
        guess = earlier
    return guess
