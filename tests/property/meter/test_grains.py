"""Spans of coarse and fine rows part a range, at the edges of its windows, in whatever zone."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import available_timezones

from hypothesis import given
from hypothesis import strategies as st

from meter.core.grains import MOST_SPANS, Grain, spans
from meter.core.windows import QUARTER, Window, boundaries, zone

FIRST = int(datetime(1975, 1, 1, tzinfo=UTC).timestamp()) // QUARTER
LAST = int(datetime(2037, 1, 1, tzinfo=UTC).timestamp()) // QUARTER
ZONES = sorted(available_timezones() - {"localtime"})


def _row_end(grain: Grain, start: int) -> int:
    """Where the row ends; None of this is how spans are found."""
    if grain is Grain.MONTH:
        day = datetime.fromtimestamp(start, UTC)
        assert (day.day, day.hour, day.minute, day.second) == (1, 0, 0, 0)
        following = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
        return int(datetime(*following, 1, tzinfo=UTC).timestamp())
    width = (900, 3600, 86_400)[grain]
    assert start % width == 0
    return start + width


@given(
    st.integers(FIRST, LAST),
    st.integers(1, 4 * 24 * 100),
    st.sampled_from([Window.WHOLE, Window.HOUR, Window.DAY, Window.MONTH]),
    st.sampled_from(ZONES),
)
def test_rows_of_spans_part_the_range_and_none_reaches_over_an_edge(
    first: int, quarters: int, window: Window, name: str
) -> None:
    start, end = first * QUARTER, (first + quarters) * QUARTER
    starts = boundaries(start, end, window, zone(name), 10_000)
    found = spans(starts, end)
    assert 1 <= len(found) <= MOST_SPANS
    assert (found[0].start, found[-1].end) == (start, end)
    assert all(one.end == two.start for one, two in pairwise(found))
    edges = {*starts, end}
    for span in found:
        at = span.start
        while at < span.end:
            until = _row_end(span.grain, at)
            assert not any(edge in edges for edge in range(at + QUARTER, until, QUARTER))
            at = until
        assert at == span.end


@given(st.integers(0, 23), st.integers(24, 400), st.sampled_from(["Europe/Berlin", "UTC"]))
def test_few_rows_make_a_long_range_in_a_zone_of_whole_hours(
    hour: int, days: int, name: str
) -> None:
    start = int(datetime(2026, 3, 1, hour, tzinfo=UTC).timestamp())
    found = spans(
        boundaries(start, start + days * 86_400, Window.WHOLE, zone(name), 10),
        start + days * 86_400,
    )
    rows = 0
    for span in found:
        at = span.start
        while at < span.end:
            at, rows = _row_end(span.grain, at), rows + 1
    assert rows <= 2 * 23 + 2 * 30 + days // 28
    assert Grain.QUARTER not in {span.grain for span in found}


def test_windows_that_no_zone_of_full_hours_has_are_read_by_quarters_at_their_edges_alone() -> None:
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) - 19_800  # midnight in India
    end = start + 3 * 86_400
    found = spans(boundaries(start, end, Window.DAY, zone("Asia/Kolkata"), 10), end)
    assert [span.grain for span in found] == [
        *(Grain.QUARTER, Grain.HOUR, Grain.QUARTER, Grain.HOUR),
        *(Grain.QUARTER, Grain.HOUR, Grain.QUARTER),
    ]
    assert sum(span.end - span.start for span in found if span.grain is Grain.QUARTER) == 3 * 3600


def test_too_many_spans_become_one() -> None:
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) - 19_800
    end = start + 400 * 86_400
    found = spans(boundaries(start, end, Window.DAY, zone("Asia/Kolkata"), 1000), end)
    assert found == [(Grain.QUARTER, start, end)]
    end = start + 30 * 365 * 86_400
    months = boundaries(start, end + 5, Window.MONTH, zone("Europe/Berlin"), 1000)
    hours = (start + 1800, end - 1800)
    assert spans(months, end + 5) == [
        (Grain.QUARTER, start, hours[0]),
        (Grain.HOUR, *hours),
        (Grain.QUARTER, hours[1], end + 5),
    ]
