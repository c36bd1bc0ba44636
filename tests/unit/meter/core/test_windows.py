"""Windows of reports: hours, days and months as a zone's clocks and calendars show them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from meter.core.windows import Window, boundaries, zone


def seconds(text: str) -> int:
    """Of an ISO time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def shown(name: str, window: Window, start: str, end: str) -> list[str]:
    """The boundaries as the zone's own clocks show them."""
    local = zone(name)
    found = boundaries(seconds(start), seconds(end), window, local, 1000)
    return [datetime.fromtimestamp(at, local).strftime("%m-%d %H:%M%z") for at in found]


@pytest.mark.parametrize(
    ("name", "window", "start", "end", "expected"),
    [
        # The whole range is one window, whatever the zone.
        ("Asia/Tokyo", Window.WHOLE, "2026-01-01", "2027-01-01", ["01-01 09:00+0900"]),
        # Kathmandu: +05:45.
        (
            "Asia/Kathmandu",
            Window.HOUR,
            "2026-01-01T00:00",
            "2026-01-01T02:00",
            ["01-01 05:45+0545", "01-01 06:00+0545", "01-01 07:00+0545"],
        ),
        (
            "Asia/Kathmandu",
            Window.DAY,
            "2026-01-01T18:15",
            "2026-01-03T18:15",
            ["01-02 00:00+0545", "01-03 00:00+0545"],
        ),
        # New York's spring: the day of the change has 23 hours, no hour from 2 to 3.
        (
            "America/New_York",
            Window.HOUR,
            "2026-03-08T06:00",
            "2026-03-08T09:00",
            ["03-08 01:00-0500", "03-08 03:00-0400", "03-08 04:00-0400"],
        ),
        # Its autumn: the hour from 1 to 2 comes twice, as two windows.
        (
            "America/New_York",
            Window.HOUR,
            "2026-11-01T05:00",
            "2026-11-01T08:00",
            ["11-01 01:00-0400", "11-01 01:00-0500", "11-01 02:00-0500"],
        ),
        # Lord Howe changes by half an hour.
        (
            "Australia/Lord_Howe",
            Window.HOUR,
            "2026-04-04T14:00",
            "2026-04-04T17:00",
            ["04-05 01:00+1100", "04-05 01:30+1030", "04-05 02:00+1030", "04-05 03:00+1030"],
        ),
        (
            "Australia/Lord_Howe",
            Window.HOUR,
            "2026-10-03T14:30",
            "2026-10-03T17:00",
            ["10-04 01:00+1030", "10-04 02:30+1100", "10-04 03:00+1100"],
        ),
        # São Paulo skipped midnight: the day begins at 1.
        (
            "America/Sao_Paulo",
            Window.DAY,
            "2018-11-03T03:00",
            "2018-11-05T02:00",
            ["11-03 00:00-0300", "11-04 01:00-0200"],
        ),
        # Samoa had no 30 December 2011.
        (
            "Pacific/Apia",
            Window.DAY,
            "2011-12-29T10:00",
            "2011-12-31T12:00",
            ["12-29 00:00-1000", "12-31 00:00+1400", "01-01 00:00+1400"],
        ),
        # Months have their own lengths, and are cut at the ends of the range.
        (
            "Europe/Berlin",
            Window.MONTH,
            "2028-01-15T00:00",
            "2028-04-10T00:00",
            ["01-15 01:00+0100", "02-01 00:00+0100", "03-01 00:00+0100", "04-01 00:00+0200"],
        ),
        ("", Window.MONTH, "2026-12-01", "2027-02-01", ["12-01 00:00+0000", "01-01 00:00+0000"]),
    ],
)
def test_windows_begin_where_the_local_clock_says(
    name: str, window: Window, start: str, end: str, expected: list[str]
) -> None:
    assert shown(name, window, start, end) == expected


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "a\0b"])
def test_a_name_that_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no IANA time zone"):
        zone(name)


def test_the_number_of_windows_is_bounded() -> None:
    with pytest.raises(ValueError, match="more than 10 windows"):
        boundaries(0, 20 * 3600, Window.HOUR, zone(""), 10)


def test_a_clock_off_the_quarter_hour_is_refused() -> None:
    # Monrovia stood at -00:44:30 until 1972.
    with pytest.raises(ValueError, match="off the quarter hour"):
        boundaries(0, 86_400 * 3, Window.DAY, zone("Africa/Monrovia"), 10)
