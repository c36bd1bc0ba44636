"""What a record has drawn from where, and what a correction of it gives back or draws. Pure planning.

A parcel is a quantity that was drawn at once: as many units from every chain that counts. A record begins with one; an
amendment upwards adds another, an amendment downwards takes from the last ones first, in a chain from what was drawn
last. So a correction gives back to the very limits, periods and grants that were drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.corrections import PERIOD, Change
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import Family, Reason, Shape
from enforcer.core.rules import RATES, Mode, Seats, evaluate, fresh_slot
from meter.core.records import SIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from enforcer.core.program import Program, View
    from enforcer.core.rules import Slots

__all__ = [
    "Draw",
    "Drawn",
    "GivenBack",
    "Parcel",
    "closed",
    "draw",
    "give_back",
    "parcel",
    "quantity_of",
]


class Draw(NamedTuple):
    """`amount` units of `limit` in `period`."""

    limit: int
    period: int
    amount: int


class Parcel(NamedTuple):
    """`quantity` units, `overage` of them past an included amount, and what each chain gave for them."""

    quantity: int
    overage: int
    chains: tuple[tuple[Draw, ...], ...]


class GivenBack(NamedTuple):
    """What is left, how much less overage that is, and the changes."""

    left: tuple[Parcel, ...]
    overage: int
    changes: tuple[Change, ...]


class Drawn(NamedTuple):
    """How much of it is overage, and the changes; or why the customer may not use the feature at that time."""

    overage: int
    changes: tuple[Change, ...]
    denied: Reason | None = None


def parcel(quantity: int, overage: int, entries: Iterable[tuple[int, int, int]]) -> Parcel:
    """The parcel of a record from its effects as (limit, period, used).

    Effects come chain by chain, and each chain that counts has given the whole quantity.
    """
    chains: list[tuple[Draw, ...]] = []
    chain: list[Draw] = []
    total = 0
    for limit, period, used in entries:
        if used <= 0 or not 0 < limit < SIDE:
            continue
        chain.append(Draw(limit, period, used))
        total += used
        if total >= quantity:
            chains.append(tuple(chain))
            chain, total = [], 0
    if chain:
        chains.append(tuple(chain))
    return Parcel(quantity, overage, tuple(chains))


def quantity_of(parcels: Iterable[Parcel]) -> int:
    """How much they are together."""
    return sum(one.quantity for one in parcels)


def give_back(parcels: Sequence[Parcel], amount: int, program: Program | None) -> GivenBack:
    """Take `amount` off the parcels, the last first. `program` tells levels and prices, where it is still known."""
    suffixes = tuple(level.suffix for level in program.levels) if program else ()
    prices = {
        view.id: (int(view.extra[1]), int(view.extra[2]))
        for view in (program.views if program else ())
        if view.shape is Shape.MONEY
    }
    left = list(parcels)
    given: dict[tuple[int, int], int] = {}
    overage = 0
    while amount and left:
        last = left.pop()
        part = min(amount, last.quantity)
        amount -= part
        chains = []
        for chain in last.chains:
            kept, need = list(chain), part
            while need and kept:
                limit, period, drawn = kept.pop()
                back = min(need, drawn)
                need -= back
                given[limit, period] = given.get((limit, period), 0) + back
                if drawn > back:
                    kept.append(Draw(limit, period, drawn - back))
            chains.append(tuple(kept))
        less = min(last.overage, part)
        overage += less
        if last.quantity > part:
            left.append(Parcel(last.quantity - part, last.overage - less, tuple(chains)))
    changes = []
    for (limit, period), back in given.items():
        numerator, denominator = prices.get(limit, (0, 1))
        changes.append(
            Change(limit, period, -back, suffixes, numerator=numerator, denominator=denominator)
        )
    return GivenBack(tuple(left), overage, tuple(changes))


def _counting(program: Program) -> Program:
    """The program without what limits speed or seats: usage that has happened takes nothing of these."""
    chains = []
    for chain in program.chains:
        views = tuple(
            replace(view, shape=Shape.COUNT, extra=view.extra[:1])
            if view.shape is Shape.THROTTLE
            else view
            for view in chain.views
            if view.shape is not Shape.SEATS and view.shape not in RATES
        )
        if views or chain.supply:
            chains.append(replace(chain, views=views))
    return replace(program, chains=tuple(chains))


def closed(program: Program, levels: Sequence[Slots]) -> list[tuple[int, int]]:
    """Counters as (limit, period) of periods that are over: their slots show a later one."""
    found: dict[tuple[int, int], None] = {}
    for view in _counting(program).views:
        if view.shape is not Shape.RING24:
            slot = levels[view.level].get(view.slot)
            if slot is not None and slot[PERIOD] > view.start:
                found[view.id, view.start] = None
    return list(found)


def draw(
    program: Program,
    levels: Sequence[Slots],
    quantity: int,
    at: int,
    now: int,
    past: Mapping[tuple[int, int], int],
) -> Drawn:
    """Plan to record usage that happened at `at`, past every limit if need be, as MODE_RECORD_ONLY does.

    `program` is that of the time `at`, `levels` has its slots as they are now, `past` what was used of `closed`.
    """
    if program.verdict is not Reason.ALLOWED:
        return Drawn(0, (), program.verdict)
    counting = _counting(program)
    shown = [{code: list(slot) for code, slot in slots.items()} for slots in levels]
    for view in counting.views:
        if view.shape is not Shape.RING24 and (view.id, view.start) in past:
            slot = fresh_slot(Family.COUNT)
            slot[:3] = view.start, view.extra[0], past[view.id, view.start]
            shown[view.level][view.slot] = slot
    verdict = evaluate(counting, shown, _no_seats, quantity, Mode.RECORD_ONLY, now)
    changes = []
    for takes in verdict.chains:
        for place, (view, amount, excess) in enumerate(takes):
            if amount:
                last = place == len(takes) - 1 or excess
                changes.append(
                    _change(counting, view, amount, at, most=MAX_QUANTITY if last else None)
                )
    return Drawn(verdict.overage, tuple(changes))


def _change(program: Program, view: View, amount: int, at: int, most: int | None) -> Change:
    suffixes = (program.levels[view.level].suffix,)
    most = view.upper if most is None else most
    if view.shape is Shape.RING24:
        width = int(view.extra[0])
        return Change(view.id, at // width, amount, suffixes, view.slot, most, width)
    extra = tuple(int(value) for value in view.extra)
    if view.shape is Shape.MONEY:
        return Change(
            view.id, view.start, amount, suffixes, view.slot, most, 0, extra[1], extra[2], extra[:1]
        )
    return Change(view.id, view.start, amount, suffixes, view.slot, most, roll=extra)


def _no_seats(_: View) -> Seats:
    return Seats(0, has_one=False)
