"""Every service over real gRPC, with either counter store behind it, on a clock that moves by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from enforcer.errors import DefinitionsUnavailableError
from enforcer.transport import callers
from enforcer.v1 import catalog_pb2
from enforcer.v1 import enforcer_pb2 as pb
from meter.v1 import ledger_pb2, repair_pb2, report_pb2, usage_pb2
from tests.fixtures.gateway import BUCKETS, ms

if TYPE_CHECKING:
    from tests.fixtures.gateway import Service

INVALID, MISSING, NOT_NOW = "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"
DAY = 86_400_000
FEATURES = """
version: 1
products: [{key: studio, releases: {"1.0": 2025-01-15, "2.0": 2026-03-01}}]
features: [{key: api.calls}, {key: exports}, {key: seats}, {key: editors}, {key: machines}, {key: resolution},
  {key: reports}, {key: studio.pro, product: studio}, {key: words}, {key: tiers}, {key: speed}, {key: window},
  {key: trial}, {key: tree}, {key: soon}]
"""
CATALOG = (
    FEATURES
    + """
accounts:
  - key: acme
    entitlements:
      - {feature: api.calls, model: quota, limit: 10, per: day}
      - {feature: exports, model: quota, limit: 5, per: total}
      - {feature: seats, model: concurrent, seats: 2, ttl: 10s}
      - {feature: editors, model: concurrent, seats: 2, mode: named}
      - {feature: machines, model: concurrent, seats: 2, mode: node_locked}
      - {feature: resolution, model: config, value: 1080}
      - {feature: reports, model: boolean}
      - {feature: studio.pro, model: boolean, license: perpetual, maintenance_until: 2026-02-01}
      - {feature: words, model: credits, grants: [{key: welcome, amount: 5}]}
      - {feature: speed, model: rate, limit: 10, per: 1s, burst: 20}
      - {feature: window, model: rate, limit: 10, per: 1m, algorithm: sliding_window}
      - {feature: soon, model: boolean, start: 2027-01-01}
      - feature: tiers
        model: tiered
        per: month
        tiers:
          - {name: included, up_to: 10}
          - {name: growth, up_to: 20, behaviour: notify}
          - {name: slow, up_to: 30, behaviour: throttle, rate: 10, rate_per: 1s, burst: 2}
          - {name: stop, behaviour: deny}
  - key: globex
    entitlements:
      - {feature: api.calls, model: quota, limit: 10, per: day}
    nodes:
      - key: globex-lab
        entitlements:
          - {feature: tree, model: quota, limit: 100, per: day}
        nodes: [{key: globex-ann}, {key: globex-bob}]
