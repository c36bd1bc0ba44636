"""Scenarios: catalogs that the gateway takes, and sessions that follow from numbers alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.catalog.parse import parse
from enforcer.cli.exits import CommandError
from enforcer.v1 import enforcer_pb2 as pb
from loadtests.arrivals import Spacing
from loadtests.scenarios import SCENARIOS, Options, make
from loadtests.sessions import ANSWERS, Call, Pause
from loadtests.traces import made, paced, rows_of
from tests.fixtures.stack import write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.sessions import Session

OPTIONS = Options("r1", rate=20, seconds=10, customers=40, batch=7, hold=3)


def calls(name: str, number: int, answers: dict[str, Any] | None = None) -> list[Call | Pause]:
    """The whole session, answered so."""
    steps, found = make(name, OPTIONS).session(number), []
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            found.append(step)
            answer = (answers or {}).get(step.method, 0) if isinstance(step, Call) else None
    except StopIteration:
        return found


def first(session: Session) -> Call:
    step = next(session)
    assert isinstance(step, Call)
    return step


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_catalog_is_valid_and_has_all_whose_sums_are_compared(name: str) -> None:
    scenario = make(name, OPTIONS)
    catalog = parse(scenario.catalog(), file_name="load.yaml")
    assert {account.key for account in catalog.accounts} == set(scenario.names())
    assert {customer for customer, _ in scenario.pairs()} == set(scenario.names())
    assert {feature for _, feature in scenario.pairs()} == {one.key for one in catalog.features}


@pytest.mark.parametrize("name", SCENARIOS)
def test_arrivals_stay_within_the_plan_and_have_its_rate(name: str) -> None:
    scenario = make(name, OPTIONS)
    moments = list(scenario.moments())
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= scenario.seconds == pytest.approx(10)
    expected = 20 * 10 * (9 / 5 if name == "spike" else 1)
    assert abs(len(moments) - expected) < 5 * expected**0.5
    assert moments == list(make(name, OPTIONS).moments())


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_two_calls_of_a_run_have_the_same_key_and_other_runs_have_others(name: str) -> None:
    keys = []
    for run in ("r1", "r2"):
        scenario = make(name, Options(run, rate=20, seconds=10, customers=40))
        for number in range(50):
            request = first(scenario.session(number)).request
            keys += [one.idempotency_key for one in getattr(request, "items", [request])]
    assert "" not in keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["steady", "spike"])
def test_customers_are_asked_for_alike(name: str) -> None:
    scenario = make(name, OPTIONS)
    seen = Counter(first(scenario.session(number)).request.customer for number in range(8000))
    assert len(seen) == 40
    assert max(seen.values()) < 1.1 * min(seen.values())


def test_the_hot_key_has_nine_of_ten() -> None:
    hotkey = make("hotkey", OPTIONS)
    seen = Counter(first(hotkey.session(number)).request.customer for number in range(1000))
    assert 900 <= seen[hotkey.name(0)] < 910
    assert len(seen) > 30


def test_one_customer_in_twenty_runs_into_its_quota_half_way() -> None:
    scenario = make("steady", OPTIONS)
    limits = Counter(scenario.limit(place) for place in range(40))
    assert limits == {1_000_000_000: 38, 2: 2}  # 200 checks, 5 of each customer


def test_a_batch_has_as_many_checks_as_it_was_asked_to() -> None:
    (call,) = calls("batch", 3)
    assert isinstance(call, Call)
    assert (call.method, len(call.request.items), call.request.atomic) == ("CheckBatch", 7, False)


def test_a_seat_is_taken_renewed_half_way_and_given_back() -> None:
    lease = pb.Lease(token="t")
    answer = pb.AcquireLeaseResponse(check=pb.CheckResponse(allowed=True), lease=lease)
    steps = calls("seats", 5, {"AcquireLease": answer})
    assert [getattr(one, "method", one) for one in steps] == [
        "AcquireLease",
        Pause(1.5),
        "RenewLease",
        Pause(1.5),
        "ReleaseLease",
    ]
    assert len(calls("seats", 5, {"AcquireLease": pb.AcquireLeaseResponse()})) == 1
    assert {one.method for one in steps if isinstance(one, Call)} <= ANSWERS.keys()


def test_a_made_trace_is_the_same_each_time_and_comes_in_bunches() -> None:
    rows = [row for _, row in paced(made(3), 10, 100)]
    assert rows == [row for _, row in paced(made(3), 10, 100)]
    assert rows != [row for _, row in paced(made(4), 10, 100)]
    each_second = Counter(int(at) for at, _ in paced(made(3), 10, 100))
    counts = [each_second[second] for second in range(100)]
    mean = sum(counts) / 100
    # A Poisson process would have a variance of its mean.
    assert sum((one - mean) ** 2 for one in counts) / 100 > 3 * mean


def test_a_trace_from_a_file_keeps_its_shape_at_another_rate(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.csv", rows=100, seed=2, seconds=1000)
    found = list(paced(rows_of(path, 1), 5, 4))
    assert len(found) == 20
    assert found[0][0] == 0
    assert found[-1][0] == pytest.approx(4)
    assert found[10][0] == pytest.approx(4 * 10 / 19, rel=0.01)
    assert set(found[0][1].quantities) <= {
        f"load.{one}" for one in ("requests", "input_tokens", "output_tokens")
    }
    assert len(list(paced(rows_of(path, 1), 5, 400))) == 100


def test_a_trace_that_is_none_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(CommandError, match="has no rows"):
        list(rows_of(empty, 1))
    with pytest.raises(CommandError, match="a trace may have 1,000,000"):
        list(paced(made(1), 1000, 2000))


def test_even_spacing_is_heeded() -> None:
    options = Options("r1", rate=2, seconds=2, spacing=Spacing.EVEN)
    assert list(make("hotkey", options).moments()) == [0, 0.5, 1, 1.5]
