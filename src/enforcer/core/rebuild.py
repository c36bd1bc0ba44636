"""What counters must hold, worked out from the sums and records that the meter has.

Used and held of every count, what rolled over, and money come out exactly as they were: the records say all of it.
Rates are in no record. They begin as if they had just been used up, so that no limit is passed; they recover by
themselves within their own time. Leases get one whole time to live from now: renewals leave no record.

Pure: values in, values out. `enforcer.adapters.counters.mend` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.allowances import GRACE_MS
from enforcer.core.commands import idempotency, key_name
from enforcer.core.compile import SEAT_MODES, Place, places_of
from enforcer.core.model import ConcurrentTerms, RateTerms, SeatMode
from enforcer.core.periods import span_at
from enforcer.core.program import FIELDS, RING_SLOTS, Family
from enforcer.core.rules import Hold
from meter.core.records import SIDE, RecordType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from enforcer.core.model import Customer, Entitlement, Node
    from enforcer.core.rules import Slots
    from meter.core.records import Body, Effect, Effects

__all__ = [
    "Account",
    "Lease",
    "Remembered",
    "Reservation",
    "Sums",
    "apply_entry",
    "apply_rest",
    "hold_of",
    "lease_of",
    "place_by_limit",
    "remembered",
    "slot_of",
    "slots_of",
    "spent",
]

Sums = dict[int, dict[int, tuple[int, int]]]
"""By limit (or limit + `SIDE`), then period: the two sums."""


class Account(NamedTuple):
    """An account with its whole tree. `features`: the number of each feature that an entitlement names."""

    account_id: int
    tenant: str
    nodes: tuple[Node, ...]
    features: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lease:
    """A live lease as the store keeps it; times in ms."""

    id: str
    suffixes: tuple[str, ...]
    mode: int
    holder: str
    started: int
    expires: int
    body: bytes
    seats: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation as the store keeps it; `block`: a block of supply, see `enforcer.core.allowances`."""

    id: str
    expires: int
    granted: int
    body: bytes
    chains: tuple[tuple[Hold, ...], ...] = field(default=())
    block: bool = False


class Remembered(NamedTuple):
    """The answer to a key: its name and fingerprint, when it was given, and the answer's numbers and id."""

    key: bytes
    at: int
    numbers: tuple[int, ...]
    id: str


def slots_of(account: Account, sums: Sums, now: int) -> Iterator[tuple[str, Slots]]:
    """The state of every node and feature of the account that has one, by its suffix."""
    for node in account.nodes:
        states: dict[str, Slots] = {}
        for entitlement in node.entitlements:
            feature = account.features.get(entitlement.feature)
            if feature is None:
                continue
            for place in places_of(entitlement):
                slot = slot_of(place, sums, now)
                if slot is not None:
                    states.setdefault(f"{node.id}:{feature}", {})[place.slot] = slot
        yield from states.items()


def slot_of(place: Place, sums: Sums, now: int) -> list[float] | None:
    """A counter from its sums; None if nothing was ever counted there."""
    if place.rate is not None:
        return spent(place, now)
    own, side = sums.get(place.limit, {}), sums.get(place.limit + SIDE, {})
    if place.family is Family.RING24:
        return _ring(place, own, now)
    if place.throttled:
        assert place.period is not None
        span = span_at(place.period, now)
        return [span.start, span.ordinal, *own.get(span.start, (0, 0)), 0, now]
    if not own:
        return None
    period = max(own)
    ordinal = 0 if place.period is None else span_at(place.period, period).ordinal
    return [period, ordinal, *own[period], *side.get(period, (0, 0))]


