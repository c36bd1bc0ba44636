"""The Redis scripts and the specification, driven with the same random commands on one clock, are equal.

Replies, counters, leases and records are compared. To see the test fail, change any rule in one of the two.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis.stateful import rule, run_state_machine_as_test

from enforcer.core.commands import Ask
from enforcer.core.commands import Counter as Shown
from enforcer.core.compile import compile_program
from enforcer.core.corrections import Corrected, Correction, Refused, Uncertain
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.parcels import Parcel, closed, draw, give_back, parcel, quantity_of
from enforcer.core.program import Kind, Reason
from enforcer.core.rules import Mode
from meter.core.records import RecordType
from tests.property.accounts import DAY, FEATURES, Maker
from tests.property.commands import BUCKETS, SEEDS, START, WINDOW_MS, Commands, perform, plan
from tests.property.redis_twin import ClusterTwin, RedisTwin

if TYPE_CHECKING:
    from enforcer.core.program import Program
    from enforcer.core.rules import Slots
    from tests.fixtures.valkey import ValkeyProcess
    from tests.fixtures.valkey_cluster import ValkeyCluster

RUNS, STEPS = 160, 70
CLUSTER_RUNS = 4
LEAST_STEPS = 2_000


class Twins(Commands):
    """Asks both stores the same."""

    url: str
    twin = RedisTwin
    steps = 0
    all_seen: Counter[Any] = Counter()  # noqa: RUF012 - of all runs together

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCounters(lambda: self.now, window_ms=WINDOW_MS)
        self.redis = self.twin(self.url, lambda: self.now, BUCKETS, window_ms=WINDOW_MS)
        for bucket in range(BUCKETS):
            self.memory.open(bucket, 1)
        self.corrected: dict[int, list[Correction]] = {bucket: [] for bucket in range(BUCKETS)}
        self.parcels: dict[tuple[int, int], tuple[Parcel, ...]] = {}

    def say(self, operation: str, *arguments: Any, **named: Any) -> Any:
        Twins.steps += 1
        ours = perform(self.memory, operation, *arguments, **named)
        theirs = getattr(self.redis, operation)(*arguments, **named)
        assert ours == theirs, operation
        return ours

    # -- corrections of what the outboxes hold

    def slots(self, bucket: int, suffixes: list[str]) -> tuple[Slots, ...]:
        """Of both stores. One may have laid out slots that nothing was counted in."""
        ours, theirs = self.memory.slots(bucket, suffixes), self.redis.slots(bucket, suffixes)
        assert (ours.generation, ours.last, ours.now) == (
            theirs.generation,
            theirs.last,
            theirs.now,
        )
        assert [_used(one) for one in ours.slots] == [_used(one) for one in theirs.slots]
        return ours.slots

    @rule(seed=SEEDS)
    def correct(self, seed: int) -> None:
        dice = self.dice(seed)
        customer = dice.choice(self.customers)
        bucket, done = customer.bucket, self.corrected[customer.bucket]
        below = dice.randint(0, len(customer.path) - 1)
        customer = replace(customer, path=customer.path[below:])
        at = self.now - dice.choice([0, 60_000, 3_600_000, DAY, 40 * DAY])
        program = compile_program(customer, dice.choice(FEATURES), at)[0]
        made = self.void_or_amend(dice, bucket, program)
        if made is None or dice.random() < 0.5:
            made = self.backfill(dice, bucket, program, at)
        if made is None:
            return
        one = replace(made, number=len(done) + 1 + (dice.random() < 0.05))
        if dice.random() < 0.05:
            one = replace(one, account_id=customer.account_id, epoch=customer.epoch + 1)
        if dice.random() < 0.05:
            one = replace(one, refused="NOT_ENTITLED")
        # Sent together with some that were carried out before, acknowledged or not.
        again = done[len(done) - dice.randint(0, min(3, len(done))) :]
        acknowledged = dice.randint(0, len(done))
        outcomes = self.say("correct", bucket, acknowledged, [*again, one])
        if isinstance(outcomes[0], Uncertain):
            self.seen["Uncertain"] += 1
            outcomes = self.say("correct", bucket, len(done), [*again, one], certain=True)
        last = outcomes[-1]
        self.seen.update(type(outcome).__name__ for outcome in outcomes)
        if isinstance(last, Corrected | Refused) and last.number == one.number:
            done.append(one)

    def void_or_amend(
        self, dice: random.Random, bucket: int, program: Program
    ) -> Correction | None:
        records = [
            record
            for record in self.memory.records(bucket)[-30:]
            if record.effects.type
            in (
                RecordType.USAGE,
                RecordType.COMMIT,
                RecordType.BACKFILL,
                RecordType.ALLOWANCE_USE,
            )
            and record.effects.granted
        ]
        if not records:
            return None
        effects = (record := dice.choice(records)).effects
        place = bucket, record.sequence
        before = self.parcels.get(place)
        if before is None:
            entries = [(one.limit, one.period, one.used) for one in effects.entries]
            before = (parcel(effects.granted, effects.overage, entries),)
        amount = dice.randint(0, quantity_of(before))
        back = give_back(before, amount, program if dice.random() < 0.7 else None)
        self.parcels[place] = back.left
        kind = dice.choice([RecordType.VOID, RecordType.AMEND])
        return Correction(0, kind, b'{"v":1}', -amount, -back.overage, -1, 5, changes=back.changes)

    def backfill(
        self, dice: random.Random, bucket: int, program: Program, at: int
    ) -> Correction | None:
        levels = self.slots(bucket, [level.suffix for level in program.levels])
        quantity = MAX_QUANTITY if dice.random() < 0.02 else dice.choice([1, 2, 7, 20])
        past = {counter: dice.randint(0, 30) for counter in closed(program, levels)}
        drawn = draw(program, levels, quantity, at, self.now, past)
        if drawn.denied:
            return None
        changes = drawn.changes
        if dice.random() < 0.1:
            changes = tuple(replace(one, most=dice.randint(0, 20)) for one in changes)
        return Correction(
            0,
            RecordType.BACKFILL,
            '{"w":"späť"}'.encode(),
            quantity,
            drawn.overage,
            1,
            quantity,
            adjusts=dice.random() < 0.5,
            changes=changes,
        )

    @rule(seed=SEEDS)
    def repair(self, seed: int) -> None:
        """A counter, and one that is not there."""
        dice = self.dice(seed)
        bucket = dice.randrange(BUCKETS)
        known = self.memory.counters(bucket).counters
        if not known:
            return
        one = dice.choice(known)
        # No sum of records is larger than a counter can be.
        more = min(dice.randint(0, 3), MAX_QUANTITY - one.used - one.held)
        one = replace(one, used=more, held=0)
        for change in (one, replace(one, limit=10**6)):
            done = self.say("repair", bucket, b'{"w":"repair"}', [change])
            Twins.all_seen["repaired"] += len(done)

    @rule(seed=SEEDS)
    def adjust_seats(self, seed: int) -> None:
        """As of now, or of a place before the last adjustment."""
        dice = self.dice(seed)
        bucket = dice.randrange(BUCKETS)
        shown = self.memory.counters(bucket)
        place = shown.generation, shown.last - dice.choice([0, 0, 3])
        change = Shown(dice.randint(1, 9), 0, 0, dice.choice([-2, 1]))
        Twins.all_seen["adjusted"] += self.say(
            "adjust_seats", bucket, place, b'{"w":"seats"}', [change]
        )

    def teardown(self) -> None:
        try:
            for bucket in range(BUCKETS):
                self.say("tick", bucket)
                self.say("counters", bucket)
                ours, theirs = self.memory.records(bucket), self.redis.records(bucket)
                assert ours == theirs
                self.seen.update(record.effects.type for record in ours)
                self.add_up(bucket)
            Twins.all_seen.update(self.seen)
        finally:
            self.redis.close()

    def add_up(self, bucket: int) -> None:
        """Every counter is the sum of its records' effects, whatever was corrected."""
        sums: Counter[tuple[int, int, str]] = Counter()
        for record in self.memory.records(bucket):
            if record.effects.type is RecordType.REPAIR and record.effects.quantity:
                continue  # the ledger's alone
            for effect in record.effects.entries:
                sums[effect.limit, effect.period, "used"] += effect.used
                sums[effect.limit, effect.period, "held"] += effect.held
        for one in self.memory.counters(bucket).counters:
            assert one.used == sums[one.limit, one.period, "used"]
            assert one.held == sums[one.limit, one.period, "held"]


