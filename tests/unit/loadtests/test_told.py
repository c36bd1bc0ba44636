"""What clients were told, added up from the answers alone."""

from __future__ import annotations

import pytest

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.sessions import Call
from loadtests.told import Seats, Told, Usage, added, seats_added


def check(quantity: int = 1, *, customer: str = "a") -> Call:
    return Call("Check", pb.CheckRequest(customer=customer, feature="f", quantity=quantity))


def test_what_was_granted_counts_not_what_was_asked_for() -> None:
    told = Told()
    answer = pb.CheckResponse(allowed=True, granted=2)
    assert told.answered(check(5), answer, 0, 1) == (1, 0)
    assert told.answered(check(3), pb.CheckResponse(), 0, 1) == (0, 1)
    assert list(told.usage.values()) == [
        Usage("a", "f", allowed=2, allowed_events=1, denied=3, denied_events=1)
    ]


def test_items_of_a_batch_are_told_one_by_one_and_faults_among_them_are_in_doubt() -> None:
    told = Told()
    items = [check(1).request, check(2, customer="b").request, check(4).request]
    call = Call("CheckBatch", pb.CheckBatchRequest(items=items))
    answer = pb.CheckBatchResponse(
        items=[
            pb.CheckBatchItem(response=pb.CheckResponse(allowed=True, granted=1)),
            pb.CheckBatchItem(response=pb.CheckResponse()),
            pb.CheckBatchItem(fault=pb.CheckFault(code=14)),
        ]
    )
    assert told.answered(call, answer, 0, 1) == (1, 1)
    assert told.usage["a", "f"].allowed == 1
    assert told.usage["b", "f"].denied == 2
    assert told.codes == {"UNAVAILABLE": 1}
    assert [one.request for one in told.doubtful] == [items[2]]


@pytest.mark.parametrize(
    ("code", "doubtful"),
    [
        ("DEADLINE_EXCEEDED", 1),
        ("UNAVAILABLE", 1),
        ("INVALID_ARGUMENT", 0),
        ("RESOURCE_EXHAUSTED", 0),
    ],
)
def test_a_call_is_in_doubt_when_it_may_have_run(code: str, doubtful: int) -> None:
    told = Told()
    told.failed(check(), code)
    assert len(told.doubtful) == doubtful
    assert told.codes == {code: 1}


def test_a_seat_was_held_at_least_between_the_calls_and_at_most_around_them() -> None:
    told = Told()
    acquire = Call("AcquireLease", pb.AcquireLeaseRequest(customer="a", feature="s"))
    lease = pb.Lease(token="t1")
    allowed = pb.AcquireLeaseResponse(check=pb.CheckResponse(allowed=True), lease=lease)
    assert told.answered(acquire, allowed, 1.0, 1.5) == (1, 0)
    assert told.answered(acquire, pb.AcquireLeaseResponse(), 1.0, 1.5) == (0, 1)
    release = Call("ReleaseLease", pb.ReleaseLeaseRequest(token="t1"))
    assert told.still_held() == [release]
    told.answered(release, pb.ReleaseLeaseResponse(released=True), 3.5, 3.75)
    assert told.still_held() == []
    seats = told.seats["a", "s"]
    assert (seats.granted, seats.surely_ms) == (1, 2000)
    assert 2750 <= seats.perhaps_ms <= 2752
    assert told.usage["a", "s"].denied_events == 1


def test_a_seat_that_had_ended_by_itself_was_surely_held_for_no_time() -> None:
    told = Told()
    acquire = Call("AcquireLease", pb.AcquireLeaseRequest(customer="a", feature="s"))
    lease = pb.Lease(token="t1")
    allowed = pb.AcquireLeaseResponse(check=pb.CheckResponse(allowed=True), lease=lease)
    told.answered(acquire, allowed, 1.0, 1.5)
    told.answered(told.still_held()[0], pb.ReleaseLeaseResponse(released=False), 99.0, 99.5)
    assert told.seats["a", "s"].surely_ms == 0
    assert told.still_held() == []


def test_a_renewal_or_a_return_is_never_in_doubt() -> None:
    told = Told()
    told.failed(Call("RenewLease", pb.RenewLeaseRequest(token="t1")), "UNAVAILABLE")
    told.failed(Call("ReleaseLease", pb.ReleaseLeaseRequest(token="t1")), "UNAVAILABLE")
    assert told.doubtful == []
    assert told.codes == {"UNAVAILABLE": 2}


def test_several_processes_add_up_by_customer() -> None:
    one, two = Usage("a", "f", 1, 2, 3, 4), Usage("b", "f", 10, 10)
    assert added([[two, one], [Usage("a", "f", 5, 6, 7, 8)]]) == [
        Usage("a", "f", 6, 8, 10, 12),
        two,
    ]
    assert (one.allowed, two.allowed) == (1, 10)
    assert seats_added([[Seats("a", "s", 1, 2, 3)], [Seats("a", "s", 1, 2, 3)]]) == [
        Seats("a", "s", 2, 4, 6)
    ]
