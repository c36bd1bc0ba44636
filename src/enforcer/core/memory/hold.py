"""What is held in memory and ends later: reservations, blocks of supply, leases. The twin of `hold.lua`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from enforcer.core import rules
from enforcer.core.allowances import GRACE_MS
from enforcer.core.commands import (
    EpochStale,
    HoldGone,
    KeyReused,
    LeaseInfo,
    Settled,
    TooMuch,
    idempotency,
)
from enforcer.core.compile import SEAT_MODES
from enforcer.core.memory.bucket import REAPED_AT_ONCE, Lease, Reservation
from enforcer.core.model import SeatMode
from enforcer.core.program import Kind, Shape
from enforcer.core.rules import RATES, Hold, Mode
from meter.core.records import Effect, Effects, RecordType

if TYPE_CHECKING:
    from enforcer.core.commands import Ask
    from enforcer.core.memory.bucket import Step
    from enforcer.core.program import Program
    from enforcer.core.rules import Verdict

__all__ = [
    "clear_seats",
    "hold",
    "leases",
    "notes",
    "reap",
    "release_lease",
    "renew",
    "settle",
    "sit",
]


def hold(step: Step, ask: Ask, verdict: Verdict, expires: int) -> None:
    """Keep a reservation or block with what it holds of each counter."""
    chains = []
    for chain, takes in zip(ask.program.chains, verdict.chains, strict=True):
        holds = []
        for view, amount, _ in takes:
            if not amount or view.shape in (Shape.SEATS, *RATES):
                continue
            ring = view.shape is Shape.RING24
            money = view.shape is Shape.MONEY
            holds.append(
                Hold(
                    key=ask.program.levels[view.level].suffix,
                    slot=view.slot,
                    id=view.id,
                    over=chain.supply and view.kind in (Kind.OVERAGE, Kind.OVERDRAFT),
                    period=view.start,
                    amount=amount,
                    width=int(view.extra[0]) if ring else 0,
                    numerator=int(view.extra[1]) if money else 0,
                    denominator=int(view.extra[2]) if money else 1,
                )
            )
        if holds:
            chains.append(tuple(holds))
    block = ask.mode is Mode.ALLOWANCE
    step.bucket.reservations[ask.reservation] = Reservation(
        expires + GRACE_MS * block, verdict.granted, ask.body, tuple(chains), block
    )


def notes(program: Program, verdict: Verdict, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """What a record must say of holds beyond their amounts, so that they can be made again: see meter.core.records."""
    found: list[Effect] = []
    place = 0
    for chain, takes in zip(program.chains, verdict.chains, strict=True):
        for view, amount, _ in takes:
            if not amount or view.shape in RATES:
                continue
            place += 1
            while effects[place - 1].limit != view.id:  # of the entry before: its second pair
                place += 1
            over = chain.supply and view.kind in (Kind.OVERAGE, Kind.OVERDRAFT)
            if view.shape is Shape.RING24:
                found.append(Effect(0, 2 * place + over, int(view.extra[0]), 0))
            elif view.shape is Shape.MONEY:
                price = int(view.extra[1]), int(view.extra[2])
                found.append(Effect(0, 2 * place + over, *price))
            elif over:
                found.append(Effect(0, 2 * place + over, 0, 1))
    return tuple(found)


def settle(
    step: Step, name: str, kind: RecordType, quantity: int | None
) -> Settled | HoldGone | TooMuch | KeyReused:
    """End a reservation or block of which `quantity` was used; None: all of it."""
    key = idempotency(0, 0, name, kind.value, "" if quantity is None else quantity)
    found = step.remembered(key)
    if found is not None:
        finger, answer = found
        if finger != key[16:]:
            return KeyReused()
        assert isinstance(answer, Settled)
        return replace(answer, replayed=True)
    reservation = step.bucket.reservations.get(name)
    if reservation is None or reservation.expires <= step.now:
        return HoldGone()
    used = reservation.granted if quantity is None else quantity
    if used > reservation.granted:
        return TooMuch(reservation.granted)
    at = reservation.ended(step.now)
    generation, sequence = _unhold(step, name, kind, used, whole=quantity is None)
    settled = Settled(used, reservation.granted - used, at, generation, sequence)
    step.remember(key, settled, at // step.window_ms)
    return settled


def _unhold(
    step: Step, name: str, kind: RecordType, used: int, *, whole: bool = False
) -> tuple[int, int]:
    bucket = step.bucket
    reservation = bucket.reservations.pop(name)
    effects: list[Effect] = []
    overage = 0
    for chain in reservation.chains:
        left = used
        for one in chain:
            use = min(left, one.amount)
            left -= use
            slots = bucket.states[one.key].slots
            effects += rules.settle(one, slots[one.slot], use, step.now)
            if one.over:
                overage += use
    return step.append(
        reservation.body,
        Effects(
            kind,
            reservation.ended(step.now),
            granted=used,
            overage=overage,
            reason=int(whole),
            quantity=used,
            extra=reservation.granted,
            entries=tuple(effects),
        ),
    )


def clear_seats(step: Step, program: Program) -> None:
    """End what has expired at the levels of a lease that begins, before its record: none has more seats than there are."""
    for level in program.levels:
        index = step.bucket.index[level.suffix]
        over = sorted((end, name) for name, end in index.items() if end <= step.now)
        for end, name in over[:REAPED_AT_ONCE]:
            _stand_up(step, name, RecordType.LEASE_EXPIRED, end)


def sit(step: Step, ask: Ask, expires: int) -> None:
    """Begin a lease on every level of the path."""
    seat, program = ask.seat, ask.program
    assert seat is not None
    views = [view for view in program.views if view.shape is Shape.SEATS]
    mode = int(views[0].extra[0]) if views else SEAT_MODES[SeatMode.FLOATING]
    suffixes = tuple(level.suffix for level in program.levels)
    bucket = step.bucket
    bucket.leases[seat.lease] = Lease(
        suffixes, mode, seat.holder, step.now, expires, ask.body, tuple(view.id for view in views)
    )
    for suffix in suffixes:
        bucket.index[suffix][seat.lease] = expires
        if mode != SEAT_MODES[SeatMode.FLOATING]:
            bucket.holders[suffix][seat.holder][seat.lease] = expires
        if mode == SEAT_MODES[SeatMode.NODE_LOCKED]:
            bucket.bound[suffix].setdefault(seat.holder, step.now)


def renew(
    step: Step, lease: str, ttl_ms: int, account_id: int, epoch: int
) -> LeaseInfo | EpochStale | None:
    """Let a live lease last for `ttl_ms` from now."""
    stored = step.bucket.epochs.get(account_id, 0)
    if stored != epoch:
        return EpochStale(stored)
    found = step.bucket.leases.get(lease)
    if found is None or found.expires <= step.now:
        return None
    found.expires = step.now + ttl_ms
    for suffix in found.suffixes:
        step.bucket.index[suffix][lease] = found.expires
        if found.mode != SEAT_MODES[SeatMode.FLOATING]:
            step.bucket.holders[suffix][found.holder][lease] = found.expires
    return LeaseInfo(lease, found.holder, found.started, found.expires, found.body)


def release_lease(step: Step, lease: str, *, unbind: bool) -> tuple[int, int] | None:
    """End a lease; `unbind`: and give the device's seat back."""
    found = step.bucket.leases.get(lease)
    if found is None:
        return None
    if unbind:
        for suffix in found.suffixes:
            step.bucket.bound[suffix].pop(found.holder, None)
    if found.expires <= step.now:
        if unbind:
            _stand_up(step, lease, RecordType.LEASE_EXPIRED, found.expires, unbound=True)
        return None
    return _stand_up(step, lease, RecordType.LEASE_END, step.now, unbound=unbind)


