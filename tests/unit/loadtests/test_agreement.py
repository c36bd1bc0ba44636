"""The final check finds whatever differs between answers, counters and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from loadtests.agreement import Counted, Reported, SeatsReported, compare
from loadtests.told import Seats, Usage
from meter.v1 import report_pb2
from tests.unit.loadtests.made import COUNTED, REPORTED, audit, outcome, sides

if TYPE_CHECKING:
    from loadtests.agreement import Agreement


def checked(**changed: Any) -> Agreement:
    return compare(changed.pop("said", outcome()), sides(**changed))


def test_equal_sums_are_no_finding() -> None:
    found = checked()
    assert found.findings == []
    assert (found.told, found.counted, found.reported) == (10, 10, 10)
    assert (found.denied_told, found.denied_reported, found.overuse) == (2, 2, 0)


@pytest.mark.parametrize("by", [-1, 1])
def test_each_side_that_is_off_by_one_is_a_finding(by: int) -> None:
    told = [Usage("a", "load.calls", 7 + by, 7), outcome().told[1]]
    assert checked(said=outcome(told=told)).findings == [
        f"a load.calls: clients were told {7 + by}, the counter has 7, the report 7"
    ]
    counted = [msgspec.structs.replace(COUNTED[0], used=7 + by), COUNTED[1]]
    assert checked(counted=counted).findings == [
        f"a load.calls: clients were told 7, the counter has {7 + by}, the report 7"
    ]
    reported = [msgspec.structs.replace(REPORTED[0], quantity=7 + by), REPORTED[1]]
    assert checked(reported=reported).findings == [
        f"a load.calls: clients were told 7, the counter has 7, the report {7 + by}"
    ]


def test_sums_that_agree_in_all_but_not_by_customer_are_findings() -> None:
    swapped = [
        msgspec.structs.replace(COUNTED[0], used=6, most=None),
        msgspec.structs.replace(COUNTED[1], used=4, most=None),
    ]
    assert len(checked(counted=swapped).findings) == 2


def test_events_and_denials_are_compared_too() -> None:
    reported = [msgspec.structs.replace(REPORTED[0], events=8), REPORTED[1]]
    assert checked(reported=reported).findings == [
        "a load.calls: 7 allowed calls, 8 events in the report"
    ]
    reported = [REPORTED[0], msgspec.structs.replace(REPORTED[1], denied_events=1)]
    assert checked(reported=reported).findings == ["b load.calls: 2 denied calls, 1 in the report"]


def test_a_denial_that_was_asked_again_may_be_recorded_twice_but_not_lost() -> None:
    more = [REPORTED[0], msgspec.structs.replace(REPORTED[1], denied_events=3)]
    assert checked(said=outcome(asked_again=1), reported=more).findings == []
    fewer = [REPORTED[0], msgspec.structs.replace(REPORTED[1], denied_events=1)]
    assert len(checked(said=outcome(asked_again=1), reported=fewer).findings) == 1


def test_use_past_a_hard_limit_is_a_finding_even_where_all_agree() -> None:
    counted = [COUNTED[0], msgspec.structs.replace(COUNTED[1], most=2)]
    found = checked(counted=counted)
    assert (found.findings, found.overuse) == (["b: used 3 of a hard limit 2"], 1)


def test_what_nobody_was_told_of_is_a_finding() -> None:
    found = checked(
        counted=[*COUNTED, Counted("c", "load.calls", 1, 0, None)],
        reported=[*REPORTED, Reported("c", "load.calls", 1, 1)],
    )
    assert found.findings == [
        "c load.calls: clients were told 0, the counter has 1, the report 1",
        "c load.calls: 0 allowed calls, 1 events in the report",
    ]
    assert checked(counted=COUNTED[:1]).findings == ["b load.calls: has no counter"]


def test_what_is_still_held_or_in_doubt_is_a_finding() -> None:
    counted = [msgspec.structs.replace(COUNTED[0], held=2), COUNTED[1]]
    assert checked(counted=counted).findings == ["a load.calls: 2 still held"]
    assert checked(said=outcome(in_doubt=4)).findings == [
        "4 calls got no answer, also when asked again"
    ]


def test_findings_of_the_audit_are_findings() -> None:
    gap = report_pb2.SequenceGap(bucket=1, generation=1, first=4, last=6)
    assert checked(audit=audit(gaps=[gap])).findings == [
        "audit: gap in bucket 1, generation 1: records 4 to 5 are missing"
    ]
    assert len(checked(audit=audit(rollup_difference=3)).findings) == 1


def seats_checked(held_ms: int, peak: int = 2) -> Agreement:
    """Three leases in two seats, surely held 5 s, perhaps 5.5."""
    told = [Seats("d", "load.seats", granted=3, surely_ms=5000, perhaps_ms=5500)]
    return checked(
        said=outcome(seats=told),
        counted=[*COUNTED, Counted("d", "load.seats", used=0, held=0, most=2)],
        seats=[SeatsReported("d", "load.seats", peak, held_ms)],
    )


def test_seat_time_in_the_report_lies_between_what_clients_know() -> None:
    for held_ms in (4997, 5200, 5503):
        assert seats_checked(held_ms).findings == []
    for held_ms in (4996, 5504, 0):
        assert seats_checked(held_ms).findings == [
            f"d load.seats: 3 leases were held for 5000 to 5500 ms, the report has {held_ms}"
        ]
    sums = seats_checked(5200).seats
    assert sums is not None
    assert (sums.granted, sums.reported_ms, sums.highest_peak) == (3, 5200, 2)


def test_more_seats_at_once_than_there_are_is_a_finding() -> None:
    assert seats_checked(5200, peak=3).findings == ["d load.seats: 3 seats held at once of 2"]


def test_many_findings_are_counted_and_some_are_told() -> None:
    counted = [Counted(f"c{place}", "load.calls", 1, 0, None) for place in range(200)]
    found = checked(said=outcome(told=[]), counted=counted, reported=[])
    assert len(found.findings) == 50
    assert found.findings_in_all == 200
