"""Void, amend and backfill on real stores: live balance, windows of every width, audit trail and audit agree."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.errors import InvalidRequestError, MetergateError, NotFoundError, NotPossibleError
from enforcer.gateway.carrying import Carrier
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.windows import Window
from meter.v1 import usage_pb2
from tests.fixtures.service_desk import DAY, TENANT, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.service_desk import Desk

CATALOG = """
version: 1
features: [{key: calls}, {key: peak, meter: max}, {key: words}, {key: rolling}, {key: paid}, {key: seats}, {key: tree}]
accounts:
  - key: acme
    entitlements:
      - {feature: calls, key: plan, model: quota, limit: 10, per: month, hard: false}
      - {feature: words, key: pool, model: credits, overdraft: 5,
         grants: [{key: first, amount: 5}, {key: second, amount: 5, priority: 1}]}
      - {feature: rolling, key: week, model: quota, limit: 100, per: week, rolling: true}
      - {feature: paid, key: paid, model: payg, per: total, price: {amount: "0.3", currency: EUR}, spend_cap: "30"}
      - {feature: peak, key: peak, model: quota, limit: 100, per: month}
      - {feature: seats, model: concurrent, seats: 2, ttl: 10s}
    nodes:
      - key: acme-lab
        entitlements:
          - {feature: tree, key: own, model: quota, limit: 100, per: month}
  - key: globex
    entitlements: [{feature: calls, key: plan, model: quota, limit: 10, per: month}]