def _stand_up(
    step: Step, name: str, kind: RecordType, at: int, *, unbound: bool = False
) -> tuple[int, int]:
    bucket = step.bucket
    lease = bucket.leases.pop(name)
    for suffix in lease.suffixes:
        bucket.index[suffix].pop(name, None)
        bucket.holders[suffix][lease.holder].pop(name, None)
        if not bucket.holders[suffix][lease.holder]:
            del bucket.holders[suffix][lease.holder]
    effects = tuple(Effect(limit, 0, 0, -1) for limit in lease.seats)
    return step.append(
        lease.body,
        Effects(kind, at, quantity=int(unbound), extra=lease.started, entries=effects),
    )


def leases(step: Step, suffix: str, after: tuple[int, str], most: int) -> list[LeaseInfo]:
    """Live leases of a level in the order of expiry."""
    live = sorted(
        (expires, name)
        for name, expires in step.bucket.index[suffix].items()
        if expires > step.now and (expires, name) > after
    )
    found = []
    for _, name in live[:most]:
        one = step.bucket.leases[name]
        found.append(LeaseInfo(name, one.holder, one.started, one.expires, one.body))
    return found


def reap(step: Step) -> int:
    """End what nobody has ended in time; return how much that was."""
    due = step.bucket.due(step.now)
    for member in due:
        name = member[1:]
        if member[0] == "L":
            ended = step.bucket.leases[name].expires
            _stand_up(step, name, RecordType.LEASE_EXPIRED, ended)
        elif step.bucket.reservations[name].block:
            granted = step.bucket.reservations[name].granted
            _unhold(step, name, RecordType.UNACCOUNTED, granted)
        else:
            _unhold(step, name, RecordType.HOLD_EXPIRED, 0)
    return len(due)
