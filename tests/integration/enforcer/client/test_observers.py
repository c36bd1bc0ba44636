"""What a client measures of itself, as Prometheus and OpenTelemetry show it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from enforcer.client import LeaseLostError
from enforcer.client.otel import OpenTelemetryObserver
from enforcer.client.prometheus import PrometheusObserver
from tests.fixtures.fake_gateway import Arrived, FakeGateway, RefusalError

if TYPE_CHECKING:
    from enforcer.client import Observer


async def watched(fake: FakeGateway, observer: Observer) -> None:
    """Three checks at once, one that fails first, a seat that is revoked, and an allowance."""

    async def lose(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")
        if len(fake.calls) == 2:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    fake.before = lose
    async with fake.client(observers=[observer]) as client:
        await asyncio.gather(*(client.check("acme", "f") for _ in range(3)))
        await client.check("acme", "g")
        with pytest.raises(LeaseLostError):
            async with client.lease("acme", "seats"):
                await asyncio.sleep(60)
        fake.supply = 1000
        async with client.allowance("acme", "h", first=10) as allowance:
            assert allowance.take(2)
            assert allowance.take()


async def test_prometheus_counts_attempts_retries_answers_and_lost_seats(
    fake: FakeGateway,
) -> None:
    registry = CollectorRegistry()
    await watched(fake, PrometheusObserver(registry))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"metergate_client_{name}", labels)

    assert value("calls_total", method="CheckBatch", outcome="OK") == 1
    assert value("calls_total", method="Check", outcome="STORE_UNAVAILABLE") == 1
    assert value("calls_total", method="Check", outcome="OK") == 1
    assert value("retries_total", method="Check", reason="STORE_UNAVAILABLE") == 1
    assert value("decisions_total", feature="f", reason="allowed", degraded="false") == 3
    assert value("leases_lost_total", feature="seats", reason="LEASE_REVOKED") == 1
    assert value("checks_per_call_sum") == 5
    assert value("call_seconds_count", method="Check") == 2
    assert value("local_decisions_total", feature="h") == 2
    assert value("allowance_refills_total", feature="h", outcome="allowed") == 1
    assert value("allowance_refill_seconds_count") == 1
    assert value("allowance_returns_total", feature="h") == 1
    assert value("allowance_unreported_total", feature="h") is None


async def test_opentelemetry_has_the_same_figures_and_a_span_for_each_attempt(
    fake: FakeGateway,
) -> None:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    meters, tracers = MeterProvider([reader]), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    await watched(fake, OpenTelemetryObserver(meters, tracers))
    data: Any = reader.get_metrics_data()
    found = {
        metric.name.removeprefix("metergate.client."): {
            tuple(sorted(dict(point.attributes).items())): point
            for point in metric.data.data_points
        }
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    decided = (("degraded", False), ("feature", "f"), ("reason", "allowed"))
    assert found["decisions"][decided].value == 3
    retried = (("reason", "STORE_UNAVAILABLE"), ("rpc.method", "Check"))
    assert found["retries"][retried].value == 1
    lost = (("feature", "seats"), ("reason", "LEASE_REVOKED"))
    assert found["leases_lost"][lost].value == 1
    assert found["checks_per_call"][()].sum == 5
    of_h = (("feature", "h"),)
    assert found["local_decisions"][of_h].value == 2
    assert found["allowance.refills"][*of_h, ("outcome", "allowed")].value == 1
    assert found["allowance.refill.duration"][()].count == 1
    assert found["allowance.returns"][of_h].value == 1
    assert "allowance.unreported" not in found
    ended = [
        (span.name.rpartition("/")[2], span.status.is_ok)
        for span in spans.get_finished_spans()
        if "Check" in span.name
    ]
    assert ended == [("CheckBatch", True), ("Check", False), ("Check", True)]
    assert all(
        span.start_time < span.end_time
        for span in spans.get_finished_spans()
        if span.start_time and span.end_time
    )
    meters.shutdown()
    tracers.shutdown()


async def test_the_context_of_whoever_asks_travels_with_the_attempt(fake: FakeGateway) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("a product")

    async def ask(name: str) -> None:
        with tracer.start_as_current_span(name):
            await client.check("acme", "f")

    async def busy(_: Arrived) -> None:
        if len(fake.calls) == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    fake.before = busy
    async with fake.client(observers=[OpenTelemetryObserver(tracer_provider=provider)]) as client:
        await ask("alone")
        await asyncio.gather(ask("first"), ask("second"), ask("third"))
        await client.check("acme", "g")
    finished: list[Any] = list(spans.get_finished_spans())
    attempts = [span for span in finished if "EnforcerService" in span.name]
    named = {span.name: span.context for span in finished}
    sent = [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}" for span in attempts]
    came = [arrived.metadata["traceparent"][:-3] for arrived in fake.calls]
    assert came == sent, "each attempt has a span of its own"
    failed, again, together, outside = attempts
    assert failed.parent == again.parent == named["alone"]
    assert together.parent == named["first"], "not of the call that made room for it"
    assert [link.context for link in together.links] == [named["second"], named["third"]]
    assert outside.parent is None
    provider.shutdown()


async def test_an_observer_that_fails_to_trace_changes_no_answer(fake: FakeGateway) -> None:
    class Broken(OpenTelemetryObserver):
        def place(self) -> object:
            raise RuntimeError

        def calling(self, method: str, items: int, places: Any) -> Any:
            raise RuntimeError

    async with fake.client(observers=[Broken()]) as client:
        assert await client.check("acme", "f")
    assert "traceparent" not in fake.calls[0].metadata