"""


@pytest.fixture
async def sold(desk: Desk) -> Desk:
    await desk.apply(CATALOG)
    return desk


async def fault(call: object) -> str:
    """The reason that a call fails with."""
    with pytest.raises(MetergateError) as caught:
        await call  # type: ignore[misc]
    return caught.value.reason


async def test_a_voided_record_counts_nowhere(sold: Desk) -> None:
    await sold.use("calls", 3)
    record = await sold.use("calls", 9)
    assert await sold.balance("calls") == {"plan": 12}
    done = await sold.void(record)
    assert (done.correction.previous_quantity, done.correction.quantity) == (9, 0)
    assert await sold.balance("calls") == {"plan": 3}
    assert await sold.total("calls") == 3
    (row,) = (await sold.windows(Window.WHOLE, "calls")).values()
    assert row == (3, 1, 0)
    await sold.audit()
    assert await fault(sold.void(record)) == "RECORD_VOIDED"


async def test_the_newest_version_of_a_record_wins(sold: Desk) -> None:
    record = await sold.use("calls", 4)
    for quantity in (20, 3, 3, 0, 12):
        done = await sold.amend(record, quantity)
        assert done.correction.quantity == quantity
        assert sum((await sold.balance("calls")).values()) == quantity
        assert await sold.total("calls") == quantity
    await sold.void(record)
    assert sum((await sold.balance("calls")).values()) == 0
    await sold.amend(record, 5)  # a void record counts again
    assert await sold.total("calls") == 5
    (row,) = (await sold.windows(Window.WHOLE, "calls")).values()
    assert row == (5, 1, 0)
    await sold.void(record)
    assert await sold.windows(Window.WHOLE, "calls") == {}
    await sold.audit()
    request = usage_pb2.ListCorrectionsRequest(record=record)
    trail = (await sold.correcting.page(sold.admin, request)).corrections
    assert [one.version for one in trail] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert {(one.actor, one.state) for one in trail} == {
        ("ann", usage_pb2.CORRECTION_STATE_APPLIED)
    }
    assert trail[0].reason == "a mistake"
    assert trail[0].at.ToMilliseconds() == sold.now


async def test_the_very_grants_are_given_back(sold: Desk) -> None:
    await sold.use("words", 4)
    record = await sold.use("words", 8)  # 1 of the first grant, 5 of the second, 2 overdrawn
    assert await sold.balance("words") == {"pool/first": 5, "pool/second": 5, "pool": 2}
    await sold.amend(record, 3)
    assert await sold.balance("words") == {"pool/first": 5, "pool/second": 2, "pool": 0}
    await sold.void(record)
    assert await sold.balance("words") == {"pool/first": 4, "pool/second": 0, "pool": 0}
    await sold.audit()


async def test_money_and_rolling_windows_are_given_back(sold: Desk) -> None:
    paid, rolled = await sold.use("paid", 60), await sold.use("rolling", 60)
    before = await sold.gateway.get_balance(
        TENANT, pb.GetBalanceRequest(customer="acme", feature="paid")
    )
    assert before.limits[0].remaining == 40
    await sold.void(paid)
    await sold.void(rolled)
    after = await sold.gateway.get_balance(
        TENANT, pb.GetBalanceRequest(customer="acme", feature="paid")
    )
    assert after.limits[0].remaining == 100
    assert await sold.balance("rolling") == {"week": 0}
    again = await sold.use("rolling", 7)
    sold.forward(8 * DAY)
    await sold.void(again)  # it has left the window by itself
    assert await sold.balance("rolling") == {"week": 0}
    assert await sold.total("rolling") == 0
    await sold.audit()


async def test_a_period_that_is_over_is_corrected_in_reports_and_not_in_the_live_counter(
    sold: Desk,
) -> None:
    record = await sold.use("calls", 7)
    sold.forward(40 * DAY)
    await sold.use("calls", 2)
    await sold.void(record)
    assert (await sold.balance("calls"))["plan"] == 2
    assert await sold.total("calls") == 2
    months = await sold.windows(Window.MONTH, "calls")
    assert [row[:2] for row in months.values()] == [(2, 1)]
    await sold.audit()


async def test_what_a_reservation_committed_can_be_corrected(sold: Desk) -> None:
    reserved = await sold.gateway.reservations.reserve(
        TENANT, pb.ReserveRequest(customer="acme", feature="words", quantity=7)
    )
    done = await sold.gateway.reservations.commit(
        TENANT, pb.CommitRequest(reservation=reserved.reservation, quantity=6)
    )
    assert (await sold.balance("words"))["pool/second"] == 1
    await sold.amend(place(done.record), 2)
    assert await sold.balance("words") == {"pool/first": 2, "pool/second": 0, "pool": 0}
    assert await sold.total("words") == 2
    hold = reserved.check.record
    assert await fault(sold.void(place(hold))) == "NOT_CORRECTABLE"
    await sold.audit()


async def test_a_backfill_counts_at_its_own_time(sold: Desk) -> None:
    await sold.use("calls", 2)
    recent, old = sold.event("calls", 9, 25 * 3_600_000), sold.event("calls", 5, 70 * DAY)
    outcomes = await sold.backfill(recent, old, sold.event("words", 3, 70 * DAY))
    assert [one.accepted for one in outcomes] == [True] * 3
    assert await sold.total("calls") == 16
    assert await sold.total("words") == 3
    assert await sold.balance("words") == {"pool/first": 3, "pool/second": 0, "pool": 0}
    windows = await sold.windows(Window.QUARTER_HOUR, "calls")
    for event in (recent, old):
        start = event.occurred_at.seconds // 900 * 900
        assert windows[start] == (event.quantity, 1, 0)
    await sold.audit()
    again = await sold.backfill(old, recent)
    assert [one.replayed for one in again] == [True, True]
    assert [place(one) for one in again] == [place(outcomes[1]), place(outcomes[0])]
    await sold.void(place(outcomes[1]))
    assert await sold.total("calls") == 11
    await sold.audit()


async def test_a_backfill_of_the_open_period_draws_from_the_live_counter(sold: Desk) -> None:
    """Also when nothing was counted in that period before."""
    for step in range(2):
        (outcome,) = await sold.backfill(sold.event("tree", 6, DAY + 1000, customer="acme-lab"))
        assert outcome.accepted
        shown = await sold.balance("tree", "acme-lab")
        month = [one for state in await sold.counters() for one in state.counters]
        assert sum(one.used for one in month) == shown["own"] or step == 0
    assert await sold.total("tree", "acme-lab") == 12
    await sold.audit()


async def test_a_key_that_a_report_has_used_is_found(sold: Desk) -> None:
    event = sold.event("calls", 5, DAY - 60_000)
    reported = await sold.gateway.report(TENANT, usage_pb2.ReportRequest(events=[event]))
    assert reported.outcomes[0].accepted
    sold.forward(120_000)
    (outcome,) = await sold.backfill(event)
    assert (outcome.accepted, outcome.replayed) == (True, True)
    assert place(outcome) == place(reported.outcomes[0])
    event.quantity = 6
    (outcome,) = await sold.backfill(event)
    assert outcome.reason == "IDEMPOTENCY_MISMATCH"
    assert await sold.total("calls") == 5
    await sold.audit()


async def test_bad_events_say_what_is_wrong_and_stop_nobody(sold: Desk) -> None:
    late, young = sold.event("calls", 1, 2 * DAY), sold.event("calls", 1, 3_600_000)
    unknown = sold.event("calls", 1, 2 * DAY, customer="nobody")
    outcomes = await sold.backfill(
        young, unknown, late, late, sold.event("seats", 1, 2 * DAY), sold.event("nope", 1, 2 * DAY)
    )
    reasons = [one.reason for one in outcomes]
    assert reasons == [
        "BAD_TIME",
        "UNKNOWN_CUSTOMER",
        "",
        "",
        "MODE_NOT_SUPPORTED",
        "UNKNOWN_FEATURE",
    ]
    assert (outcomes[2].replayed, outcomes[3].replayed) == (False, True)
    assert await sold.total("calls") == 1


async def test_a_retry_gets_its_first_answer_for_ever(sold: Desk) -> None:
    record = await sold.use("calls", 5)
    first = await sold.amend(record, 2, key="same")
    sold.forward(300 * DAY)
    again = await sold.amend(record, 2, key="same")
    assert again.replayed
    assert again.correction == first.correction
    with pytest.raises(InvalidRequestError) as caught:
        await sold.amend(record, 3, key="same")
    assert caught.value.reason == "IDEMPOTENCY_MISMATCH"
    with pytest.raises(InvalidRequestError):
        await sold.void(record, key="same")


async def test_records_of_others_do_not_exist(sold: Desk) -> None:
    record = await sold.use("calls", 5)
    assert await fault(sold.void(record, caller=sold.stranger)) == "RECORD_NOT_FOUND"
    await sold.void(record)
    assert await fault(sold.void(record, caller=sold.stranger)) == "RECORD_NOT_FOUND"
    empty = await sold.correcting.page(sold.stranger, usage_pb2.ListCorrectionsRequest())
    assert not empty.corrections
    beyond = usage_pb2.RecordPlace(bucket=0, generation=1, sequence=1000)
    with pytest.raises(NotFoundError):
        await sold.void(beyond)
    with pytest.raises(InvalidRequestError):
        await sold.void(usage_pb2.RecordPlace(bucket=99, generation=1))


async def test_what_raw_has_dropped_is_corrected_only_where_all_of_it_is_known(sold: Desk) -> None:
    calls, known, peak, known_peak = [
        await sold.use(feature, 5) for feature in ("calls", "calls", "peak", "peak")
    ]
    await sold.amend(known, 4)
    await sold.amend(known_peak, 4)
    await sold.drop_raw()
    # What a record has drawn is known of what was corrected before; a greatest value needs its neighbours, too.
    for record in (calls, peak, known_peak):
        with pytest.raises(MetergateError, match="METERGATE_METER_RAW_DAYS") as refused:
            await sold.amend(record, 2)
        assert (refused.value.reason, refused.value.code.name) == (
            "RAW_EXPIRED",
            "FAILED_PRECONDITION",
        )
        assert await fault(sold.void(record)) == "RAW_EXPIRED"
    assert await sold.balance("calls") == {"plan": 9}
    await sold.void(known)
    assert await sold.balance("calls") == {"plan": 5}
    assert await sold.total("calls") == 5
    assert await sold.balance("peak") == {"peak": 9}
    await sold.audit()
    never = usage_pb2.RecordPlace(bucket=calls.bucket, generation=calls.generation + 1)
    assert await fault(sold.void(never)) == "RECORD_NOT_FOUND"
    # This record is there, its window's others are not.
    (late,) = await sold.backfill(sold.event("peak", 7, 6 * DAY))
    lies = usage_pb2.RecordPlace(
        bucket=late.bucket, generation=late.generation, sequence=late.sequence
    )
    assert await fault(sold.amend(lies, 2)) == "RAW_EXPIRED"


async def test_of_many_that_void_at_the_same_time_one_does(sold: Desk) -> None:
    await sold.use("calls", 3)
    record = await sold.use("calls", 5)
    results = await asyncio.gather(*(sold.void(record) for _ in range(6)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, NotPossibleError)]
    assert len(refused) == 5
    assert sum((await sold.balance("calls")).values()) == 3
    assert await sold.total("calls") == 3
    await sold.audit()


class _DiedError(Exception):
    """A process ended here."""


def dies_at(step: str, passing: int = 1) -> Callable[[str], None]:
    """Steps of a process that ends at one of them."""
    left = [passing]

    def pass_by(name: str) -> None:
        if name == step:
            left[0] -= 1
            if not left[0]:
                raise _DiedError

    return pass_by


@pytest.mark.parametrize("step", ["correct", "corrected"])
async def test_a_process_that_dies_between_two_steps_costs_nothing(sold: Desk, step: str) -> None:
    """What was listed is carried out by the next attempt, or by anybody's background; never twice."""
    record, other = await sold.use("calls", 5), await sold.use("calls", 7)
    await sold.use("calls", 1)
    late = sold.event("calls", 3, 30 * DAY)
    steps = dies_at(step, 2 if step == "correct" else 1)  # first it asks if the generation is new
    sold.serve(steps)
    with pytest.raises(_DiedError):
        await sold.void(record, key="void")
    sold.serve(dies_at(step))
    with pytest.raises(_DiedError):
        await sold.backfill(late)
    sold.serve()
    assert (await sold.void(record, key="void")).replayed
    sold.serve(dies_at(step))
    with pytest.raises(_DiedError):
        await sold.amend(other, 2, key="amend")
    sold.serve()
    await sold.carrier.finish_all()
    assert await sold.carrier.finish_all() == 0
    assert (await sold.amend(other, 2, key="amend")).correction.quantity == 2
    (outcome,) = await sold.backfill(late)
    assert (outcome.accepted, outcome.replayed) == (True, True)
    assert sum((await sold.balance("calls")).values()) in (3, 6)  # the month may be the same
    assert await sold.total("calls") == 6
    await sold.audit()


