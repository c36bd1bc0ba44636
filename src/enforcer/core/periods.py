"""Periods: when a count starts afresh. Pure calendar arithmetic over milliseconds since 1970 UTC."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from enforcer.core.model import Period, PeriodUnit

__all__ = ["ROLLING_MS", "Span", "span_at"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

ROLLING_MS = {
    PeriodUnit.HOUR: HOUR_MS,
    PeriodUnit.DAY: DAY_MS,
    PeriodUnit.WEEK: 7 * DAY_MS,
    PeriodUnit.MONTH: 30 * DAY_MS,
    PeriodUnit.YEAR: 365 * DAY_MS,
}
"""How far back a rolling period reaches, in ms."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_MONTHS = {PeriodUnit.MONTH: 1, PeriodUnit.YEAR: 12}
_DAYS = {PeriodUnit.DAY: 1, PeriodUnit.WEEK: 7}
_MONDAY = date(1970, 1, 5)


class Span(NamedTuple):
    """One period `[start, end)` in ms (`end` None: never) and its number, consecutive within one `Period`."""

    start: int
    end: int | None
    ordinal: int


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def _at(day: date, clock: time, zone: ZoneInfo) -> int:
    """The instant of a local time.

    One that is there twice is the first; one that a clock change skips is taken by the clock before the change
    (RFC 5545): a skipped 02:30 is 03:30, a skipped midnight the instant of the change.
    """
    return _to_ms(datetime.combine(day, clock, zone).astimezone(UTC))


def _plus_months(day: date, months: int) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


@lru_cache(maxsize=4096)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _calendar(unit: PeriodUnit, zone: ZoneInfo, now_ms: int) -> tuple[date, time, int]:
    """First day and number of the calendar period that `now_ms` is in, as if it were anchored there."""
    today = (_EPOCH + now_ms * _MS).astimezone(zone).date()
    if unit is PeriodUnit.DAY:
        return today, time(), today.toordinal()
    if unit is PeriodUnit.WEEK:
        weeks = (today - _MONDAY).days // 7
        return _MONDAY + timedelta(weeks=weeks), time(), weeks
    if unit is PeriodUnit.MONTH:
        return today.replace(day=1), time(), today.year * 12 + today.month - 1
    return date(today.year, 1, 1), time(), today.year


def _step(unit: PeriodUnit, day: date, count: int) -> date:
    if unit in _DAYS:
        return day + timedelta(days=_DAYS[unit] * count)
    return _plus_months(day, _MONTHS[unit] * count)


def span_at(period: Period, now_ms: int) -> Span:
    """The period that contains `now_ms`.

    Hours are 3,600 s long and begin at full local hours of standard time (or at the anchor's minute): a clock that
    changes by half an hour does not cut one short. Longer periods begin at local midnight, or on the anchor's day and
    local time; both follow the zone's clock changes, so a day has 23 to 25 hours.
    """
    unit = period.unit
    if unit is PeriodUnit.TOTAL:
        return Span(0, None, 0)
    zone = _zone(period.zone)
    if unit is PeriodUnit.HOUR:
        if period.anchor_ms is None:
            local = (_EPOCH + now_ms * _MS).astimezone(zone)
            offset = (local.utcoffset() or timedelta()) - (local.dst() or timedelta())
            base = -(offset // _MS) % HOUR_MS
        else:
            base = period.anchor_ms
        number = (now_ms - base) // HOUR_MS
        return Span(base + number * HOUR_MS, base + (number + 1) * HOUR_MS, number)
    if period.anchor_ms is None:
        day, clock, number = _calendar(unit, zone, now_ms)
        return Span(_at(day, clock, zone), _at(_step(unit, day, 1), clock, zone), number)
    anchor = (_EPOCH + period.anchor_ms * _MS).astimezone(zone)
    day, clock = anchor.date(), anchor.time()
    today = (_EPOCH + now_ms * _MS).astimezone(zone).date()
    if unit in _DAYS:
        number = (today - day).days // _DAYS[unit]
    else:
        months = (today.year - day.year) * 12 + today.month - day.month
        number = months // _MONTHS[unit]
    while _at(_step(unit, day, number), clock, zone) > now_ms:
        number -= 1
    while _at(_step(unit, day, number + 1), clock, zone) <= now_ms:
        number += 1
    return Span(
        _at(_step(unit, day, number), clock, zone),
        _at(_step(unit, day, number + 1), clock, zone),
        number,
    )
