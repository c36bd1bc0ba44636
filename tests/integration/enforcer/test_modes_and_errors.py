"""Every named error over real gRPC, and the table of docs/modes.md, on the specification as the counter store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.adapters.counters.memory import MemoryStore
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.core.memory import MemoryCounters
from enforcer.errors import MeterUnavailableError
from enforcer.gateway import Gateway
from enforcer.gateway.programs import Programs
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.grpcio import GrpcServer
from enforcer.transport.services import methods
from enforcer.v1 import catalog_pb2, catalog_pb2_grpc, enforcer_pb2_grpc
from enforcer.v1 import enforcer_pb2 as pb
from meter.v1 import report_pb2, report_pb2_grpc, usage_pb2, usage_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SAMPLE = Path(__file__).parents[3] / "deploy" / "sample-catalog.yaml"
BUCKETS = 8
MODES = """
version: 1
features: [{key: f.boolean}, {key: f.config}, {key: f.hard}, {key: f.soft}, {key: f.credits}, {key: f.payg},
  {key: f.tiered}, {key: f.rate}, {key: f.seats}, {key: f.ended}]
accounts:
  - key: modes
    entitlements:
      - {feature: f.boolean, model: boolean}
      - {feature: f.config, model: config, value: 7}
      - {feature: f.hard, model: quota, limit: 10, per: total}
      - {feature: f.soft, model: quota, limit: 10, per: total, hard: false}
      - {feature: f.credits, model: credits, grants: [{key: a, amount: 10}]}
      - {feature: f.payg, model: payg, per: month, price: {amount: "1", currency: EUR}, spend_cap: 10}
      - {feature: f.tiered, model: tiered, per: month, tiers: [{name: a, up_to: 10}]}
      - {feature: f.rate, model: rate, limit: 10, per: 24h}
      - {feature: f.seats, model: concurrent, seats: 10}
      - {feature: f.ended, model: quota, limit: 10, per: total, start: 2020-01-01, end: 2021-01-01}
"""


class NoMeter:
    """The meter is away."""

    async def query(self, tenant: str, request: Any) -> Any:
        raise MeterUnavailableError(f"no meter for {tenant} and {request}")

    compare: Any = query


class Clock:
    """Ms since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1_000_000


class Client:
    """Stubs of every service, and the metadata of each caller."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self.enforcer: Any = enforcer_pb2_grpc.EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        self.catalog: Any = catalog_pb2_grpc.CatalogServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        self.usage: Any = usage_pb2_grpc.UsageServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        self.reports: Any = report_pb2_grpc.ReportServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        self.clock = clock
        self.admin: Any = ()
        self.checker: Any = ()
        self.stranger: Any = ()

    async def check(self, feature: str, customer: str = "modes", **fields: Any) -> Any:
        request = pb.CheckRequest(customer=customer, feature=feature, **fields)
        return await self.enforcer.Check(request, metadata=self.checker)

    async def apply(self, text: str) -> Any:
        request = catalog_pb2.ApplyRequest(document=text, file_name="file.yaml")
        return await self.catalog.Apply(request, metadata=self.admin)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}", BUCKETS)
    await definitions.migrate()
    for tenant in ("demo", "other"):
        await definitions.ensure_tenant(tenant)
    clock = Clock()
    counters = MemoryCounters(lambda: clock.now)
    for bucket in range(BUCKETS):
        counters.open(bucket, 1)
    store = MemoryStore(counters)
    gateway = Gateway(store, Programs(definitions, store, now_ms=lambda: clock.now), b"s" * 32)
    server = GrpcServer(
        methods(gateway, definitions, store, NoMeter(), BUCKETS), Callers(definitions), Metrics()
    )
    await server.start("127.0.0.1:0")
    await server.ready(serving=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        made = Client(channel, clock)
        for name, tenant, role in (
            ("admin", "demo", "admin"),
            ("checker", "demo", "check"),
            ("stranger", "other", "admin"),
        ):
            key = await definitions.create_api_key(tenant, role)
            setattr(made, name, (("authorization", f"Bearer {key}"),))
        await made.apply(SAMPLE.read_text())
        await made.apply(MODES)
        yield made
    await server.stop()
    await definitions.close()


async def fault(call: Any) -> tuple[str, str]:
    """The gRPC code and the reason that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    call_: Any = caught.value
    status = rpc_status.from_call(call_)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "metergate"
    return caught.value.code().name, info.reason


