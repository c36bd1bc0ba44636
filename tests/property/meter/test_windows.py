"""Windows part a range without holes, and begin where the zone's clock shows a full hour or midnight."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import available_timezones

from hypothesis import given
from hypothesis import strategies as st

from meter.core.windows import QUARTER, Window, boundaries, zone

# Since 1975 every zone has stood on quarter hours.
FIRST = int(datetime(1975, 1, 1, tzinfo=UTC).timestamp()) // QUARTER
LAST = int(datetime(2037, 1, 1, tzinfo=UTC).timestamp()) // QUARTER
ZONES = sorted(available_timezones() - {"localtime"})


@given(
    st.integers(FIRST, LAST),
    st.integers(1, 4 * 24 * 40),
    st.sampled_from([Window.QUARTER_HOUR, Window.HOUR, Window.DAY, Window.MONTH]),
    st.sampled_from(ZONES),
)
def test_a_range_is_parted_whole(first: int, quarters: int, window: Window, name: str) -> None:
    start, end, local = first * QUARTER, (first + quarters) * QUARTER, zone(name)
    found = boundaries(start, end, window, local, 10_000)
    assert found[0] == start
    assert found[-1] < end
    assert all(one < two for one, two in pairwise(found))
    widest = {Window.QUARTER_HOUR: 1, Window.HOUR: 4, Window.DAY: 4 * 25, Window.MONTH: 4 * 24 * 32}
    for one, two in pairwise([*found, end]):
        assert two - one <= widest[window] * QUARTER
    for at in found[1:]:
        before, after = (datetime.fromtimestamp(when, local) for when in (at - 1, at))
        if window is Window.DAY:
            assert before.date() < after.date()
        if window is Window.MONTH:
            assert (before.year, before.month) < (after.year, after.month)


@given(st.integers(FIRST, LAST), st.integers(0, 4 * 24 * 3), st.sampled_from(ZONES))
def test_where_a_range_begins_changes_no_boundary_after_it(
    first: int, later: int, name: str
) -> None:
    local, end = zone(name), (first + 4 * 24 * 6) * QUARTER
    wide = boundaries(first * QUARTER, end, Window.DAY, local, 1000)
    narrow = boundaries((first + later) * QUARTER, end, Window.DAY, local, 1000)
    assert set(narrow[1:]) <= set(wide)
