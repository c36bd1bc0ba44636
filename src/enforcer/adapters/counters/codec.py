"""What goes to the scripts and what comes back: see the headers of `scripts/*.lua` for both."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec

from enforcer.core.commands import (
    ENTRIES_AT,
    Answer,
    BucketState,
    Counter,
    Decision,
    EpochStale,
    Failed,
    KeyReused,
    LeaseInfo,
    OutOfTurn,
    Settled,
    SliceStale,
)
from enforcer.core.corrections import (
    Corrected,
    Correction,
    Known,
    Levels,
    Moved,
    Outcome,
    Refused,
    Uncertain,
)
from enforcer.core.memory import counted
from enforcer.core.program import FIELDS, Family
from meter.core.keys import bucket_tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.commands import Ask, Journaled
    from enforcer.core.program import Program

__all__ = [
    "MISSING",
    "ElsewhereError",
    "FencedError",
    "LostError",
    "Section",
    "answer",
    "bucket_state",
    "correction",
    "decided",
    "lease",
    "levels",
    "outcome",
    "settled",
]

_HEAD = struct.Struct("<HBBBdd8s").pack
_DOUBLE = struct.Struct("<d").unpack_from
_DECISIONS = [struct.Struct(f"<{ENTRIES_AT + 7 * count}d") for count in range(512)]
"""The doubles of a decision, by its number of entries."""
_BARE = {8 + decision.size: decision.unpack_from for decision in _DECISIONS}
"""By the length of a reply that no id follows."""
_CHECK, _RESERVE, _SEAT, _JOURNALED = 0, 1, 2, 3
_NEVER = struct.pack("<d", 0)
"""When what holds nothing expires."""
_EPOCH, _SLICE, _REUSED, _FAILED, _FENCED, _LOST, _ELSEWHERE, _TURN = range(1, 9)


MISSING = "its data are missing"
"""Why a bucket is closed whose meta key is not there."""


class FencedError(Exception):
    """A newer connection of this enforcer exists: this batch was not executed."""


class LostError(Exception):
    """The bucket's meta key is missing: its data are lost."""


class ElsewhereError(LostError):
    """The bucket's slot is on another node, or on its way there."""


class Section:
    """The part of a batch that concerns one bucket. Programs that several checks share are sent once."""

    def __init__(self, bucket: int) -> None:
        self.tag = bucket_tag(bucket)
        self._programs: dict[int, int] = {}
        self._definitions: list[Any] = []
        self._checks: list[Any] = []
        self.count = 0
        self.keep = 0
        """Where the script is to keep what it granted; 0: nowhere."""

    def add_one(self, ask: Ask) -> None:
        """Append a check that is a group by itself."""
        if ask.seat is not None or ask.reservation or ask.journaled is not None:
            self.add((ask,))
            return
        program, named_by = ask.program, ask.idempotency
        known = self._programs.get(id(program))
        if known is None:
            known = self._add_program(program)
        self._checks += (
            _HEAD(known, ask.mode, _CHECK, 0, ask.quantity, 0, named_by[16:]),
            named_by[:16],
            ask.body,
        )
        self.count += 1

    def add(self, group: Sequence[Ask]) -> None:
        """Append a group's checks."""
        last = len(group) - 1
        for place, ask in enumerate(group):
            known = self._programs.get(id(ask.program))
            if known is None:
                known = self._add_program(ask.program)
            if ask.seat is not None:
                op, ttl = _SEAT, ask.seat.ttl_ms
            elif ask.reservation:
                op, ttl = _RESERVE, ask.ttl_ms
            elif ask.journaled is not None:
                op, ttl = _JOURNALED, 0
            else:
                op, ttl = _CHECK, 0
            self._checks += (
                _HEAD(known, ask.mode, op, place < last, ask.quantity, ttl, ask.idempotency[16:]),
                ask.idempotency[:16],
                ask.body,
            )
            if ask.seat is not None:
                self._checks += (ask.seat.lease, ask.seat.holder)
            elif ask.journaled is not None:
                self._checks += (ask.journaled.journal, _place(ask.journaled))
            elif op:
                self._checks += (ask.reservation, "")
        self.count += len(group)

    def _add_program(self, program: Program) -> int:
        number = self._programs[id(program)] = len(self._programs)
        self._definitions.append(program.packed)
        return number

    def arguments(self) -> list[Any]:
        """Everything of this bucket, in the order that the script reads it."""
        head = self.tag, len(self._programs), self.count, self.keep
        return [*head, *self._definitions, *self._checks]


def _place(place: Journaled) -> bytes:
    sent = place.sent
    if sent is None:
        return struct.pack("<2d", place.number, place.after)
    where = sent.connection, sent.slot, sent.batch, sent.place
    return struct.pack("<6d", place.number, place.after, *where) + sent.enforcer.encode()


