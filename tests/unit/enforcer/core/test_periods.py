"""Periods against dates worked out with a calendar, and what holds for all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from enforcer.core.model import Period, PeriodUnit
from enforcer.core.periods import span_at

HOUR = 3_600_000
HOURS, DAYS, WEEKS, MONTHS, YEARS = (
    PeriodUnit.HOUR,
    PeriodUnit.DAY,
    PeriodUnit.WEEK,
    PeriodUnit.MONTH,
    PeriodUnit.YEAR,
)
# Clock changes by an hour on both hemispheres, by half an hour, none; :30 and :45; at midnight.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Pacific/Apia",
    "Africa/Cairo",
)


def ms(text: str, zone: str = "UTC") -> int:
    """An instant as the zone's wall clock shows it."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def shown(at: int | None, zone: str = "UTC") -> str:
    assert at is not None
    return f"{datetime.fromtimestamp(at / 1000, ZoneInfo(zone)):%Y-%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("unit", "zone", "now", "start", "end"),
    [
        (HOURS, "UTC", "2026-11-24 10:59", "2026-11-24 10:00", "2026-11-24 11:00"),
        (HOURS, "Asia/Kolkata", "2026-11-24 10:59", "2026-11-24 10:00", "2026-11-24 11:00"),
        (HOURS, "Asia/Kathmandu", "2026-11-24 10:59", "2026-11-24 10:00", "2026-11-24 11:00"),
        (DAYS, "UTC", "2026-11-24 00:00", "2026-11-24 00:00", "2026-11-25 00:00"),
        (DAYS, "Asia/Kathmandu", "2026-11-24 23:59", "2026-11-24 00:00", "2026-11-25 00:00"),
        # 2026-11-24 is a Tuesday: its week began on Monday the 23rd.
        (WEEKS, "UTC", "2026-11-24 10:00", "2026-11-23 00:00", "2026-11-30 00:00"),
        (WEEKS, "UTC", "2026-11-22 23:59", "2026-11-16 00:00", "2026-11-23 00:00"),
        # A week over New Year.
        (WEEKS, "UTC", "2027-01-01 12:00", "2026-12-28 00:00", "2027-01-04 00:00"),
        (MONTHS, "UTC", "2026-12-31 23:59", "2026-12-01 00:00", "2027-01-01 00:00"),
        (MONTHS, "UTC", "2028-02-29 12:00", "2028-02-01 00:00", "2028-03-01 00:00"),
        (YEARS, "UTC", "2026-12-31 23:59", "2026-01-01 00:00", "2027-01-01 00:00"),
        (YEARS, "Pacific/Apia", "2026-01-01 00:00", "2026-01-01 00:00", "2027-01-01 00:00"),
    ],
)
def test_calendar_periods_begin_where_the_zone_s_calendar_does(
    unit: PeriodUnit, zone: str, now: str, start: str, end: str
) -> None:
    span = span_at(Period(unit, zone), ms(now, zone))
    assert (shown(span.start, zone), shown(span.end, zone)) == (start, end)


@pytest.mark.parametrize(
    ("zone", "noon", "hours"),
    [
        ("Europe/Berlin", "2026-03-29 12:00", 23),  # 02:00 became 03:00
        ("Europe/Berlin", "2026-10-25 12:00", 25),  # 03:00 became 02:00
        ("America/New_York", "2026-03-08 12:00", 23),
        ("America/New_York", "2026-11-01 12:00", 25),
        ("Australia/Lord_Howe", "2026-10-04 12:00", 23.5),  # changes by half an hour
        ("Australia/Lord_Howe", "2026-04-05 12:00", 24.5),
        ("America/Santiago", "2026-09-06 12:00", 23),  # midnight itself is skipped
        ("Asia/Kathmandu", "2026-03-29 12:00", 24),
    ],
)
def test_a_day_is_as_long_as_its_clock_makes_it(zone: str, noon: str, hours: float) -> None:
    start, end, _ = span_at(Period(DAYS, zone), ms(noon, zone))
    assert end is not None
    assert (end - start) / HOUR == hours


def test_a_midnight_that_is_skipped_begins_the_day_at_the_instant_of_the_change() -> None:
    # Santiago, 2026-09-06: 24:00 of the 5th (UTC-4) is 01:00 of the 6th (UTC-3): 04:00 UTC.
    span = span_at(Period(DAYS, "America/Santiago"), ms("2026-09-06 12:00", "America/Santiago"))
    assert shown(span.start) == "2026-09-06 04:00"


def test_a_midnight_that_is_there_twice_begins_the_day_the_first_time() -> None:
    # Havana, 2026-11-01: 01:00 (UTC-4) becomes 00:00 (UTC-5). Midnight first at 04:00 UTC.
    zone = "America/Havana"
    before, after = ms("2026-11-01 03:59"), ms("2026-11-01 05:30")
    assert shown(span_at(Period(DAYS, zone), before).end) == "2026-11-01 04:00"
    assert shown(span_at(Period(DAYS, zone), after).start) == "2026-11-01 04:00"