async def test_every_bad_check_is_a_named_error(client: Client) -> None:
    bad: list[tuple[dict[str, Any], str, str]] = [
        ({"customer": "nobody"}, "NOT_FOUND", "UNKNOWN_CUSTOMER"),
        ({"customer": ""}, "INVALID_ARGUMENT", "BAD_CUSTOMER"),
        ({"feature": "nothing"}, "NOT_FOUND", "UNKNOWN_FEATURE"),
        ({"feature": ""}, "INVALID_ARGUMENT", "BAD_FEATURE"),
        ({"quantity": 0}, "INVALID_ARGUMENT", "BAD_QUANTITY"),
        ({"quantity": -1}, "INVALID_ARGUMENT", "BAD_QUANTITY"),
        ({"quantity": 2**53}, "INVALID_ARGUMENT", "BAD_QUANTITY"),
        ({"mode": 17}, "INVALID_ARGUMENT", "UNKNOWN_MODE"),
        ({"idempotency_key": "k" * 257}, "INVALID_ARGUMENT", "BAD_IDEMPOTENCY_KEY"),
        ({"dimensions": {str(n): "" for n in range(17)}}, "INVALID_ARGUMENT", "BAD_DIMENSIONS"),
        ({"dimensions": {"k": "v" * 257}}, "INVALID_ARGUMENT", "BAD_DIMENSIONS"),
        ({"dimensions": {"": "v"}}, "INVALID_ARGUMENT", "BAD_DIMENSIONS"),
        (
            {"customer": "acme", "feature": "studio.pro"},
            "INVALID_ARGUMENT",
            "PRODUCT_VERSION_REQUIRED",
        ),
        (
            {"customer": "acme", "feature": "studio.pro", "product_version": "9"},
            "INVALID_ARGUMENT",
            "UNKNOWN_VERSION",
        ),
    ]
    for fields, code, reason in bad:
        asked = {"feature": "f.hard", **fields}
        assert await fault(client.check(**asked)) == (code, reason), fields


async def test_a_key_with_other_parameters_is_an_error_and_a_retry_is_not(client: Client) -> None:
    first = await client.check("f.hard", idempotency_key="k", quantity=2)
    again = await client.check("f.hard", idempotency_key="k", quantity=2)
    assert again.replayed
    assert again.record == first.record
    for other in ({"quantity": 3}, {"quantity": 2, "dimensions": {"a": "b"}}):
        found = await fault(client.check("f.hard", idempotency_key="k", **other))
        assert found == ("INVALID_ARGUMENT", "IDEMPOTENCY_MISMATCH")


async def test_callers_are_known_by_their_key_and_tenants_never_meet(client: Client) -> None:
    request = pb.CheckRequest(customer="acme", feature="api.calls")
    check = client.enforcer.Check
    assert await fault(check(request)) == ("UNAUTHENTICATED", "BAD_API_KEY")
    for header in ("Bearer wrong", "Basic x", ""):
        found = await fault(check(request, metadata=(("authorization", header),)))
        assert found == ("UNAUTHENTICATED", "BAD_API_KEY")
    found = await fault(check(request, metadata=client.stranger))
    assert found == ("NOT_FOUND", "UNKNOWN_CUSTOMER")
    apply = client.catalog.Apply(catalog_pb2.ApplyRequest(), metadata=client.checker)
    assert await fault(apply) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    audit = client.reports.Audit(report_pb2.AuditRequest(), metadata=client.checker)
    assert await fault(audit) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    usage = client.reports.QueryUsage(report_pb2.QueryUsageRequest(), metadata=client.checker)
    assert await fault(usage) == ("UNAVAILABLE", "METER_UNAVAILABLE")