def answer(bucket: int, reply: bytes | list[bytes]) -> Answer:
    """Decode the reply to one check. Raise `FencedError` or `LostError`."""
    if isinstance(reply, bytes):
        return decided(bucket, reply)
    return _undecided(reply[0]) if len(reply) == 1 else decided(bucket, reply[0], replayed=True)


def decided(bucket: int, reply: bytes, *, replayed: bool = False) -> Decision:
    """Decode the reply to a check that was decided, now or before."""
    unpack = _BARE.get(len(reply))
    # What has an id behind its entries may be as long as what has more entries.
    if unpack is None or reply[64:72] != _NEVER:
        count = int(_DOUBLE(reply, 72)[0])
        numbers = _DECISIONS[count].unpack_from(reply, 8)
        return Decision(bucket, numbers, reply[8 + _DECISIONS[count].size :].decode(), replayed)
    return Decision(bucket, unpack(reply, 8), "", replayed)


def _undecided(reply: bytes) -> Answer:
    status = int(_DOUBLE(reply)[0])
    if status == _EPOCH:
        return EpochStale(int(_DOUBLE(reply, 8)[0]))
    if status == _SLICE:
        return SliceStale(int(_DOUBLE(reply, 8)[0]))
    if status == _TURN:
        return OutOfTurn(int(_DOUBLE(reply, 8)[0]))
    if status == _REUSED:
        return KeyReused()
    if status == _FENCED:
        raise FencedError
    if status == _LOST:
        raise LostError(MISSING)
    if status == _ELSEWHERE:
        raise ElsewhereError("its slot is on another node, or on its way there")
    return Failed(reply[8:].decode(errors="replace"))


def settled(reply: list[bytes]) -> Settled:
    """Decode the reply of `settle`."""
    used, released, now, generation, sequence = struct.unpack("<5d", reply[0])
    return Settled(
        int(used), int(released), int(now), int(generation), int(sequence), reply[1] == b"1"
    )


def lease(reply: list[bytes]) -> LeaseInfo:
    """Decode one lease."""
    name, holder, started, expires, body = reply
    return LeaseInfo(name.decode(), holder.decode(), int(started), int(expires), body)


def bucket_state(bucket: int, reply: list[Any]) -> BucketState:
    """Decode the reply of `counters`."""
    generation, last, states, seats = reply
    counters: list[Counter] = []
    for packed in states:
        for code, slot in _slots(packed).items():
            counters += counted(code, slot)
    counters += [
        Counter(int(seats[at]), 0, 0, int(seats[at + 1])) for at in range(0, len(seats), 2)
    ]
    ordered = tuple(sorted(counters, key=lambda one: (one.limit, one.period, one.used, one.held)))
    return BucketState(bucket, int(generation), int(last), ordered)


def _slots(packed: bytes) -> dict[int, list[float]]:
    """The slots of a level's state by code."""
    values = struct.unpack(f"<{len(packed) // 8}d", packed)
    found = {}
    at = 2
    while at < len(values):
        code = int(values[at])
        width = FIELDS[Family(code & 7)]
        found[code] = list(values[at + 1 : at + 1 + width])
        at += 1 + width
    return found


def levels(reply: list[Any]) -> Levels:
    """Decode the reply of `slots`."""
    generation, last, now, states = reply
    return Levels(int(generation), int(last), int(now), tuple(_slots(state) for state in states))


def correction(one: Correction) -> bytes:
    """A correction as `correct` reads it."""
    return msgspec.msgpack.encode(
        [
            one.number,
            one.body.decode(),
            one.kind.value,
            one.granted,
            one.overage,
            one.count,
            one.quantity,
            int(one.adjusts),
            [
                [
                    part.limit,
                    part.period,
                    part.delta,
                    part.suffixes,
                    part.code,
                    part.most,
                    part.width,
                    part.numerator,
                    part.denominator,
                    part.roll,
                ]
                for part in one.changes
            ],
            one.account_id,
            one.epoch,
            one.refused,
        ]
    )


def outcome(reply: bytes) -> Outcome:
    """Decode the outcome of a correction."""
    status, number = (int(value) for value in struct.unpack_from("<2d", reply))
    if status == 1:
        return Refused(number, reply[16:].decode())
    if status == 2:  # noqa: PLR2004 - the numbers are those of correct.lua
        return Known(number)
    if status == 3:  # noqa: PLR2004
        return Moved(number)
    if status == 4:  # noqa: PLR2004
        return EpochStale(number)
    if status == 5:  # noqa: PLR2004
        return Uncertain(number)
    values = [int(value) for value in struct.unpack(f"<{len(reply) // 8}d", reply)]
    generation, sequence, now, granted, overage = values[2:7]
    rest = iter(values[7:])
    changes = tuple(zip(rest, rest, rest, strict=True))
    return Corrected(number, generation, sequence, now, granted, overage, changes)
