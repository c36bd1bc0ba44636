"""The Redis scripts and the specification, driven with the same random commands on one clock, are equal.

Replies, counters, leases and records are compared. To see the test fail, change any rule in one of the two.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from enforcer.core.commands import NO_KEY, Ask, Decision, SeatAsk, SliceStale, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import MAX_QUANTITY, SeatMode
from enforcer.core.program import Kind
from enforcer.core.rules import Mode
from tests.property.accounts import DAY, FEATURES, SEATS, Maker
from tests.property.redis_twin import RedisTwin

if TYPE_CHECKING:
    from enforcer.core.model import Customer
    from enforcer.core.program import Program
    from tests.fixtures.valkey import ValkeyProcess

START = 1_700_000_000_000
RUNS, STEPS = 160, 70
LEAST_STEPS = 2_000
SEEDS = st.integers(0, 2**32 - 1)
_GROUP_MODES = (Mode.ENFORCE, Mode.ENFORCE, Mode.CHECK_ONLY, Mode.RECORD_ONLY)


class Twins(RuleBasedStateMachine):
    """Each rule takes a seed and asks both stores the same."""

    url: str
    steps = 0
    seen: Counter[Any] = Counter()  # noqa: RUF012 - of all runs together

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.memory = MemoryCounters(lambda: self.now, window_ms=3_600_000)
        self.redis = RedisTwin(self.url, lambda: self.now, 1, window_ms=3_600_000)
        self.names: list[str] = []
        self.leases: list[str] = []
        self.count = 0
        self.maker: Maker
        self.customer: Customer

    def teardown(self) -> None:
        try:
            self.both("tick", 0)
            self.both("counters", 0)
            ours, theirs = self.memory.records(0), self.redis.records(0)
            assert ours == theirs
            assert [one.sequence for one in ours] == list(range(len(ours)))
        finally:
            self.redis.close()

    def dice(self, seed: int) -> random.Random:
        """Other dice at every step: Hypothesis likes to repeat small seeds."""
        return random.Random(seed * 10_007 + self.count)

    def both(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """Ask both, and compare."""
        Twins.steps += 1
        self.count += 1
        ours = getattr(self.memory, operation)(*arguments, **named)
        theirs = getattr(self.redis, operation)(*arguments, **named)
        assert ours == theirs, operation
        return ours

    def program(self, dice: random.Random, feature: Any) -> Program:
        """Of any node of the path; now and then of another time or an old epoch."""
        customer = replace(self.customer, path=self.customer.path[dice.choice([0, 0, 1, 2]) :])
        if dice.random() < 0.03:
            customer = replace(customer, epoch=customer.epoch + dice.choice([-1, 1]))
        at = self.now - 100 * DAY if dice.random() < 0.03 else self.now
        return compile_program(customer, feature, at)[0]

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.maker = Maker(random.Random(seed), self.now)
        self.customer = self.maker.account()
        self.memory.open(0, 1)
        self.both("project", 0, 1, 1)

    @rule(seed=SEEDS)
    def check(self, seed: int) -> None:
        dice = self.dice(seed)
        size = 1 if dice.random() < 0.7 else dice.randint(2, 4)
        mode = dice.choice(_GROUP_MODES if size > 1 else list(Mode))
        group = []
        for place in range(size):
            feature = dice.choice(FEATURES)
            quantity = (
                MAX_QUANTITY if dice.random() < 0.01 else dice.choice([1, 1, 2, 3, 7, 20, 60])
            )
            key = NO_KEY
            if dice.random() < 0.4:
                # Few names, each mostly with one quantity: asked again, and now and then with another.
                name = dice.randint(0, 5)
                quantity = quantity if dice.random() < 0.1 else 1 + name % 3
                key = idempotency(1, feature.id, str(name), quantity)
            elif dice.random() < 0.2:
                key = idempotency(1, feature.id, f"{self.count}.{place}", quantity)
            ask = Ask(self.program(dice, feature), quantity, mode, b'{"n":%d}' % self.count, key)
            if size == 1 and mode in (Mode.ENFORCE, Mode.BEST_EFFORT) and dice.random() < 0.3:
                self.names.append(f"r{self.count}")
                ask = replace(
                    ask, reservation=self.names[-1], ttl_ms=dice.choice([1_000, 10_000_000])
                )
            group.append(ask)
        self.note(self.both("decide", group), group)

    def note(self, answers: Any, group: list[Ask]) -> None:
        """What has been seen, so that the test can tell that nothing was left out."""
        for answer, ask in zip(answers, group, strict=True):
            self.seen[type(answer).__name__] += 1
            if isinstance(answer, Decision):
                self.seen[answer.reason] += 1
                self.seen[ask.mode] += 1
                self.seen["replayed"] += answer.replayed
                self.seen.update(
                    Kind(entry.code >> 4 & 0xF) for entry in answer.entries if entry.drawn
                )
            if isinstance(answer, SliceStale):
                self.now = max(self.now, answer.now)

    @rule(seed=SEEDS)
    def take_a_seat(self, seed: int) -> None:
        dice = self.dice(seed)
        self.leases.append(f"l{self.count}")
        floating = self.maker.mode is SeatMode.FLOATING
        holder = self.leases[-1] if floating else dice.choice(["ann", "bob", "c:d"])
        key = NO_KEY if dice.random() < 0.7 else idempotency(1, 3, str(dice.randint(0, 9)), holder)
        seat = SeatAsk(self.leases[-1], holder, dice.choice([10_000, 4_000_000]))
        group = [Ask(self.program(dice, SEATS), 1, Mode.ENFORCE, b'{"s":1}', key, seat=seat)]
        self.note(self.both("decide", group), group)

    @rule(seed=SEEDS)
    def settle(self, seed: int) -> None:
        if self.names:
            dice = self.dice(seed)
            name = dice.choice(self.names[-6:])
            if dice.random() < 0.7:
                answer = self.both("commit", 0, name, dice.choice([None, 0, 1, 2, 5]))
            else:
                answer = self.both("release", 0, name)
            self.seen[type(answer).__name__] += 1

    @rule(seed=SEEDS)
    def use_a_lease(self, seed: int) -> None:
        dice = self.dice(seed)
        if not self.leases:
            return
        lease = dice.choice(self.leases[-6:])
        match dice.randint(0, 2):
            case 0:
                self.seen["renewed"] += (
                    self.both("renew", 0, lease, 20_000, 1, self.customer.epoch) is not None
                )
            case 1:
                self.seen["ended"] += (
                    self.both("release_lease", 0, lease, unbind=dice.random() < 0.3) is not None
                )
            case _:
                after = dice.choice([(0, ""), (self.now, "l")])
                self.both("leases", 0, f"{dice.randint(1, 3)}:3", after, dice.randint(1, 5))

    @rule(seed=SEEDS)
    def change_the_terms(self, seed: int) -> None:
        dice = self.dice(seed)
        if dice.random() < 0.4:
            self.customer = self.maker.use(dice, self.now).changed(self.customer)
            self.both("project", 0, 1, self.customer.epoch - dice.choice([0, 0, 0, 1]))
            self.both("project", 0, 1, self.customer.epoch)

    @rule(seed=SEEDS)
    def let_time_pass(self, seed: int) -> None:
        dice = self.dice(seed)
        if dice.random() < 0.4:
            # To the very edge of a slice: a period that turns, an entitlement that begins or ends.
            program, _ = compile_program(self.customer, dice.choice(FEATURES), self.now)
            self.now = max(self.now, program.end - dice.choice([0, 1]))
            return
        long = DAY * dice.randint(1, 40) if dice.random() < 0.5 else 7_200_000
        self.now += dice.choice([1, 50, 999, 1_000, 60_000, 3_600_000, -5, long, long])

    @rule()
    def tick(self) -> None:
        self.both("tick", 0)

    @rule()
    def audit(self) -> None:
        self.both("counters", 0)


def test_scripts_and_specification_are_twins(valkey: ValkeyProcess) -> None:
    Twins.url, Twins.steps = valkey.url, 0
    Twins.seen.clear()
    profile = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Twins, settings=profile)
    assert Twins.steps >= LEAST_STEPS
    missing = [kind for kind in Kind if not Twins.seen[kind]]
    assert not missing, f"never drawn from: {missing}"
    for what in (
        "KeyReused",
        "SliceStale",
        "EpochStale",
        "Settled",
        "replayed",
        "renewed",
        "ended",
    ):
        assert Twins.seen[what], f"never seen: {what}"


def test_all_of_a_bucket_is_compared(valkey: ValkeyProcess) -> None:
    """The comparison itself can fail: one store that is told more is found out."""
    now = [START]
    ours = MemoryCounters(lambda: now[0])
    theirs = RedisTwin(valkey.url, lambda: now[0], 1)
    try:
        ours.open(0, 1)
        maker = Maker(random.Random(1), START)
        customer = maker.account(1)
        ask = Ask(compile_program(customer, FEATURES[0], START)[0], 1, Mode.RECORD_ONLY, b"{}")
        for store in (ours, theirs):
            store.project(0, 1, 1)
        theirs.decide([ask])
        now[0] += 2_000
        theirs.tick(0)
        with pytest.raises(AssertionError):
            assert ours.records(0) == theirs.records(0)
    finally:
        theirs.close()
