"""A store that loses its data now and then, and is made good from the records, answers as one that never lost any.

Beside the bounds that are stated: rates begin as if used up (accounts here have none), leases get a whole time to live,
remembered answers carry no limits, and denials that no record tells of yet are forgotten.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from enforcer.core.commands import Decision, Settled
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import Customer, Feature, RateTerms, TierBehaviour, TieredTerms
from enforcer.core.rebuild import Account
from meter.core.records import SIDE, decode_effects
from tests.fixtures.records import Records
from tests.property.accounts import FEATURES, SEATS
from tests.property.commands import BUCKETS, SEEDS, WINDOW_MS, Commands, perform, plan
from tests.property.redis_twin import RedisTwin

if TYPE_CHECKING:
    from enforcer.core.model import Entitlement
    from tests.fixtures.valkey import ValkeyProcess

RUNS, STEPS = 40, 60
LEAST_LOSSES = 40


def steady(one: Entitlement) -> bool:
    """Without a rate, of which no record tells."""
    terms = one.terms
    if isinstance(terms, TieredTerms):
        return all(tier.behaviour is not TierBehaviour.THROTTLE for tier in terms.tiers)
    return not isinstance(terms, RateTerms)


class Truth:
    """The definitions of the machine's customers."""

    def __init__(self, customers: list[Customer]) -> None:
        self._customers = customers
        self.last: Counter[int] = Counter()

    async def next_generation(self, bucket: int, at_least: int) -> int:
        self.last[bucket] = max(self.last[bucket], at_least) + 1
        return self.last[bucket]

    async def was_opened(self, bucket: int) -> bool:
        return bool(self.last[bucket])

    async def confirm_opened(self, bucket: int) -> None:
        pass

    async def last_generation(self, bucket: int) -> int:
        return self.last[bucket]

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        assert tenant == "demo"
        for one in self._customers:
            for place, node in enumerate(one.path):
                if node.key == customer:
                    return replace(one, path=one.path[place:])
        return None

    async def feature(self, tenant: str, key: str) -> Feature | None:
        assert tenant == "demo"
        return next(one for one in (*FEATURES, SEATS) if one.key == key)

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        features = {one.key: one.id for one in (*FEATURES, SEATS)}
        return [
            Account(one.account_id, one.tenant, one.path, features)
            for one in self._customers
            if one.bucket == bucket and one.account_id > after
        ][:most]


class Losses(Commands):
    """Asks both stores the same; one of them loses data."""

    url: str
    losses: Counter[str] = Counter()  # noqa: RUF012 - of all runs together
    seats_only = True

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCounters(lambda: self.now, window_ms=WINDOW_MS)
        self.records = Records(self.url, range(BUCKETS))
        truth = Truth(self.customers)
        self.redis = RedisTwin(self.url, lambda: self.now, BUCKETS, WINDOW_MS, truth, self.records)
        for bucket in range(BUCKETS):
            self.memory.open(bucket, 1)
        self.kept: dict[bytes, bytes] | None = None

    def say(self, operation: str, *arguments: Any, **named: Any) -> Any:
        for number, bucket in self.memory._buckets.items():
            # An enforcer that tells what it knows of losses brings the time along.
            bucket.last_now = max(bucket.last_now, self.redis.last_now(number))
        ours = perform(self.memory, operation, *arguments, **named)
        theirs = getattr(self.redis, operation)(*arguments, **named)
        if operation != "tick":  # which may have denials to write that the other has forgotten
            assert plain(ours) == plain(theirs), operation
        return ours

    def program(self, dice: Any, customer: Customer, feature: Feature) -> Any:
        for place, one in enumerate(self.customers):
            path = tuple(
                replace(node, entitlements=tuple(filter(steady, node.entitlements)))
                for node in one.path
            )
            self.customers[place] = replace(one, path=path)
        return super().program(dice, self.customers[customer.account_id - 1], feature)

    @rule(bucket=SEEDS)
    def audit(self, bucket: int) -> None:
        """Counters are the sums of the records, after whatever happened."""
        self.records.read()
        number = bucket % BUCKETS
        sums: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
        for entry in self.records.entries[number].values():
            for one in decode_effects(entry.effects).entries:
                sums[one.limit, one.period][0] += one.used
                sums[one.limit, one.period][1] += one.held
        for counter in self.redis.counters(number).counters:
            assert counter.limit < SIDE
            assert sums[counter.limit, counter.period] == [counter.used, counter.held], counter

    @rule()
    def keep_a_copy(self) -> None:
        self.kept = self.redis.copy()

    @rule()
    def lose_everything(self) -> None:
        self.lose({}, "emptied")

    @precondition(lambda self: self.kept is not None)
    @rule()
    def go_back(self) -> None:
        assert self.kept is not None
        self.lose(self.kept, "gone back")
        self.keep_a_copy()  # so that few runs never go back

    def lose(self, copy: dict[bytes, bytes], how: str) -> None:
        self.records.read()
        Losses.losses[how] += 1
        self.now = max(self.now, *(one.last_now for one in self.memory._buckets.values()))
        self.redis.lose(copy)
        for number, bucket in self.memory._buckets.items():
            for account, epoch in bucket.epochs.items():
                self.redis.project(number, account, epoch)
            ends = self.redis.lease_ends(number)
            assert ends.keys() == bucket.leases.keys()
            for name, lease in bucket.leases.items():
                lease.expires = ends[name]
                for suffix in lease.suffixes:
                    bucket.index[suffix][name] = lease.expires
                    if name in bucket.holders[suffix][lease.holder]:
                        bucket.holders[suffix][lease.holder][name] = lease.expires
            bucket.denials.clear()
            # Denials have no records of their keys: known are those that the copy has.
            for answers in bucket.answers.values():
                for key in [one for one, (_, answer) in answers.items() if answer is None]:
                    del answers[key]
            for window, key, finger in self.redis.denied(number):
                bucket.answers[window].setdefault(key, (finger, None))

    def teardown(self) -> None:
        try:
            for bucket in range(BUCKETS):
                self.audit(bucket)
        finally:
            self.redis.close()


def plain(answer: Any) -> Any:
    """Without places in a sequence, which differ after a loss, and without the limits of answers from memory."""
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    if isinstance(answer, Decision):
        said = answer.but(generation=0, sequence=min(answer.sequence, 0))
        return said.but(values=(), shadow=False) if said.replayed else said
    if isinstance(answer, Settled):
        return replace(answer, generation=0, sequence=0)
    if isinstance(answer, tuple) and answer and isinstance(answer[0], int):
        return True
    return answer


@pytest.mark.timeout(3600)
def test_a_store_made_good_from_the_records_answers_as_if_nothing_was_lost(
    valkey: ValkeyProcess,
) -> None:
    Losses.url = valkey.url
    Losses.losses.clear()
    run_state_machine_as_test(Losses, settings=plan(RUNS, STEPS))
    assert min(Losses.losses["emptied"], Losses.losses["gone back"]) >= LEAST_LOSSES
