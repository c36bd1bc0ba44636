"""A real Prometheus watches a real gateway: every rule is evaluated, every query of a dashboard finds what it asks for."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1 import enforcer_pb2_grpc
from meter.metrics import RelayMetrics
from meter.v1 import report_pb2, report_pb2_grpc
from tests.fixtures.prometheus import DEPLOY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.prometheus import Prometheus
    from tests.fixtures.stack import Stack

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus" / "rules"
LONG_ENOUGH = 90.0
EMPTY_IN_HEALTH = ("meter_bucket_held",)
"""Metrics of which nothing is there in a gateway that is well: buckets that were never held at a gap."""
CATALOG = """\
version: 1
features:
  - {key: watched.calls, unit: call}
  - {key: watched.soft, unit: call}
  - {key: watched.free}
  - {key: watched.size}
  - {key: watched.seats, unit: seat}
accounts:
  - key: watched
    entitlements:
      - {feature: watched.calls, model: quota, limit: 3, per: total}
      - {feature: watched.soft, model: quota, limit: 1, per: total, hard: false}
      - {feature: watched.free, model: boolean}
      - {feature: watched.size, model: config, value: 1}
      - {feature: watched.seats, model: concurrent, seats: 2, mode: floating, ttl: 1h}
"""
ITEMS = ("watched.free", "watched.calls", "watched.soft", "no.such.feature")


@pytest.fixture(scope="module")
def watched(stack: Stack, prometheus: Prometheus) -> Iterator[Prometheus]:
    """Prometheus with the rules as they are delivered, only more eager, over the gateway and what stands for a relay."""
    stack.apply(CATALOG)
    registry = CollectorRegistry()
    relay = RelayMetrics(registry)
    relay.waiting.set(0)
    relay.buckets.set(8)
    relay.depends("kafka", up=True)
    http, thread = start_http_server(0, "127.0.0.1", registry)
    relay_port = http.server_port
    targets = {"metergate": stack.http.removeprefix("http://"), "relay": f"127.0.0.1:{relay_port}"}
    prometheus.start(
        {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "*.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [target]}]}
                for name, target in targets.items()
            ],
        }
    )
    try:
        yield prometheus
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def metadata(stack: Stack) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {stack.api_key}"),)


async def traffic(stack: Stack, rounds: int = 2) -> None:
    """Answers of each kind: allowed, denied, past a limit, a seat, single checks that fail, a question to the meter."""
    for _ in range(rounds):
        # A connection each: workers get some of them.
        async with grpc.aio.insecure_channel(stack.endpoint) as channel:
            ask: Any = enforcer_pb2_grpc.EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            report: Any = report_pb2_grpc.ReportServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            checks = [pb.CheckRequest(customer="watched", feature=one) for one in ITEMS]
            batch = pb.CheckBatchRequest(items=checks)
            await ask.CheckBatch(batch, metadata=metadata(stack), timeout=30)
            await ask.Check(checks[0], metadata=metadata(stack), timeout=30)
            with pytest.raises(grpc.aio.AioRpcError):
                await ask.Check(checks[3], metadata=metadata(stack), timeout=30)
            seat = pb.AcquireLeaseRequest(customer="watched", feature="watched.seats")
            await ask.AcquireLease(seat, metadata=metadata(stack), timeout=30)
            question = report_pb2.QueryUsageRequest(meter="watched.soft")
            await report.QueryUsage(question, metadata=metadata(stack), timeout=30)


def queries() -> dict[str, str]:
    """Of all dashboards, by where they stand."""
    found = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                place = f"{path.stem} {panel['id']}: {panel['title']} {target['refId']}"
                assert place not in found
                found[place] = target["expr"]
    return found


def runnable(expr: str) -> str:
    """As Grafana asks, but without what stands in for missing data."""
    asked = expr.replace("$__rate_interval", "30s").replace("$job", ".+")
    assert "$" not in asked, f"{expr}: a variable that only Grafana knows"
    return asked.removesuffix(" or vector(0)")


def until_found(stack: Stack, server: Prometheus, wanted: dict[str, str]) -> dict[str, str]:
    """Ask until each has an answer; return those without one."""
    give_up = time.monotonic() + LONG_ENOUGH
    while True:
        asyncio.run(traffic(stack))
        wanted = {place: expr for place, expr in wanted.items() if not server.query(expr)}
        if not wanted or time.monotonic() > give_up:
            return wanted


def test_every_query_of_the_dashboards_returns_data(stack: Stack, watched: Prometheus) -> None:
    asked = {place: runnable(expr) for place, expr in queries().items()}
    assert len(asked) > 60
    quiet = {place for place, expr in asked.items() if any(one in expr for one in EMPTY_IN_HEALTH)}
    for place in quiet:
        watched.query(asked.pop(place))  # is understood
    assert until_found(stack, watched, asked) == {}


def test_every_rule_is_evaluated_and_what_is_recorded_is_there(
    stack: Stack, watched: Prometheus
) -> None:
    def rules() -> list[dict[str, Any]]:
        return [one for group in watched.get("rules")["groups"] for one in group["rules"]]

    recorded = {one["name"] for one in rules() if one["type"] == "recording"}
    assert len(recorded) > 20
    assert until_found(stack, watched, {name: name for name in recorded}) == {}
    for one in rules():
        assert one["health"] == "ok", f"{one['name']}: {one.get('lastError')}"


def test_what_happened_is_told_by_the_numbers(stack: Stack, watched: Prometheus) -> None:
    """Most counters begin at 0, so that a query finds something in any case."""
    happened = (
        'enforcer_over_use_units_total{mode="ENFORCE"} > 0',
        'enforcer_check_faults_total{code="NOT_FOUND"} > 0',
        'enforcer_decisions_total{model="quota",reason="QUOTA_EXCEEDED"} > 0',
        'enforcer_decisions_total{model="concurrent",reason="ALLOWED"} > 0',
        'enforcer_account_decisions_total{account="demo/watched",outcome="denied"} > 0',
        'meter_rpcs_total{code="OK",method="meter.v1.ReportService/QueryUsage"} > 0',
        "enforcer_leases > 0",
        "meter_records_rolled_total > 0",
        "time() - meter_fresh_timestamp_seconds < 60",
        "time() - enforcer_stock_timestamp_seconds < 60",
        "job:enforcer_outbox_age_seconds:max < 60",
        "enforcer_ready == 1",
        'enforcer_dependency_up{dependency="meter"} == 1',
        'meter_dependency_up{dependency="clickhouse"} == 1',
    )
    assert until_found(stack, watched, {one: one for one in happened}) == {}
    wrong = "Drift|GapFound|BucketHeld|NotReady|DependencyAway|BreakerOpen|Absent|Down"
    assert watched.query(f'ALERTS{{alertname=~"Metergate({wrong})"}}') == []


def test_two_workers_are_added_up_once(stack: Stack, watched: Prometheus) -> None:
    kind = 'mode="BEST_EFFORT",model="config",reason="ALLOWED"'
    best_effort = pb.CheckRequest(
        customer="watched", feature="watched.size", mode=pb.MODE_BEST_EFFORT
    )

    async def ask() -> None:
        for _ in range(12):
            async with grpc.aio.insecure_channel(stack.endpoint) as channel:
                stub: Any = enforcer_pb2_grpc.EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
                await stub.Check(best_effort, metadata=metadata(stack), timeout=30)

    def counted() -> float:
        return sum(value for _, value in watched.query(f"sum(enforcer_decisions_total{{{kind}}})"))

    before = counted()
    asyncio.run(ask())
    give_up = time.monotonic() + LONG_ENOUGH
    while (now := counted()) < before + 12:
        assert time.monotonic() < give_up, f"{now - before} of 12 are counted"
        time.sleep(0.2)
    assert now == before + 12


def test_what_is_shown_keeps_to_the_forms_and_bounds_of_the_catalogue(
    stack: Stack, watched: Prometheus, promtool: str
) -> None:
    with urllib.request.urlopen(f"{stack.http}/metrics", timeout=10) as answer:  # noqa: S310
        text = answer.read()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    customers = re.findall(rb'="[^"]*watched[^"]*"', text)
    assert set(customers) <= {b'="demo/watched"'}, "an account at most, never a customer's feature"
    assert watched.query('count({job="metergate"})')[0][1] < 2_000
