"""What clients were told, key by key, held against the records: nothing lost, nothing twice, no limit passed at any time.

Pure: `Books` is written by the clients of a soak, `Reading` is given every record in its order, `differences` compares.
The limits are worked out anew from the records alone, and once more from what the clients' own clocks are sure of: no
counter of the gateway has a hand in either.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from meter.core.records import Body, Effects, RecordType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Books", "Cap", "Kind", "Pair", "Place", "Rate", "Reading", "Seats", "Stay", "Told"]

Place = tuple[int, int, int]
"""Bucket, generation, sequence."""
Pair = tuple[str, str]
"""Customer and feature."""
HOUR_MS: Final = 3_600_000
SETTLING: Final = (RecordType.COMMIT, RecordType.RELEASE, RecordType.HOLD_EXPIRED)
CORRECTING: Final = (RecordType.VOID, RecordType.AMEND, RecordType.BACKFILL)
TAKING: Final = {
    RecordType.USAGE: "use",
    RecordType.HOLD: "hold",
    RecordType.ALLOWANCE: "block",
    RecordType.LEASE_START: "lease",
}
"""Records that an idempotency key may leave once."""


class Kind:
    """What a key asks for."""

    USE, HOLD, BLOCK, LEASE = "use", "hold", "block", "lease"


class Told(NamedTuple):
    """The last word on a key. `granted`: 0 when it was denied, nothing when no answer came."""

    customer: str
    feature: str
    kind: str
    asked: int
    granted: int | None
    place: Place | None


class Stay(NamedTuple):
    """A seat was held from `start` to `end` for sure, in seconds of the client's clock."""

    customer: str
    feature: str
    holder: str
    start: float
    end: float


class Cap(NamedTuple):
    """At most so much of a feature, of these customers together. `hours`: in each, or in any 60 minutes just past."""

    customers: frozenset[str]
    feature: str
    limit: int
    hours: str = ""
    """`calendar` or `rolling`; empty: in all."""


class Rate(NamedTuple):
    """At most `limit` in the `per_ms` just past; with `burst` a bucket of so many tokens instead."""

    customer: str
    feature: str
    limit: int
    per_ms: int
    burst: int = 0


class Seats(NamedTuple):
    """At most so many live leases, or holders of some where they are `named`."""

    customer: str
    feature: str
    seats: int
    named: bool = False


