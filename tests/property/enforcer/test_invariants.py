"""What holds after every command, whatever the accounts: limits, ledger, sequence, replays, modes.

Driven on the memory store alone, by the same commands that show the Redis store to be its twin.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from enforcer.core.allowances import block, sought
from enforcer.core.commands import NO_KEY, Ask, Decision
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import RING_SLOTS, SHADOW, Family, Reason, Shape
from enforcer.core.rules import NEWEST, PERIOD, Mode
from meter.core.records import SIDE
from tests.property.accounts import DAY
from tests.property.commands import BUCKETS, WINDOW_MS, Commands, perform, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from enforcer.core.program import View
    from enforcer.core.rules import Entry

RUNS, STEPS = 200, 70
LEAST_CHECKS = 2_000
_READS = (Mode.CHECK_ONLY, Mode.PEEK)
_STRICT = (Mode.ENFORCE, Mode.BEST_EFFORT, Mode.ALLOWANCE)


class Invariants(Commands):
    """Looks at the store before and after each command."""

    checks = 0
    looked: Counter[str] = Counter()  # noqa: RUF012 - of all runs together

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCounters(lambda: self.now, window_ms=WINDOW_MS)
        for bucket in range(BUCKETS):
            self.memory.open(bucket, 1)

    def say(self, operation: str, *arguments: Any, **named: Any) -> Any:
        if operation == "decide":
            return self.decide(arguments[0])
        if operation == "decide_all":
            return [self.decide(group) for group in arguments[0]]
        answer = perform(self.memory, operation, *arguments, **named)
        self.balance()
        return answer

    def teardown(self) -> None:
        """When everything has ended nothing is held, and usage is what was granted."""
        self.now += 100 * DAY
        for bucket in range(BUCKETS):
            while self.memory.tick(bucket):
                pass
            for (limit, period), (_, held) in self.ledger(bucket).items():
                assert held == 0, (limit, period)
        self.balance()

    # -- the ledger

    def ledger(self, bucket: int) -> dict[tuple[int, int], tuple[int, int]]:
        """The sum of all effects."""
        used: Counter[tuple[int, int]] = Counter()
        held: Counter[tuple[int, int]] = Counter()
        for record in self.memory.records(bucket):
            for effect in record.effects.entries:
                if not 0 < effect.limit < SIDE:
                    continue  # a note, or a count's second pair of numbers
                used[effect.limit, effect.period] += effect.used
                held[effect.limit, effect.period] += effect.held
        return {key: (used[key], held[key]) for key in used.keys() | held.keys()}

    def live_keys(self, bucket: int) -> Iterator[tuple[int, int]]:
        """Every counter that the store still keeps, those at zero included."""
        for state in self.memory._buckets[bucket].states.values():
            for code, slot in state.slots.items():
                family, limit = Family(code & 7), code >> 3
                if family is Family.COUNT:
                    yield limit, int(slot[PERIOD])
                elif family is Family.RING24:
                    newest = int(slot[NEWEST])
                    yield from (
                        (limit, number)
                        for number in range(newest - RING_SLOTS[family] + 1, newest + 1)
                    )
                    yield limit, 0

    def balance(self) -> None:
        """Counters are the sum of the effects, and the sequence is dense."""
        for bucket in range(BUCKETS):
            state = self.memory.counters(bucket)
            counters = {(one.limit, one.period): (one.used, one.held) for one in state.counters}
            ledger = self.ledger(bucket)
            for key, counter in counters.items():
                assert ledger.get(key) == counter, key
            for key in self.live_keys(bucket):
                assert ledger.get(key, (0, 0)) == counters.get(key, (0, 0)), key
            records = self.memory.records(bucket)
            assert [one.sequence for one in records] == list(range(len(records)))
            assert state.last == len(records) - 1

    # -- decisions

    def decide(self, group: Sequence[Ask]) -> Any:
        bucket, mode = group[0].program.bucket, group[0].mode
        self.memory.tick(bucket)  # what it would write by itself is no effect of the decision
        alone = group[0] if len(group) == 1 else None
        foretold = None
        if alone is not None and not alone.seat and not alone.reservation:
            foretold = self.decision(replace(alone, mode=Mode.CHECK_ONLY, idempotency=NO_KEY))
        best = None
        if alone is not None and mode is Mode.BEST_EFFORT:
            best = self.largest(alone)
        # Whether eight times a huge quantity passes is a matter of overflow, which a block is far from.
        if alone is not None and mode is Mode.ALLOWANCE and alone.quantity < MAX_QUANTITY:
            left = self.largest(replace(alone, quantity=sought(alone.quantity)))
            best = None if left is None else block(left)
        shown = [self.decision(replace(ask, mode=Mode.PEEK)) for ask in group]
        before, records = self.memory.counters(bucket), len(self.memory.records(bucket))
        answers = self.memory.decide(group)
        after = self.memory.counters(bucket)
        Invariants.checks += len(group)

        new = [one for one in answers if isinstance(one, Decision) and not one.replayed]
        consumed = mode not in _READS and bool(new) and all(one.granted for one in new)
        assert (len(self.memory.records(bucket)) - records) == (len(new) if consumed else 0)
        if not consumed:
            self.looked["changed nothing"] += 1
            assert after == before
        if len(group) > 1 and len(new) == len(group):
            self.whole_or_not(new)
        for ask, answer, old in zip(group, answers, shown, strict=True):
            if isinstance(answer, Decision) and not answer.replayed:
                assert old is not None
                self.within(ask, answer, old.entries)
        (first, *_) = answers
        if isinstance(first, Decision) and not first.replayed and alone is not None:
            if best is not None:
                self.looked[mode.name] += 1
                assert first.granted == best, (mode, alone.quantity)
            if foretold is not None and mode is Mode.ENFORCE:
                self.looked["foretold"] += 1
                assert first.but(sequence=-1) == foretold
        self.balance()
        return answers

    def decision(self, ask: Ask) -> Decision | None:
        (answer,) = self.memory.decide([ask])
        return answer if isinstance(answer, Decision) else None

    def largest(self, ask: Ask) -> int | None:
        """The largest quantity that would be granted whole, found by trying; None when it is not decided."""

        def fits(quantity: int) -> bool:
            looked = replace(ask, mode=Mode.CHECK_ONLY, idempotency=NO_KEY, quantity=quantity)
            answer = self.decision(replace(looked, reservation=""))
            return answer is not None and answer.granted == quantity

        if self.decision(replace(ask, mode=Mode.PEEK)) is None:
            return None
        least, most = 0, ask.quantity
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if fits(middle) else (least, middle - 1)
        return least

    def whole_or_not(self, decisions: list[Decision]) -> None:
        """A group is granted as a whole; when it is not, one says why and the others that it was the batch."""
        self.looked["group"] += 1
        if all(one.granted for one in decisions):
            return
        assert not any(one.granted for one in decisions)
        assert sum(one.reason is not Reason.BATCH_DENIED for one in decisions) == 1

    def within(self, ask: Ask, answer: Decision, before: tuple[Entry, ...]) -> None:
        """Nothing is given beyond an enforced limit, and each chain gives what was granted."""
        assert (answer.granted > 0) == (answer.reason is Reason.ALLOWED)
        assert 0 <= answer.granted <= ask.quantity
        if ask.mode not in (Mode.BEST_EFFORT, Mode.ALLOWANCE, Mode.PEEK):
            assert answer.granted in (0, ask.quantity)
        assert answer.overage >= 0
        if not answer.entries or ask.mode is Mode.PEEK:
            return
        if answer.granted and ask.mode in (*_STRICT, Mode.CHECK_ONLY):
            for view, entry, old in zip(ask.program.views, answer.entries, before, strict=True):
                if entry.drawn and not entry.code & SHADOW:
                    self.beyond(view, entry, old)
        entries = iter(answer.entries)
        for chain in ask.program.chains:
            drawn = [next(entries).drawn for _ in chain.views]
            if chain.views and answer.granted:
                assert sum(drawn) == answer.granted
            elif not answer.granted:
                assert not any(drawn)

    def beyond(self, view: View, entry: Entry, before: Entry) -> None:
        self.looked[view.shape.name] += 1
        if view.shape is Shape.SEATS:
            # A user or device that has a seat gets another lease on it, even when there are too few seats by now.
            assert entry.held <= max(view.upper, before.held)
        elif view.upper < MAX_QUANTITY:
            assert entry.used + entry.held <= entry.limit
            assert entry.used + entry.held + entry.remaining == entry.limit


@pytest.mark.timeout(3600)
def test_invariants() -> None:
    Invariants.checks = 0
    Invariants.looked.clear()
    run_state_machine_as_test(Invariants, settings=plan(RUNS, STEPS))
    assert Invariants.checks >= LEAST_CHECKS
    expected = ["changed nothing", "group", "foretold", *(one.name for one in Shape)]
    expected += [Mode.BEST_EFFORT.name, Mode.ALLOWANCE.name]
    assert [what for what in expected if not Invariants.looked[what]] == []