def _ring(place: Place, own: Mapping[int, tuple[int, int]], now: int) -> list[float] | None:
    if not own:
        return None
    count = RING_SLOTS[place.family]
    numbers = [number for number in own if number]
    newest = max(numbers, default=now // place.width)
    slot: list[float] = [newest, own.get(0, (0, 0))[1], *[0] * count]
    for number in numbers:
        if number > newest - count:
            slot[2 + number % count] = own[number][0]
    return slot


def spent(place: Place, now: int) -> list[float]:
    """A rate of which nothing is left."""
    rate = place.rate
    assert rate is not None
    if place.family is Family.BUCKET:
        return [0, now]
    slot: list[float] = [0] * FIELDS[place.family]
    slot[0] = now // place.width
    slot[2 + int(slot[0]) % RING_SLOTS[place.family]] = rate.limit
    return slot


def apply_entry(slots: Slots, place: Place, entry: Effect) -> None:
    """Add what a record changed to a state that is older than the record."""
    slot = slots.setdefault(place.slot, [0] * FIELDS[place.family])
    if place.family is Family.RING24:
        count = RING_SLOTS[place.family]
        if not entry.period:
            slot[1] += entry.held
            return
        newest = int(slot[0])
        for number in range(max(newest + 1, entry.period - count + 1), entry.period + 1):
            slot[2 + number % count] = 0
        slot[0] = max(newest, entry.period)
        if entry.period > slot[0] - count:
            slot[2 + entry.period % count] += entry.used
        return
    if entry.period > slot[0] or (slot[1] == 0 and slot[0] == 0):
        ordinal = 0 if place.period is None else span_at(place.period, entry.period).ordinal
        slot[:] = [entry.period, ordinal, 0, 0, 0, 0] if entry.period != slot[0] else slot
        slot[1] = ordinal
    if entry.period == slot[0]:
        at = 4 if entry.limit > SIDE else 2
        slot[at] += entry.used
        slot[at + 1] += entry.held


def apply_rest(slots: Slots, place: Place, entry: Effect) -> None:
    """The same for a counter that no terms have any more: it begins no period, and ends what it had begun."""
    if place.family is Family.RING24 or slots[place.slot][0] == entry.period:
        apply_entry(slots, place, entry)


def place_by_limit(path: Iterable[Node], feature: str) -> dict[int, tuple[Node, Place]]:
    """The counters of a feature on a path, by limit."""
    return {
        place.limit: (node, place)
        for node in path
        for entitlement in node.entitlements
        if entitlement.feature == feature
        for place in places_of(entitlement)
    }


def lease_of(
    customer: Customer, feature_id: int, body: Body, raw: bytes, effects: Effects, now: int
) -> Lease:
    """The lease that a LEASE_START record began, as if it had been renewed now."""
    seats = tuple(entry.limit for entry in effects.entries if entry.held > 0)
    return Lease(
        id=body.id,
        suffixes=tuple(f"{node.id}:{feature_id}" for node in customer.path),
        mode=seat_mode(customer, body.f),
        holder=body.h,
        started=effects.now,
        expires=now + max(1, effects.extra - effects.now),
        body=raw,
        seats=seats,
    )


def seat_mode(customer: Customer, feature: str) -> int:
    """The mode of a feature's seats: one for the whole path."""
    return next(
        (
            SEAT_MODES[entitlement.terms.mode]
            for node in customer.path
            for entitlement in node.entitlements
            if entitlement.feature == feature and isinstance(entitlement.terms, ConcurrentTerms)
        ),
        SEAT_MODES[SeatMode.FLOATING],
    )


def hold_of(
    customer: Customer,
    feature_id: int,
    body: Body,
    raw: bytes,
    effects: Effects,
    ownerless: Mapping[int, Node],
) -> Reservation:
    """The reservation or block that a HOLD or ALLOWANCE record began.

    Each chain holds what was granted: so their borders in the row of entries are found. `ownerless`: the nodes at which
    limits are counted that no terms have any more.
    """
    notes = {entry.period // 2: entry for entry in effects.entries if not entry.limit}
    known = place_by_limit(customer.path, body.f)
    chains: list[tuple[Hold, ...]] = []
    chain: list[Hold] = []
    total = 0
    for number, entry in enumerate(effects.entries, 1):
        if not 0 < entry.limit < SIDE or entry.held <= 0:
            continue
        note = notes.get(number)
        ring = note is not None and note.held == 0
        if entry.limit in known:
            node, _ = known[entry.limit]
        else:
            node = ownerless.get(entry.limit, customer.path[0])
        family = Family.RING24 if ring else Family.COUNT
        chain.append(
            Hold(
                key=f"{node.id}:{feature_id}",
                slot=entry.limit << 3 | family,
                id=entry.limit,
                over=note is not None and note.period % 2 == 1,
                period=entry.period,
                amount=entry.held,
                width=note.used if ring and note is not None else 0,
                numerator=note.used if note is not None and not ring else 0,
                denominator=note.held if note is not None and not ring else 1,
            )
        )
        total += entry.held
        if total >= effects.granted:
            chains.append(tuple(chain))
            chain, total = [], 0
    if chain:
        chains.append(tuple(chain))
    block = effects.type is RecordType.ALLOWANCE
    gone = effects.extra + GRACE_MS * block
    return Reservation(body.id, gone, effects.granted, raw, tuple(chains), block)


_DECIDED = (RecordType.USAGE, RecordType.HOLD, RecordType.LEASE_START, RecordType.ALLOWANCE)


def remembered(
    account_id: int, feature_id: int, body: Body, effects: Effects, place: tuple[int, int]
) -> Remembered | None:
    """What a retry is answered; None if the record answers none."""
    kind, now = effects.type, effects.now
    if kind in _DECIDED and body.k and body.p:
        name = key_name(account_id, feature_id, body.k) + bytes.fromhex(body.p)
        expires = effects.extra
        decided = (effects.reason, effects.granted, effects.overage, 0, now, *place, expires, 0)
        return Remembered(name, now, decided, "" if kind is RecordType.USAGE else body.id)
    if kind in (RecordType.COMMIT, RecordType.RELEASE, RecordType.ALLOWANCE_USE):
        wanted = "" if effects.reason else effects.granted
        name = idempotency(0, 0, body.id, kind.value, wanted)
        settled = (effects.granted, effects.extra - effects.granted, now, *place)
        return Remembered(name, now, settled, "")
    return None


def rated(entitlements: Iterable[Entitlement], feature: str) -> Iterator[Place]:
    """The rates among them."""
    for entitlement in entitlements:
        if entitlement.feature == feature and isinstance(entitlement.terms, RateTerms):
            yield from places_of(entitlement)
