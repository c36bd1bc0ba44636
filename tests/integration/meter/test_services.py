"""QueryUsage and Compare over gRPC, as the enforcer calls them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.transport.calls import INTERNAL, Caller
from meter.transport.ledger_service import LedgerService
from meter.transport.report_service import ReportService
from meter.transport.server import Server
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc
from tests.fixtures.meter_process import TOKEN, metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures.meter import Stand


class Services:
    """The two services on a channel, and the stand behind them."""

    def __init__(self, stand: Stand, channel: grpc.aio.Channel) -> None:
        self.stand = stand
        self.reports = report_pb2_grpc.ReportServiceStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(channel)

    async def query(self, tenant: str = "t", **fields: Any) -> report_pb2.QueryUsageResponse:
        """Ask as `tenant`."""
        answer: report_pb2.QueryUsageResponse = await self.reports.QueryUsage(
            report_pb2.QueryUsageRequest(**fields), metadata=metadata(tenant)
        )
        return answer


@pytest.fixture
async def services(meter: Stand) -> AsyncIterator[Services]:
    """Services with an opened bucket."""
    await meter.outbox.open(0, 1)
    meter.rollup()
    caller = Caller(TOKEN)
    server = Server(
        "127.0.0.1:0",
        ReportService(meter.reports(), meter.series(), caller),
        LedgerService(
            meter.audit(wait=0.1),
            meter.recall(wait=0.1),
            meter.lookup(wait=0.1),
            meter.current or meter.rollup(),
            caller,
        ),
    )
    await server.start()
    await server.ready(serving=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Services(meter, channel)
    await server.stop(0)


def at(text: str) -> int:
    """Milliseconds of an ISO time."""
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def stamp(text: str) -> Timestamp:
    """The proto of an ISO time."""
    return Timestamp(seconds=at(text) // 1000)


async def use(services: Services, when: str, quantity: int, **who: Any) -> None:
    """Roll up one usage."""
    fields = {"t": "t", "a": "acme", "c": "acme", "f": "api.calls", "m": "api.calls"} | who
    await services.stand.outbox.use(0, quantity, body=Body(**fields), now=at(when))


def table(answer: report_pb2.QueryUsageResponse) -> list[tuple[str, str, int]]:
    """Start, customer and quantity of each row."""
    return [
        (
            datetime.fromtimestamp(row.start.seconds, UTC).strftime("%m-%dT%H:%M"),
            row.customer,
            row.quantity,
        )
        for row in answer.rows
    ]


async def test_windows_follow_the_zone_through_a_clock_change(services: Services) -> None:
    # Berlin's 2026-10-25 has 25 hours: from 22:00 UTC to 23:00 UTC.
    for when, quantity in [
        ("2026-10-24T21:59:00Z", 1),
        ("2026-10-24T22:00:00Z", 10),
        ("2026-10-25T22:59:59Z", 100),
        ("2026-10-25T23:00:00Z", 1000),
    ]:
        await use(services, when, quantity)
    await services.stand.drain(services.stand.current)
    fields: dict[str, Any] = {
        "start": stamp("2026-10-24T00:00:00Z"),
        "end": stamp("2026-10-27T00:00:00Z"),
    }
    days = await services.query(window=report_pb2.WINDOW_DAY, zone="Europe/Berlin", **fields)
    assert table(days) == [
        ("10-24T00:00", "acme", 1),
        ("10-24T22:00", "acme", 110),
        ("10-25T23:00", "acme", 1000),
    ]
    assert days.rows[1].end.seconds - days.rows[1].start.seconds == 25 * 3600
    assert days.total == 1111
    months = await services.query(window=report_pb2.WINDOW_MONTH, zone="Asia/Kathmandu", **fields)
    assert [row.quantity for row in months.rows] == [1111]
    hours = await services.query(window=report_pb2.WINDOW_HOUR, zone="Asia/Kathmandu", **fields)
    assert table(hours)[0] == ("10-24T21:15", "acme", 11)
    quarters = await services.query(window=report_pb2.WINDOW_QUARTER_HOUR, **fields)
    assert table(quarters)[2] == ("10-25T22:45", "acme", 100)
    whole = await services.query(**fields)
    assert table(whole) == [("10-24T00:00", "acme", 1111)]


async def test_the_events_own_time_decides_its_window(services: Services) -> None:
    await use(services, "2026-09-21T15:00:00Z", 5, at=at("2026-09-21T13:01:00Z"))
    await services.stand.drain(services.stand.current)
    answer = await services.query(
        window=report_pb2.WINDOW_QUARTER_HOUR, end=stamp("2026-09-22T00:00:00Z")
    )
    assert table(answer) == [("09-21T13:00", "acme", 5)]


async def test_tenants_never_see_each_other(services: Services) -> None:
    await use(services, "2026-09-21T10:00:00Z", 5)
    await use(services, "2026-09-21T10:00:00Z", 70, t="other")
    await services.stand.drain(services.stand.current)
    assert (await services.query("t")).total == 5
    assert (await services.query("other")).total == 70
    assert (await services.query("nobody")).total == 0
    mine = await services.query("t", page_size=1, group_by=["x"])
    assert [row.quantity for row in mine.rows] == [5]


async def test_group_by_and_filters_use_dimensions(services: Services) -> None:
    when = "2026-09-21T10:00:00Z"
    await use(services, when, 1, d={"region": "eu", "model": "a'b\\\"c"})
    await use(services, when, 10, d={"model": "a'b\\\"c", "region": "eu"})
    await use(services, when, 100, d={"region": "us"})
    await use(services, when, 1000)
    await services.stand.drain(services.stand.current)
    split = await services.query(group_by=["region", "model"])
    assert [(dict(row.dimensions), row.quantity, row.events) for row in split.rows] == [
        ({"region": "", "model": ""}, 1000, 1),
        ({"region": "eu", "model": "a'b\\\"c"}, 11, 2),
        ({"region": "us", "model": ""}, 100, 1),
    ]
    only = await services.query(
        filters=[
            report_pb2.Filter(dimension="region", values=["eu", "us"]),
            report_pb2.Filter(dimension="model", values=["a'b\\\"c", "') OR 1=1 --"]),
        ]
    )
    assert only.total == 11
    hostile = "x'); DROP TABLE usage; --"
    assert (await services.query(meter=hostile, customers=[hostile])).total == 0
    assert (await services.query(group_by=[hostile])).total == 1111


async def test_each_meter_of_a_report_adds_up_in_its_own_way(services: Services) -> None:
    when = "2026-09-21T10:00:00Z"
    for meter, quantity, user in [("gb", 7, ""), ("gb", 3, ""), ("mau", 1, "ann"), ("sum", 5, "")]:
        await use(services, when, quantity, m=meter, d={"user": user} if user else {})
    await use(services, when, 2, m="mau", d={"user": "ann"})
    body = encode_body(Body("t", "acme", "acme", "gb", "gb"))
    denied = Effects(RecordType.DENIAL, at("2026-09-21T12:00:00Z"), count=1, quantity=1)
    await services.stand.outbox.add(0, 1, body, encode_effects(denied))
    await services.stand.drain(services.stand.current)
    answer = await services.query(
        window=report_pb2.WINDOW_HOUR,
        end=stamp("2026-09-22T00:00:00Z"),
        aggregations=[
            WAY(meter="gb", aggregation=report_pb2.AGGREGATION_MIN),
            WAY(meter="mau", aggregation=report_pb2.AGGREGATION_UNIQUE, dimension="user"),
        ],
    )
    assert [
        (row.meter, row.value if row.HasField("value") else None, row.quantity, row.aggregation)
        for row in answer.rows
    ] == [
        ("gb", 3, 10, report_pb2.AGGREGATION_MIN),
        ("mau", 1, 3, report_pb2.AGGREGATION_UNIQUE),
        ("sum", 5, 5, report_pb2.AGGREGATION_SUM),
        ("gb", None, 0, report_pb2.AGGREGATION_MIN),
    ]
    assert answer.total == 18


async def test_commits_count_and_holds_and_seats_do_not(services: Services) -> None:
    outbox = services.stand.outbox
    for kind, quantity in [
        (RecordType.HOLD, 1),
        (RecordType.COMMIT, 20),
        (RecordType.RELEASE, 300),
        (RecordType.HOLD_EXPIRED, 4000),
        (RecordType.LEASE_START, 50_000),
        (RecordType.LEASE_END, 600_000),
    ]:
        await outbox.use(0, quantity, kind=kind)
    await services.stand.drain(services.stand.current)
    answer = await services.query()
    assert answer.total == 20
    assert [(row.quantity, row.events) for row in answer.rows] == [(20, 1)]


async def test_denials_are_counted_beside_usage(services: Services) -> None:
    body = encode_body(Body("t", "acme", "acme", "api.calls", "api.calls"))
    when = at("2026-09-21T10:00:00Z")
    denied = Effects(RecordType.DENIAL, when, reason=4, count=7, quantity=90, extra=7)
    over = Effects(RecordType.USAGE, when, granted=10, overage=4, quantity=10)
    for effects in (denied, over):
        await services.stand.outbox.add(0, 1, body, encode_effects(effects))
    await services.stand.drain(services.stand.current)
    (row,) = (await services.query()).rows
    assert (row.quantity, row.events, row.overage) == (10, 1, 4)
    assert (row.denied_quantity, row.denied_events) == (90, 7)


async def test_pages_together_are_the_whole_in_order(services: Services) -> None:
    for number in range(23):
        await use(services, f"2026-09-21T1{number % 3}:00:00Z", number, c=f"acme/{number % 5}")
    await services.stand.drain(services.stand.current)
    fields: dict[str, Any] = {
        "window": report_pb2.WINDOW_HOUR,
        "end": stamp("2026-09-22T00:00:00Z"),
    }
    whole = await services.query(**fields)
    assert whole.next_page_token == ""
    assert table(whole) == sorted(table(whole))
    rows, token = [], ""
    while True:
        page = await services.query(page_size=4, page_token=token, **fields)
        assert page.total == whole.total == sum(range(23))
        rows += list(page.rows)
        token = page.next_page_token
        if not token:
            break
        assert len(page.rows) == 4
    assert rows == list(whole.rows)


async def test_fresh_until_moves_with_the_log(services: Services) -> None:
    assert not (await services.query()).HasField("fresh_until")
    await services.stand.drain(services.stand.current)
    assert (await services.query()).fresh_until.seconds > 1_700_000_000


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and ErrorInfo reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # it has what is needed
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "metergate"
    return caught.value.code(), info.reason


WAY: Any = report_pb2.MeterAggregation

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"start": stamp("2026-01-01T00:01:00Z")}, "TIME_OFF_QUARTER_HOUR"),
    ({"end": Timestamp(seconds=900, nanos=1)}, "TIME_OFF_QUARTER_HOUR"),
    ({"start": Timestamp(seconds=-900)}, "TIME_OUT_OF_RANGE"),
    ({"start": stamp("2026-01-02T00:00:00Z"), "end": stamp("2026-01-01T00:00:00Z")}, "RANGE_EMPTY"),
    ({"zone": "Mars/Olympus"}, "ZONE_UNKNOWN"),
    ({"zone": "../../etc/passwd"}, "ZONE_UNKNOWN"),
    ({"page_size": 10_001}, "PAGE_SIZE_INVALID"),
    ({"page_size": -1}, "PAGE_SIZE_INVALID"),
    ({"group_by": ["a", "b", "c", "d", "e"]}, "TOO_MANY_DIMENSIONS"),
    ({"group_by": ["a", "a"]}, "DIMENSION_REPEATED"),
    ({"group_by": [""]}, "NAME_EMPTY"),
    ({"customers": [""]}, "NAME_EMPTY"),
    ({"meter": "x" * 2000}, "NAME_INVALID"),
    ({"meter": "a\0b"}, "NAME_INVALID"),
    ({"filters": [report_pb2.Filter(dimension="a")]}, "FILTER_VALUES_INVALID"),
    ({"window": 99}, "WINDOW_UNKNOWN"),
    ({"page_token": "nonsense"}, "PAGE_TOKEN_INVALID"),
    ({"aggregations": [WAY(meter="m")]}, "AGGREGATION_INVALID"),
    ({"aggregations": [WAY(meter="m", aggregation=77)]}, "AGGREGATION_INVALID"),
    ({"aggregations": [WAY(meter="m", aggregation=6)]}, "AGGREGATION_INVALID"),
    ({"aggregations": [WAY(meter="m", aggregation=4, dimension="d")]}, "AGGREGATION_INVALID"),
    ({"aggregations": [WAY(aggregation=4)]}, "NAME_INVALID"),
    ({"aggregations": [WAY(meter="m", aggregation=4)] * 2}, "AGGREGATION_REPEATED"),
    ({"page_token": "é"}, "PAGE_TOKEN_INVALID"),
    ({"include_descendants": True}, "DESCENDANTS_NOT_EXPANDED"),
    (
        {
            "window": report_pb2.WINDOW_HOUR,
            "start": stamp("1990-01-01T00:00:00Z"),
            "end": stamp("2026-01-01T00:00:00Z"),
        },
        "TOO_MANY_WINDOWS",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), INVALID, ids=lambda part: str(part)[:40])
async def test_a_malformed_question_names_its_fault(
    services: Services, fields: dict[str, Any], reason: str
) -> None:
    assert await refused(services.query(**fields)) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_a_page_token_serves_its_own_query_and_tenant_only(services: Services) -> None:
    for number in range(3):
        await use(services, "2026-09-21T10:00:00Z", 1, c=f"c{number}")
    await services.stand.drain(services.stand.current)
    token = (await services.query(page_size=1)).next_page_token
    assert token
    assert len((await services.query(page_size=2, page_token=token)).rows) == 2
    wrong = (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    assert await refused(services.query(meter="m", page_token=token)) == wrong
    assert await refused(services.query("other", page_token=token)) == wrong
    assert await refused(services.query(page_token=token[:-6] + "AAAAAA")) == wrong


@pytest.mark.parametrize(
    "sent",
    [
        (),
        ((INTERNAL, ""),),
        ((INTERNAL, TOKEN + "x"),),
        ((INTERNAL, TOKEN),),
    ],
    ids=["none", "empty", "wrong", "no tenant"],
)
async def test_reports_need_the_internal_token_and_a_tenant(
    services: Services, sent: tuple[tuple[str, str], ...]
) -> None:
    call = services.reports.QueryUsage(report_pb2.QueryUsageRequest(), metadata=sent)
    assert (await refused(call))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_comparing_needs_the_internal_token(services: Services) -> None:
    call = services.ledger.Compare(ledger_pb2.CompareRequest())
    assert (await refused(call))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_comparison_that_comes_too_early_is_unavailable(services: Services) -> None:
    request = ledger_pb2.CompareRequest(
        buckets=[ledger_pb2.BucketCounters(bucket=0, generation=1, last_sequence=5)]
    )
    call = services.ledger.Compare(request, metadata=metadata())
    assert await refused(call) == (grpc.StatusCode.UNAVAILABLE, "ROLLUP_BEHIND")


async def test_a_comparison_names_drift(services: Services) -> None:
    place = await services.stand.outbox.use(0, 5)
    await services.stand.drain(services.stand.current)
    request = ledger_pb2.CompareRequest(
        buckets=[
            ledger_pb2.BucketCounters(
                bucket=0,
                generation=1,
                last_sequence=place.sequence,
                counters=[ledger_pb2.Counter(limit=8, used=6, held=1)],
            ),
            ledger_pb2.BucketCounters(bucket=1),
        ]
    )
    answer = await services.ledger.Compare(request, metadata=metadata())
    (drift,) = answer.drift
    assert (drift.bucket, drift.limit, drift.counter_used, drift.ledger_used) == (0, 8, 6, 5)
    assert (drift.counter_held, drift.ledger_held) == (1, 0)
    assert (answer.records, answer.counters, answer.repeats) == (2, 1, 0)


async def test_audit_is_left_to_the_enforcer(services: Services) -> None:
    call = services.reports.Audit(report_pb2.AuditRequest(), metadata=metadata())
    assert (await refused(call))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_an_answer_that_no_int64_holds_is_out_of_range(services: Services) -> None:
    for _ in range(1030):
        await services.stand.outbox.use(0, 2**53 - 1)
    await services.stand.drain(services.stand.current)
    assert await refused(services.query()) == (grpc.StatusCode.OUT_OF_RANGE, "SUM_OUT_OF_RANGE")