"""
)


@pytest.fixture
async def sold(service: Service) -> Service:
    """The service with `CATALOG`."""
    await service.apply(CATALOG)
    return service


def item(feature: str, quantity: int = 1, customer: str = "acme", **more: Any) -> pb.CheckRequest:
    return pb.CheckRequest(customer=customer, feature=feature, quantity=quantity, **more)


def remaining(answer: pb.CheckResponse | pb.GetBalanceResponse) -> list[int]:
    return [limit.remaining for limit in answer.limits]


# -- named errors


BAD_CHECKS: list[tuple[dict[str, Any], str, str]] = [
    ({"customer": "nobody"}, MISSING, "UNKNOWN_CUSTOMER"),
    ({"customer": ""}, INVALID, "BAD_CUSTOMER"),
    ({"customer": "c" * 129}, INVALID, "BAD_CUSTOMER"),
    ({"customer": "a\0b"}, MISSING, "UNKNOWN_CUSTOMER"),
    ({"feature": "nothing"}, MISSING, "UNKNOWN_FEATURE"),
    ({"feature": ""}, INVALID, "BAD_FEATURE"),
    ({"feature": "f" * 129}, INVALID, "BAD_FEATURE"),
    ({"quantity": 0}, INVALID, "BAD_QUANTITY"),
    ({"quantity": -1}, INVALID, "BAD_QUANTITY"),
    ({"quantity": 2**53}, INVALID, "BAD_QUANTITY"),
    ({"mode": 5}, INVALID, "UNKNOWN_MODE"),
    ({"mode": -1}, INVALID, "UNKNOWN_MODE"),
    ({"dimensions": {str(number): "" for number in range(17)}}, INVALID, "BAD_DIMENSIONS"),
    ({"dimensions": {"": "v"}}, INVALID, "BAD_DIMENSIONS"),
    ({"dimensions": {"k" * 65: "v"}}, INVALID, "BAD_DIMENSIONS"),
    ({"dimensions": {"k": "é" * 129}}, INVALID, "BAD_DIMENSIONS"),
    ({"idempotency_key": "k" * 257}, INVALID, "BAD_IDEMPOTENCY_KEY"),
    ({"idempotency_key": "é" * 129}, INVALID, "BAD_IDEMPOTENCY_KEY"),
    ({"feature": "studio.pro"}, INVALID, "PRODUCT_VERSION_REQUIRED"),
    ({"feature": "studio.pro", "product_version": "9.9"}, INVALID, "UNKNOWN_VERSION"),
    ({"feature": "seats"}, INVALID, "MODE_NOT_SUPPORTED"),
    ({"feature": "reports", "mode": pb.MODE_RECORD_ONLY}, INVALID, "MODE_NOT_SUPPORTED"),
]


async def test_every_bad_check_is_a_named_error_alone_and_in_a_batch(sold: Service) -> None:
    for fields, code, reason in BAD_CHECKS:
        asked: dict[str, Any] = {"feature": "api.calls", **fields}
        found = await sold.fault(sold.door.check(**asked))
        assert found.named == (code, reason), fields
        request = pb.CheckRequest(**{"customer": "acme", **asked})
        (one,) = (await sold.door.batch(request)).items
        assert (one.fault.reason, one.fault.message) == (reason, found.message), fields
        found = await sold.fault(
            sold.door.batch(item("exports", mode=request.mode), request, atomic=True)
        )
        assert found.reason == reason, fields
    assert remaining(await sold.door.balance("api.calls")) == [10]
    assert remaining(await sold.door.balance("exports")) == [5]


async def test_the_largest_values_are_taken(sold: Service) -> None:
    largest: dict[str, Any] = {
        "idempotency_key": "k" * 256,
        "dimensions": {f"{number:064}": "v" * 256 for number in range(16)},
    }
    assert (await sold.door.check("api.calls", **largest)).allowed
    assert not (await sold.door.check("api.calls", 2**53 - 1)).allowed
    assert (await sold.door.check("reports", 2**53 - 1)).granted == 2**53 - 1


async def test_a_count_never_passes_its_largest_value(sold: Service) -> None:
    await sold.door.check("exports", 2**53 - 1, mode=pb.MODE_RECORD_ONLY)
    found = await sold.fault(sold.door.check("exports", 1, mode=pb.MODE_RECORD_ONLY))
    assert found.named == (INVALID, "QUANTITY_OVERFLOW")


async def test_the_key_says_who_calls(sold: Service) -> None:
    door, request = sold.door, pb.CheckRequest(customer="acme", feature="api.calls")
    wrong = ("UNAUTHENTICATED", "BAD_API_KEY")
    assert (await sold.fault(door.enforcer.Check(request, timeout=30))).named == wrong
    for header in ("Bearer", "Bearer wrong", f"Basic {sold.keys['check']}", ""):
        call = door.enforcer.Check(request, metadata=(("authorization", header),), timeout=30)
        assert (await sold.fault(call)).named == wrong
    call = door.enforcer.Check(
        request, metadata=(("authorization", f"bearer {sold.keys['check']}"),), timeout=30
    )
    assert (await call).allowed


async def test_a_revoked_key_is_refused(sold: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "KEPT_SECONDS", 0.0)
    key = await sold.definitions.create_api_key("demo", "check")
    request = pb.CheckRequest(customer="acme", feature="reports")
    assert (await sold.door.call(sold.door.enforcer.Check, request, key)).allowed
    caller = await sold.definitions.caller(key)
    assert caller is not None
    assert await sold.definitions.revoke_api_key("demo", caller.key_id)
    found = await sold.fault(sold.door.call(sold.door.enforcer.Check, request, key))
    assert found.named == ("UNAUTHENTICATED", "BAD_API_KEY")


async def test_changes_and_audits_need_a_role(sold: Service) -> None:
    apply = sold.door.call(sold.door.catalog.Apply, catalog_pb2.ApplyRequest(document=CATALOG))
    audit = sold.door.call(sold.door.reports.Audit, report_pb2.AuditRequest())
    accept = sold.door.call(sold.door.repairs.AcceptGap, repair_pb2.AcceptGapRequest())
    reconcile = sold.door.call(sold.door.repairs.Reconcile, repair_pb2.ReconcileRequest())
    for call in (apply, audit, accept, reconcile):
        found = await sold.fault(call)
        assert found.named == ("PERMISSION_DENIED", "ROLE_REQUIRED")
        assert found.metadata == {"role": "admin"}


async def test_an_accepted_gap_is_passed_on_with_the_name_of_who_accepts(sold: Service) -> None:
    key = sold.keys["admin"]
    request = repair_pb2.AcceptGapRequest(bucket=1, generation=2, first=3, last=5)
    answer = await sold.door.call(sold.door.repairs.AcceptGap, request, key)
    assert answer.found == 2
    (asked,) = sold.usage.skipped
    caller = await sold.definitions.caller(key)
    assert caller is not None
    assert asked == ledger_pb2.SkipGapRequest(
        bucket=1, generation=2, first=3, last=5, actor=caller.key_id
    )


async def test_a_reconciliation_adds_what_the_ledger_has_more(sold: Service) -> None:
    await sold.door.check("api.calls", 4)
    ((limit, period, _, _),) = await sold.counted()
    sold.usage.drift = [
        report_pb2.Drift(bucket=0, limit=limit, period_start=period, counter_used=4, ledger_used=6),
        report_pb2.Drift(bucket=0, limit=10**6, counter_used=1),
    ]
    for dry_run, used in ((True, 4), (False, 6)):
        request = repair_pb2.ReconcileRequest(dry_run=dry_run)
        answer = await sold.door.call(sold.door.repairs.Reconcile, request, sold.keys["admin"])
        assert list(answer.drift) == sold.usage.drift
        assert [one.limit for one in answer.left] == ([] if dry_run else [10**6])
        assert await sold.counted() == [(limit, period, used, 0)]


async def test_reports_and_audits_ask_the_meter(sold: Service) -> None:
    query = report_pb2.QueryUsageRequest(customers=["globex"], include_descendants=True)
    answer = await sold.door.call(sold.door.reports.QueryUsage, query)
    assert answer.total == 7
    ((tenant, asked),) = sold.usage.queries
    assert tenant == "demo"
    assert list(asked.customers) == ["globex", "globex-ann", "globex-bob", "globex-lab"]
    await sold.door.check("api.calls", 4)
    audit = await sold.door.call(
        sold.door.reports.Audit, report_pb2.AuditRequest(), sold.keys["admin"]
    )
    assert audit.counters == 1
    (compared,) = sold.usage.compared
    assert len(compared.buckets) == BUCKETS
    assert [one.used for bucket in compared.buckets for one in bucket.counters] == [4]


async def test_reports_say_how_the_catalog_s_meters_add_up(sold: Service) -> None:
    await sold.apply(
        "version: 1\nfeatures:\n  - {key: peak, meter: max}\n  - {key: mau, meter: unique, unique_by: user}\n"
    )
    await sold.apply("version: 1\nfeatures: [{key: secret, meter: min}]", key="stranger")

    async def ways(**fields: Any) -> list[tuple[str, int, str]]:
        await sold.door.call(sold.door.reports.QueryUsage, report_pb2.QueryUsageRequest(**fields))
        _, asked = sold.usage.queries[-1]
        return sorted((way.meter, way.aggregation, way.dimension) for way in asked.aggregations)

    maximum, unique = report_pb2.AGGREGATION_MAX, report_pb2.AGGREGATION_UNIQUE
    assert await ways() == [("mau", unique, "user"), ("peak", maximum, "")]
    assert await ways(meter="peak") == [("peak", maximum, "")]
    assert await ways(meter="secret") == []
    other = report_pb2.MeterAggregation(meter="peak", aggregation=report_pb2.AGGREGATION_SUM)
    assert ("peak", report_pb2.AGGREGATION_SUM, "") in await ways(aggregations=[other])
    same = report_pb2.MeterAggregation(meter="peak")
    assert ("peak", maximum, "") in await ways(aggregations=[same])


async def test_series_are_of_the_caller_s_tenant_and_name_limits(sold: Service) -> None:
    seats = report_pb2.QueryConcurrencyRequest(customers=["globex"], include_descendants=True)
    await sold.door.call(sold.door.reports.QueryConcurrency, seats, sold.keys["stranger"])
    await sold.door.call(sold.door.reports.QueryConcurrency, seats)
    assert [tenant for tenant, _ in sold.usage.series] == ["other", "demo"]
    assert list(sold.usage.series[0][1].customers) == ["globex"]
    assert "globex-ann" in sold.usage.series[1][1].customers
    await sold.door.check("exports", 5)
    denied = await sold.door.check("exports")
    spent = await sold.door.check("words", 6)
    exports = next(one for one in denied.limits if one.denied)
    (grant,) = spent.limits
    numbers = {
        name.key: number
        for number, name in (
            await sold.definitions.limits("demo", range(1000), ["exports", "words"])
        ).items()
    }
    sold.usage.refused = [
        report_pb2.DenialRow(feature="exports", reason=9, limit=numbers[exports.id]),
        report_pb2.DenialRow(feature="words", reason=10, limit=numbers["words:credits/welcome"]),
        report_pb2.DenialRow(feature="exports", reason=999, limit=999),
        report_pb2.DenialRow(feature="reports", reason=2),
    ]
    assert grant.denied
    call = sold.door.reports.QueryDenials
    answer = await sold.door.call(call, report_pb2.QueryDenialsRequest())
    assert [(row.reason_name, row.limit_key, row.limit_customer) for row in answer.rows] == [
        ("REASON_QUOTA_EXCEEDED", "exports:quota", "acme"),
        ("REASON_CREDITS_EXHAUSTED", "words:credits/welcome", "acme"),
        ("", "", ""),
        ("REASON_NOT_ENTITLED", "", ""),
    ]
    # Another tenant's numbers name nothing.
    answer = await sold.door.call(call, report_pb2.QueryDenialsRequest(), sold.keys["stranger"])
    assert [row.limit_key for row in answer.rows] == [""] * 4


async def test_a_malformed_catalog_is_refused_with_the_places(sold: Service) -> None:
    bad = "version: 1\nfeatures:\n  - {key: one, sort: big}\naccounts:\n  - {key: 'no key'}\n"
    found = await sold.fault(sold.apply(bad, file_name="bad.yaml"))
    assert found.named == (INVALID, "CATALOG_INVALID")
    lines = found.message.splitlines()
    assert lines[0].startswith("bad.yaml:3: features[0].sort:")
    assert lines[1].startswith("bad.yaml:5: accounts[0].key:")
    foreign = await sold.fault(sold.apply("version: 1\ntenant: other\n", file_name="f.yaml"))
    assert foreign.reason == "CATALOG_INVALID"
    assert foreign.message.startswith("f.yaml:1: tenant:")
    found = await sold.fault(sold.apply("#" * (1024 * 1024 + 1)))
    assert found.named == (INVALID, "DOCUMENT_TOO_LARGE")


@pytest.mark.parametrize("letter", ["x", "é", "%", "字"])
async def test_an_error_of_any_length_and_script_arrives(sold: Service, letter: str) -> None:
    keys = "".join(f"  - {{key: '{letter * 20} {number}'}}\n" for number in range(500))
    found = await sold.fault(sold.apply(f"version: 1\naccounts:\n{keys}", file_name="long.yaml"))
    assert found.reason == "CATALOG_INVALID"
    assert found.message.startswith("long.yaml:3: accounts[0].key:")
    assert found.message.endswith("\n…")
    version = letter * 20_000
    found = await sold.fault(sold.door.check("studio.pro", product_version=version))
    assert found.reason == "UNKNOWN_VERSION"
    assert found.message.startswith("product version")


async def test_tokens_are_only_good_where_they_come_from(sold: Service) -> None:
    held = await sold.door.reserve("api.calls")
    seat = await sold.door.acquire("seats")
    calls = sold.door.enforcer
    for method, request in (
        (calls.Commit, pb.CommitRequest(reservation=held.reservation)),
        (calls.Release, pb.ReleaseRequest(reservation=held.reservation)),
        (calls.RenewLease, pb.RenewLeaseRequest(token=seat.lease.token)),
        (calls.ReleaseLease, pb.ReleaseLeaseRequest(token=seat.lease.token)),
    ):
        found = await sold.fault(sold.door.call(method, request, sold.keys["stranger"]))
        assert found.named == (INVALID, "BAD_TOKEN")
    damaged = ("B" if held.reservation[0] == "A" else "A") + held.reservation[1:]
    for bad in ("", "x", "é", damaged, held.reservation[:-4], "A" * 5000, seat.lease.token):
        assert (await sold.fault(sold.door.commit(bad))).named == (INVALID, "BAD_TOKEN")
    for bad in ("", damaged, held.reservation):
        assert (await sold.fault(sold.door.renew(bad))).named == (INVALID, "BAD_TOKEN")
    assert (await sold.door.commit(held.reservation)).committed == 1
    assert (await sold.door.stand_up(seat.lease.token)).released


async def test_times_to_live_have_bounds(sold: Service) -> None:
    seat = await sold.door.acquire("seats")
    for ttl in (Duration(seconds=0), Duration(nanos=999_000_000), Duration(seconds=86_401)):
        found = await sold.fault(sold.door.reserve("api.calls", ttl=ttl))
        assert found.named == (INVALID, "BAD_TTL")
        found = await sold.fault(sold.door.acquire("seats", ttl=ttl))
        assert found.named == (INVALID, "BAD_TTL")
        found = await sold.fault(sold.door.renew(seat.lease.token, ttl=ttl))
        assert found.named == (INVALID, "BAD_TTL")
    found = await sold.fault(sold.door.acquire("seats", ttl=Duration(seconds=9)))
    assert found.named == (INVALID, "BAD_TTL")
    for seconds in (-1, 10**15):
        call = sold.door.reserve("api.calls", ttl=Duration(seconds=seconds))
        assert (await sold.fault(call)).named == (INVALID, "BAD_TTL")
    for seconds in (1, 86_400):
        held = await sold.door.reserve("api.calls", ttl=Duration(seconds=seconds))
        assert held.expires_at.ToMilliseconds() == sold.clock.now + seconds * 1000


# -- refusals are answers, tenants do not meet


async def test_a_refusal_is_an_answer(sold: Service) -> None:
    for feature, quantity, reason in (
        ("api.calls", 11, pb.REASON_QUOTA_EXCEEDED),
        ("words", 6, pb.REASON_CREDITS_EXHAUSTED),
        ("speed", 21, pb.REASON_RATE_LIMITED),
        ("window", 11, pb.REASON_RATE_LIMITED),
        ("tiers", 31, pb.REASON_TIER_LIMIT_REACHED),
        ("soon", 1, pb.REASON_NOT_STARTED),
        ("tree", 1, pb.REASON_NOT_ENTITLED),
    ):
        denied = await sold.door.check(feature, quantity)
        assert (denied.allowed, denied.granted, denied.reason) == (False, 0, reason), feature
        assert not denied.HasField("record")
        assert all(limit.denied for limit in denied.limits), feature
        assert not any(limit.drawn for limit in denied.limits), feature


async def test_an_answer_shows_its_limits(sold: Service) -> None:
    answer = await sold.door.check("api.calls", 4)
    assert (answer.allowed, answer.granted, answer.reason) == (True, 4, pb.REASON_ALLOWED)
    (limit,) = answer.limits
    assert (limit.kind, limit.id, limit.customer) == (
        pb.LIMIT_KIND_QUOTA,
        "api.calls:quota",
        "acme",
    )
    assert (limit.limit, limit.used, limit.held, limit.remaining, limit.drawn) == (10, 4, 0, 6, 4)
    assert limit.resets_at.ToMilliseconds() == ms(2026, 6, 11)
    assert (answer.record.generation, answer.record.sequence) == (1, 1)
    assert not answer.HasField("retry_after")


async def test_tenants_do_not_meet(sold: Service) -> None:
    request = pb.CheckRequest(customer="acme", feature="api.calls")
    check = sold.door.enforcer.Check
    stranger = sold.keys["stranger"]
    found = await sold.fault(sold.door.call(check, request, stranger))
    assert found.named == (MISSING, "UNKNOWN_CUSTOMER")
    await sold.apply(
        "version: 1\nfeatures: [{key: api.calls}]\naccounts: [{key: acme, entitlements: "
        "[{feature: api.calls, model: quota, limit: 3, per: day}]}]\n",
        key="stranger",
    )
    assert remaining(await sold.door.call(check, request, stranger)) == [2]
    assert remaining(await sold.door.check("api.calls")) == [9]
    query = report_pb2.QueryUsageRequest(customers=["globex"], include_descendants=True)
    await sold.door.call(sold.door.reports.QueryUsage, query, stranger)
    ((tenant, asked),) = sold.usage.queries
    assert (tenant, list(asked.customers)) == ("other", ["globex"])


# -- batches


async def test_batches_have_bounds(sold: Service) -> None:
    for atomic in (False, True):
        for count in (0, 257):
            call = sold.door.batch(*[item("reports")] * count, atomic=atomic)
            assert (await sold.fault(call)).named == (INVALID, "BAD_BATCH")
        answer = await sold.door.batch(*[item("reports")] * 256, atomic=atomic)
        assert all(one.response.allowed for one in answer.items)
        assert len(answer.items) == 256


async def test_an_atomic_batch_has_one_account_and_one_mode(sold: Service) -> None:
    for items in (
        (item("api.calls"), item("api.calls", customer="globex")),
        (item("api.calls"), item("exports", mode=pb.MODE_CHECK_ONLY)),
        (item("api.calls", mode=pb.MODE_BEST_EFFORT),),
    ):
        found = await sold.fault(sold.door.batch(*items, atomic=True))
        assert found.named == (INVALID, "BAD_BATCH")
    found = await sold.fault(sold.door.batch(item("api.calls"), item("exports", 0), atomic=True))
    assert (found.reason, found.metadata["item"]) == ("BAD_QUANTITY", "1")
    assert remaining(await sold.door.balance("api.calls")) == [10]
    answer = await sold.door.batch(
        item("tree", customer="globex-ann"), item("api.calls", customer="globex"), atomic=True
    )
    assert all(one.response.allowed for one in answer.items)


async def test_the_items_of_a_batch_are_independent_and_in_order(sold: Service) -> None:
    answer = await sold.door.batch(
        item("api.calls", 6),
        item("nothing"),
        item("api.calls", 6),
        item("api.calls", 0),
        item("api.calls", 6, customer="globex"),
        item("api.calls", 4),
    )
    first, unknown, denied, bad, other, last = answer.items
    assert remaining(first.response) == [4]
    assert (unknown.fault.code, unknown.fault.reason) == (5, "UNKNOWN_FEATURE")
    assert denied.response.reason == pb.REASON_QUOTA_EXCEEDED
    assert (bad.fault.code, bad.fault.reason) == (3, "BAD_QUANTITY")
    assert remaining(other.response) == [4]
    assert remaining(last.response) == [0]


async def test_an_atomic_batch_takes_all_or_nothing(sold: Service) -> None:
    before = await sold.last_records()
    answer = await sold.door.batch(
        item("api.calls", 3), item("exports", 6), item("words", 1), atomic=True
    )
    assert [one.response.reason for one in answer.items] == [
        pb.REASON_BATCH_DENIED,
        pb.REASON_QUOTA_EXCEEDED,
        pb.REASON_BATCH_DENIED,
    ]
    assert not any(one.response.allowed or one.response.granted for one in answer.items)
    assert await sold.counted() == []
    assert await sold.last_records() == before
    answer = await sold.door.batch(
        item("api.calls", 6), item("exports", 5), item("api.calls", 4), atomic=True
    )
    assert [one.response.granted for one in answer.items] == [6, 5, 4]
    # Each item sees what those before it have taken.
    denied = await sold.door.batch(
        item("words", 3, mode=pb.MODE_CHECK_ONLY),
        item("words", 3, mode=pb.MODE_CHECK_ONLY),
        atomic=True,
    )
    assert denied.items[1].response.reason == pb.REASON_CREDITS_EXHAUSTED


# -- idempotency


async def test_a_repeated_call_gets_its_original_answer(sold: Service) -> None:
    keyed: dict[str, Any] = {"idempotency_key": "k", "dimensions": {"region": "eu", "model": "m"}}
    first = await sold.door.check("api.calls", 4, **keyed)
    await sold.door.check("api.calls", 6)
    again = await sold.door.check("api.calls", 4, **keyed)
    assert again.replayed
    again.replayed = False
    assert again == first
    assert remaining(await sold.door.balance("api.calls")) == [0]
    for other in (
        {"quantity": 5},
        {"quantity": 4, "dimensions": {"region": "us", "model": "m"}},
        {"quantity": 4, "mode": pb.MODE_BEST_EFFORT},
    ):
        fields: dict[str, Any] = {**keyed, **other}
        found = await sold.fault(sold.door.check("api.calls", **fields))
        assert found.named == (INVALID, "IDEMPOTENCY_MISMATCH")
        assert found.metadata == {"idempotency_key": "k"}
    found = await sold.fault(sold.door.reserve("api.calls", 4, **keyed))
    assert found.reason == "IDEMPOTENCY_MISMATCH"
    # The scope of a key is the account and the feature; a denial is not remembered.
    assert (await sold.door.check("exports", 4, **keyed)).allowed
    assert not (await sold.door.check("words", 6, idempotency_key="d")).allowed
    sold.clock.forward(DAY)
    assert (await sold.door.check("api.calls", 4, **keyed)).replayed
    sold.clock.forward(DAY)
    assert not (await sold.door.check("api.calls", 4, **keyed)).replayed


async def test_reservations_and_leases_are_repeated_with_their_names(sold: Service) -> None:
    held = [await sold.door.reserve("api.calls", 4, idempotency_key="k") for _ in range(2)]
    assert [one.check.replayed for one in held] == [False, True]
    assert held[0].reservation == held[1].reservation
    assert held[0].expires_at == held[1].expires_at
    assert remaining(await sold.door.balance("api.calls")) == [6]
    seats = [await sold.door.acquire("seats", idempotency_key="k") for _ in range(2)]
    assert [one.check.replayed for one in seats] == [False, True]
    assert seats[0].lease == seats[1].lease
    assert (await sold.door.balance("seats")).limits[0].held == 1


async def test_the_time_to_live_is_a_parameter_of_the_key(sold: Service) -> None:
    ttl = Duration(seconds=20)
    await sold.door.reserve("api.calls", idempotency_key="k", ttl=ttl)
    await sold.door.acquire("seats", idempotency_key="k", ttl=ttl)
    for other in (Duration(seconds=30), None):
        for call in (
            sold.door.reserve("api.calls", idempotency_key="k", ttl=other),
            sold.door.acquire("seats", idempotency_key="k", ttl=other),
        ):
            assert (await sold.fault(call)).named == (INVALID, "IDEMPOTENCY_MISMATCH")
    assert (await sold.door.acquire("seats", idempotency_key="k", ttl=ttl)).check.replayed


async def test_neighbouring_parameters_do_not_run_together(sold: Service) -> None:
    releases = '{"1": 2025-01-01, "10": 2025-01-02}'
    await sold.apply(
        f"version: 1\nproducts: [{{key: p, releases: {releases}}}]\n"
        "features: [{key: pseats, product: p}]\naccounts: [{key: multi, entitlements: "
        "[{feature: pseats, model: concurrent, seats: 9}]}]\n"
    )
    asked = {"customer": "multi", "idempotency_key": "k"}
    await sold.door.acquire("pseats", "0a", product_version="1", **asked)
    found = await sold.fault(sold.door.acquire("pseats", "a", product_version="10", **asked))
    assert found.named == (INVALID, "IDEMPOTENCY_MISMATCH")


# -- reservations


async def test_a_reservation_is_held_then_settled(sold: Service) -> None:
    held = await sold.door.reserve("api.calls", 6)
    assert (held.check.granted, held.check.limits[0].held) == (6, 6)
    assert held.expires_at.ToMilliseconds() == sold.clock.now + 60_000
    assert not (await sold.door.check("api.calls", 5)).allowed
    found = await sold.fault(sold.door.commit(held.reservation, 7))
    assert found.named == (INVALID, "COMMIT_EXCEEDS_RESERVATION")
    assert found.metadata == {"held": "6"}
    found = await sold.fault(sold.door.commit(held.reservation, -1))
    assert found.named == (INVALID, "BAD_QUANTITY")
    done = await sold.door.commit(held.reservation, 2)
    assert (done.committed, done.released, done.replayed) == (2, 4, False)
    (limit,) = (await sold.door.balance("api.calls")).limits
    assert (limit.used, limit.held, limit.remaining) == (2, 0, 8)
    again = await sold.door.commit(held.reservation, 2)
    assert again.replayed
    assert (again.committed, again.released, again.record) == (2, 4, done.record)


async def test_a_reservation_is_settled_one_way_only(sold: Service) -> None:
    held = await sold.door.reserve("api.calls", 6)
    await sold.door.commit(held.reservation, 2)
    for call in (
        sold.door.commit(held.reservation, 3),
        sold.door.commit(held.reservation),
        sold.door.release(held.reservation),
    ):
        assert (await sold.fault(call)).named == (NOT_NOW, "RESERVATION_SETTLED")
    given_back = await sold.door.reserve("api.calls", 3)
    assert (await sold.door.release(given_back.reservation)).released == 3
    again = await sold.door.release(given_back.reservation)
    assert (again.released, again.replayed) == (3, True)
    for quantity in (None, 0, 1):
        found = await sold.fault(sold.door.commit(given_back.reservation, quantity))
        assert found.named == (NOT_NOW, "RESERVATION_SETTLED")
    assert remaining(await sold.door.balance("api.calls")) == [8]


async def test_a_reservation_ends_by_itself(sold: Service) -> None:
    held = await sold.door.reserve("api.calls", 6, ttl=Duration(seconds=5))
    sold.clock.forward(4_999)
    await sold.tick()
    assert remaining(await sold.door.balance("api.calls")) == [4]
    sold.clock.forward(1)
    found = await sold.fault(sold.door.commit(held.reservation))
    assert found.named == (MISSING, "RESERVATION_NOT_FOUND")
    await sold.tick()
    assert remaining(await sold.door.balance("api.calls")) == [10]
    found = await sold.fault(sold.door.release(held.reservation))
    assert found.named == (MISSING, "RESERVATION_NOT_FOUND")


async def test_a_reservation_may_be_denied_or_partial(sold: Service) -> None:
    denied = await sold.door.reserve("api.calls", 11)
    assert (denied.reservation, denied.check.reason) == ("", pb.REASON_QUOTA_EXCEEDED)
    assert not denied.HasField("expires_at")
    partial = await sold.door.reserve("api.calls", 11, mode=pb.MODE_BEST_EFFORT)
    assert partial.check.granted == 10
    assert (await sold.door.commit(partial.reservation, 0)).released == 10


async def test_a_reservation_spends_the_tokens_of_a_rate_at_once(sold: Service) -> None:
    held = await sold.door.reserve("speed", 20)
    assert (await sold.door.release(held.reservation)).released == 20
    assert remaining(await sold.door.balance("speed")) == [0]


# -- leases


async def test_full_seats_refuse_until_one_is_free(sold: Service) -> None:
    first, second = await sold.door.acquire("seats"), await sold.door.acquire("seats")
    assert first.lease.started_at.ToMilliseconds() == sold.clock.now
    assert first.lease.expires_at.ToMilliseconds() == sold.clock.now + 10_000
    refused = await sold.door.acquire("seats")
    assert (refused.check.allowed, refused.check.reason) == (False, pb.REASON_NO_SEATS)
    assert not refused.HasField("lease")
    assert (await sold.door.stand_up(first.lease.token)).released
    again = await sold.door.stand_up(first.lease.token)
    assert (again.released, again.HasField("record")) == (False, False)
    assert (await sold.door.acquire("seats")).check.allowed
    sold.clock.forward(9_000)
    renewed = (await sold.door.renew(second.lease.token, ttl=Duration(seconds=20))).lease
    assert renewed.expires_at.ToMilliseconds() == sold.clock.now + 20_000
    assert (renewed.id, renewed.token) == (second.lease.id, second.lease.token)


async def test_a_lease_that_was_not_renewed_is_gone(sold: Service) -> None:
    taken = [await sold.door.acquire("seats") for _ in range(2)]
    sold.clock.forward(9_999)
    assert not (await sold.door.acquire("seats")).check.allowed
    sold.clock.forward(1)
    found = await sold.fault(sold.door.renew(taken[0].lease.token))
    assert found.named == (NOT_NOW, "LEASE_EXPIRED")
    assert not (await sold.door.stand_up(taken[1].lease.token)).released
    await sold.tick()
    assert (await sold.door.leases("seats")).leases == []
    assert (await sold.door.acquire("seats")).check.allowed
    found = await sold.fault(sold.door.renew(taken[0].lease.token))
    assert found.named == (NOT_NOW, "LEASE_EXPIRED")


async def test_a_lease_is_renewed_for_as_long_as_it_was_taken(sold: Service) -> None:
    taken = await sold.door.acquire("seats", ttl=Duration(seconds=77))
    sold.clock.forward(5_000)
    renewed = await sold.door.renew(taken.lease.token)
    before = taken.lease.expires_at.ToMilliseconds()
    assert renewed.lease.expires_at.ToMilliseconds() == before + 5_000


async def test_a_named_user_counts_once(sold: Service) -> None:
    found = await sold.fault(sold.door.acquire("editors"))
    assert found.named == (INVALID, "HOLDER_REQUIRED")
    found = await sold.fault(sold.door.acquire("editors", "h" * 257))
    assert found.named == (INVALID, "HOLDER_REQUIRED")
    ann = [await sold.door.acquire("editors", "ann") for _ in range(5)]
    assert all(one.check.allowed for one in ann)
    assert (await sold.door.balance("editors")).limits[0].held == 1
    assert (await sold.door.acquire("editors", "bob")).check.allowed
    assert (await sold.door.acquire("editors", "eve")).check.reason == pb.REASON_NO_SEATS
    for one in ann[:4]:
        await sold.door.stand_up(one.lease.token)
    assert not (await sold.door.acquire("editors", "eve")).check.allowed
    await sold.door.stand_up(ann[4].lease.token)
    assert (await sold.door.acquire("editors", "eve")).check.allowed


async def test_a_device_stays_bound(sold: Service) -> None:
    found = await sold.fault(sold.door.acquire("machines"))
    assert found.named == (INVALID, "HOLDER_REQUIRED")
    one = await sold.door.acquire("machines", "pc-1")
    await sold.door.acquire("machines", "pc-2")
    assert not (await sold.door.acquire("machines", "pc-3")).check.allowed
    await sold.door.stand_up(one.lease.token)
    assert not (await sold.door.acquire("machines", "pc-3")).check.allowed
    one = await sold.door.acquire("machines", "pc-1")
    assert one.check.allowed
    assert (await sold.door.stand_up(one.lease.token, unbind=True)).released
    assert (await sold.door.acquire("machines", "pc-3")).check.allowed
    assert not (await sold.door.acquire("machines", "pc-1")).check.allowed


async def test_leases_are_listed_by_their_end_page_by_page(sold: Service) -> None:
    await sold.apply(
        "version: 1\naccounts: [{key: initech, entitlements: [{feature: seats, model: concurrent,"
        " seats: 9}], nodes: [{key: initech-ann}]}]\n"
    )
    made = []
    for seconds in (50, 20, 40, 30, 10):
        node = "initech-ann" if seconds > 30 else "initech"
        ttl = Duration(seconds=seconds)
        made.append((await sold.door.acquire("seats", str(seconds), customer=node, ttl=ttl)).lease)
    token, seen = "", []
    while True:
        page = await sold.door.leases("seats", customer="initech", page_size=2, page_token=token)
        assert len(page.leases) <= 2
        assert not any(lease.token for lease in page.leases)
        seen += list(page.leases)
        token = page.next_page_token
        if not token:
            break
    assert [lease.holder for lease in seen] == ["10", "20", "30", "40", "50"]
    assert {lease.id for lease in seen} == {lease.id for lease in made}
    assert seen[-1].customer == "initech-ann"
    below = await sold.door.leases("seats", customer="initech-ann")
    assert [lease.holder for lease in below.leases] == ["40", "50"]
    for fields in ({"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}):
        bad: dict[str, Any] = fields
        found = await sold.fault(sold.door.leases("seats", **bad))
        assert found.named == (INVALID, "BAD_PAGE")


async def test_only_seats_are_leased(sold: Service) -> None:
    found = await sold.fault(sold.door.acquire("api.calls"))
    assert found.named == (INVALID, "MODE_NOT_SUPPORTED")
    denied = await sold.door.acquire("tree")
    assert denied.check.reason == pb.REASON_NOT_ENTITLED


MAINTAINED = """
version: 1
products: [{key: suite, releases: {"1.0": 2025-01-15}}]
features: [{key: suite.seats, product: suite}]
accounts:
  - key: initrode
    entitlements: [{feature: suite.seats, model: concurrent, seats: 5, maintenance_until: 2026-02-01}]
