from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enforcer.client.allowances import GROWTH, Sizes

UNITS = st.integers(1, 2**53 - 1)


@given(
    first=st.integers(1, 10_000),
    more=st.integers(0, 2**40),
    horizon=st.floats(1e-3, 1e4),
    rounds=st.lists(
        st.tuples(
            UNITS, st.floats(0, 1e6), st.integers(0, 2**40), st.floats(0, 1, exclude_max=True)
        ),
        max_size=20,
    ),
)
def test_a_block_is_never_larger_than_the_most_nor_grows_by_leaps_and_is_refilled_before_dry(
    first: int, more: int, horizon: float, rounds: list[tuple[int, float, int, float]]
) -> None:
    sizes = Sizes(first, first + more, horizon)
    size = sizes.wanted(0, 0, 0)
    assert size == first
    for used, seconds, short, part in rounds:
        sizes.got(size)
        assert 0 <= sizes.low(size) <= size // 2
        sizes.took(part)
        wanted = sizes.wanted(min(used, size), seconds, short)
        assert 1 <= wanted <= sizes.most
        assert wanted <= max(GROWTH * size, sizes.least, short)
        assert wanted >= min(short, sizes.most)
        size = wanted


def test_a_steady_rate_gives_blocks_that_last_the_horizon() -> None:
    sizes = Sizes(100, 1_000_000, 2.0)
    size = sizes.wanted(0, 0, 0)
    sizes.got(size)
    sizes.took(0.01)
    for _ in range(6):
        size = sizes.wanted(5000, 1, 0)
        sizes.got(size)
    assert size == 10_000
    # Asked for again with at least twice as much left as is used until it comes.
    assert sizes.low(size) >= 2 * 5000 * 0.01
    assert sizes.wanted(3, 60, 0) == sizes.least


def test_a_slow_refill_makes_blocks_larger() -> None:
    sizes = Sizes(1000, 1_000_000, 0.1)
    sizes.got(1000)
    sizes.took(1.0)
    assert sizes.wanted(1000, 1, 0) == 4000
    sizes.got(4000)
    assert sizes.low(4000) == 2000
