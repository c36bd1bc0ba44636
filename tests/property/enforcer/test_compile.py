"""A program holds for its whole slice, and everybody sees the same counters at all times."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from enforcer.core.compile import compile_program
from enforcer.core.program import Program, Reason
from tests.property.accounts import DAY, FEATURES, SEATS, Maker
from tests.property.commands import LEVELS, SEEDS, START

if TYPE_CHECKING:
    from enforcer.core.model import Feature

MOMENTS = st.integers(-60 * DAY, 60 * DAY).map(START.__add__)
ASKED = st.sampled_from((*FEATURES, SEATS))


@given(SEEDS, ASKED, MOMENTS, st.floats(0, 1, exclude_max=True))
def test_a_program_is_the_same_at_every_moment_of_its_slice(
    seed: int, feature: Feature, at: int, part: float
) -> None:
    customer = Maker(random.Random(seed), START).account(1 + seed % LEVELS)
    program, version_matters = compile_program(customer, feature, at)
    assert program.start <= at
    assert not program.end or at < program.end
    start, end = max(program.start, at - 800 * DAY), program.end or at + 800 * DAY
    for moment in (start, end - 1, start + int((end - start) * part)):
        again = compile_program(customer, feature, moment)
        assert again == (program, version_matters)
        assert again[0].packed == program.packed


@given(SEEDS, ASKED, st.lists(MOMENTS, min_size=2, max_size=5))
def test_the_layout_of_a_state_depends_on_the_epoch_alone(
    seed: int, feature: Feature, moments: list[int]
) -> None:
    """Not on the time, nor on which node of the path asks."""
    customer = Maker(random.Random(seed), START).account(LEVELS)
    layouts: dict[str, tuple[int, ...]] = {}
    for at in moments:
        for level in range(LEVELS):
            below = replace(customer, path=customer.path[level:])
            program = compile_program(below, feature, at)[0]
            for one in program.levels:
                assert layouts.setdefault(one.suffix, one.slots) == one.slots


@given(SEEDS, ASKED, MOMENTS)
def test_a_program_refers_only_to_what_it_has(seed: int, feature: Feature, at: int) -> None:
    customer = Maker(random.Random(seed), START).account(1 + seed % LEVELS)
    program: Program = compile_program(customer, feature, at)[0]
    if program.verdict is not Reason.ALLOWED:
        assert program.chains == ()
    codes = [view.code for view in program.views]
    assert len(codes) == len(set(codes)), "a limit is named once"
    for view in program.views:
        assert not view.slot or view.slot in program.levels[view.level].slots
        assert view.code in program.labels
        assert 0 <= view.lower <= view.upper
        assert view.start <= at
        assert not view.end or at < view.end
    assert sum(chain.supply for chain in program.chains) <= 1
    assert not any(chain.supply for chain in program.chains[:-1]), "the supply is the last chain"
