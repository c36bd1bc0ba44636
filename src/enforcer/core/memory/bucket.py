"""What a bucket holds in memory, and one atomic step on it: its time, its records, its remembered answers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enforcer.core.allowances import dated
from enforcer.core.compile import SEAT_MODES
from enforcer.core.model import MAX_QUANTITY, SeatMode
from enforcer.core.program import Family
from enforcer.core.rules import Hold, Seats, Slots, fresh_slot
from meter.core.records import Effects, RecordType

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.core.commands import Ask, Decision, Settled
    from enforcer.core.corrections import Corrected, Refused
    from enforcer.core.program import Level, Program, Reason, View

__all__ = ["REAPED_AT_ONCE", "Bucket", "Lease", "Record", "Reservation", "State", "Step"]

REAPED_AT_ONCE = 128
"""How many ended leases, reservations and blocks one tick removes at most."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of an outbox."""

    generation: int
    sequence: int
    body: bytes
    effects: Effects


@dataclass(slots=True)
class Lease:
    """A lease; `mode` as `SEAT_MODES` numbers them, times in ms."""

    suffixes: tuple[str, ...]
    mode: int
    holder: str
    started: int
    expires: int
    body: bytes
    seats: tuple[int, ...]


@dataclass(slots=True)
class Reservation:
    """`block`: of supply, which is used when nobody has told what was used of it."""

    expires: int
    granted: int
    body: bytes
    chains: tuple[tuple[Hold, ...], ...]
    block: bool

    def ended(self, now: int) -> int:
        """The time of the record of its end."""
        return dated(now, self.expires) if self.block else now


@dataclass(slots=True)
class State:
    """The slots of one level, laid out for `epoch`."""

    epoch: int
    slots: Slots


@dataclass(slots=True)
class Bucket:
    """A bucket of the store."""

    generation: int
    sequence: int = 0
    last_now: int = 0
    denial_second: int = 0
    outbox: list[Record] = field(default_factory=list)
    epochs: dict[int, int] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    answers: dict[int, dict[bytes, tuple[bytes, Decision | Settled | None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    denials: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    index: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    holders: dict[str, dict[str, dict[str, int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    bound: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    reservations: dict[str, Reservation] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    adjusted: tuple[int, int] = (0, -1)
    corrected: int = 0
    corrected_in: int = 0
    corrections: dict[int, Corrected | Refused] = field(default_factory=dict)

    def due(self, now: int) -> list[str]:
        """Members of the due index up to `now`, in the order of expiry."""
        ends = [(lease.expires, f"L{name}") for name, lease in self.leases.items()]
        ends += [(one.expires, f"R{name}") for name, one in self.reservations.items()]
        return [member for at, member in sorted(ends) if at <= now][:REAPED_AT_ONCE]


class Step:
    """One atomic step on a bucket at one time."""

    def __init__(self, bucket: Bucket, number: int, now: int, window_ms: int) -> None:
        self.bucket, self.number, self.now = bucket, number, now
        self.window, self.window_ms = now // window_ms, window_ms
        self.states: dict[str, State] = {}

    def append(self, body: bytes, effects: Effects) -> tuple[int, int]:
        """Write a record; return its place."""
        bucket = self.bucket
        place = bucket.generation, bucket.sequence
        bucket.sequence += 1
        bucket.outbox.append(Record(*place, body, effects))
        return place

    def remembered(self, key: bytes) -> tuple[bytes, Decision | Settled | None] | None:
        """The fingerprint that the key came with, and its answer; None of a denial."""
        name = key[:16]
        for window in (self.window, self.window - 1):
            found = self.bucket.answers[window].get(name)
            if found is not None:
                return found
        return None

    def remember(
        self, key: bytes, answer: Decision | Settled | None, window: int | None = None
    ) -> None:
        """Keep the answer to a key, if there is one."""
        if key:
            window = self.window if window is None else window
            self.bucket.answers[window][key[:16]] = key[16:], answer

    def state(self, level: Level, epoch: int) -> State:
        """A copy to work on, laid out for `epoch`; slots that the epoch no longer defines stay."""
        state = self.states.get(level.suffix)
        if state is None:
            kept = self.bucket.states.get(level.suffix)
            slots = {} if kept is None else {code: list(slot) for code, slot in kept.slots.items()}
            state = State(epoch, slots)
            self.states[level.suffix] = state
        state.epoch = epoch
        for code in level.slots:
            state.slots.setdefault(code, fresh_slot(Family(code & 7)))
        return state

    def keep(self) -> None:
        """Make what was worked on the bucket's own."""
        self.bucket.states.update(self.states)
        self.states = {}

    def seats(self, program: Program, holder: str) -> Callable[[View], Seats]:
        """How many seats of a view are taken, and whether the holder has one."""
        bucket, now = self.bucket, self.now

        def taken(view: View) -> Seats:
            suffix, mode = program.levels[view.level].suffix, view.extra[0]
            if mode == SEAT_MODES[SeatMode.FLOATING]:
                return Seats(sum(end > now for end in bucket.index[suffix].values()), has_one=False)
            if mode == SEAT_MODES[SeatMode.NAMED]:
                live = {
                    name
                    for name, leases in bucket.holders[suffix].items()
                    if any(end > now for end in leases.values())
                }
                return Seats(len(live), has_one=holder in live)
            bound = bucket.bound[suffix]
            return Seats(len(bound), has_one=holder in bound)

        return taken

    def flush_denials(self) -> int:
        """Write the merged denials of seconds that are over; return how many records that were."""
        bucket = self.bucket
        if not bucket.denials or bucket.denial_second >= self.now // 1000:
            return 0
        pending, bucket.denials = bucket.denials, {}
        for name, (count, quantity, body) in sorted(pending.items()):
            *_, reason, limit = name.split(":")
            effects = Effects(
                RecordType.DENIAL,
                bucket.denial_second * 1000,
                reason=int(reason),
                count=count,
                quantity=quantity,
                extra=int(limit),
            )
            self.append(body, effects)
        return len(pending)

    def deny(self, ask: Ask, reason: Reason, limit: int) -> None:
        """Merge a denial with those of its second."""
        bucket, program = self.bucket, ask.program
        bucket.denial_second = self.now // 1000
        name = f"{program.suffix}:{reason.value}:{limit}"
        count, quantity, body = bucket.denials.get(name, (0, 0, program.denial_body))
        bucket.denials[name] = count + 1, min(quantity + ask.quantity, MAX_QUANTITY), body
