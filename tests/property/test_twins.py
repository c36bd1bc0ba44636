"""The Redis scripts and the specification, driven with the same random commands on one clock, are equal.

Replies, counters, leases and records are compared. To see the test fail, change any rule in one of the two.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from enforcer.core.commands import Ask
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.program import Kind, Reason
from enforcer.core.rules import Mode
from tests.property.accounts import FEATURES, Maker
from tests.property.commands import BUCKETS, START, WINDOW_MS, Commands, perform, plan
from tests.property.redis_twin import RedisTwin

if TYPE_CHECKING:
    from tests.fixtures.valkey import ValkeyProcess

RUNS, STEPS = 160, 70
LEAST_STEPS = 2_000


class Twins(Commands):
    """Asks both stores the same."""

    url: str
    steps = 0
    all_seen: Counter[Any] = Counter()  # noqa: RUF012 - of all runs together

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCounters(lambda: self.now, window_ms=WINDOW_MS)
        self.redis = RedisTwin(self.url, lambda: self.now, BUCKETS, window_ms=WINDOW_MS)
        for bucket in range(BUCKETS):
            self.memory.open(bucket, 1)

    def say(self, operation: str, *arguments: Any, **named: Any) -> Any:
        Twins.steps += 1
        ours = perform(self.memory, operation, *arguments, **named)
        theirs = getattr(self.redis, operation)(*arguments, **named)
        assert ours == theirs, operation
        return ours

    def teardown(self) -> None:
        try:
            for bucket in range(BUCKETS):
                self.say("tick", bucket)
                self.say("counters", bucket)
                ours, theirs = self.memory.records(bucket), self.redis.records(bucket)
                assert ours == theirs
            Twins.all_seen.update(self.seen)
        finally:
            self.redis.close()


@pytest.mark.timeout(3600)
def test_scripts_and_specification_are_twins(valkey: ValkeyProcess) -> None:
    Twins.url, Twins.steps = valkey.url, 0
    Twins.all_seen.clear()
    run_state_machine_as_test(Twins, settings=plan(RUNS, STEPS))
    assert Twins.steps >= LEAST_STEPS
    missing = [kind for kind in Kind if not Twins.all_seen[kind]]
    assert not missing, f"never drawn from: {missing}"
    given = set(Reason) - {Reason.EMERGENCY_EXHAUSTED}  # without a store
    unseen = [reason for reason in given if not Twins.all_seen[reason]]
    assert unseen in ([], [Reason.VERSION_NOT_COVERED]), f"never given: {unseen}"
    for what in (
        "KeyReused",
        "SliceStale",
        "EpochStale",
        "HoldGone",
        "TooMuch",
        "Settled",
        "replayed",
        "renewed",
        "ended",
        "OutOfTurn",
        "counted",
        "counted before",
    ):
        assert Twins.all_seen[what], f"never seen: {what}"


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
