"""Random commands to a counter store: all of its operations on small accounts, on a clock that the machine sets."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from enforcer.core.commands import (
    NO_KEY,
    Ask,
    Decision,
    Journaled,
    OutOfTurn,
    SeatAsk,
    SliceStale,
    idempotency,
)
from enforcer.core.compile import compile_program
from enforcer.core.model import MAX_QUANTITY, SeatMode
from enforcer.core.program import Kind, Reason, Shape
from enforcer.core.rules import Mode
from meter.core.records import Body, decode_body, encode_body
from tests.property.accounts import DAY, FEATURES, SEATS, Maker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.memory import MemoryCounters
    from enforcer.core.model import Customer, Feature
    from enforcer.core.program import Program

__all__ = ["BUCKETS", "LEVELS", "SEEDS", "START", "WINDOW_MS", "Commands", "perform", "plan"]

START = 1_700_000_000_000
WINDOW_MS = 3_600_000
BUCKETS = 2
LEVELS = 4
SEEDS = st.integers(0, 2**32 - 1)
_GROUP_MODES = (Mode.ENFORCE, Mode.ENFORCE, Mode.CHECK_ONLY, Mode.RECORD_ONLY)


def plan(runs: int, steps: int) -> settings:
    """How long a machine runs, beside what the profile says.

    A failure prints its commands and how to run them again. They are made fewer only under
    HYPOTHESIS_PROFILE=thorough, which also runs ten times as long: that takes minutes.
    """
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    return settings(
        max_examples=runs * 10 if thorough else runs,
        stateful_step_count=steps,
        phases=tuple(Phase) if thorough else (Phase.reuse, Phase.generate),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def replaced(body: bytes, **fields: Any) -> bytes:
    """A body with other fields."""
    return encode_body(msgspec.structs.replace(decode_body(body), **fields))


def perform(store: MemoryCounters, operation: str, *arguments: Any, **named: Any) -> Any:
    """An operation on the memory store. It decides groups that travel together one after the other."""
    if operation == "decide_all":
        (groups,) = arguments
        return [store.decide(group) for group in groups]
    return getattr(store, operation)(*arguments, **named)


class Commands(RuleBasedStateMachine):
    """Each rule takes a seed and says something. Two accounts share the first bucket, a third has the other.

    A subclass has `say`, which passes an operation to its stores and returns the answer.
    """

    seats_only = False
    """Whether seats are only taken of features that have some, as gateways do: of others no record tells the level."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.count = 0
        self.seen: Counter[Any] = Counter()
        self.maker: Maker
        self.customers: list[Customer] = []
        self.holds: list[tuple[int, str]] = []
        self.blocks: list[tuple[int, str]] = []
        self.leases: list[tuple[Customer, str]] = []
        self.journals: Counter[tuple[int, str]] = Counter()

    def say(self, operation: str, *arguments: Any, **named: Any) -> Any:
        raise NotImplementedError

    def dice(self, seed: int) -> random.Random:
        """Other dice at every step: Hypothesis likes to repeat small seeds."""
        self.count += 1
        return random.Random(seed * 10_007 + self.count)

    # -- what is said

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        dice = random.Random(seed)
        self.maker = Maker(dice, self.now)
        for number, bucket in ((1, 0), (2, 0), (3, 1)):
            self.customers.append(self.maker.account(dice.randint(1, LEVELS), number, bucket))
            self.say("project", bucket, number, 1)

    def program(self, dice: random.Random, customer: Customer, feature: Feature) -> Program:
        """Of any node of the path; now and then of another time or an old epoch."""
        below = max(0, dice.randint(-2, len(customer.path) - 1))
        customer = replace(customer, path=customer.path[below:])
        if dice.random() < 0.03:
            customer = replace(customer, epoch=customer.epoch + dice.choice([-1, 1]))
        at = self.now - 100 * DAY if dice.random() < 0.03 else self.now
        return compile_program(customer, feature, at)[0]

    def group(self, dice: random.Random, customer: Customer) -> list[Ask]:
        size = 1 if dice.random() < 0.7 else dice.randint(2, 4)
        mode = dice.choice(_GROUP_MODES if size > 1 else list(Mode))
        group: list[Ask] = []
        for _ in range(size):
            feature = dice.choice(FEATURES)
            quantity = (
                MAX_QUANTITY if dice.random() < 0.01 else dice.choice([1, 1, 2, 3, 7, 20, 60])
            )
            key, asked = NO_KEY, ""
            self.count += 1
            if dice.random() < 0.4:
                # Few names, each mostly with one quantity: asked again, and now and then with another.
                name = dice.randint(0, 5)
                quantity = quantity if dice.random() < 0.1 else 1 + name % 3
                asked = str(name)
            elif dice.random() < 0.2:
                asked = f"only {self.count}"
            if asked:
                key = idempotency(customer.account_id, feature.id, asked, quantity)
            if key in {ask.idempotency for ask in group}:
                key, asked = NO_KEY, ""
            program = self.program(dice, customer, feature)
            group.append(Ask(program, quantity, mode, self.body(program, asked, key), key))
        block = mode is Mode.ALLOWANCE
        if block or (
            size == 1 and mode in (Mode.ENFORCE, Mode.BEST_EFFORT) and dice.random() < 0.3
        ):
            hold = f"r{self.count}"
            (self.blocks if block else self.holds).append((customer.bucket, hold))
            ttl = dice.choice([1_000, 10_000_000])
            body = replaced(group[0].body, id=hold)
            group[0] = replace(group[0], reservation=hold, ttl_ms=ttl, body=body)
        return group

    def body(self, program: Program, asked: str, key: bytes, **more: str) -> bytes:
        """As the gateway writes it, and of this command alone."""
        body = Body(
            t=program.tenant,
            a=program.account_key,
            c=program.customer,
            f=program.feature,
            m=program.meter,
            k=asked,
            p=key[16:].hex(),
            d={"n": str(self.count)},
        )
        return replaced(encode_body(body), **more)

    @rule(seed=SEEDS)
    def check(self, seed: int) -> None:
        dice = self.dice(seed)
        group = self.group(dice, dice.choice(self.customers))
        self.note(self.say("decide", group), group)

    @rule(seed=SEEDS)
    def check_many(self, seed: int) -> None:
        """Groups of several accounts in one batch."""
        dice = self.dice(seed)
        groups = [self.group(dice, dice.choice(self.customers)) for _ in range(dice.randint(2, 5))]
        for group, answers in zip(groups, self.say("decide_all", groups), strict=True):
            self.note(answers, group)

    def note(self, answers: Any, group: Sequence[Ask]) -> None:
        """What has been seen, so that a test can tell that nothing was left out."""
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
    def count_emergency_uses(self, seed: int) -> None:
        """What was allowed while the store was away: in turn mostly, now and then again, or with one left out."""
        dice = self.dice(seed)
        customer, groups = dice.choice(self.customers), []
        for _ in range(dice.randint(1, 3)):
            place = customer.bucket, f"j{dice.randint(0, 1)}"
            number = max(1, self.journals[place] + dice.choice([1, 1, 1, 1, 0, 2]))
            (ask, *_) = self.group(dice, customer)
            after = number - 1 if dice.random() < 0.9 else 0
            mode, journaled = Mode.RECORD_ONLY, Journaled(place[1], number, after)
            body = replaced(ask.body, j=place[1], jn=number)
            groups.append(
                [
                    replace(
                        ask,
                        mode=mode,
                        body=body,
                        reservation="",
                        ttl_ms=0,
                        journaled=journaled,
                    )
                ]
            )
            if after <= self.journals[place]:
                self.journals[place] = max(number, self.journals[place])
        for (ask,), (answer,) in zip(groups, self.say("decide_all", groups), strict=True):
            self.seen[type(answer).__name__] += 1
            assert ask.journaled is not None
            place = customer.bucket, ask.journaled.journal
            if isinstance(answer, Decision):
                self.seen["counted"] += answer.granted > 0
                self.seen["counted before"] += answer.granted == 0
            elif isinstance(answer, OutOfTurn):
                self.journals[place] = answer.mark
            else:
                self.journals[place] = min(self.journals[place], ask.journaled.number - 1)

    @rule(seed=SEEDS)
    def take_a_seat(self, seed: int) -> None:
        dice = self.dice(seed)
        customer, lease = dice.choice(self.customers), f"l{self.count}"
        self.leases.append((customer, lease))
        floating = self.maker.mode is SeatMode.FLOATING
        holder = lease if floating else dice.choice(["ann", "bob", "c:d"])
        key, asked = NO_KEY, ""
        if dice.random() < 0.3:
            asked = str(dice.randint(0, 9))
            key = idempotency(customer.account_id, SEATS.id, asked, holder)
        seat = SeatAsk(lease, holder, dice.choice([10_000, 4_000_000]))
        program = self.program(dice, customer, SEATS)
        seats = any(view.shape is Shape.SEATS for view in program.views)
        if self.seats_only and program.verdict is Reason.ALLOWED and not seats:
            return
        body = self.body(program, asked, key, id=lease, h=holder)
        group = [Ask(program, 1, Mode.ENFORCE, body, key, seat=seat)]
        self.note(self.say("decide", group), group)

    @rule(seed=SEEDS)
    def settle(self, seed: int) -> None:
        if not self.holds:
            return
        dice = self.dice(seed)
        bucket, name = dice.choice(self.holds[-6:])
        if dice.random() < 0.7:
            answer = self.say("commit", bucket, name, dice.choice([None, 0, 1, 2, 5, 10**6]))
        else:
            answer = self.say("release", bucket, name)
        self.seen[type(answer).__name__] += 1

    @rule(seed=SEEDS)
    def return_a_block(self, seed: int) -> None:
        if not self.blocks:
            return
        dice = self.dice(seed)
        bucket, name = dice.choice(self.blocks[-6:])
        answer = self.say("give_back", bucket, name, dice.choice([0, 1, 1, 2, 5, 10**6]))
        self.seen[f"block: {type(answer).__name__}"] += 1

    @rule(seed=SEEDS)
    def use_a_lease(self, seed: int) -> None:
        if not self.leases:
            return
        dice = self.dice(seed)
        customer, lease = dice.choice(self.leases[-6:])
        bucket, account = customer.bucket, customer.account_id
        match dice.randint(0, 2):
            case 0:
                epoch = self.customers[account - 1].epoch
                answer = self.say("renew", bucket, lease, 20_000, account, epoch)
                self.seen["renewed"] += answer is not None
            case 1:
                unbind = dice.random() < 0.3
                answer = self.say("release_lease", bucket, lease, unbind=unbind)
                self.seen["ended"] += answer is not None
            case _:
                level = f"{dice.choice(customer.path).id}:{SEATS.id}"
                after = dice.choice([(0, ""), (self.now, "l")])
                self.say("leases", bucket, level, after, dice.randint(1, 5))

    @rule(seed=SEEDS)
    def change_the_terms(self, seed: int) -> None:
        dice = self.dice(seed)
        if dice.random() < 0.4:
            old = dice.choice(self.customers)
            bucket, account = old.bucket, old.account_id
            new = self.maker.use(dice, self.now).changed(old)
            self.customers[account - 1] = new
            self.say("project", bucket, account, new.epoch - dice.choice([0, 0, 0, 1]))
            self.say("project", bucket, account, new.epoch)

    @rule(seed=SEEDS)
    def let_time_pass(self, seed: int) -> None:
        dice = self.dice(seed)
        if dice.random() < 0.4:
            # To the very edge of a slice: a period that turns, an entitlement that begins or ends.
            customer = dice.choice(self.customers)
            program, _ = compile_program(customer, dice.choice((*FEATURES, SEATS)), self.now)
            self.now = max(self.now, program.end - dice.choice([0, 1]))
            return
        long = DAY * dice.randint(1, 40) if dice.random() < 0.5 else 7_200_000
        long = DAY * 800 if dice.random() < 0.02 else long
        self.now += dice.choice([1, 50, 999, 1_000, 60_000, 3_600_000, -5, long, long])

    @rule(bucket=st.integers(0, BUCKETS - 1))
    def tick(self, bucket: int) -> None:
        self.say("tick", bucket)

    @rule(bucket=st.integers(0, BUCKETS - 1))
    def audit(self, bucket: int) -> None:
        self.say("counters", bucket)
