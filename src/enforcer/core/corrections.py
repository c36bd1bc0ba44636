"""Corrections of usage as the counter store carries them out: values, and what they do to slots.

Every correction has a number in its bucket's list of corrections. The list lives in the definitions' database, which
says in which order they come; the store carries them out in that order and remembers the last number, so that each is
carried out once, however many processes find it in the list. `change` is the specification of `correct.lua`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from enforcer.core.commands import EpochStale
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import RING_SLOTS, Family
from meter.core.records import SIDE, Effect

if TYPE_CHECKING:
    from enforcer.core.rules import Slots
    from meter.core.records import RecordType

__all__ = [
    "OVERFLOW",
    "Change",
    "Corrected",
    "Correction",
    "Known",
    "Levels",
    "Moved",
    "Outcome",
    "Refused",
    "Uncertain",
    "booked",
    "change",
    "has_room",
    "overflows",
    "side",
]

OVERFLOW = "QUANTITY_OVERFLOW"
PERIOD, ORDINAL, USED, HELD, A, B = range(6)
NEWEST, RING_HELD, RING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one counter: `delta` units of `limit` in `period`, negative to give back.

    `suffixes`: the levels where the counter's slot is looked for first, before all others. A draw (`delta` > 0) names
    one level and the slot's `code`; it begins a period that nothing was counted in yet as its `roll` says (ordinal; and for
    what rolls over limit, minimum, maximum and first ordinal), and is not done when used and held would pass `most`,
    or what rolled over on top of it. `width`: of a rolling quota's slot in ms, whose number `period` is then.
    `numerator` / `denominator`: the price of a unit, under a spend cap.
    """

    limit: int
    period: int
    delta: int
    suffixes: tuple[str, ...]
    code: int = 0
    most: int = MAX_QUANTITY
    width: int = 0
    numerator: int = 0
    denominator: int = 1
    roll: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction of a bucket, to be carried out once: numbers count from 1 without holes.

    The record has `kind`, `body`, the differences `granted`, `overage` and `count`, the new `quantity`, and `adjusts`
    where the window is sealed. With `account_id` the store's epoch must be `epoch`. `refused`: not to be carried out,
    for this reason; the number is used up all the same.
    """

    number: int
    kind: RecordType
    body: bytes
    granted: int = 0
    overage: int = 0
    count: int = 0
    quantity: int = 0
    adjusts: bool = False
    changes: tuple[Change, ...] = ()
    account_id: int = 0
    epoch: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Corrected:
    """Carried out, now or before: the place of its record, and what it changed as (limit, period, delta)."""

    number: int
    generation: int
    sequence: int
    now: int
    granted: int
    overage: int
    changes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Used up without effect; `why` is a reason."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Known:
    """Carried out and acknowledged before: the list of corrections tells how it ended."""

    number: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A counter has less room than was planned with, or earlier corrections are missing. Plan again."""

    number: int


@dataclass(frozen=True, slots=True)
class Uncertain:
    """The bucket has begun a generation since it last corrected: nothing was done.

    What was carried out may be lost here, and yet be among the records. Look there, settle what is, and say so.
    """

    number: int


Outcome = Corrected | Refused | Known | Moved | Uncertain | EpochStale


@dataclass(frozen=True, slots=True)
class Levels:
    """The slots of some levels by code, the bucket's last record, and the store's time, read in one step."""

    generation: int
    last: int
    now: int
    slots: tuple[Slots, ...]


def booked(one: Change, slot: list[float], now: int) -> list[float] | None:
    """The slot as of the change's period; None when the slot does not show that period (any more).

    A give-back never begins a period: what it gives back was drawn in one that had begun.
    """
    if one.width or (one.delta < 0 and Family(one.code & 7) is Family.RING24):
        ring, count = list(slot), RING_SLOTS[Family.RING24]
        newest = now // one.width if one.width else 0
        if newest > ring[NEWEST]:
            for number in range(max(int(ring[NEWEST]) + 1, newest - count + 1), newest + 1):
                ring[RING + number % count] = 0
            ring[NEWEST] = newest
        return ring if ring[NEWEST] - count < one.period <= ring[NEWEST] else None
    if slot[PERIOD] == one.period:
        return list(slot)
    if slot[PERIOD] > one.period or one.delta < 0:
        return None
    carry = 0
    if len(one.roll) > 1:
        carry = _carry(one.roll, slot)
    return [one.period, one.roll[0], 0, 0, carry, 0]


def _carry(roll: tuple[int, ...], slot: list[float]) -> int:
    """What rolls over into the period of `roll`, as `rules.rolled` has it."""
    ordinal, limit, minimum, maximum, first = roll
    if slot[ORDINAL] == 0 and slot[PERIOD] == 0:
        missed, balance = ordinal - first, limit
    else:
        missed = ordinal - int(slot[ORDINAL])
        balance = max(0, limit + int(slot[A]) - int(slot[USED]) - int(slot[HELD]))
    if missed <= 0:
        return 0
    carry = min(maximum, max(minimum, balance))
    return min(maximum, carry + (missed - 1) * limit) if missed > 1 else carry


def has_room(one: Change, slot: list[float]) -> bool:
    """Whether the draw stays within `most`. The slot is of the draw's period."""
    if one.width:
        total = sum(slot[RING:]) + slot[RING_HELD]
        rolled_over = 0
    else:
        total = slot[USED] + slot[HELD]
        rolled_over = int(slot[A]) if len(one.roll) > 1 else 0
    return one.most >= MAX_QUANTITY or total + one.delta <= one.most + rolled_over


def overflows(one: Change, slot: list[float]) -> bool:
    """Whether a count or an amount of money would pass 2^53 - 1."""
    delta = one.delta
    if one.width:
        return sum(slot[RING:]) + slot[RING_HELD] + delta > MAX_QUANTITY
    if slot[USED] + slot[HELD] + delta > MAX_QUANTITY:
        return True
    if not one.numerator:
        return False
    if slot[B] + (slot[HELD] + delta) * one.numerator > MAX_QUANTITY:
        return True
    return slot[A] + (slot[B] + delta * one.numerator) / one.denominator > MAX_QUANTITY


def change(one: Change, slot: list[float]) -> None:
    """Book the change on a slot of its period. Money is given back at the price of now, and never below zero."""
    if one.width or Family(one.code & 7) is Family.RING24:
        slot[RING + one.period % RING_SLOTS[Family.RING24]] += one.delta
        return
    slot[USED] += one.delta
    if not one.numerator:
        return
    if one.delta > 0:
        money = int(slot[B]) + one.delta * one.numerator
        slot[A] += money // one.denominator
        slot[B] = money % one.denominator
        return
    back = -one.delta * one.numerator
    slot[A] -= back // one.denominator
    slot[B] -= back % one.denominator
    if slot[B] < 0:
        slot[A] -= 1
        slot[B] += one.denominator
    if slot[A] < 0 or back > MAX_QUANTITY:
        slot[A] = slot[B] = 0


def side(one: Change, before: list[float], after: list[float]) -> list[Effect]:
    """What the second pair of a count's numbers changed by: what rolled over, or money. As `rules.apply` has it."""
    kept = before[PERIOD] == one.period
    if len(one.roll) > 1:
        a, b = (0, 0) if kept else (int(after[A]), 0)
    elif one.numerator:
        a = int(after[A]) - (int(before[A]) if kept else 0)
        b = int(after[B]) - (int(before[B]) if kept else 0)
    else:
        return []
    return [Effect(one.limit + SIDE, one.period, a, b)] if a or b else []