async def test_a_malformed_catalog_is_refused_as_a_whole(client: Client) -> None:
    for text in ("version: 2", "version: 1\nacounts: []", "{", "version: 1\ntenant: other"):
        assert await fault(client.apply(text)) == ("INVALID_ARGUMENT", "CATALOG_INVALID")


async def test_batches(client: Client) -> None:
    def batch(*items: pb.CheckRequest, atomic: bool = False) -> Any:
        return client.enforcer.CheckBatch(
            pb.CheckBatchRequest(items=items, atomic=atomic), metadata=client.checker
        )

    def item(feature: str, quantity: int = 1, **more: Any) -> pb.CheckRequest:
        more = {"customer": "modes", **more}
        return pb.CheckRequest(feature=feature, quantity=quantity, **more)

    bad = ("INVALID_ARGUMENT", "BAD_BATCH")
    assert await fault(batch()) == bad
    assert await fault(batch(*[item("f.hard")] * 257)) == bad
    two_accounts = (item("f.hard"), item("api.calls", customer="acme"))
    assert await fault(batch(*two_accounts, atomic=True)) == bad
    assert await fault(batch(item("f.hard"), item("f.soft", mode=2), atomic=True)) == bad
    answers = (
        await batch(item("f.hard", 4), item("none"), item("f.hard", 0), item("f.hard", 7))
    ).items
    assert answers[0].response.granted == 4
    assert (answers[1].fault.code, answers[1].fault.reason) == (5, "UNKNOWN_FEATURE")
    assert (answers[2].fault.code, answers[2].fault.reason) == (3, "BAD_QUANTITY")
    assert answers[3].response.reason == pb.REASON_QUOTA_EXCEEDED
    answers = (await batch(item("f.soft", 4), item("f.hard", 7), atomic=True)).items
    assert [one.response.reason for one in answers] == [
        pb.REASON_BATCH_DENIED,
        pb.REASON_QUOTA_EXCEEDED,
    ]
    answers = (await batch(item("f.soft", 4), item("f.hard", 6), atomic=True)).items
    assert [one.response.granted for one in answers] == [4, 6]


CONSUMED = {
    # ENFORCE 4 and 8 of 10, CHECK_ONLY 4, BEST_EFFORT 20, RECORD_ONLY 20: what is granted, or the error
    "f.boolean": ("4", "8", "4", "20", "MODE_NOT_SUPPORTED"),
    "f.config": ("4", "8", "4", "20", "MODE_NOT_SUPPORTED"),
    "f.hard": ("4", "0", "4", "6", "20"),
    "f.soft": ("4", "8", "4", "20", "20"),
    "f.credits": ("4", "0", "4", "6", "20"),
    "f.payg": ("4", "0", "4", "6", "20"),
    "f.tiered": ("4", "0", "4", "6", "20"),
    "f.rate": ("4", "0", "4", "6", "20"),
    "f.seats": (
        "MODE_NOT_SUPPORTED",
        "MODE_NOT_SUPPORTED",
        "4",
        "MODE_NOT_SUPPORTED",
        "MODE_NOT_SUPPORTED",
    ),
    "f.ended": ("0", "0", "0", "0", "0"),
}
ASKED = ((1, 4), (1, 8), (2, 4), (3, 20), (4, 20))


@pytest.mark.parametrize("feature", CONSUMED)
async def test_the_table_of_modes(client: Client, feature: str) -> None:
    found = []
    for mode, quantity in ASKED:
        try:
            answer = await client.check(feature, mode=mode, quantity=quantity)
        except grpc.aio.AioRpcError as error:
            failed: Any = error
            status = rpc_status.from_call(failed)
            info = error_details_pb2.ErrorInfo()
            status.details[0].Unpack(info)
            found.append(info.reason)
        else:
            assert answer.allowed == (answer.granted > 0)
            found.append(str(answer.granted))
    assert tuple(found) == CONSUMED[feature]


