"""The counter store in memory: the executable specification of the Redis scripts.

What a script does in one atomic step, a method does here; a property test drives both with the same commands on one
clock and finds replies, counters, leases and records equal.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING

from enforcer.core.allowances import GRACE_MS, dated, ends
from enforcer.core.commands import (
    Answer,
    Ask,
    BucketState,
    Counter,
    Decision,
    EpochStale,
    Failed,
    HoldGone,
    KeyReused,
    LeaseInfo,
    OutOfTurn,
    Settled,
    SliceStale,
    TooMuch,
    idempotency,
)
from enforcer.core.compile import SEAT_MODES
from enforcer.core.corrections import (
    OVERFLOW,
    Change,
    Corrected,
    Correction,
    Known,
    Levels,
    Moved,
    Outcome,
    Refused,
    Uncertain,
    booked,
    change,
    has_room,
    overflows,
    side,
)
from enforcer.core.model import MAX_QUANTITY, SeatMode
from enforcer.core.program import RING_SLOTS, Family, Kind, Level, Program, Reason, Shape, View
from enforcer.core.rules import (
    HELD,
    NEWEST,
    PERIOD,
    RATES,
    RING,
    RING_HELD,
    USED,
    Entry,
    Hold,
    Mode,
    Overflow,
    Seats,
    Slots,
    Verdict,
    apply,
    entries,
    evaluate,
    fresh_slot,
    settle,
)
from meter.core.records import Body, Effect, Effects, RecordType, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["REAPED_AT_ONCE", "MemoryCounters", "Record", "counted"]

REAPED_AT_ONCE = 128
"""How many ended leases, reservations and blocks one tick removes at most."""

_READS = (Mode.CHECK_ONLY, Mode.PEEK)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of an outbox."""

    generation: int
    sequence: int
    body: bytes
    effects: Effects


@dataclass(slots=True)
class _Lease:
    suffixes: tuple[str, ...]
    mode: int
    holder: str
    started: int
    expires: int
    body: bytes
    seats: tuple[int, ...]


@dataclass(slots=True)
class _Reservation:
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
class _State:
    epoch: int
    slots: Slots


