"""From decisions to the messages that clients read."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from enforcer.core.commands import ENTRIES_AT, SEQUENCE, WIDTH
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import DENIED, SHADOW, Kind, Label, Reason, Shape
from enforcer.gateway.wire import SHORT, VARINTS, embedded, varint
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from enforcer.core.commands import Decision
    from enforcer.core.program import Program
    from enforcer.core.rules import Entry
    from enforcer.errors import MetergateError

__all__ = [
    "answered",
    "check_bytes",
    "check_response",
    "fault_of",
    "limits_of",
    "record_id",
    "set_ms",
    "wait_ms",
]


_TIER = int(Kind.TIER)
MOST_HEADS = 256


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


def limits_of(program: Program, decision: Decision) -> Sequence[pb.Limit]:
    """One message for each limit that was looked at."""
    return check_response(program, decision, 1).limits


def _head(program: Program, code: float, limit: float, drawn: float) -> tuple[bytes, bool]:
    """How a `Limit` begins: with what is the same in many replies, up to the tag of `used`; and whether it is a tier."""
    flags = int(code)
    label = _label(program, flags)
    message = pb.Limit(
        kind=flags >> 4 & 0xF,  # type: ignore[arg-type]  # the numbers of the enum
        id=label.id,
        customer=label.customer,
        limit=int(limit),
        denied=bool(flags & DENIED),
        shadow=bool(flags & SHADOW),
        drawn=int(drawn),
        unlimited=limit == MAX_QUANTITY,
    )
    if len(program.heads) >= MOST_HEADS:
        program.heads.clear()
    head = message.SerializeToString() + b"\x28", flags >> 4 & 0xF == _TIER
    program.heads[code, limit, drawn] = head
    return head


# What follows is the same in many replies, too. Floats find what whole numbers have left.


@lru_cache(4096)
def _begin(granted: float, reason: float) -> bytes:
    """The fields `allowed`, `granted` and `reason`."""
    allowed = b"\x08\x01\x10" + varint(int(granted)) if granted else b""
    return allowed + b"\x18" + VARINTS[int(reason)]


@lru_cache(4096)
def _resets(moment: float) -> bytes:
    """The field `resets_at`, of ms since 1970."""
    seconds, ms = divmod(int(moment), 1000)
    stamp = b"\x08" + varint(seconds) + (b"\x10" + varint(ms * 1_000_000) if ms else b"")
    return b"\x42" + VARINTS[len(stamp)] + stamp


@lru_cache(1024)
def _place(bucket: int, generation: float) -> bytes:
    """The head of a `RecordId`, up to the number of `sequence`."""
    return b"\x08" + varint(bucket) + b"\x10" + varint(int(generation)) + b"\x18"


def check_bytes(program: Program, decision: Decision, quantity: int) -> bytes:
    """The whole answer to a check of `quantity`: a `CheckResponse` as it travels."""
    # Straight from the store's numbers: only what has no ready bytes is made a whole number.
    numbers = decision.numbers
    granted, sequence = numbers[1], numbers[SEQUENCE]
    heads, tiered = program.heads, False
    parts = [_begin(granted, numbers[0])]
    for at in range(ENTRIES_AT, len(numbers), WIDTH):
        code, limit, drawn = numbers[at], numbers[at + 1], numbers[at + 5]
        head, tier = heads.get((code, limit, drawn)) or _head(program, code, limit, drawn)
        used, left = int(numbers[at + 2]), int(numbers[at + 4])
        # Fields may come in any order, and those that are 0 may be left out.
        rest = b"\x38"
        rest += VARINTS[left] if 0 <= left < SHORT else varint(left)
        held, reset = numbers[at + 3], numbers[at + 6]
        if reset:
            rest += _resets(reset)
        if held:
            rest += b"\x30" + varint(int(held))
        if tier:
            tiered = True
        first = VARINTS[used] if 0 <= used < SHORT else varint(used)
        parts += (b"\x22", VARINTS[len(head) + len(first) + len(rest)], head, first, rest)
    if sequence >= 0:
        place = _place(decision.bucket, numbers[5]) + varint(int(sequence))
        parts += (b"\x52", VARINTS[len(place)], place)
    if decision.replayed:
        parts.append(b"\x60\x01")
    if program.grace:
        parts.append(b"\x58\x01")
    if not granted or tiered or numbers[2] or numbers[3] or decision.degraded or program.config:
        parts.append(_rare(program, decision, quantity))
    return b"".join(parts)


def _rare(program: Program, decision: Decision, quantity: int) -> bytes:
    """What few answers have."""
    response = pb.CheckResponse(
        overage=decision.overage,
        shadow=decision.shadow,
        degraded=decision.degraded,
        config_value=program.config,
    )
    entries = decision.entries
    _tell_tier(program, decision.granted, entries, response)
    if not decision.granted:
        wait = _wait_of(program, decision, quantity, entries)
        if wait is not None:
            response.retry_after.FromMilliseconds(wait)
    return response.SerializeToString()


def check_response(program: Program, decision: Decision, quantity: int) -> pb.CheckResponse:
    """The same as a message, for what is larger than a check."""
    return pb.CheckResponse.FromString(check_bytes(program, decision, quantity))


def _tell_tier(
    program: Program, granted: int, entries: Sequence[Entry], response: pb.CheckResponse
) -> None:
    """The tier that the last unit fell into; for a denial the last one that has been reached."""
    for entry in entries:
        if entry.code >> 4 & 0xF != _TIER or entry.code & SHADOW:
            continue
        label = _label(program, entry.code)
        if entry.drawn or (not granted and (entry.used or not response.tier)):
            response.tier, response.notify = label.tier, label.notify and entry.drawn > 0


def wait_ms(program: Program, decision: Decision, quantity: int) -> int | None:
    """Ms until every chain that denied can take the quantity; None when waiting does not help."""
    return _wait_of(program, decision, quantity, decision.entries)


def _wait_of(
    program: Program, decision: Decision, quantity: int, entries: Sequence[Entry]
) -> int | None:
    if decision.reason not in _WORTH_WAITING:
        return None
    longest, place = 0, 0
    for chain in program.chains:
        of_chain = entries[place : place + len(chain.views)]
        place += len(of_chain)
        if chain.shadow or not any(entry.code & DENIED for entry in of_chain):
            continue
        wait = _one_chain(program, of_chain, quantity, decision.now)
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


def answered(response: bytes, fault: bytes, outcome: bytes | pb.CheckFault) -> bytes:
    """An outcome as the field whose tag is `response`, or `fault`."""
    if isinstance(outcome, bytes):
        return embedded(response, outcome)
    return embedded(fault, outcome.SerializeToString())


def fault_of(error: MetergateError) -> pb.CheckFault:
    """What a unary call would have failed with."""
    fault = pb.CheckFault(code=error.code.value, reason=error.reason, message=error.message)
    if pause := error.metadata.get("retry_after_ms"):
        fault.retry_after.FromMilliseconds(int(pause))
    return fault
