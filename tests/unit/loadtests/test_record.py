"""What a sender keeps, and how it settles what is open when the load is over."""

from __future__ import annotations

import time

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.latencies import Latencies, merged
from loadtests.record import AT_ONCE, Record
from loadtests.sessions import Call, Pause

ALLOWED = pb.CheckResponse(allowed=True, granted=1)


def check(number: int) -> Call:
    return Call("Check", pb.CheckRequest(customer="a", feature="f", idempotency_key=str(number)))


def started() -> Record:
    record = Record(1.0)
    record.begin = time.monotonic()
    return record


def test_figures_are_of_the_load_and_sums_of_all_answers() -> None:
    record = started()
    record.answered(check(1), ALLOWED, record.begin, record.begin)
    record.failed(check(2), "UNAVAILABLE")
    settling = record.settling()
    assert next(settling) == [check(2)]
    record.answered(check(2), ALLOWED, record.begin, record.begin)
    assert list(settling) == []
    outcome = record.outcome(Latencies(1), 0)
    assert (outcome.told[0].allowed, outcome.asked_again, outcome.in_doubt) == (2, 1, 0)
    assert merged([outcome.latency]).get_total_count() == 1
    assert outcome.intervals[0].answered == 1
    assert outcome.intervals[0].errors == 1
    assert outcome.codes == {"UNAVAILABLE": 1}


def test_what_fails_again_is_asked_again_after_a_pause() -> None:
    record = started()
    record.failed(check(1), "DEADLINE_EXCEEDED")
    settling = record.settling()
    assert next(settling) == [check(1)]
    record.failed(check(1), "DEADLINE_EXCEEDED")
    assert isinstance(next(settling), Pause)
    assert next(settling) == [check(1)]
    assert record.outcome(Latencies(1), 0).codes == {"DEADLINE_EXCEEDED": 1}


def test_many_are_asked_again_in_parts() -> None:
    record = started()
    for number in range(AT_ONCE + 1):
        record.failed(check(number), "UNAVAILABLE")
    settling = record.settling()
    assert [len(some) for some in (next(settling), next(settling)) if isinstance(some, list)] == [
        AT_ONCE,
        1,
    ]


def test_seats_that_are_still_held_are_given_back_and_are_in_doubt_until_then() -> None:
    record = started()
    acquire = Call("AcquireLease", pb.AcquireLeaseRequest(customer="a", feature="s"))
    lease = pb.Lease(token="t1")
    allowed = pb.AcquireLeaseResponse(check=pb.CheckResponse(allowed=True), lease=lease)
    record.answered(acquire, allowed, record.begin, record.begin)
    settling = record.settling()
    assert next(settling) == [Call("ReleaseLease", pb.ReleaseLeaseRequest(token="t1"))]
    assert record.outcome(Latencies(1), 0).in_doubt == 1
    released = pb.ReleaseLeaseResponse(released=True)
    record.answered(record.told.still_held()[0], released, record.begin, record.begin)
    assert list(settling) == []
    assert record.outcome(Latencies(1), 0).in_doubt == 0