@dataclass(slots=True)
class _Bucket:
    generation: int
    sequence: int = 0
    last_now: int = 0
    denial_second: int = 0
    outbox: list[Record] = field(default_factory=list)
    epochs: dict[int, int] = field(default_factory=dict)
    states: dict[str, _State] = field(default_factory=dict)
    answers: dict[int, dict[bytes, tuple[bytes, Decision | Settled | None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    denials: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)
    leases: dict[str, _Lease] = field(default_factory=dict)
    index: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    holders: dict[str, dict[str, dict[str, int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    bound: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    reservations: dict[str, _Reservation] = field(default_factory=dict)
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


class _Step:
    """One atomic step on a bucket at one time."""

    def __init__(self, bucket: _Bucket, number: int, now: int, window_ms: int) -> None:
        self.bucket, self.number, self.now, self.window = bucket, number, now, now // window_ms
        self.states: dict[str, _State] = {}

    def append(self, body: bytes, effects: Effects) -> tuple[int, int]:
        bucket = self.bucket
        place = bucket.generation, bucket.sequence
        bucket.sequence += 1
        bucket.outbox.append(Record(*place, body, effects))
        return place

    def remembered(self, key: bytes) -> tuple[bytes, Decision | Settled | None] | None:
        name = key[:16]
        for window in (self.window, self.window - 1):
            found = self.bucket.answers[window].get(name)
            if found is not None:
                return found
        return None

    def remember(
        self, key: bytes, answer: Decision | Settled | None, window: int | None = None
    ) -> None:
        if key:
            window = self.window if window is None else window
            self.bucket.answers[window][key[:16]] = key[16:], answer

    def state(self, level: Level, epoch: int) -> _State:
        """A copy to work on, laid out for `epoch`; slots that the epoch no longer defines stay."""
        state = self.states.get(level.suffix)
        if state is None:
            kept = self.bucket.states.get(level.suffix)
            slots = {} if kept is None else {code: list(slot) for code, slot in kept.slots.items()}
            state = _State(epoch, slots)
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
        bucket, program = self.bucket, ask.program
        bucket.denial_second = self.now // 1000
        name = f"{program.suffix}:{reason.value}:{limit}"
        count, quantity, body = bucket.denials.get(name, (0, 0, program.denial_body))
        bucket.denials[name] = count + 1, min(quantity + ask.quantity, MAX_QUANTITY), body


class MemoryCounters:
    """Counters of any number of buckets. `clock` gives ms; `window_ms` is how long answers are remembered at least."""

    def __init__(self, clock: Callable[[], int], window_ms: int = 86_400_000) -> None:
        self._clock, self._window_ms = clock, window_ms
        self._buckets: dict[int, _Bucket] = {}

    def open(self, bucket: int, generation: int) -> None:
        """Begin a generation; the first one creates the bucket."""
        old = self._buckets.get(bucket)
        if old is None:
            self._buckets[bucket] = _Bucket(generation)
            previous, last = 0, -1
        else:
            previous, last = old.generation, old.sequence - 1
            old.generation, old.sequence = generation, 0
        step = self._step(bucket)
        body = encode_body(Body(t="", a="", c="", f="", m=""))
        step.append(body, Effects(RecordType.GENERATION, step.now, quantity=last, extra=previous))

    def records(self, bucket: int) -> list[Record]:
        return list(self._buckets[bucket].outbox)

    def _step(self, number: int, *, read: bool = False) -> _Step:
        bucket = self._buckets[number]
        now = max(bucket.last_now, self._clock())
        if not read:
            bucket.last_now = now
        return _Step(bucket, number, now, self._window_ms)

    def project(self, bucket: int, account_id: int, epoch: int) -> int:
        epochs = self._step(bucket).bucket.epochs
        epochs[account_id] = max(epoch, epochs.get(account_id, 0))
        return epochs[account_id]

    def decide(self, group: Sequence[Ask]) -> list[Answer]:
        step = self._step(group[0].program.bucket)
        step.flush_denials()
        if group[0].journaled is not None:
            return [self._count(step, group[0])]
        answers: list[Answer | None] = [None] * len(group)
        known: set[int] = set()
        for place, ask in enumerate(group):
            found = None
            if ask.idempotency and ask.mode not in _READS:
                found = step.remembered(ask.idempotency)
            if found is None:
                continue
            finger, answer = found
            if finger != ask.idempotency[16:]:
                return _whole(group, place, KeyReused())
            if isinstance(answer, Decision):
                answers[place] = replace(answer, replayed=True)
            else:
                known.add(place)
        for place, ask in enumerate(group):
            if answers[place] is not None:
                continue
            stored = step.bucket.epochs.get(ask.program.account_id, 0)
            if stored != ask.program.epoch:
                return _whole(group, place, EpochStale(stored))
            if not ask.program.start <= step.now < (ask.program.end or step.now + 1):
                return _whole(group, place, SliceStale(step.now))
        return self._evaluate(step, group, answers, known)

    def _count(self, step: _Step, ask: Ask) -> Answer:
        """Count what was allowed while the store was away. See `Ask`."""
        place, program = ask.journaled, ask.program
        assert place is not None
        marks = step.bucket.marks
        mark = marks.get(place.journal, 0)
        if not place.after <= mark < place.number:
            return OutOfTurn(mark)
        stored = step.bucket.epochs.get(program.account_id, 0)
        if stored != program.epoch:
            return EpochStale(stored)
        if not program.start <= step.now < (program.end or step.now + 1):
            return SliceStale(step.now)
        if program.verdict is not Reason.ALLOWED:
            return Failed(program.verdict.name)
        # What batches left behind on their way is the wire's affair: here only keys tell what was counted before.
        before, key = 0, b""
        if ask.idempotency:
            finger, known = step.remembered(ask.idempotency) or (ask.idempotency[16:], None)
            if finger == ask.idempotency[16:]:
                if isinstance(known, Decision):
                    before = known.granted
                else:
                    key = ask.idempotency
        rest = max(0, ask.quantity - before)
        if not rest:
            effects = Effects(RecordType.EMERGENCY, step.now, quantity=ask.quantity)
            _, sequence = step.append(ask.body, effects)
            marks[place.journal] = place.number
            verdict = Verdict(Reason.ALLOWED, 0, 0, shadow=False, chains=(), denied=())
            return replace(self._decision(step, verdict, ()), sequence=sequence)
        (answer,) = self._evaluate(
            step, [replace(ask, quantity=rest, idempotency=key)], [None], set()
        )
        if isinstance(answer, Decision):
            marks[place.journal] = place.number
        return answer

    def _evaluate(
        self, step: _Step, group: Sequence[Ask], answers: list[Answer | None], known: set[int]
    ) -> list[Answer]:
        granted: list[tuple[int, Ask, Verdict, tuple[Effect, ...]]] = []
        for place, ask in enumerate(group):
            if answers[place] is not None:
                continue
            program, read = ask.program, ask.mode in _READS
            levels = [step.state(level, program.epoch).slots for level in program.levels]
            seats = step.seats(program, ask.seat.holder if ask.seat else "")
            verdict = evaluate(program, levels, seats, ask.quantity, ask.mode, step.now)
            if not verdict.granted:
                shown = entries(program, verdict, levels, seats, step.now, drawn=False)
                answer = self._decision(step, verdict, shown)
                if not read:
                    if place not in known:
                        step.deny(ask, verdict.reason, _denier(program, verdict))
                    step.remember(ask.idempotency, None)
                return _denied(group, place, answer, answers)
            effects: tuple[Effect, ...] = ()
            if ask.mode is not Mode.PEEK:
                try:
                    effects = apply(verdict, levels, step.now, hold=bool(ask.reservation))
                except Overflow:
                    return _whole(group, place, Failed("overflow"))
            if read:
                drawn = ask.mode is not Mode.PEEK
                shown = entries(program, verdict, levels, seats, step.now, drawn=drawn)
                answers[place] = self._decision(step, verdict, shown)
            else:
                granted.append((place, ask, verdict, effects))
                shown = entries(program, verdict, levels, seats, step.now, drawn=True)
                answers[place] = self._decision(step, verdict, shown)
        if granted:
            step.keep()
        for place, ask, verdict, effects in granted:
            decided = answers[place]
            assert isinstance(decided, Decision)
            answers[place] = self._record(step, ask, verdict, effects, decided)
        return [answer for answer in answers if answer is not None]

    @staticmethod
    def _decision(step: _Step, verdict: Verdict, shown: tuple) -> Decision:  # type: ignore[type-arg]
        return Decision(
            reason=verdict.reason,
            granted=verdict.granted,
            overage=verdict.overage,
            shadow=verdict.shadow,
            now=step.now,
            bucket=step.number,
            generation=step.bucket.generation,
            sequence=-1,
            values=_flat(shown),
        )

    def _record(
        self,
        step: _Step,
        ask: Ask,
        verdict: Verdict,
        effects: tuple[Effect, ...],
        answer: Decision,
    ) -> Decision:
        kind = RecordType.USAGE
        name, expires = "", 0
        if ask.reservation:
            kind, name, expires = RecordType.HOLD, ask.reservation, step.now + ask.ttl_ms
            if ask.mode is Mode.ALLOWANCE:
                kind, expires = RecordType.ALLOWANCE, ends(step.now, ask.ttl_ms, ask.program.end)
            effects += _notes(ask.program, verdict, effects)
        elif ask.seat is not None:
            kind, name, expires = RecordType.LEASE_START, ask.seat.lease, step.now + ask.seat.ttl_ms
        _, sequence = step.append(
            ask.body,
            Effects(
                kind,
                step.now,
                granted=verdict.granted,
                overage=verdict.overage,
                reason=verdict.reason,
                quantity=ask.quantity,
                extra=expires,
                entries=effects,
            ),
        )
        if ask.reservation:
            self._hold(step, ask, verdict, expires)
        elif ask.seat is not None:
            _sit(step, ask, expires)
            seats = step.seats(ask.program, ask.seat.holder)
            levels = [step.bucket.states[level.suffix].slots for level in ask.program.levels]
            shown = entries(ask.program, verdict, levels, seats, step.now, drawn=True)
            answer = replace(answer, values=_flat(shown))
        answer = replace(answer, sequence=sequence, id=name, expires=expires)
        step.remember(ask.idempotency, answer)
        return answer

    @staticmethod
    def _hold(step: _Step, ask: Ask, verdict: Verdict, expires: int) -> None:
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
        step.bucket.reservations[ask.reservation] = _Reservation(
            expires + GRACE_MS * block, verdict.granted, ask.body, tuple(chains), block
        )

    def commit(
        self, bucket: int, reservation: str, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return self._settle(bucket, reservation, RecordType.COMMIT, quantity)

    def release(self, bucket: int, reservation: str) -> Settled | HoldGone | KeyReused:
        settled = self._settle(bucket, reservation, RecordType.RELEASE, 0)
        assert not isinstance(settled, TooMuch)
        return settled

    def give_back(
        self, bucket: int, allowance: str, used: int
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return self._settle(bucket, allowance, RecordType.ALLOWANCE_USE, used)

    def _settle(
        self, number: int, name: str, kind: RecordType, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        step = self._step(number)
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
        step.remember(key, settled, at // self._window_ms)
        return settled

    def renew(
        self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int
    ) -> LeaseInfo | EpochStale | None:
        step = self._step(bucket)
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

    def release_lease(self, bucket: int, lease: str, *, unbind: bool) -> tuple[int, int] | None:
        step = self._step(bucket)
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

    def leases(
        self, bucket: int, suffix: str, after: tuple[int, str], most: int
    ) -> list[LeaseInfo]:
        step = self._step(bucket, read=True)
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

    def tick(self, bucket: int) -> int:
        step = self._step(bucket)
        written = step.flush_denials()
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
        return written + len(due)

    def slots(self, bucket: int, suffixes: Sequence[str]) -> Levels:
        step = self._step(bucket, read=True)
        found = step.bucket
        states = [found.states.get(suffix) for suffix in suffixes]
        return Levels(
            found.generation,
            found.sequence - 1,
            step.now,
            tuple(
                {} if one is None else {code: list(slot) for code, slot in one.slots.items()}
                for one in states
            ),
        )

    def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> list[Outcome]:
        step = self._step(bucket)
        found = step.bucket
        if found.corrected_in != found.generation:
            if not certain:
                return [Uncertain(corrections[0].number)]
            found.corrected, found.corrected_in = acknowledged, found.generation
            found.corrections.clear()
        found.corrected = max(found.corrected, acknowledged)
        for number in [number for number in found.corrections if number <= acknowledged]:
            del found.corrections[number]
        outcomes: list[Outcome] = []
        for correction in corrections:
            outcome = _correct(step, correction)
            outcomes.append(outcome)
            if isinstance(outcome, Moved | EpochStale):
                break
        return outcomes

    def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
        step = self._step(bucket)
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

    def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> bool:
        step = self._step(bucket)
        found = step.bucket
        if found.adjusted > compared:
            return False
        entries = tuple(Effect(one.limit, 0, 0, one.held) for one in changes)
        step.append(body, Effects(RecordType.REPAIR, step.now, quantity=1, entries=entries))
        found.adjusted = found.generation, found.sequence - 1
        return True

    def counters(self, bucket: int) -> BucketState:
        found = self._buckets[bucket]
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
            bucket, found.generation, found.sequence - 1, tuple(sorted(counters, key=_place))
        )


def _flat(shown: Sequence[Entry]) -> tuple[int, ...]:
    return tuple([value for entry in shown for value in entry])


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


def _place(counter: Counter) -> tuple[int, int, int, int]:
    return counter.limit, counter.period, counter.used, counter.held


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


def _denier(program: Program, verdict: Verdict) -> int:
    """The id of the first limit that denied; 0 when no limit did."""
    for chain, short in zip(program.chains, verdict.denied, strict=False):
        if short and not chain.shadow:
            return chain.views[0].id if chain.views else 0
    return 0


def _whole(group: Sequence[Ask], place: int, answer: Answer) -> list[Answer]:
    """Nothing of the group was done, for the reason at `place`."""
    nothing: list[Answer] = [
        Failed("not decided: another item of the batch was not") for _ in group
    ]
    nothing[place] = answer
    return nothing


def _denied(
    group: Sequence[Ask], place: int, denied: Decision, answers: list[Answer | None]
) -> list[Answer]:
    """The group is denied by the item at `place`. Items that were answered before keep their answers."""
    done: list[Answer] = []
    for number in range(len(group)):
        answer = answers[number]
        if number == place:
            done.append(denied)
        elif isinstance(answer, Decision) and answer.replayed:
            done.append(answer)
        else:
            done.append(replace(denied, reason=Reason.BATCH_DENIED, shadow=False, values=()))
    return done


def _sit(step: _Step, ask: Ask, expires: int) -> None:
    seat, program = ask.seat, ask.program
    assert seat is not None
    views = [view for view in program.views if view.shape is Shape.SEATS]
    mode = int(views[0].extra[0]) if views else SEAT_MODES[SeatMode.FLOATING]
    suffixes = tuple(level.suffix for level in program.levels)
    bucket = step.bucket
    bucket.leases[seat.lease] = _Lease(
        suffixes, mode, seat.holder, step.now, expires, ask.body, tuple(view.id for view in views)
    )
    for suffix in suffixes:
        bucket.index[suffix][seat.lease] = expires
        if mode != SEAT_MODES[SeatMode.FLOATING]:
            bucket.holders[suffix][seat.holder][seat.lease] = expires
        if mode == SEAT_MODES[SeatMode.NODE_LOCKED]:
            bucket.bound[suffix].setdefault(seat.holder, step.now)


def _stand_up(
    step: _Step, name: str, kind: RecordType, at: int, *, unbound: bool = False
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


def _notes(program: Program, verdict: Verdict, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """What a record must say of holds beyond their amounts, so that they can be made again: see meter.core.records."""
    notes: list[Effect] = []
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
                notes.append(Effect(0, 2 * place + over, int(view.extra[0]), 0))
            elif view.shape is Shape.MONEY:
                price = int(view.extra[1]), int(view.extra[2])
                notes.append(Effect(0, 2 * place + over, *price))
            elif over:
                notes.append(Effect(0, 2 * place + over, 0, 1))
    return tuple(notes)


def _unhold(
    step: _Step, name: str, kind: RecordType, used: int, *, whole: bool = False
) -> tuple[int, int]:
    bucket = step.bucket
    reservation = bucket.reservations.pop(name)
    effects: list[Effect] = []
    overage = 0
    for chain in reservation.chains:
        left = used
        for hold in chain:
            use = min(left, hold.amount)
            left -= use
            slots = bucket.states[hold.key].slots
            effects += settle(hold, slots[hold.slot], use, step.now)
            if hold.over:
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


def _correct(step: _Step, correction: Correction) -> Outcome:
    """Carry out one correction unless that was done; nothing of it when its answer is Moved or EpochStale."""
    bucket, number = step.bucket, correction.number
    if number <= bucket.corrected:
        return bucket.corrections.get(number, Known(number))
    if number > bucket.corrected + 1:
        return Moved(number)
    outcome: Corrected | Refused
    if correction.refused:
        outcome = Refused(number, correction.refused)
    else:
        if correction.account_id:
            stored = bucket.epochs.get(correction.account_id, 0)
            if stored != correction.epoch:
                return EpochStale(stored)
        changed: dict[tuple[str, int], list[float]] = {}
        effects: list[Effect] = []
        why = _book(step, correction.changes, changed, effects)
        if why is None:
            return Moved(number)
        outcome = Refused(number, why) if why else _record(step, correction, changed, effects)
    bucket.corrected = number
    bucket.corrections[number] = outcome
    return outcome


def _book(
    step: _Step,
    changes: Sequence[Change],
    changed: dict[tuple[str, int], list[float]],
    effects: list[Effect],
) -> str | None:
    """Book on copies. Return why not to, nothing when all is well, or None when there is less room than planned."""
    for one in changes:
        effects.append(Effect(one.limit, one.period, one.delta, 0))
        suffix, code = _slot_of(step.bucket, one)
        if not suffix:
            continue
        slot = changed.get((suffix, code))
        if slot is None:
            state = step.bucket.states.get(suffix)
            slot = state.slots.get(code) if state is not None else None
            slot = fresh_slot(Family(code & 7)) if slot is None else slot
        current = booked(replace(one, code=code), slot, step.now)
        if current is None:
            continue
        if one.delta > 0:
            if overflows(one, current):
                return OVERFLOW
            if not has_room(one, current):
                return None
        change(replace(one, code=code), current)
        changed[suffix, code] = current
        if code & 7 == Family.COUNT:
            effects += side(one, slot, current)
    return ""


def _slot_of(bucket: _Bucket, one: Change) -> tuple[str, int]:
    """Level and code of the counter's slot; nothing when no level has one."""
    if one.code:
        return one.suffixes[0], one.code
    for suffix in (*one.suffixes, *sorted(bucket.states)):
        state = bucket.states.get(suffix)
        for code in state.slots if state is not None else ():
            if code >> 3 == one.limit and code & 7 in (Family.COUNT, Family.RING24):
                return suffix, code
    return "", 0


def _record(
    step: _Step,
    correction: Correction,
    changed: dict[tuple[str, int], list[float]],
    effects: Sequence[Effect],
) -> Corrected:
    for (suffix, code), slot in changed.items():
        step.bucket.states.setdefault(suffix, _State(0, {})).slots[code] = slot
    place = step.append(
        correction.body,
        Effects(
            correction.kind,
            step.now,
            granted=correction.granted,
            overage=correction.overage,
            reason=Reason.ALLOWED,
            count=correction.count,
            quantity=correction.quantity,
            extra=int(correction.adjusts),
            entries=tuple(effects),
        ),
    )
    return Corrected(
        correction.number,
        *place,
        step.now,
        correction.granted,
        correction.overage,
        tuple((one.limit, one.period, one.delta) for one in correction.changes),
    )