async def test_a_process_that_was_paused_repeats_nothing(sold: Desk) -> None:
    """It found a correction in the list, stood still while others carried it out, and goes on."""
    record = await sold.use("calls", 5)
    await sold.void(await sold.use("calls", 1))
    before = len(await sold.records())
    late, quick = asyncio.Event(), sold.carrier
    waiting = sold.store.correct

    async def correct(*arguments: Any, **named: Any) -> Any:
        late.set()
        await resumed.wait()
        return await waiting(*arguments, **named)

    resumed = asyncio.Event()
    sold.serve()
    slow = _Slow(sold.store, correct)
    paused = Carrier(sold.list, slow, sold.programs, sold.carrier_records)
    sold.serve(dies_at("correct"))
    with pytest.raises(_DiedError):
        await sold.void(record, key="k")
    task = asyncio.create_task(paused.finish(record.bucket))
    await late.wait()
    await quick.finish(record.bucket)
    resumed.set()
    await task
    assert len(await sold.records()) == before + 1
    assert await sold.total("calls") == 0
    await sold.audit()


class _Slow:
    """A store whose corrections take another way."""

    def __init__(self, store: Any, correct: Any) -> None:
        self._store, self.correct = store, correct

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def test_a_bucket_that_has_forgotten_asks_the_records(sold: Desk) -> None:
    """A new generation, whose counters may be older than the records: what was carried out is found there."""
    await sold.use("calls", 1)
    record = await sold.use("calls", 5)
    await sold.void(await sold.use("calls", 9))
    sold.serve(dies_at("corrected"))
    with pytest.raises(_DiedError):
        await sold.void(record, key="k")
    sold.forget_corrections()
    sold.serve()
    done = await sold.void(record, key="k")
    assert done.replayed
    assert await sold.total("calls") == 1
    assert sum((await sold.balance("calls")).values()) == 1
    await sold.audit()


