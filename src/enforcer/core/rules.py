"""The decision rules: what a program does to counters. Pure arithmetic, the specification of `decide.lua`.

Every number is an integer up to 2^53 - 1, but for the tokens of buckets, which are doubles: both sides compute them by
the same operations in the same order, so that they stay equal to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.allowances import block, sought
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import (
    DENIED,
    FIELDS,
    RING_SLOTS,
    SHADOW,
    Chain,
    Family,
    Kind,
    Program,
    Reason,
    Shape,
    View,
)
from meter.core.records import SIDE, Effect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RATES",
    "Entry",
    "Hold",
    "Mode",
    "Overflow",
    "Slots",
    "Take",
    "Verdict",
    "apply",
    "entries",
    "evaluate",
    "fresh_slot",
    "ring_total",
    "settle",
]

Slots = dict[int, list[float]]
"""The slots of one state by code: fields as described in `program`."""

RATES = (Shape.BUCKET, Shape.RING10)
"""Limits of speed: spent at once even by a reservation, and no counters for the ledger."""

PERIOD, ORDINAL, USED, HELD, A, B = range(6)
TOKENS, AT = 0, 1
NEWEST, RING_HELD, RING = 0, 1, 2


class Mode(IntEnum):
    """The numbers are those of enforcer.v1.Mode, and two of our own.

    PEEK is CHECK_ONLY that shows the counters as they stand; ALLOWANCE is BEST_EFFORT for a share of what is left.
    """

    ENFORCE = 1
    CHECK_ONLY = 2
    BEST_EFFORT = 3
    RECORD_ONLY = 4
    PEEK = 5
    ALLOWANCE = 6


class Overflow(ArithmeticError):  # noqa: N818 - named for what it says
    """A count or an amount of money would pass 2^53 - 1."""


class Entry(NamedTuple):
    """One limit as it stands after a decision. `code` carries the flags; `reset` is a time in ms, 0 for never."""

    code: int
    limit: int
    used: int
    held: int
    remaining: int
    drawn: int
    reset: int


class Take(NamedTuple):
    """What one view gives. `excess` of it lies beyond what the view had."""

    view: View
    amount: int
    excess: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided for one check. `chains` has the takes of each chain; all empty when nothing is granted."""

    reason: Reason
    granted: int
    overage: int
    shadow: bool
    chains: tuple[tuple[Take, ...], ...]
    denied: tuple[bool, ...]


class Seats(NamedTuple):
    """The seats of one view: how many are taken, and whether the asking holder already has one."""

    taken: int
    has_one: bool


def fresh_slot(family: Family) -> list[float]:
    """A slot that nothing was counted in."""
    return [0] * FIELDS[family]


def rolled(view: View, slot: list[float]) -> list[float]:
    """The slot as of the view's period: unchanged, or begun afresh with what rolls over."""
    if slot[PERIOD] == view.start:
        return slot
    carry: float = 0
    if view.shape is Shape.ROLL:
        ordinal, limit, minimum, maximum, first = view.extra
        if slot[ORDINAL] == 0 and slot[PERIOD] == 0:
            missed, balance = ordinal - first, limit
        else:
            missed = ordinal - slot[ORDINAL]
            balance = max(0, limit + slot[A] - slot[USED] - slot[HELD])
        if missed > 0:
            carry = min(maximum, max(minimum, balance))
            if missed > 1:
                carry = min(maximum, carry + (missed - 1) * limit)
    return [view.start, view.extra[0], 0, 0, carry, 0]


def turned(view: View, slot: list[float], now: int) -> list[float]:
    """The ring with everything that has left the window removed."""
    count = RING_SLOTS[Family(view.slot & 7)]
    newest = now // int(view.extra[0])
    if newest <= slot[NEWEST]:
        return slot
    ring = list(slot)
    for number in range(max(int(slot[NEWEST]) + 1, newest - count + 1), newest + 1):
        ring[RING + number % count] = 0
    ring[NEWEST] = newest
    return ring


def ring_total(slot: list[float]) -> float:
    """What a ring counts in its whole window."""
    return sum(slot[RING:])


def tokens(slot: list[float], refill: float, burst: int, now: int, at: int = AT) -> float:
    """A bucket's tokens now. One that was never used is full."""
    if slot[at] == 0:
        return burst
    return min(burst, slot[at - 1] + (now - slot[at]) * refill)


def bounds(view: View, slot: list[float]) -> tuple[float, float]:
    """Lower and upper end of the view, moved by what rolled over."""
    if view.shape is not Shape.ROLL:
        return view.lower, view.upper
    carry = slot[A]
    lower = view.lower + carry if view.lower else 0
    return lower, view.upper if view.upper >= MAX_QUANTITY else view.upper + carry


