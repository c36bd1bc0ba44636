"""From decisions to the messages that clients read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import DENIED, SHADOW, Kind, Label, Reason, Shape
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from enforcer.core.commands import Decision
    from enforcer.core.program import Program
    from enforcer.core.rules import Entry
    from enforcer.errors import MetergateError

__all__ = ["check_response", "fault_of", "limits_of", "record_id", "set_ms"]


_TIER = int(Kind.TIER)


def set_ms(stamp: Timestamp, moment: int) -> None:
    """Set a timestamp from ms since 1970."""
    stamp.seconds, rest = divmod(moment, 1000)
    stamp.nanos = rest * 1_000_000


def record_id(bucket: int, generation: int, sequence: int) -> pb.RecordId | None:
    """None where no record was left."""
    if sequence < 0:
        return None
    return pb.RecordId(bucket=bucket, generation=generation, sequence=sequence)


def _label(program: Program, code: int) -> Label:
    """How a limit is called; a replayed answer may name one that is not defined any more."""
    return program.labels.get(code & ~0xF) or Label(id=f"#{code >> 16}", customer="")


def limits_of(program: Program, entries: Iterable[Entry]) -> list[pb.Limit]:
    """One message for each entry."""
    response = pb.CheckResponse()
    _add_limits(response, program, entries)
    return list(response.limits)


def _add_limits(response: pb.CheckResponse, program: Program, entries: Iterable[Entry]) -> None:
    """One message for each entry. What is 0 or false is not set: every field of a message costs as much as the next."""
    add, labels = response.limits.add, program.labels
    for code, limit, used, held, remaining, drawn, reset in entries:
        label = labels.get(code & ~0xF) or _label(program, code)
        message = add(
            kind=code >> 4 & 0xF,
            id=label.id,
            customer=label.customer,
            limit=limit,
            used=used,
            remaining=remaining,
            drawn=drawn,
        )
        if held:
            message.held = held
        if code & DENIED:
            message.denied = True
        if code & SHADOW:
            message.shadow = True
        if limit == MAX_QUANTITY:
            message.unlimited = True
        if reset:
            set_ms(message.resets_at, reset)


def check_response(program: Program, decision: Decision, quantity: int) -> pb.CheckResponse:
    """The whole answer to a check of `quantity`."""
    granted = decision.granted
    response = pb.CheckResponse(
        allowed=granted > 0,
        granted=granted,
        reason=int(decision.reason),  # type: ignore[arg-type]  # the numbers of the enum
    )
    _add_limits(response, program, decision.entries)
    if decision.overage:
        response.overage = decision.overage
    if decision.shadow:
        response.shadow = True
    if decision.degraded:
        response.degraded = True
    if program.grace:
        response.grace = True
    if decision.replayed:
        response.replayed = True
    if program.config:
        response.config_value = program.config
    if decision.sequence >= 0:
        record = response.record
        record.bucket, record.generation = decision.bucket, decision.generation
        record.sequence = decision.sequence
        record.SetInParent()  # the first record of all is bucket 0, sequence 0
    _tell_tier(program, decision, response)
    if granted == 0:
        wait = _wait(program, decision, quantity)
        if wait is not None:
            response.retry_after.FromMilliseconds(wait)
    return response


def _tell_tier(program: Program, decision: Decision, response: pb.CheckResponse) -> None:
    """The tier that the last unit fell into; for a denial the last one that has been reached."""
    for entry in decision.entries:
        if entry.code >> 4 & 0xF != _TIER or entry.code & SHADOW:
            continue
        label = _label(program, entry.code)
        if entry.drawn or (not decision.granted and (entry.used or not response.tier)):
            response.tier, response.notify = label.tier, label.notify and entry.drawn > 0


def _wait(program: Program, decision: Decision, quantity: int) -> int | None:
    """Ms until every chain that denied can take the quantity; None when waiting does not help."""
    if decision.reason not in _WORTH_WAITING:
        return None
    longest, place = 0, 0
    for chain in program.chains:
        entries = decision.entries[place : place + len(chain.views)]
        place += len(entries)
        if chain.shadow or not any(entry.code & DENIED for entry in entries):
            continue
        wait = _one_chain(program, entries, quantity, decision.now)
        if wait is None:
            return None
        longest = max(longest, wait)
    return longest or None


_WORTH_WAITING = {
    Reason.RATE_LIMITED,
    Reason.QUOTA_EXCEEDED,
    Reason.CAP_REACHED,
    Reason.TIER_LIMIT_REACHED,
    Reason.SPEND_CAP_REACHED,
}


def _one_chain(program: Program, entries: Sequence[Entry], quantity: int, now: int) -> int | None:
    """The views of a chain help each other out: the first one with room again is what is waited for."""
    if quantity > sum(entry.limit for entry in entries):
        return None
    waits = [_one_wait(program, entry, quantity, now) for entry in entries]
    return min((wait for wait in waits if wait is not None), default=None)


def _one_wait(program: Program, entry: Entry, quantity: int, now: int) -> int | None:
    refill = _label(program, entry.code).refill
    if refill and entry.code >> 4 & 0xF == Kind.RATE:
        # What was recorded past the limit is a debt: `used` shows it, `remaining` ends at 0.
        return math.ceil((quantity + entry.used - entry.limit) / refill)
    if refill and entry.remaining:
        return math.ceil(quantity / refill)
    return max(entry.reset - now, 1) if entry.reset else None


def has_seats(program: Program) -> bool:
    """Whether leases are what this feature is used by."""
    return program.lease_ttl_ms > 0 or any(view.shape is Shape.SEATS for view in program.views)


def fault_of(error: MetergateError) -> pb.CheckFault:
    """What a unary call would have failed with."""
    fault = pb.CheckFault(code=error.code.value, reason=error.reason, message=error.message)
    if pause := error.metadata.get("retry_after_ms"):
        fault.retry_after.FromMilliseconds(int(pause))
    return fault