async def test_a_reservation_is_held_committed_and_given_back(client: Client) -> None:
    enforcer, metadata = client.enforcer, client.checker
    held = await enforcer.Reserve(
        pb.ReserveRequest(customer="modes", feature="f.hard", quantity=8), metadata=metadata
    )
    assert held.check.limits[0].held == 8
    assert not (await client.check("f.hard", quantity=3)).allowed
    commit = pb.CommitRequest(reservation=held.reservation, quantity=9)
    assert await fault(enforcer.Commit(commit, metadata=metadata)) == (
        "INVALID_ARGUMENT",
        "COMMIT_EXCEEDS_RESERVATION",
    )
    commit.quantity = 5
    done = await enforcer.Commit(commit, metadata=metadata)
    assert (done.committed, done.released) == (5, 3)
    assert (await enforcer.Commit(commit, metadata=metadata)).replayed
    release = pb.ReleaseRequest(reservation=held.reservation)
    assert await fault(enforcer.Release(release, metadata=metadata)) == (
        "FAILED_PRECONDITION",
        "RESERVATION_SETTLED",
    )
    found = await fault(enforcer.Release(release, metadata=client.stranger))
    assert found == ("INVALID_ARGUMENT", "BAD_TOKEN")
    late = await enforcer.Reserve(
        pb.ReserveRequest(customer="modes", feature="f.hard", ttl=Duration(seconds=1)),
        metadata=metadata,
    )
    client.clock.now += 1_000
    commit = pb.CommitRequest(reservation=late.reservation)
    assert await fault(enforcer.Commit(commit, metadata=metadata)) == (
        "NOT_FOUND",
        "RESERVATION_NOT_FOUND",
    )
    wrong = pb.ReserveRequest(customer="modes", feature="f.hard", mode=pb.MODE_RECORD_ONLY)
    assert await fault(enforcer.Reserve(wrong, metadata=metadata)) == (
        "INVALID_ARGUMENT",
        "MODE_NOT_SUPPORTED",
    )


async def test_leases(client: Client) -> None:
    enforcer, metadata = client.enforcer, client.checker

    def acquire(feature: str, holder: str = "", **more: Any) -> Any:
        request = pb.AcquireLeaseRequest(customer="acme", feature=feature, holder=holder, **more)
        return enforcer.AcquireLease(request, metadata=metadata)

    invalid = "INVALID_ARGUMENT"
    assert await fault(acquire("api.calls")) == (invalid, "MODE_NOT_SUPPORTED")
    assert await fault(acquire("editors")) == (invalid, "HOLDER_REQUIRED")
    assert await fault(acquire("seats", ttl=Duration(seconds=9))) == (invalid, "BAD_TTL")
    first, second = await acquire("seats"), await acquire("seats")
    refused = await acquire("seats")
    assert (refused.check.allowed, refused.check.reason) == (False, pb.REASON_NO_SEATS)
    client.clock.now += 9_000
    renew = pb.RenewLeaseRequest(token=first.lease.token)
    await enforcer.RenewLease(renew, metadata=metadata)
    client.clock.now += 1_000
    late = pb.RenewLeaseRequest(token=second.lease.token)
    assert await fault(enforcer.RenewLease(late, metadata=metadata)) == (
        "FAILED_PRECONDITION",
        "LEASE_EXPIRED",
    )
    assert (await acquire("seats")).check.allowed
    listing = pb.ListLeasesRequest(customer="acme", feature="seats", page_size=1)
    pages = []
    while True:
        page = await enforcer.ListLeases(listing, metadata=metadata)
        pages += [one.id for one in page.leases]
        listing.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert len(set(pages)) == len(pages) == 2
    done = pb.ReleaseLeaseRequest(token=first.lease.token)
    assert (await enforcer.ReleaseLease(done, metadata=metadata)).released
    assert not (await enforcer.ReleaseLease(done, metadata=metadata)).released
    for _ in range(20):
        assert (await acquire("editors", "ann")).check.allowed
    (editors,) = (
        await enforcer.GetBalance(
            pb.GetBalanceRequest(customer="acme", feature="editors"), metadata=metadata
        )
    ).limits
    assert editors.held == 1
    bound = [await acquire("workstations", device) for device in ("pc-1", "pc-2", "pc-3", "pc-4")]
    assert [one.check.allowed for one in bound] == [True, True, True, False]
    free = pb.ReleaseLeaseRequest(token=bound[0].lease.token, unbind=True)
    assert (await enforcer.ReleaseLease(free, metadata=metadata)).released
    assert (await acquire("workstations", "pc-4")).check.allowed