def _affordable(view: View, slot: list[float], held: float) -> float:
    """Units that the rest of a spend cap buys, `held` units being set aside."""
    _, numerator, denominator, cap = (int(value) for value in view.extra)
    money = cap - int(slot[A])
    base = int(slot[B]) + int(held) * numerator
    most = (MAX_QUANTITY - base) // numerator
    if money < 0:
        return 0
    if money * denominator + denominator > MAX_QUANTITY:
        return max(0, most)
    return max(0, min(most, (money * denominator + denominator - 1 - base) // numerator))


def room(view: View, slot: list[float], pending: float, now: int) -> float:
    """How much the view can give. `pending` is what earlier views of the same slot give to this check."""
    if view.shape is Shape.BUCKET:
        return max(0, math.floor(tokens(slot, view.extra[0], view.upper, now)))
    lower, upper = bounds(view, slot)
    if view.shape in (Shape.RING10, Shape.RING24):
        total = ring_total(slot) + slot[RING_HELD] + pending
    else:
        total = slot[USED] + slot[HELD] + pending
    if total < lower:
        return 0
    free = max(0, upper - total)
    if view.shape is Shape.MONEY:
        return min(free, _affordable(view, slot, slot[HELD] + pending))
    if view.shape is Shape.THROTTLE:
        _, refill, burst = view.extra
        return min(free, max(0, math.floor(tokens(slot, refill, int(burst), now, B))))
    return free


class _Working:
    """The counters of one check: rolled to now, read once."""

    def __init__(self, levels: list[Slots], seats: Callable[[View], Seats], now: int) -> None:
        self.levels, self.seats, self.now = levels, seats, now

    def slot(self, view: View) -> list[float]:
        slots = self.levels[view.level]
        slot = slots.get(view.slot)
        if slot is None:
            slot = fresh_slot(Family(view.slot & 7))
        if view.shape is Shape.BUCKET:
            return slot
        if view.shape in (Shape.RING10, Shape.RING24):
            return turned(view, slot, self.now)
        return rolled(view, slot)

    def take(self, chain: Chain, quantity: int) -> tuple[list[Take], int]:
        """Draws in order. The second value is what nobody could give."""
        need, takes = quantity, []
        pending: dict[tuple[int, int], int] = {}
        for view in chain.views:
            key = view.level, view.slot
            if view.shape is Shape.SEATS:
                taken, has_one = self.seats(view)
                free = need if has_one else max(0, view.upper - taken)
            else:
                free = int(room(view, self.slot(view), pending.get(key, 0), self.now))
            amount = min(need, free)
            takes.append(Take(view, amount))
            pending[key] = pending.get(key, 0) + amount
            need -= amount
        return takes, need

    def overfull(self, chain: Chain, quantity: int) -> list[Take]:
        """Draws in order, and what nobody can give from the last view all the same."""
        takes, short = self.take(chain, quantity)
        if short and takes:
            view, amount, _ = takes[-1]
            takes[-1] = Take(view, amount + short, short)
        return takes


def _granted(mode: Mode, quantity: int, least: int) -> int:
    """How much of `quantity`. `least`: what the shortest chain that counts can take of it."""
    match mode:
        case Mode.RECORD_ONLY:
            return quantity
        case Mode.BEST_EFFORT:
            return least
        case Mode.ALLOWANCE:
            return block(least)
        case _:
            return quantity if least == quantity else 0


def evaluate(
    program: Program,
    levels: list[Slots],
    seats: Callable[[View], Seats],
    quantity: int,
    mode: Mode,
    now: int,
) -> Verdict:
    """Decide one check on the slots of the program's levels, which are not changed."""
    if program.verdict is not Reason.ALLOWED:
        return Verdict(program.verdict, 0, 0, shadow=False, chains=(), denied=())
    working = _Working(levels, seats, now)
    if mode is Mode.ALLOWANCE:
        quantity = sought(quantity)
    capacity = [quantity - working.take(chain, quantity)[1] for chain in program.chains]
    enforced = [
        amount for chain, amount in zip(program.chains, capacity, strict=True) if not chain.shadow
    ]
    granted = _granted(mode, quantity, min(enforced, default=quantity))
    wanted = max(granted, 1) if mode in (Mode.BEST_EFFORT, Mode.ALLOWANCE) else quantity
    denied = tuple(
        amount < wanted and (chain.shadow or mode is not Mode.RECORD_ONLY)
        for chain, amount in zip(program.chains, capacity, strict=True)
    )
    shadow = any(
        chain.shadow and short for chain, short in zip(program.chains, denied, strict=True)
    )
    if not granted:
        reason = next(
            chain.reason
            for chain, short in zip(program.chains, denied, strict=True)
            if short and not chain.shadow
        )
        return Verdict(reason, 0, 0, shadow=shadow, chains=(), denied=denied)
    chains = tuple(tuple(working.overfull(chain, granted)) for chain in program.chains)
    overage = 0
    for chain, takes in zip(program.chains, chains, strict=True):
        if chain.shadow:
            continue
        for view, amount, excess in takes:
            if view.kind in (Kind.OVERAGE, Kind.OVERDRAFT) and chain.supply:
                overage += amount
            elif chain.supply:
                overage += excess
            elif view.shape is Shape.SEATS:
                taken, has_one = seats(view)
                overage += not has_one and taken + amount > view.extra[1]
        if chain.supply and not takes:
            overage += granted
    return Verdict(Reason.ALLOWED, granted, overage, shadow=shadow, chains=chains, denied=denied)


def entries(
    program: Program,
    verdict: Verdict,
    levels: list[Slots],
    seats: Callable[[View], Seats],
    now: int,
    *,
    drawn: bool,
) -> tuple[Entry, ...]:
    """Every limit as it stands on `levels` (after `apply`, if the check consumed)."""
    working = _Working(levels, seats, now)
    found = []
    for number, chain in enumerate(program.chains):
        flags = SHADOW * chain.shadow
        if verdict.denied and verdict.denied[number]:
            flags |= DENIED
        takes = verdict.chains[number] if drawn and verdict.chains else ()
        for place, view in enumerate(chain.views):
            take = takes[place].amount if takes else 0
            found.append(_entry(view, working, flags, take))
    return tuple(found)


def _entry(view: View, working: _Working, flags: int, drawn: int) -> Entry:
    now = working.now
    code = view.code | flags
    if view.shape is Shape.SEATS:
        taken, _ = working.seats(view)
        return Entry(code, int(view.extra[1]), 0, taken, max(0, view.upper - taken), drawn, 0)
    slot = working.slot(view)
    if view.shape is Shape.BUCKET:
        level = tokens(slot, view.extra[0], view.upper, now)
        full = 0 if level >= view.upper else now + math.ceil((view.upper - level) / view.extra[0])
        whole = math.floor(level)
        return Entry(code, view.upper, view.upper - whole, 0, max(0, whole), drawn, full)
    lower, upper = (int(value) for value in bounds(view, slot))
    if view.shape in (Shape.RING10, Shape.RING24):
        used, held = int(ring_total(slot)), int(slot[RING_HELD])
        reset = _leaves(view, slot)
    else:
        used, held, reset = int(slot[USED]), int(slot[HELD]), view.end
    most = MAX_QUANTITY if view.top else upper
    shown = max(0, min(used, most) - lower)
    total = max(0, min(used + held, most) - lower)
    remaining = max(0, upper - max(lower, used + held))
    limit = MAX_QUANTITY if upper >= MAX_QUANTITY else upper - lower
    if view.shape is Shape.MONEY:
        remaining = min(remaining, int(_affordable(view, slot, slot[HELD])))
        limit = total + remaining
    return Entry(code, limit, shown, total - shown, remaining, drawn, reset)


def _leaves(view: View, slot: list[float]) -> int:
    """When the oldest use leaves the window; 0 if it is empty."""
    count = RING_SLOTS[Family(view.slot & 7)]
    newest, width = int(slot[NEWEST]), int(view.extra[0])
    for number in range(newest - count + 1, newest + 1):
        if slot[RING + number % count] > 0:
            return (number + count) * width
    return 0


def apply(verdict: Verdict, levels: list[Slots], now: int, *, hold: bool) -> tuple[Effect, ...]:
    """Change the slots of `levels` by what was decided; return the effects for the record.

    `hold`: amounts are held for a reservation instead of used. Raise `Overflow` before anything changes.
    """
    working = _Working(levels, _no_seats, now)
    for takes in verdict.chains:
        pending: dict[tuple[int, int], int] = {}
        for view, amount, _ in takes:
            if view.shape not in (Shape.SEATS, Shape.BUCKET):
                key = view.level, view.slot
                pending[key] = pending.get(key, 0) + amount
                _guard(view, working.slot(view), pending[key])
    effects = []
    for takes in verdict.chains:
        for view, amount, _ in takes:
            if view.shape is Shape.SEATS:
                if amount:
                    effects.append(Effect(view.id, 0, 0, 1))
                continue
            if not amount:
                continue
            before = levels[view.level][view.slot]
            slot = list(working.slot(view))
            levels[view.level][view.slot] = slot
            if view.shape is Shape.BUCKET:
                left = tokens(slot, view.extra[0], view.upper, now) - amount
                slot[TOKENS], slot[AT] = max(left, -view.upper), now
                continue
            if view.shape is Shape.THROTTLE:
                burst = int(view.extra[2])
                slot[A] = max(tokens(slot, view.extra[1], burst, now, B) - amount, -burst)
                slot[B] = now
            period = _draw(view, slot, amount, hold=hold)
            if view.shape in RATES:
                continue
            effects.append(Effect(view.id, period, 0 if hold else amount, amount if hold else 0))
            effects += _side(view, before, slot)
    return tuple(effects)


def _side(view: View, before: list[float], slot: list[float]) -> list[Effect]:
    """What a count's second pair of numbers changed by: what rolled over, or money."""
    a: float
    b: float
    if view.shape is Shape.ROLL:
        a, b = (0, 0) if before[PERIOD] == view.start else (slot[A], 0)
    elif view.shape is Shape.MONEY:
        kept = before[PERIOD] == view.start
        a, b = slot[A] - (before[A] if kept else 0), slot[B] - (before[B] if kept else 0)
    else:
        return []
    return [Effect(view.id + SIDE, view.start, int(a), int(b))] if a or b else []


def _guard(view: View, slot: list[float], amount: int) -> None:
    ring = view.shape in (Shape.RING10, Shape.RING24)
    total = ring_total(slot) + slot[RING_HELD] if ring else slot[USED] + slot[HELD]
    if total + amount > MAX_QUANTITY:
        raise Overflow
    if view.shape is Shape.MONEY:
        _, numerator, denominator, _ = view.extra
        if slot[B] + (slot[HELD] + amount) * numerator > MAX_QUANTITY:
            raise Overflow
        if slot[A] + (slot[B] + amount * numerator) / denominator > MAX_QUANTITY:
            raise Overflow


def _draw(view: View, slot: list[float], amount: int, *, hold: bool) -> int:
    """Book on a slot that is current; return the effect's period."""
    if view.shape in (Shape.RING10, Shape.RING24):
        if hold and view.shape not in RATES:
            slot[RING_HELD] += amount
            return 0
        newest = int(slot[NEWEST])
        slot[RING + newest % RING_SLOTS[Family(view.slot & 7)]] += amount
        return newest
    if hold:
        slot[HELD] += amount
    else:
        slot[USED] += amount
        if view.shape is Shape.MONEY:
            _spend(slot, amount, int(view.extra[1]), int(view.extra[2]))
    return view.start


def _spend(slot: list[float], amount: int, numerator: int, denominator: int) -> None:
    money = int(slot[B]) + amount * numerator
    slot[A] += money // denominator
    slot[B] = money % denominator


class Hold(NamedTuple):
    """What one view holds for a reservation, with all that settling it needs."""

    key: str
    slot: int
    id: int
    over: bool
    period: int
    amount: int
    width: int = 0
    numerator: int = 0
    denominator: int = 1


def settle(hold: Hold, slot: list[float], use: int, now: int) -> list[Effect]:
    """Turn `use` of a hold into usage and give the rest back, in the period that held it.

    A period that is over has no counter any more: the effect is recorded all the same.
    """
    family = Family(hold.slot & 7)
    if family is Family.COUNT:
        effects = [Effect(hold.id, hold.period, use, -hold.amount)]
        if slot[PERIOD] == hold.period:
            slot[HELD] -= hold.amount
            slot[USED] += use
            if hold.numerator and use:
                a, b = int(slot[A]), int(slot[B])
                _spend(slot, use, hold.numerator, hold.denominator)
                side = int(slot[A]) - a, int(slot[B]) - b
                if any(side):
                    effects.append(Effect(hold.id + SIDE, hold.period, *side))
        return effects
    count = RING_SLOTS[family]
    newest = now // hold.width
    if newest > slot[NEWEST]:
        for number in range(max(int(slot[NEWEST]) + 1, newest - count + 1), newest + 1):
            slot[RING + number % count] = 0
        slot[NEWEST] = newest
    slot[RING_HELD] -= hold.amount
    effects = [Effect(hold.id, 0, 0, -hold.amount)]
    if use:
        newest = int(slot[NEWEST])
        slot[RING + newest % count] += use
        effects.append(Effect(hold.id, newest, use, 0))
    return effects


def _no_seats(_: View) -> Seats:
    return Seats(0, has_one=False)