@pytest.mark.parametrize(
    "stage",
    ["claim", "usage", "ledger", "recompute", "applied"],
)
async def test_a_rollup_that_dies_with_corrections_in_hand_repeats_and_loses_nothing(
    sold: Desk, stage: str
) -> None:
    record = await sold.use("calls", 5)
    kept = await sold.use("calls", 2)
    await sold.backfill(sold.event("calls", 4, 40 * DAY))
    await sold.void(record)
    await sold.amend(kept, 3)
    rollup = sold.meter.rollup(dies_at(stage))
    with pytest.raises(_DiedError):
        await sold.meter.drain(rollup)
    assert await sold.total("calls") == 7
    (row,) = (await sold.windows(Window.WHOLE, "calls")).values()
    assert row == (7, 2, 0)
    await sold.audit()


async def test_a_sealed_month_never_changes(sold: Desk) -> None:
    """What is corrected later is an adjustment in the present, also by the rule of days; others are not touched."""
    old = sold.event("calls", 6, 70 * DAY)
    other = sold.event("calls", 2, 70 * DAY, customer="globex")
    first, second = (place(one) for one in await sold.backfill(old, other))
    month = f"{datetime.fromtimestamp(old.occurred_at.seconds, UTC):%Y-%m}"
    request = usage_pb2.SealPeriodRequest(month=month, account="acme")
    assert (await sold.correcting.seal(sold.admin, request)).sealed
    assert not (await sold.correcting.seal(sold.admin, request)).sealed
    before = await sold.windows(Window.QUARTER_HOUR, "calls")
    assert (await sold.amend(first, 4)).correction.adjustment
    assert (await sold.void(first)).correction.adjustment
    (late,) = await sold.backfill(sold.event("calls", 9, 70 * DAY))
    assert late.accepted
    assert not (await sold.void(second)).correction.adjustment
    after = await sold.windows(Window.QUARTER_HOUR, "calls")
    assert {start: row for start, row in after.items() if start in before} == before
    (row,) = [row for start, row in after.items() if start not in before]
    assert row == (0, 0, -6 + 9)
    assert await sold.windows(Window.WHOLE, "calls", "globex") == {}
    open_month = f"{datetime.fromtimestamp(sold.now / 1000, UTC):%Y-%m}"
    assert (
        await fault(sold.correcting.seal(sold.admin, usage_pb2.SealPeriodRequest(month=open_month)))
        == "PERIOD_OPEN"
    )
    bad = usage_pb2.SealPeriodRequest(month="last")
    assert await fault(sold.correcting.seal(sold.admin, bad)) == "BAD_MONTH"
    sold.serve(seal_days=2)
    (ruled,) = await sold.backfill(sold.event("calls", 1, 70 * DAY, customer="globex"))
    assert ruled.accepted
    rows = await sold.windows(Window.WHOLE, "calls", "globex")
    assert list(rows.values()) == [(0, 0, 1)]
    await sold.audit()


