"""One trace id from a product's code to the rollup of the record in ClickHouse, through a real gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from enforcer.client import Client
from enforcer.client.otel import OpenTelemetryObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.collector import Collector, Span
    from tests.fixtures.stack import Stack


class Sent(NamedTuple):
    """The client's span of a check."""

    trace: str
    id: str


async def ask(stack: Stack) -> tuple[set[str], Sent]:
    """Ask once in a trace, and twice with one key in two others; return all three, and what was sent first."""
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("a product")
    observer = OpenTelemetryObserver(tracer_provider=provider)
    async with Client(stack.endpoint, stack.api_key, observers=[observer]) as client:
        with tracer.start_as_current_span("somebody clicks"):
            assert await client.check("acme", "api.calls")
        for again in (False, True):
            with tracer.start_as_current_span("somebody clicks twice"):
                verdict = await client.check("acme", "api.calls", 3, key="order-1")
                assert verdict.allowed
                assert verdict.replayed is again, "another trace id is no other check"
    provider.shutdown()
    contexts: list[Any] = [one.context for one in spans.get_finished_spans()]
    sent, clicked = contexts[:2]
    assert spans.get_finished_spans()[0].parent == clicked
    ids = {f"{one.trace_id:032x}" for one in contexts}
    assert len(ids) == 3
    return ids, Sent(f"{sent.trace_id:032x}", f"{sent.span_id:016x}")


def named(spans: list[Span], trace: str, name: str) -> Span:
    (found,) = [span for span in spans if span.trace == trace and span.name == name]
    return found


async def follow(stack: Stack, collector: Collector, roles: list[str]) -> None:
    traces, sent = await ask(stack)
    trace = sent.trace
    wanted = {*(f"{role} record" for role in roles), "FCALL decide"}
    spans = collector.wait_for(
        lambda found: (
            wanted <= {span.name for span in found if span.trace == trace}
            and {"commit", "rollup"} <= {span.name for span in found}
        )
    )
    call = named(spans, trace, "enforcer.v1.EnforcerService/Check")
    assert (call.parent, call.service, call.kind) == (sent.id, "metergate-enforcer", 2)
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert call.attributes["metergate.tenant"] == "demo"
    store = named(spans, trace, "FCALL decide")
    assert store.parent == call.id
    assert store.attributes["db.operation.batch.size"] == 1
    for role in roles:
        record = named(spans, trace, f"{role} record")
        assert (record.parent, record.service) == (call.id, f"metergate-{role}")
        (batch,) = [span for span in spans if (span.trace, span.id) == record.links[0]]
        assert batch.name == role
        assert (trace, call.id) in batch.links
        stages = {span.name for span in spans if span.parent == batch.id}
        assert role == "relay" or {"store", "claim", "usage", "ledger", "commit"} <= stages
    assert stack.json("check", "acme", "api.calls")["allowed"]
    assert stack.json("usage", "--meter", "api.calls")["total"] == 5
    assert stack.json("audit")["drift"] == []
    assert stack.stop() == 0
    # It has sent what it had. What nobody traces was not traced: the commands of this test.
    spans = collector.spans
    assert {one.trace for one in spans if one.service == "metergate-enforcer"} == traces


async def test_a_check_is_followed_to_the_rollup(
    new_stack: Callable[..., Stack], collector: Collector
) -> None:
    stack = new_stack()
    stack.environment = collector.environment("http/protobuf")
    await follow(stack.start(), collector, ["rollup"])


async def test_a_check_is_followed_through_kafka(
    new_stack: Callable[..., Stack], collector: Collector, kafka_broker: str
) -> None:
    stack = new_stack("data", "--kafka", kafka_broker, "--transport", "grpcio")
    stack.environment = collector.environment("grpc")
    await follow(stack.start(), collector, ["relay", "rollup"])