"""


async def test_a_lease_lives_on_without_the_version_that_took_it(service: Service) -> None:
    await service.apply(MAINTAINED)
    other = await service.another_door()
    asked: dict[str, Any] = {"customer": "initrode", "product_version": "1.0"}
    seat = await service.door.acquire("suite.seats", **asked)
    assert (await other.renew(seat.lease.token)).lease.id == seat.lease.id
    for seats in (6, 7):
        await service.apply(MAINTAINED.replace("seats: 5", f"seats: {seats}"))
        for door in (service.door, other):
            assert (await door.renew(seat.lease.token)).lease.id == seat.lease.id
            assert len((await door.leases("suite.seats", customer="initrode")).leases) == 1


async def test_a_heartbeat_does_not_read_the_definitions(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.apply(MAINTAINED)
    asked: dict[str, Any] = {"customer": "initrode", "product_version": "1.0"}
    seat = await service.door.acquire("suite.seats", **asked)
    await service.door.renew(seat.lease.token)

    async def away(*_: Any) -> Any:
        raise DefinitionsUnavailableError("the definitions' database does not answer")

    for name in ("resolve_all", "feature"):
        monkeypatch.setattr(service.definitions, name, away)
    assert (await service.door.renew(seat.lease.token)).lease.id == seat.lease.id
    found = await service.fault(service.door.check("suite.seats", customer="unknown"))
    assert found.named == ("UNAVAILABLE", "DEFINITIONS_UNAVAILABLE")


async def test_a_suspension_ends_leases_at_their_next_heartbeat(sold: Service) -> None:
    seat = await sold.door.acquire("seats")
    await sold.apply(CATALOG.replace("- key: acme", "- key: acme\n    suspended: true"))
    found = await sold.fault(sold.door.renew(seat.lease.token))
    assert found.named == (NOT_NOW, "LEASE_REVOKED")
    assert found.metadata == {"because": "SUSPENDED"}
    await sold.apply(CATALOG)
    found = await sold.fault(sold.door.renew(seat.lease.token))
    assert found.named == (NOT_NOW, "LEASE_EXPIRED")


# -- what changes counts from the next check, at every door


async def test_a_change_counts_from_the_next_check_at_every_door(sold: Service) -> None:
    other = await sold.another_door()
    doors = (sold.door, other)
    for door in doors:
        assert (await door.check("api.calls", 5)).allowed
        assert (await door.check("words", 2)).allowed
        assert not (await door.check("api.calls", 6)).allowed
    raised = CATALOG.replace("limit: 10, per: day}", "limit: 12, per: day}", 1)
    await sold.apply(raised)
    for door in (other, sold.door):
        assert (await door.check("api.calls")).allowed
    assert not (await other.check("api.calls")).allowed
    topped = raised.replace(
        "{key: welcome, amount: 5}", "{key: welcome, amount: 5}, {key: more, amount: 7}"
    )
    await sold.apply(topped)
    answer = await other.check("words", 8)
    assert [(one.id, one.drawn) for one in answer.limits] == [
        ("words:credits/welcome", 1),
        ("words:credits/more", 7),
    ]
    await sold.apply(topped.replace("- key: acme", "- key: acme\n    suspended: true"))
    for door in (other, sold.door):
        assert (await door.check("reports")).reason == pb.REASON_SUSPENDED
        assert (await door.check("api.calls")).reason == pb.REASON_SUSPENDED
    await sold.apply(topped)
    assert (await other.check("reports")).allowed


async def test_a_new_cap_above_counts_from_the_next_check_at_every_door(sold: Service) -> None:
    other = await sold.another_door()
    for door in (sold.door, other):
        assert (await door.check("tree", customer="globex-ann")).allowed
        assert (await door.check("tree", customer="globex-bob")).allowed
    cap = "limit: 10, per: day}\n      - {feature: tree, model: quota, limit: 3, per: day}"
    at = CATALOG.index("- key: globex")
    await sold.apply(CATALOG[:at] + CATALOG[at:].replace("limit: 10, per: day}", cap, 1))
    assert (await other.check("tree", 2, customer="globex-ann")).allowed
    denied = await other.check("tree", 2, customer="globex-bob")
    assert denied.reason == pb.REASON_CAP_REACHED
    assert denied.limits[0].customer == "globex"
    assert (await sold.door.check("tree", 2, customer="globex-bob")).reason == pb.REASON_CAP_REACHED


async def test_errors_too_follow_a_change_at_every_door(sold: Service) -> None:
    other = await sold.another_door()
    # The other door learns everything as it is first.
    for feature in ("reports", "api.calls"):
        assert (await other.check(feature)).allowed
    await other.acquire("seats")
    await sold.fault(other.check("studio.pro"))
    await sold.fault(other.check("studio.pro", product_version="1.1"))
    await sold.apply(
        CATALOG.replace('"1.0": 2025-01-15', '"1.0": 2025-01-15, "1.1": 2025-02-15')
        .replace("{feature: reports, model: boolean}", "{feature: reports, model: concurrent, seats: 1}")
        .replace("{feature: seats, model: concurrent, seats: 2, ttl: 10s}", "{feature: seats, model: quota, limit: 1, per: day}")
    )  # fmt: skip
    assert (await other.check("studio.pro", product_version="1.1")).allowed
    assert (await other.acquire("reports")).check.allowed
    assert (await other.check("seats")).allowed


async def test_a_feature_for_every_version_needs_none_at_every_door(sold: Service) -> None:
    other = await sold.another_door()
    found = await sold.fault(other.check("studio.pro"))
    assert found.reason == "PRODUCT_VERSION_REQUIRED"
    await sold.apply(CATALOG.replace(", maintenance_until: 2026-02-01", ""))
    assert (await other.check("studio.pro")).allowed


async def test_a_door_that_missed_the_end_of_a_suspension_ends_no_lease(sold: Service) -> None:
    other = await sold.another_door()
    await sold.apply(CATALOG.replace("- key: acme", "- key: acme\n    suspended: true"))
    denied = await other.acquire("seats")
    assert denied.check.reason == pb.REASON_SUSPENDED
    await sold.apply(CATALOG)
    seat = await sold.door.acquire("seats")
    assert (await other.renew(seat.lease.token)).lease.id == seat.lease.id
    assert (await sold.door.renew(seat.lease.token)).lease.id == seat.lease.id


async def test_a_period_turns_between_two_checks(sold: Service) -> None:
    other = await sold.another_door()
    for door in (sold.door, other):
        await door.check("api.calls", 5)
    sold.clock.to(ms(2026, 6, 11) - 1)
    denied = await sold.door.check("api.calls")
    assert denied.reason == pb.REASON_QUOTA_EXCEEDED
    assert denied.retry_after.ToMilliseconds() == 1
    assert not (await other.check("api.calls")).allowed
    sold.clock.forward(1)
    for door, left in ((other, 9), (sold.door, 8)):
        answer = await door.check("api.calls")
        assert remaining(answer) == [left]
        assert answer.limits[0].resets_at.ToMilliseconds() == ms(2026, 6, 12)


# -- what answers tell


async def test_product_versions(sold: Service) -> None:
    assert (await sold.door.check("studio.pro", product_version="1.0")).allowed
    denied = await sold.door.check("studio.pro", product_version="2.0")
    assert denied.reason == pb.REASON_VERSION_NOT_COVERED
    balance = await sold.door.balance("studio.pro", product_version="1.0")
    assert balance.allowed
    found = await sold.fault(sold.door.balance("studio.pro"))
    assert found.named == (INVALID, "PRODUCT_VERSION_REQUIRED")
    assert found.metadata == {"feature": "studio.pro"}
    found = await sold.fault(sold.door.check("studio.pro", product_version="3.0"))
    assert "1.0, 2.0" in found.message


async def test_a_config_hands_its_value_back(sold: Service) -> None:
    assert (await sold.door.check("resolution")).config_value == "1080"
    assert (await sold.door.balance("resolution")).config_value == "1080"
    await sold.apply(CATALOG.replace("value: 1080", 'value: "4K"'))
    assert (await sold.door.check("resolution")).config_value == '"4K"'


async def test_tiers_are_named_and_notify(sold: Service) -> None:
    told = []
    for quantity in (10, 4, 6, 2):
        answer = await sold.door.check("tiers", quantity)
        assert answer.allowed
        told.append((answer.tier, answer.notify))
    assert told == [("included", False), ("growth", True), ("growth", True), ("slow", False)]
    denied = await sold.door.check("tiers")
    assert (denied.reason, denied.tier) == (pb.REASON_TIER_LIMIT_REACHED, "slow")
    assert denied.retry_after.ToMilliseconds() == 100
    sold.clock.forward(100)
    assert (await sold.door.check("tiers")).allowed
    for _ in range(7):
        sold.clock.forward(100)
        assert (await sold.door.check("tiers")).allowed
    sold.clock.forward(1_000)
    denied = await sold.door.check("tiers")
    assert denied.retry_after.ToMilliseconds() == ms(2026, 7, 1) - sold.clock.now


async def test_retry_after_is_when_a_check_passes(sold: Service) -> None:
    await sold.door.check("speed", 20)
    denied = await sold.door.check("speed", 5)
    assert denied.reason == pb.REASON_RATE_LIMITED
    assert denied.retry_after.ToMilliseconds() == 500
    sold.clock.forward(499)
    assert not (await sold.door.check("speed", 5)).allowed
    sold.clock.forward(1)
    assert (await sold.door.check("speed", 5)).allowed
    assert not (await sold.door.check("speed", 21)).HasField("retry_after")
    await sold.door.check("window", 10)
    denied = await sold.door.check("window", 10)
    sold.clock.forward(denied.retry_after.ToMilliseconds())
    assert (await sold.door.check("window", 10)).allowed
    for feature, quantity in (("exports", 6), ("words", 6), ("soon", 1), ("api.calls", 11)):
        assert not (await sold.door.check(feature, quantity)).HasField("retry_after"), feature


async def test_retry_after_minds_every_limit(service: Service) -> None:
    await service.apply(
        "version: 1\nfeatures: [{key: both}, {key: over}]\naccounts: [{key: acme, entitlements: ["
        "{feature: both, model: rate, limit: 1, per: 1s},"
        "{feature: both, model: quota, limit: 1, per: day},"
        "{feature: over, model: quota, limit: 10, overage: 5, per: day}]}]\n"
    )
    midnight = ms(2026, 6, 11) - service.clock.now
    await service.door.check("both")
    denied = await service.door.check("both")
    assert denied.reason == pb.REASON_RATE_LIMITED
    assert denied.retry_after.ToMilliseconds() == midnight
    await service.door.check("over", 4)
    denied = await service.door.check("over", 12)
    assert denied.retry_after.ToMilliseconds() == midnight
    assert not (await service.door.check("over", 16)).HasField("retry_after")


async def test_a_shadow_limit_tells_and_does_not_deny(service: Service) -> None:
    await service.apply(
        "version: 1\nfeatures: [{key: calls}]\naccounts: [{key: acme, entitlements: ["
        "{feature: calls, model: quota, limit: 10, per: day},"
        "{feature: calls, key: planned, model: quota, limit: 2, per: day, shadow: true}]}]\n"
    )
    first = await service.door.check("calls", 2)
    assert not first.shadow
    second = await service.door.check("calls", 2)
    assert (second.allowed, second.shadow) == (True, True)
    limits = {limit.id: limit for limit in second.limits}
    assert (limits["planned"].shadow, limits["planned"].denied) == (True, True)
    assert (limits["calls:quota"].shadow, limits["calls:quota"].denied) == (False, False)
    denied = await service.door.check("calls", 7)
    assert denied.reason == pb.REASON_QUOTA_EXCEEDED
    assert denied.retry_after.ToMilliseconds() == ms(2026, 6, 11) - service.clock.now


async def test_grace_then_the_free_offer(service: Service) -> None:
    await service.apply(
        "version: 1\nfeatures: [{key: trial}, {key: only}]\naccounts: [{key: acme, entitlements: ["
        "{feature: trial, model: quota, limit: 100, per: total, license: trial, start: 2026-06-01,"
        " end: 2026-06-12, grace: 2d},"
        "{feature: trial, key: free, model: quota, limit: 1, per: day, license: perpetual, fallback: true},"
        "{feature: only, model: boolean, license: trial, end: 2026-06-12}]}]\n"
    )
    answer = await service.door.check("trial", 5)
    assert ([one.id for one in answer.limits], answer.grace) == (["trial:quota"], False)
    service.clock.to(ms(2026, 6, 12))
    answer = await service.door.check("trial", 5)
    assert (answer.allowed, answer.grace) == (True, True)
    assert (await service.door.balance("trial")).grace
    assert (await service.door.check("only")).reason == pb.REASON_TRIAL_EXPIRED
    service.clock.to(ms(2026, 6, 14))
    answer = await service.door.check("trial")
    assert ([one.id for one in answer.limits], answer.grace) == (["free"], False)
    assert not (await service.door.check("trial")).allowed


async def test_a_balance_changes_nothing(sold: Service) -> None:
    await sold.door.check("api.calls", 3)
    before = await sold.counted(), await sold.last_records()
    for feature in ("api.calls", "words", "speed", "window", "tiers", "editors", "reports", "tree"):
        for _ in range(3):
            balance = await sold.door.balance(feature)
            assert balance.allowed == (feature != "tree")
            assert not any(limit.drawn for limit in balance.limits)
    assert remaining(await sold.door.balance("api.calls")) == [7]
    assert remaining(await sold.door.balance("speed")) == [20]
    assert (await sold.counted(), await sold.last_records()) == before
    await sold.door.check("api.calls", 7)
    balance = await sold.door.balance("api.calls")
    assert (balance.allowed, balance.reason) == (False, pb.REASON_QUOTA_EXCEEDED)
    sold.clock.forward(2_000)
    await sold.tick()
    assert sum(await sold.last_records()) == sum(before[1]) + 1


# -- usage from elsewhere


def event(key: str, feature: str = "api.calls", **more: Any) -> usage_pb2.UsageEvent:
    fields: dict[str, Any] = {"customer": "acme", **more}
    return usage_pb2.UsageEvent(idempotency_key=key, feature=feature, **fields)


async def report(service: Service, *events: usage_pb2.UsageEvent) -> list[usage_pb2.EventOutcome]:
    request = usage_pb2.ReportRequest(events=events)
    return list((await service.door.call(service.door.usage.Report, request)).outcomes)


def ago(milliseconds: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(time.time_ns() // 1_000_000 - milliseconds)
    return stamp


async def test_reported_usage_counts_once_and_past_limits(sold: Service) -> None:
    events = [event("a", quantity=8), event("b", quantity=4), event("a", quantity=8)]
    first = await report(sold, *events)
    assert [(one.accepted, one.replayed, one.overage) for one in first] == [
        (True, False, 0),
        (True, False, 2),
        (True, True, 0),
    ]
    assert (first[0].generation, first[0].sequence) == (first[2].generation, first[2].sequence)
    again = await report(sold, *events)
    assert all(one.replayed for one in again)
    assert [one.sequence for one in again] == [one.sequence for one in first]
    assert (await sold.door.balance("api.calls")).limits[0].used == 12
    (other,) = await report(sold, event("a", quantity=9))
    assert (other.accepted, other.code, other.reason) == (False, 3, "IDEMPOTENCY_MISMATCH")


async def test_a_bad_event_does_not_stop_its_neighbours(sold: Service) -> None:
    outcomes = await report(
        sold,
        event("1"),
        event(""),
        event("2", quantity=0),
        event("3", feature="nothing"),
        event("4", customer="nobody"),
        event("5", feature="reports"),
        event("6", feature="seats"),
        event("7", feature="soon"),
        event("8", feature="tree"),
        event("9", occurred_at=ago(DAY + 60_000)),
        event("10", occurred_at=ago(-6 * 60_000)),
        event("11", occurred_at=Timestamp(seconds=2**62)),
        event("12", occurred_at=Timestamp(seconds=1, nanos=-5)),
        event("13", dimensions={"": ""}),
        event("14", occurred_at=ago(DAY - 60_000)),
        event("15", occurred_at=ago(-60_000)),
    )
    assert [one.reason for one in outcomes] == [
        "",
        "BAD_IDEMPOTENCY_KEY",
        "BAD_QUANTITY",
        "UNKNOWN_FEATURE",
        "UNKNOWN_CUSTOMER",
        "MODE_NOT_SUPPORTED",
        "MODE_NOT_SUPPORTED",
        "MODE_NOT_SUPPORTED",
        "NOT_ENTITLED",
        "BAD_TIME",
        "BAD_TIME",
        "BAD_TIME",
        "BAD_TIME",
        "BAD_DIMENSIONS",
        "",
        "",
    ]
    assert all(one.accepted == (not one.reason) == (not one.code) for one in outcomes)
    assert all(one.message for one in outcomes if one.reason)
    for count in (0, 1001):
        found = await sold.fault(report(sold, *[event("x")] * count))
        assert found.named == (INVALID, "BAD_BATCH")


# -- for operators


async def test_health_and_reflection_answer_without_a_key(sold: Service) -> None:
    health: Any = health_pb2_grpc.HealthStub(sold.door.channel)  # type: ignore[no-untyped-call, unused-ignore]
    names = ["enforcer.v1.EnforcerService", "enforcer.v1.CatalogService"]
    names += ["meter.v1.UsageService", "meter.v1.ReportService"]
    for name in ("", *names):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await sold.door.server.ready(serving=False)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(sold.door.channel)  # type: ignore[no-untyped-call, unused-ignore]
    asked = reflection_pb2.ServerReflectionRequest(list_services="*")
    found = [
        {one.name for one in answer.list_services_response.service}
        async for answer in reflection.ServerReflectionInfo(iter([asked]), timeout=30)
    ]
    assert {*names, "grpc.health.v1.Health"} <= found[0]
