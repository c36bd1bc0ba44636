"""When calls are due."""

from __future__ import annotations

import itertools

import pytest

from loadtests.arrivals import Spacing, Stretch, arrivals, dealt, length, spike, steady


def test_even_arrivals_lie_at_equal_distances() -> None:
    assert list(arrivals(steady(4, 1), Spacing.EVEN, 1)) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("spacing", Spacing)
def test_arrivals_ascend_stay_within_the_plan_and_have_its_rate(spacing: Spacing) -> None:
    found = list(arrivals(steady(500, 20), spacing, 7))
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < 20
    # Five standard deviations of a Poisson count.
    assert abs(len(found) - 10_000) <= 500


def test_poisson_arrivals_come_in_bunches_and_pauses() -> None:
    found = list(arrivals(steady(100, 100), Spacing.POISSON, 7))
    gaps = [after - before for before, after in itertools.pairwise(found)]
    # Exponential: e^-2 of the gaps are longer than twice the mean.
    assert 0.11 < sum(gap > 0.02 for gap in gaps) / len(gaps) < 0.16


def test_a_seed_gives_the_same_moments_each_time_and_another_seed_others() -> None:
    plan = steady(50, 5)
    first = list(arrivals(plan, Spacing.POISSON, 1))
    assert first == list(arrivals(plan, Spacing.POISSON, 1))
    assert first != list(arrivals(plan, Spacing.POISSON, 2))


def test_a_spike_has_its_rate_in_the_middle_fifth() -> None:
    plan = spike(100, 10, 5)
    assert length(plan) == pytest.approx(10)
    found = list(arrivals(plan, Spacing.EVEN, 1))
    within = [moment for moment in found if 4 <= moment < 6]
    assert (len(within), len(found) - len(within)) == (1000, 800)


def test_generators_share_the_moments_without_gap_or_overlap() -> None:
    plan = steady(100, 2)
    whole = list(enumerate(arrivals(plan, Spacing.POISSON, 3)))
    shares = [list(dealt(arrivals(plan, Spacing.POISSON, 3), share, 3)) for share in range(3)]
    assert sorted(one for share in shares for one in share) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="more than 0 a second"):
        list(arrivals([Stretch(rate, 1)], Spacing.EVEN, 1))