def _used(slots: Slots) -> Slots:
    """Without those that nothing was ever counted in."""
    return {code: slot for code, slot in slots.items() if any(slot)}


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
        "block: HoldGone",
        "block: KeyReused",
        "block: Settled",
        "block: TooMuch",
        Mode.ALLOWANCE,
        RecordType.UNACCOUNTED,
        "replayed",
        "renewed",
        "ended",
        "repaired",
        "OutOfTurn",
        "counted",
        "counted before",
        "Corrected",
        "Refused",
        "Known",
        "Uncertain",
        "Moved",
    ):
        assert Twins.all_seen[what], f"never seen: {what}"


class ClusterTwins(Twins):
    """The same on a cluster, whose functions read a key more."""

    twin = ClusterTwin


@pytest.mark.timeout(600)
def test_they_are_so_on_a_cluster_with_buckets_on_two_nodes_and_on_one(
    cluster: ValkeyCluster,
) -> None:
    ClusterTwins.url, Twins.steps = cluster.url, 0
    assert cluster.primary_of(0) is not cluster.primary_of(1)
    run_state_machine_as_test(ClusterTwins, settings=plan(CLUSTER_RUNS, STEPS))
    cluster.move([1], cluster.primary_of(0))
    run_state_machine_as_test(ClusterTwins, settings=plan(CLUSTER_RUNS, STEPS))
    assert Twins.steps >= CLUSTER_RUNS * STEPS


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