async def test_a_lease_is_renewed_for_as_long_as_it_was_taken(client: Client) -> None:
    taken = await client.enforcer.AcquireLease(
        pb.AcquireLeaseRequest(customer="acme", feature="seats", ttl=Duration(seconds=77)),
        metadata=client.checker,
    )
    client.clock.now += 5_000
    renew = pb.RenewLeaseRequest(token=taken.lease.token)
    renewed = await client.enforcer.RenewLease(renew, metadata=client.checker)
    assert renewed.lease.expires_at.ToMilliseconds() == client.clock.now + 77_000


async def test_a_suspended_customer_loses_its_lease_at_the_next_heartbeat(client: Client) -> None:
    taken = await client.enforcer.AcquireLease(
        pb.AcquireLeaseRequest(customer="modes", feature="f.seats"), metadata=client.checker
    )
    await client.apply(MODES.replace("- key: modes", "- key: modes\n    suspended: true"))
    renew = pb.RenewLeaseRequest(token=taken.lease.token)
    found = await fault(client.enforcer.RenewLease(renew, metadata=client.checker))
    assert found == ("FAILED_PRECONDITION", "LEASE_REVOKED")
    denied = await client.check("f.hard")
    assert denied.reason == pb.REASON_SUSPENDED


async def test_usage_from_elsewhere_counts_once_and_bad_events_are_told(client: Client) -> None:
    def event(key: str, **more: Any) -> usage_pb2.UsageEvent:
        more = {"customer": "modes", "feature": "f.hard", **more}
        return usage_pb2.UsageEvent(idempotency_key=key, **more)

    old = Timestamp()
    old.FromMilliseconds(client.clock.now - 2 * 86_400_000)
    events = [
        event("a", quantity=12),
        event("a", quantity=12),
        event(""),
        event("b", quantity=0),
        event("c", occurred_at=old),
        event("d", feature="f.boolean"),
    ]
    answer = await client.usage.Report(
        usage_pb2.ReportRequest(events=events), metadata=client.checker
    )
    outcomes = answer.outcomes
    assert [one.accepted for one in outcomes] == [True, True, False, False, False, False]
    assert (outcomes[0].overage, outcomes[1].replayed) == (2, True)
    assert outcomes[0].sequence == outcomes[1].sequence
    assert [one.reason for one in outcomes[2:]] == [
        "BAD_IDEMPOTENCY_KEY",
        "BAD_QUANTITY",
        "BAD_TIME",
        "MODE_NOT_SUPPORTED",
    ]


async def test_a_change_counts_from_the_next_check_and_a_period_turns(client: Client) -> None:
    assert not (await client.check("f.hard", quantity=11)).allowed
    await client.apply(MODES.replace("limit: 10, per: total}", "limit: 11, per: total}", 1))
    assert (await client.check("f.hard", quantity=11)).allowed
    taken = await client.check("export.pdf", "acme", quantity=3)
    assert taken.allowed
    denied = await client.check("export.pdf", "acme")
    assert denied.reason == pb.REASON_QUOTA_EXCEEDED
    client.clock.now += denied.retry_after.ToMilliseconds()
    assert (await client.check("export.pdf", "acme")).allowed
