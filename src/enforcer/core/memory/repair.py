"""A bucket's counters as the ledger names them: listed to be compared, and repaired by the differences found."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple
from typing import TYPE_CHECKING

from enforcer.core.commands import BucketState, Counter
from enforcer.core.program import RING_SLOTS, Family
from enforcer.core.rules import HELD, NEWEST, PERIOD, RING, RING_HELD, USED
from meter.core.records import Effect, Effects, RecordType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.memory.bucket import Bucket, Step

__all__ = ["adjust_seats", "counted", "counters", "repair"]


def counters(number: int, found: Bucket) -> BucketState:
    """All counters of a bucket, as of its last record."""
    counters = [
        counter
        for state in found.states.values()
        for code, slot in state.slots.items()
        for counter in counted(code, slot)
    ]
    seats: dict[int, int] = defaultdict(int)
    for lease in found.leases.values():
        for limit in lease.seats:
            seats[limit] += 1
    counters += [Counter(limit, 0, 0, held) for limit, held in seats.items()]
    return BucketState(
        number, found.generation, found.sequence - 1, tuple(sorted(counters, key=_place))
    )


def counted(code: int, slot: list[float]) -> list[Counter]:
    """What a slot counts, as the ledger names it. Tokens of rates are no counters."""
    family, limit = Family(code & 7), code >> 3
    if family is Family.COUNT:
        found = [Counter(limit, int(slot[PERIOD]), int(slot[USED]), int(slot[HELD]))]
    elif family is Family.RING24:
        count, newest = RING_SLOTS[family], int(slot[NEWEST])
        found = [
            Counter(limit, number, int(slot[RING + number % count]), 0)
            for number in range(newest - count + 1, newest + 1)
        ]
        found.append(Counter(limit, 0, 0, int(slot[RING_HELD])))
    else:
        return []
    return [counter for counter in found if counter.used or counter.held]


def _place(counter: Counter) -> tuple[int, int, int, int]:
    return counter.limit, counter.period, counter.used, counter.held


def repair(step: Step, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
    """Change counters by these differences; return those that are counted here."""
    done, entries = [], []
    for state in step.bucket.states.values():
        for code, slot in state.slots.items():
            for one in changes:
                if one.limit == code >> 3 and _repaired(Family(code & 7), slot, one):
                    entries.append(Effect(*astuple(one)))
                    done.append(one)
    if done:
        step.append(body, Effects(RecordType.REPAIR, step.now, entries=tuple(entries)))
    return done


def _repaired(family: Family, slot: list[float], change: Counter) -> bool:
    """Change a slot, if it counts that: a ring is used by number and held as a whole, period 0."""
    if family is Family.COUNT and slot[PERIOD] == change.period:
        slot[USED] += change.used
        slot[HELD] += change.held
        return True
    if family is not Family.RING24:
        return False
    count = RING_SLOTS[family]
    if change.period == 0 and change.used == 0:
        slot[RING_HELD] += change.held
        return True
    if change.period == 0 or change.held:
        return False
    if not slot[NEWEST] - count < change.period <= slot[NEWEST]:
        return False
    slot[RING + change.period % count] += change.used
    return True


def adjust_seats(
    step: Step, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
) -> bool:
    """Record what the sums of leases are to change by, unless that was done since they were compared."""
    found = step.bucket
    if found.adjusted > compared:
        return False
    entries = tuple(Effect(one.limit, 0, 0, one.held) for one in changes)
    step.append(body, Effects(RecordType.REPAIR, step.now, quantity=1, entries=entries))
    found.adjusted = found.generation, found.sequence - 1
    return True
