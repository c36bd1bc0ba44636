"""What is left of a gap when parts of it were accepted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meter.audit import _without
from meter.core.sequence import Gap

SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5)


@given(st.integers(0, 20), st.integers(1, 10), SPANS)
def test_exactly_the_places_that_nobody_accepted_are_left(
    first: int, width: int, spans: list[tuple[int, int]]
) -> None:
    gap = Gap(3, 7, first, first + width, "missing")
    accepted = [Gap(3, 7, at, at + size, "accepted") for at, size in spans]
    others = [Gap(3, 6, 0, 50, "accepted"), Gap(2, 7, 0, 50, "accepted")]
    left = [place for part in _without(gap, accepted + others) for place in range(*part[2:4])]
    gone = {place for one in accepted for place in range(*one[2:4])}
    assert left == [place for place in range(first, first + width) if place not in gone]


def test_a_gap_of_a_reason_only_is_accepted_whole() -> None:
    unreadable = Gap(3, 7, 0, 0, "the opening of the generation is unreadable")
    assert _without(unreadable, []) == [unreadable]
    assert _without(unreadable, [unreadable]) == []
