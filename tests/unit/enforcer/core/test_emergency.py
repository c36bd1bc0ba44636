"""Shares of what may be used while the counters are away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enforcer.core.commands import Sent
from enforcer.core.emergency import Shares, Use, decode_use, encode_use

HOLDER = "demo", "acme", "api.calls"
OTHER = "demo", "umbrella", "api.calls"


def test_the_amount_is_divided_among_the_enforcers_and_rounded_down() -> None:
    assert Shares(3).left(HOLDER, 100) == 33
    assert Shares(101).left(HOLDER, 100) == 0


def test_a_use_weighs_on_its_own_share_until_it_is_counted() -> None:
    shares = Shares(2)
    shares.take(HOLDER, 30)
    assert (shares.left(HOLDER, 100), shares.left(OTHER, 100)) == (20, 50)
    shares.give_back(HOLDER, 10)
    assert shares.left(HOLDER, 100) == 30
    shares.give_back(HOLDER, 20)
    assert shares.left(HOLDER, 100) == 50


def test_a_lowered_amount_leaves_nothing_rather_than_less() -> None:
    shares = Shares(1)
    shares.take(HOLDER, 30)
    assert shares.left(HOLDER, 10) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50))), st.integers(1, 7))
def test_what_is_uncounted_never_passes_the_share(
    steps: list[tuple[bool, int]], enforcers: int
) -> None:
    shares, amount, out = Shares(enforcers), 100, []
    for use, quantity in steps:
        if use and quantity <= shares.left(HOLDER, amount):
            shares.take(HOLDER, quantity)
            out.append(quantity)
        elif not use and out:
            shares.give_back(HOLDER, out.pop(0))
        assert sum(out) <= amount // enforcers
        assert shares.left(HOLDER, amount) == amount // enforcers - sum(out)


@given(st.binary(), st.binary(max_size=24), st.integers(1, 2**53 - 1), st.booleans())
def test_a_use_is_read_back_as_it_was_written(
    body: bytes, key: bytes, quantity: int, in_doubt: bool
) -> None:
    sent = Sent("e", 1, 2, 3, 4) if in_doubt else None
    use = Use("t", "c", "f", "1.0", 1, 2, quantity, 5, body, 9, key, sent)
    assert decode_use(encode_use(use)) == use
