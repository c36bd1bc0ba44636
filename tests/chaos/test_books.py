"""The judge of a soak sees each thing that must not happen: one that is put into sound books is found, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from meter.core.records import Body, Effects, RecordType
from tests.chaos.books import (
    Books,
    Cap,
    Kind,
    Place,
    Rate,
    Reading,
    Seats,
    Stay,
    Told,
    differences,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CUSTOMER, HOUR = "ada", 3_600_000
CAPS = (
    Cap(frozenset({CUSTOMER}), "quota", 10),
    Cap(frozenset({CUSTOMER}), "hour", 10, "calendar"),
    Cap(frozenset({CUSTOMER}), "rolling", 10, "rolling"),
)
RATES = (Rate(CUSTOMER, "window", 5, 1000), Rate(CUSTOMER, "bucket", 5, 1000, burst=8))
SEATS = (Seats(CUSTOMER, "seats", 1), Seats(CUSTOMER, "named", 1, named=True))


@dataclass
class Case:
    """Records and what was told of them; sound as long as nobody changes one side alone."""

    books: Books = field(default_factory=Books)
    records: list[tuple[Place, Body, Effects]] = field(default_factory=list)
    reported: dict[tuple[str, str], int] = field(default_factory=dict)
    shown: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def write(
        self, kind: RecordType, feature: str, granted: int = 0, now: int = 0, **more: object
    ) -> Place:
        """A record."""
        place = 0, 1, len(self.records)
        extra = int(str(more.pop("extra", 0)))
        body = Body("t", CUSTOMER, CUSTOMER, feature, feature, **more)  # type: ignore[arg-type]
        self.records.append((place, body, Effects(kind, now, granted, extra=extra)))
        return place

    def use(self, feature: str, quantity: int, key: str, now: int = 0) -> None:
        """A check that is allowed, and everything that follows from it."""
        place = self.write(RecordType.USAGE, feature, quantity, now, k=key)
        self.books.told[key] = Told(CUSTOMER, feature, Kind.USE, quantity, quantity, place)
        pair = CUSTOMER, feature
        self.reported[pair] = self.reported.get(pair, 0) + quantity

    def found(self) -> list[str]:
        """What the judge says."""
        reading = Reading(CAPS, RATES, SEATS)
        for record in self.records:
            reading.add(*record)
        reading.finish()
        return differences(self.books, reading, self.reported, self.shown)


def sound() -> Case:
    """Each limit is used to its last unit, and each kind of call was made."""
    case = Case()
    case.use("quota", 3, "a")
    held = case.write(RecordType.HOLD, "quota", 5, k="h", id="r1")
    case.books.told["h"] = Told(CUSTOMER, "quota", Kind.HOLD, 5, 5, held)
    done = case.write(RecordType.COMMIT, "quota", 4, k="h", id="r1", extra=5)
    case.books.settled[done] = (CUSTOMER, "quota"), 4
    block = case.write(RecordType.ALLOWANCE, "quota", 3, k="b", id="b1")
    case.books.told["b"] = Told(CUSTOMER, "quota", Kind.BLOCK, 3, 3, block)
    case.write(RecordType.UNACCOUNTED, "quota", 3, k="b", id="b1", extra=3)
    case.reported[CUSTOMER, "quota"] += 4
    case.shown[CUSTOMER, "quota"] = 10, 0
    case.books.told["denied"] = Told(CUSTOMER, "quota", Kind.USE, 1, 0, None)
    case.books.told["unknown"] = Told(CUSTOMER, "quota", Kind.USE, 1, None, None)
    case.use("hour", 10, "hour-1", HOUR - 1)
    case.use("hour", 10, "hour-2", HOUR)
    case.use("rolling", 10, "rolling-1", 5)
    case.use("rolling", 10, "rolling-2", HOUR + 5)
    case.use("window", 5, "window-1", 0)
    case.use("window", 5, "window-2", 1000)
    case.use("bucket", 8, "bucket-1", 0)
    case.use("bucket", 5, "bucket-2", 1000)
    for start, end in ((0, 10_000), (10_000, 20_000)):
        case.write(RecordType.LEASE_START, "seats", 1, start, id=f"l{start}")
        case.write(RecordType.LEASE_EXPIRED, "seats", 0, end, id=f"l{start}")
    for name in ("one", "two"):  # leases of one holder
        case.write(RecordType.LEASE_START, "named", 1, 0, id=name, h="ann")
    case.books.stays += [Stay(CUSTOMER, "seats", "x", 0, 9.9), Stay(CUSTOMER, "seats", "y", 10, 19)]
    case.books.timed[CUSTOMER, "window"] += [(0, 0.1, 5), (0.9, 1.1, 5)]
    return case


def test_sound_books_have_no_differences() -> None:
    assert sound().found() == []


def lost(case: Case) -> None:
    del case.records[0]
    case.reported[CUSTOMER, "quota"] -= 3
    case.shown[CUSTOMER, "quota"] = 7, 0


def repeated(case: Case) -> None:
    case.write(RecordType.USAGE, "hour", 1, 2 * HOUR, k="hour-1")


def denied_and_counted(case: Case) -> None:
    case.write(RecordType.USAGE, "payg", 1, k="c")
    case.books.told["c"] = Told(CUSTOMER, "payg", Kind.USE, 1, 0, None)
    case.reported[CUSTOMER, "payg"] = 1


def unknown_and_counted_twice(case: Case) -> None:
    for _ in range(2):
        case.write(RecordType.USAGE, "payg", 1, k="c")
    case.books.told["c"] = Told(CUSTOMER, "payg", Kind.USE, 1, None, None)
    case.reported[CUSTOMER, "payg"] = 2


def nobody_asked(case: Case) -> None:
    case.write(RecordType.USAGE, "payg", 1, k="c")
    case.reported[CUSTOMER, "payg"] = 1


def another_record_than_told(case: Case) -> None:
    case.books.told["a"] = case.books.told["a"]._replace(place=(1, 1, 1))


def another_quantity_than_told(case: Case) -> None:
    case.books.told["a"] = case.books.told["a"]._replace(granted=2)


def another_commit_than_told(case: Case) -> None:
    (place,) = case.books.settled
    case.books.settled[place] = (CUSTOMER, "quota"), 3


def settled_twice(case: Case) -> None:
    case.write(RecordType.RELEASE, "quota", 0, k="h", id="r1")


def held_for_ever(case: Case) -> None:
    case.write(RecordType.HOLD, "payg", 1, k="c")
    case.books.told["c"] = Told(CUSTOMER, "payg", Kind.HOLD, 1, 1, None)


def past_a_quota(case: Case) -> None:
    case.use("quota", 1, "c")
    case.shown[CUSTOMER, "quota"] = 11, 0


def past_a_quota_while_held(case: Case) -> None:
    place, body, effects = case.records[1]
    case.records[1] = place, body, replace(effects, granted=8)
    place, body, effects = case.records[2]
    case.records[2] = place, body, replace(effects, extra=8)
    case.books.told["h"] = case.books.told["h"]._replace(asked=8, granted=8)


def past_an_hour(case: Case) -> None:
    case.use("hour", 1, "c", 2 * HOUR - 1)


def past_the_last_60_minutes(case: Case) -> None:
    case.use("rolling", 1, "c", HOUR + 5)


def faster_than_a_window(case: Case) -> None:
    case.use("window", 1, "c", 1999)


def faster_than_a_bucket(case: Case) -> None:
    case.use("bucket", 6, "c", 2000)


def more_seats_by_the_records(case: Case) -> None:
    case.write(RecordType.LEASE_START, "seats", 1, 19_999, id="l")


def more_holders_by_the_records(case: Case) -> None:
    case.write(RecordType.LEASE_START, "named", 1, 10, id="three", h="bea")


def a_lease_that_ends_twice(case: Case) -> None:
    case.write(RecordType.LEASE_END, "seats", 0, 11_000, id="l0")


def more_seats_by_the_clients(case: Case) -> None:
    case.books.stays.append(Stay(CUSTOMER, "seats", "z", 18, 20))


def faster_by_the_clients(case: Case) -> None:
    case.books.timed[CUSTOMER, "window"].append((0.2, 0.3, 1))


def another_report(case: Case) -> None:
    case.reported[CUSTOMER, "quota"] += 1


def another_counter(case: Case) -> None:
    case.shown[CUSTOMER, "quota"] = 10, 1


def seen_by_a_client(case: Case) -> None:
    case.books.findings.append("a part of an atomic batch")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lost, "told allowed (3), and there is no record"),
        (repeated, "counted 2 times"),
        (denied_and_counted, "told denied, and there is record"),
        (unknown_and_counted_twice, "counted 2 times"),
        (nobody_asked, "nobody asked"),
        (another_record_than_told, "told (1, 1, 1), the record is record 1-0"),
        (another_quantity_than_told, "told 2, the record of ada quota has 3"),
        (another_commit_than_told, "told that 3 were used"),
        (settled_twice, "settled again"),
        (held_for_ever, "1 are held by nobody"),
        (past_a_quota, "11 of a hard limit of 10"),
        (past_a_quota_while_held, "11 of a hard limit of 10"),
        (past_an_hour, "11 of a hard limit of 10"),
        (past_the_last_60_minutes, "11 of a hard limit of 10"),
        (faster_than_a_window, "faster than its rate allows"),
        (faster_than_a_bucket, "faster than its rate allows"),
        (more_seats_by_the_records, "2 seats held at once of 1, by the records"),
        (more_holders_by_the_records, "2 seats held at once of 1, by the records"),
        (a_lease_that_ends_twice, "ends without a start"),
        (more_seats_by_the_clients, "2 seats held at once of 1, by the clients' clocks"),
        (faster_by_the_clients, "6 within 1000 ms of 5, by the clients' clocks"),
        (another_report, "the report"),
        (another_counter, "the counter shows 10 used and 1 held"),
        (seen_by_a_client, "a part of an atomic batch"),
    ],
)
def test_what_must_not_be_is_found(spoil: Callable[[Case], None], words: str) -> None:
    case = sound()
    spoil(case)
    found = case.found()
    assert any(words in one for one in found), found