async def test_what_is_too_old_waits_for_a_person(sold: Desk) -> None:
    sold.serve(backfill_days=30)
    wait, throw = sold.event("calls", 3, 40 * DAY), sold.event("calls", 5, 40 * DAY)
    outcomes = await sold.backfill(wait, throw, wait)
    assert [one.in_review for one in outcomes] == [True] * 3
    assert await sold.windows(Window.WHOLE, "calls") == {}
    listed = await sold.backfilling.review(sold.admin, usage_pb2.ListReviewRequest())
    assert [item.event for item in listed.items] == [wait, throw]
    assert not (await sold.backfilling.review(sold.stranger, usage_pb2.ListReviewRequest())).items
    ids = [item.id for item in listed.items]

    def resolve(number: int, *, accept: bool) -> Any:
        request = usage_pb2.ResolveReviewRequest(id=number, accept=accept, reason="we talked")
        return sold.backfilling.resolve(sold.admin, request)

    assert (await resolve(ids[0], accept=True)).outcome.accepted
    await resolve(ids[1], accept=False)
    for number in ids:
        assert await fault(resolve(number, accept=True)) == "REVIEW_NOT_FOUND"
    assert await sold.total("calls") == 3
    again = await sold.backfill(wait, throw)
    assert (again[0].accepted, again[0].replayed) == (True, True)
    assert (again[1].accepted, again[1].reason) == (False, "REVIEW_DISCARDED")
    await sold.audit()
