"""One span for each traced call of a script call, in that call's trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from enforcer.adapters.counters.spans import MOST_SPANS, StoreSpans
from meter.core.records import Body, encode_body
from meter.core.traced import written


def waiting(since: float, *traceparents: str) -> Any:
    program = SimpleNamespace(bucket=3)
    bodies = [encode_body(Body("t", "a", "c", "f", "m", 1, tp=one)) for one in traceparents]
    group = [SimpleNamespace(program=program, body=body) for body in bodies]
    return SimpleNamespace(group=group, since=since)


def spans_of(*waiting: Any) -> list[Any]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    told = StoreSpans(provider.get_tracer("test"), "redis://user:hunter2@store:7000/0")
    batch: Any = SimpleNamespace(sent=10.0, waiting=list(waiting), order=range(len(waiting)))
    told(batch, 10.25)
    provider.shutdown()
    return list(exporter.get_finished_spans())


def test_each_traced_call_has_one_however_many_checks_it_brought() -> None:
    one, another = written(1, 2), written(3, 4)
    spans = spans_of(
        waiting(9.5, "", one), waiting(9.0, one), waiting(9.9, another), waiting(9.9, "")
    )
    assert [(span.context.trace_id, span.parent.span_id) for span in spans] == [(1, 2), (3, 4)]
    assert [span.attributes["metergate.waited_seconds"] for span in spans] == [1.0, 0.1]
    assert {span.attributes["db.operation.batch.size"] for span in spans} == {5}
    assert all(span.end_time - span.start_time == 250_000_000 for span in spans)
    assert spans[0].attributes["server.address"] == "store"
    assert not any("hunter2" in span.to_json() for span in spans)


def test_a_call_with_many_traced_ones_tells_of_some() -> None:
    many = [written(1, number) for number in range(1, 100)]
    assert len(spans_of(waiting(9.0, *many))) == MOST_SPANS


def test_without_traced_checks_there_is_none() -> None:
    assert spans_of(waiting(9.0, "", "")) == []