@dataclass
class Books:
    """The clients' side."""

    told: dict[str, Told] = field(default_factory=dict)
    """By idempotency key."""
    settled: dict[Place, tuple[Pair, int]] = field(default_factory=dict)
    """Commits and returns of blocks: their records, and what was used."""
    corrected: Counter[Pair] = field(default_factory=Counter)
    """What amendments have changed the usage by."""
    stays: list[Stay] = field(default_factory=list)
    timed: defaultdict[Pair, list[tuple[float, float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Of limited rates: when a use was asked for, when it was granted, and how much."""
    findings: list[str] = field(default_factory=list)
    """What clients saw that cannot be right."""

    def usage(self) -> tuple[Counter[Pair], Counter[Pair]]:
        """What was surely used, and what perhaps was beyond that."""
        surely, perhaps = Counter(self.corrected), Counter[Pair]()
        for told in self.told.values():
            pair = told.customer, told.feature
            if told.kind == Kind.USE:
                surely[pair] += told.granted or 0
                perhaps[pair] += told.asked if told.granted is None else 0
        for pair, used in self.settled.values():
            surely[pair] += used
        return surely, perhaps


@dataclass
class _Drawn:
    """What has been used, held, and given up with a block that nobody returned, so far."""

    used: int = 0
    held: int = 0
    given_up: int = 0
    most: int = 0

    def add(self, used: int, held: int) -> int:
        self.used, self.held = self.used + used, self.held + held
        now = self.used + self.held + self.given_up
        self.most = max(self.most, now)
        return now


class Reading:
    """Takes records in the order of their bucket's sequence, one bucket after the other."""

    def __init__(self, caps: Iterable[Cap], rates: Iterable[Rate], seats: Iterable[Seats]) -> None:
        self.caps: dict[Pair, list[Cap]] = defaultdict(list)
        for cap in caps:
            for customer in cap.customers:
                self.caps[customer, cap.feature].append(cap)
        self.rates = {(rate.customer, rate.feature): rate for rate in rates}
        self.seats = {(one.customer, one.feature): one for one in seats}
        self.records = 0
        self.generations: Counter[int] = Counter()
        self.keys: dict[tuple[str, str], list[tuple[Place, int, Pair]]] = {}
        """By what was asked for and idempotency key."""
        self.settled: dict[Place, tuple[Pair, int]] = {}
        self.usage: Counter[Pair] = Counter()
        self.drawn: defaultdict[Pair, _Drawn] = defaultdict(_Drawn)
        self.findings: list[str] = []
        self._ended: Counter[str] = Counter()
        self._capped: defaultdict[Cap, _Drawn] = defaultdict(_Drawn)
        self._by_hour: defaultdict[tuple[Cap, int], _Drawn] = defaultdict(_Drawn)
        self._rolling: defaultdict[Cap, deque[tuple[int, int]]] = defaultdict(deque)
        self._rated: defaultdict[Pair, list[tuple[int, int]]] = defaultdict(list)
        self._sat: defaultdict[Pair, dict[str, tuple[int, str]]] = defaultdict(dict)
        self._stays: defaultdict[Pair, list[tuple[int, int, str]]] = defaultdict(list)

    def add(self, place: Place, body: Body, effects: Effects) -> None:
        """The next record."""
        self.records += 1
        kind, pair = effects.type, (body.c, body.f)
        if kind is RecordType.GENERATION:
            self.generations[place[0]] += 1
            return
        if (taking := TAKING.get(kind)) and body.k:
            self.keys.setdefault((taking, body.k), []).append((place, effects.granted, pair))
        if kind in (RecordType.COMMIT, RecordType.ALLOWANCE_USE):
            self.settled[place] = pair, effects.granted
        if kind in (*SETTLING, RecordType.ALLOWANCE_USE, RecordType.UNACCOUNTED):
            self._once(place, body, pair)
        if kind in (RecordType.LEASE_START, RecordType.LEASE_END, RecordType.LEASE_EXPIRED):
            self._seat(place, body, effects)
            return
        self._count(place, pair, effects)

    def _once(self, place: Place, body: Body, pair: Pair) -> None:
        self._ended[body.id] += 1
        if self._ended[body.id] > 1:
            self.findings.append(f"{_named(pair)}: {body.id} is settled again by {_at(place)}")

    def _count(self, place: Place, pair: Pair, effects: Effects) -> None:
        kind, granted = effects.type, effects.granted
        used = held = 0
        if kind is RecordType.USAGE or kind in CORRECTING:
            used = granted
        elif kind in (RecordType.HOLD, RecordType.ALLOWANCE):
            held = granted
        elif kind in (*SETTLING, RecordType.ALLOWANCE_USE):
            used, held = granted, -effects.extra
        elif kind is RecordType.UNACCOUNTED:
            held = -effects.extra
            self.drawn[pair].given_up += effects.extra
        else:
            return
        self.usage[pair] += used
        self.drawn[pair].add(used, held)
        for cap in self.caps.get(pair, ()):
            self._cap(cap, place, effects, used, held)
        if pair in self.rates and used:
            self._rated[pair].append((effects.now, used))

    def _cap(self, cap: Cap, place: Place, effects: Effects, used: int, held: int) -> None:
        if cap.hours == "rolling":
            past = self._rolling[cap]
            past.append((effects.now, used))
            while past[0][0] <= effects.now - HOUR_MS:
                past.popleft()
            now = sum(one for _, one in past)
            self._capped[cap].most = max(self._capped[cap].most, now)
        elif cap.hours == "calendar":
            now = self._by_hour[cap, effects.now // HOUR_MS].add(used, held)
        else:
            account = self._capped[cap]
            if effects.type is RecordType.UNACCOUNTED:
                account.given_up += effects.extra
            now = account.add(used, held)
        if now > cap.limit:
            names = ", ".join(sorted(cap.customers))
            self.findings.append(
                f"{names} {cap.feature}: {now} of a hard limit of {cap.limit} with {_at(place)}, at {effects.now}"
            )

    def reached(self, cap: Cap) -> bool:
        """Whether it was used to its last unit."""
        if cap.hours == "calendar":
            return any(one.most == cap.limit for (of, _), one in self._by_hour.items() if of == cap)
        return self._capped[cap].most == cap.limit

    def held(self) -> Iterator[tuple[Pair, int]]:
        """What is held by nobody: everything has ended when the records end."""
        for pair, one in self.drawn.items():
            if one.held:
                yield pair, one.held

    def _seat(self, place: Place, body: Body, effects: Effects) -> None:
        pair = body.c, body.f
        sat = self._sat[pair]
        if effects.type is RecordType.LEASE_START:
            if body.id in sat:
                self.findings.append(f"{_named(pair)}: lease {body.id} begins again, {_at(place)}")
            sat[body.id] = effects.now, body.h or body.id
        elif (found := sat.pop(body.id, None)) is None:
            self.findings.append(
                f"{_named(pair)}: lease {body.id} ends without a start, {_at(place)}"
            )
        else:
            self._stays[pair].append((found[0], effects.now, found[1]))

    def finish(self) -> None:
        """After the last record: what needs to be put in order of time."""
        for pair, uses in self._rated.items():
            self.findings += _rate_passed(self.rates[pair], sorted(uses))
        for pair, seats in self.seats.items():
            stays: list[tuple[float, float, str]] = list(self._stays[pair])
            stays += [(start, float("inf"), who) for start, who in self._sat[pair].values()]
            most = _at_once(stays, named=seats.named)
            if most > seats.seats:
                self.findings.append(
                    f"{_named(pair)}: {most} seats held at once of {seats.seats}, by the records"
                )


def _named(pair: Pair) -> str:
    return " ".join(pair)


def _at(place: Place) -> str:
    return f"record {place[1]}-{place[2]} of bucket {place[0]}"


def _rate_passed(rate: Rate, uses: Sequence[tuple[float, int]]) -> Iterator[str]:
    """Uses in the order of their times, in ms."""
    past: deque[tuple[float, int]] = deque()
    inside, tokens, last = 0, float(rate.burst), 0.0
    for now, used in uses:
        if rate.burst:
            tokens = min(rate.burst, tokens + (now - last) * rate.limit / rate.per_ms) - used
            last = now
            passed = tokens < -1e-6
        else:
            past.append((now, used))
            inside += used
            while past[0][0] <= now - rate.per_ms:
                inside -= past.popleft()[1]
            passed = inside > rate.limit
        if passed:
            yield f"{rate.customer} {rate.feature}: faster than its rate allows at {now:.0f} ms"


def _at_once(stays: Iterable[tuple[float, float, str]], *, named: bool) -> int:
    """The most that were held at once: of two at one instant, the end comes first."""
    steps: list[tuple[float, int, str]] = []
    for start, end, who in stays:
        if end > start:
            steps += [(start, 1, who), (end, -1, who)]
    live: Counter[str] = Counter()
    most = now = 0
    for _, change, who in sorted(steps):
        before = live[who]
        live[who] += change
        if not named or bool(before) != bool(live[who]):
            now += change
        most = max(most, now)
    return most


def differences(
    books: Books,
    reading: Reading,
    reported: Mapping[Pair, int],
    shown: Mapping[Pair, tuple[int, int]],
    others: Sequence[str] = (),
) -> list[str]:
    """All that does not agree. `reported` quantities, and (used, held) of the counters, by customer and feature.

    `others`: customers that were asked for without the books, too.
    """
    found = [*books.findings, *reading.findings]
    found += _keys(books, reading, others)
    found += _sums(books, reading, {**dict.fromkeys(reading.usage, 0), **reported}, others)
    found += _counters(reading, shown)
    found += _sure(books, reading)
    found += [f"{_named(pair)}: {held} are held by nobody" for pair, held in reading.held()]
    return found


def _keys(books: Books, reading: Reading, others: Sequence[str]) -> Iterator[str]:
    known = dict(reading.keys)
    for key, told in books.told.items():
        records = known.pop((told.kind, key), [])
        where = f"{told.customer} {told.feature}, key {key}"
        if len(records) > 1:
            places = ", ".join(_at(place) for place, _, _ in records)
            yield f"{where}: counted {len(records)} times: {places}"
        elif told.granted is None:
            if records and records[0][1] > told.asked:
                yield f"{where}: {records[0][1]} granted of {told.asked} asked for"
        elif told.granted and not records:
            yield f"{where}: told allowed ({told.granted}), and there is no record"
        elif records and not told.granted:
            yield f"{where}: told denied, and there is {_at(records[0][0])}"
        elif records:
            place, granted, pair = records[0]
            # A use allowed by failure policy has its record later.
            if told.place not in (None, place):
                yield f"{where}: told {told.place}, the record is {_at(place)}"
            if granted != told.granted or pair != (told.customer, told.feature):
                yield f"{where}: told {told.granted}, the record of {_named(pair)} has {granted}"
    for (kind, key), records in known.items():
        if records[0][2][0] in others:
            continue
        yield f"{_named(records[0][2])}: {kind} with key {key} has a record, and nobody asked"


def _sums(
    books: Books, reading: Reading, reported: Mapping[Pair, int], others: Sequence[str]
) -> Iterator[str]:
    for place, (pair, used) in books.settled.items():
        if reading.settled.get(place) != (pair, used):
            yield (
                f"{_named(pair)}: told that {used} were used, {_at(place)} says "
                f"{reading.settled.get(place, 'nothing')}"
            )
    surely, perhaps = books.usage()
    for pair in sorted(surely.keys() | reported.keys()):
        recorded, report = reading.usage[pair], reported.get(pair, 0)
        told = pair in surely or pair[0] not in others
        if told and not surely[pair] <= recorded <= surely[pair] + perhaps[pair]:
            yield (
                f"{_named(pair)}: clients were told {surely[pair]} and perhaps {perhaps[pair]} more, "
                f"the records have {recorded}"
            )
        if report != recorded:
            yield f"{_named(pair)}: the records have {recorded}, the report {report}"


def _counters(reading: Reading, shown: Mapping[Pair, tuple[int, int]]) -> Iterator[str]:
    for pair, counter in shown.items():
        account = reading.drawn[pair]
        if counter != (account.used + account.given_up, account.held):
            yield (
                f"{_named(pair)}: the counter shows {counter[0]} used and {counter[1]} held, the records "
                f"{account.used + account.given_up} and {account.held}"
            )


def _sure(books: Books, reading: Reading) -> Iterator[str]:
    """Limits by the clients' clocks: only what surely lies within a window counts."""
    for pair, seats in reading.seats.items():
        stays = [(one.start, one.end, one.holder) for one in books.stays if one[:2] == pair]
        most = _at_once(stays, named=seats.named)
        if most > seats.seats:
            yield f"{_named(pair)}: {most} seats held at once of {seats.seats}, by the clients' clocks"
    for pair, uses in books.timed.items():
        rate = reading.rates[pair]
        most_in = rate.burst + rate.limit if rate.burst else rate.limit
        by_end = sorted(uses, key=lambda use: use[1])
        for number, (asked, _, _) in enumerate(by_end):
            within = 0
            for other, ended, used in by_end[max(0, number - NEAR) : number + NEAR]:
                if other >= asked and ended < asked + rate.per_ms / 1000:
                    within += used
            if within > most_in:
                yield f"{_named(pair)}: {within} within {rate.per_ms} ms of {most_in}, by the clients' clocks"


NEAR: Final = 200
"""Uses of one rate that are looked at around another: more cannot lie in its window."""