@pytest.mark.parametrize(
    ("unit", "anchor", "now", "start", "end"),
    [
        # The 31st: the last day of shorter months, and the 31st again after them.
        (MONTHS, "2026-01-31 00:00", "2026-02-27 23:59", "2026-01-31 00:00", "2026-02-28 00:00"),
        (MONTHS, "2026-01-31 00:00", "2026-02-28 00:00", "2026-02-28 00:00", "2026-03-31 00:00"),
        (MONTHS, "2026-01-31 00:00", "2026-04-30 00:00", "2026-04-30 00:00", "2026-05-31 00:00"),
        (MONTHS, "2026-01-31 00:00", "2028-02-29 00:00", "2028-02-29 00:00", "2028-03-31 00:00"),
        (MONTHS, "2026-01-30 00:00", "2027-02-28 12:00", "2027-02-28 00:00", "2027-03-30 00:00"),
        # 29 February: the 28th in other years.
        (YEARS, "2024-02-29 12:00", "2026-02-28 11:59", "2025-02-28 12:00", "2026-02-28 12:00"),
        (YEARS, "2024-02-29 12:00", "2028-02-29 11:59", "2027-02-28 12:00", "2028-02-29 12:00"),
        (YEARS, "2024-02-29 12:00", "2028-02-29 12:00", "2028-02-29 12:00", "2029-02-28 12:00"),
        # The anchor's time of day counts.
        (DAYS, "2026-01-01 15:30", "2026-11-24 15:29", "2026-11-23 15:30", "2026-11-24 15:30"),
        (WEEKS, "2026-01-01 15:30", "2026-11-24 10:00", "2026-11-19 15:30", "2026-11-26 15:30"),
        (HOURS, "2026-01-01 15:20", "2026-11-24 10:00", "2026-11-24 09:20", "2026-11-24 10:20"),
        # Before the anchor periods go on backwards.
        (MONTHS, "2026-03-31 00:00", "2026-02-10 00:00", "2026-01-31 00:00", "2026-02-28 00:00"),
    ],
)
def test_anniversaries(unit: PeriodUnit, anchor: str, now: str, start: str, end: str) -> None:
    span = span_at(Period(unit, anchor_ms=ms(anchor)), ms(now))
    assert (shown(span.start), shown(span.end)) == (start, end)


def test_an_anniversary_is_one_of_the_zone_s_calendar() -> None:
    # 2026-01-30 23:00 UTC is the 31st in Berlin.
    period = Period(MONTHS, "Europe/Berlin", ms("2026-01-30 23:00"))
    span = span_at(period, ms("2026-03-01 12:00"))
    assert shown(span.start, "Europe/Berlin") == "2026-02-28 00:00"
    assert shown(span.end, "Europe/Berlin") == "2026-03-31 00:00"


def test_an_anniversary_that_the_clock_skips_moves_on_by_the_gap() -> None:
    # 02:30 is not there on 2026-03-29 in Berlin: taken by the clock before the change, it is 03:30.
    period = Period(DAYS, "Europe/Berlin", ms("2026-01-01 02:30", "Europe/Berlin"))
    span = span_at(period, ms("2026-03-29 12:00", "Europe/Berlin"))
    assert shown(span.start, "Europe/Berlin") == "2026-03-29 03:30"
    assert shown(span.end, "Europe/Berlin") == "2026-03-30 02:30"


def test_a_total_never_ends() -> None:
    assert span_at(Period(PeriodUnit.TOTAL), ms("2026-11-24 10:00")) == (0, None, 0)


@st.composite
def periods(draw: st.DrawFn) -> Period:
    unit = draw(st.sampled_from([HOURS, DAYS, WEEKS, MONTHS, YEARS]))
    anchor = draw(st.none() | st.integers(ms("2020-01-01"), ms("2030-01-01")))
    return Period(unit, draw(st.sampled_from(ZONES)), anchor)


MOMENTS = st.integers(ms("2021-01-01"), ms("2037-01-01"))
LORD_HOWE = Period(HOURS, "Australia/Lord_Howe")


@given(periods(), MOMENTS)
@example(LORD_HOWE, ms("2026-04-04 14:45"))  # 15 minutes before 02:00 becomes 01:30
@example(LORD_HOWE, ms("2026-04-04 15:15"))
@example(LORD_HOWE, ms("2026-10-03 15:15"))  # 15 minutes before 02:00 becomes 02:30
def test_periods_follow_each_other_without_holes(period: Period, now: int) -> None:
    span = span_at(period, now)
    assert span.end is not None
    assert span.start <= now < span.end
    # One answer all over the period, to its last millisecond.
    assert span_at(period, span.start) == span
    assert span_at(period, span.end - 1) == span
    after, before = span_at(period, span.end), span_at(period, span.start - 1)
    assert (after.start, after.ordinal) == (span.end, span.ordinal + 1)
    assert (before.end, before.ordinal) == (span.start, span.ordinal - 1)


@given(periods(), MOMENTS)
def test_a_period_has_the_length_of_its_name(period: Period, now: int) -> None:
    start, end, _ = span_at(period, now)
    assert end is not None
    least, most = {HOURS: (1, 1), DAYS: (22, 26), WEEKS: (166, 170)}.get(
        period.unit, (27.9 * 24, 31.1 * 24) if period.unit is MONTHS else (364.9 * 24, 366.1 * 24)
    )
    assert least <= (end - start) / HOUR <= most


@given(MOMENTS, st.sampled_from(ZONES))
def test_calendar_days_begin_at_local_midnight_or_where_it_is_skipped(now: int, zone: str) -> None:
    start = span_at(Period(DAYS, zone), now).start
    local = datetime.fromtimestamp(start / 1000, ZoneInfo(zone))
    just_before = datetime.fromtimestamp((start - 1) / 1000, UTC).astimezone(ZoneInfo(zone))
    assert local.date() > just_before.date()
