"""Runs the golden table on the specification."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from enforcer.core.commands import Ask, Decision
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import Customer, Feature, Node
from enforcer.core.program import DENIED, SHADOW, Kind
from tests.unit.enforcer.core.golden import CASES, NOW, Case, Step

if TYPE_CHECKING:
    from enforcer.core.program import Program

FEATURE = Feature(1, "f", "f")
LEVELS = 3


class Table:
    """One case being played."""

    def __init__(self, case: Case) -> None:
        self.now, self.epoch, self.case = NOW, 1, case
        self.terms = tuple(case.terms)
        self.counters = MemoryCounters(lambda: self.now)
        self.counters.open(0, 1)
        self.counters.project(0, 1, 1)

    def customer(self, level: int) -> Customer:
        path = tuple(
            Node(
                number + 1,
                f"n{number}",
                number in self.case.suspended,
                tuple(one for at, one in self.terms if at == number),
            )
            for number in range(LEVELS)
        )
        return Customer("demo", 1, "n2", 0, self.epoch, path[level:])

    def play(self, step: int | Step) -> tuple[Decision, Program]:
        if isinstance(step, int):
            step = Step(step)
        self.now += step.after
        if step.change is not None:
            self.terms, self.epoch = step.change, self.epoch + 1
            self.counters.project(0, 1, self.epoch)
        program, _ = compile_program(self.customer(step.level), FEATURE, self.now, step.released)
        (answer,) = self.counters.decide([Ask(program, step.quantity, step.mode, b"{}")])
        assert isinstance(answer, Decision), answer
        return answer, program


@pytest.mark.parametrize("case", CASES, ids=[case.note for case in CASES])
def test_case(case: Case) -> None:
    table = Table(case)
    for step in case.past:
        before, _ = table.play(step)
        assert before.granted, "the history of a case is granted"
    decision, program = table.play(case.ask)
    assert (decision.reason, decision.granted) == (case.reason, case.granted)
    assert decision.overage == case.overage
    assert decision.shadow == case.shadow
    assert program.grace == case.grace
    assert program.config == case.config
    names = {code: label.id for code, label in program.labels.items()}
    drawn: dict[str, int] = defaultdict(int)
    left: dict[str, int] = defaultdict(int)
    denied, tier = set(), ""
    for entry in decision.entries:
        label = program.labels[entry.code & ~0xF]
        drawn[label.id] += entry.drawn
        left[label.id] += entry.remaining
        if entry.code & DENIED:
            denied.add(label.id)
        reached = entry.drawn or (not decision.granted and entry.used)
        if entry.code >> 4 & 0xF == Kind.TIER and not entry.code & SHADOW and reached:
            tier = label.tier
    assert {name: drawn[name] for name in case.drawn} == case.drawn
    assert {name: left[name] for name in case.left} == case.left
    assert denied == case.denied, names
    if case.tier:
        assert tier == case.tier


def test_the_table_is_large_enough_and_says_each_thing_once() -> None:
    assert len(CASES) >= 80
    assert [note for note, count in Counter(case.note for case in CASES).items() if count > 1] == []
