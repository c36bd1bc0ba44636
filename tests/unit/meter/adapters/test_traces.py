"""Spans of batches of records, and what OpenTelemetry's variables may say."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import get_contextvars

from meter.adapters.traces import (
    MOST_RECORDS,
    SpannedBatches,
    end_tracing,
    parent_of,
    start_tracing,
)
from meter.core.records import Body, encode_body
from meter.core.sequence import Entry
from meter.core.traced import written
from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan


def record(number: int, traceparent: str = "") -> tuple[int, Entry]:
    return 4, Entry(1, number, encode_body(Body("t", "a", "c", "f", "m", 1, tp=traceparent)), b"")


class Watched:
    def __init__(self) -> None:
        self._exporter, self.provider = InMemorySpanExporter(), TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = SpannedBatches(self.provider.get_tracer("test"))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.provider.shutdown()


def test_a_traced_record_has_a_span_in_its_own_trace_and_links_lead_both_ways(
    watched: Watched,
) -> None:
    records = [record(0), record(1, written(7, 8)), record(2)]
    with watched.traces.batch("rollup", records), watched.traces.stage("usage"):
        logged = get_contextvars()
    (batch,), (one,), (stage,) = map(watched.named, ("rollup", "rollup record", "usage"))
    assert batch.context is not None
    assert one.context is not None
    assert logged["trace_id"] == f"{batch.context.trace_id:032x}"
    assert get_contextvars() == {}
    assert (one.context.trace_id, one.parent and one.parent.span_id) == (7, 8)
    assert dict(one.attributes or {}) == {"metergate.bucket": 4, "metergate.record": "1-1"}
    assert batch.parent is None
    assert [link.context.trace_id for link in batch.links] == [7]
    assert [link.context for link in one.links] == [batch.context]
    assert stage.parent == batch.context


def test_untraced_records_make_no_span(watched: Watched) -> None:
    with watched.traces.batch("rollup", [record(0), record(1)]), watched.traces.stage("usage"):
        pass
    assert not watched.named("rollup")
    assert not watched.named("usage")


def test_a_large_batch_follows_as_many_as_a_span_may_have_links(watched: Watched) -> None:
    many = [record(number, written(7, number + 1)) for number in range(MOST_RECORDS + 5)]
    with watched.traces.batch("relay", many):
        pass
    (batch,) = watched.named("relay")
    assert len(batch.links) == len(watched.named("relay record")) == MOST_RECORDS


def test_a_failure_is_named_and_its_text_kept_out(watched: Watched) -> None:
    def fail() -> None:
        records = [record(1, written(7, 8))]
        with watched.traces.batch("rollup", records), watched.traces.stage("usage"):
            raise ValueError("clickhouse://u:hunter2@host")

    with pytest.raises(ValueError, match="hunter2"):
        fail()
    for name in ("rollup", "rollup record", "usage"):
        (span,) = watched.named(name)
        assert "hunter2" not in span.to_json()
    assert not watched.named("rollup record")[0].status.is_ok


def test_a_trace_that_is_not_wanted_has_no_parent_here() -> None:
    assert parent_of(written(7, 8)[:-1] + "0") is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "thrift"),
    ],
)
def test_a_variable_without_a_meaning_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(MisconfiguredError, match=variable):
        start_tracing("test")


def test_the_service_has_the_name_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    provider = start_tracing("test")
    try:
        assert provider.resource.attributes["service.name"] == "mine"
    finally:
        provider.shutdown()


async def test_a_collector_that_is_away_does_not_hold_up_the_end() -> None:
    class Stuck:
        def __init__(self) -> None:
            self.asked, self.answers = threading.Event(), threading.Event()

        def shutdown(self) -> None:
            self.asked.set()
            self.answers.wait(60)

    stuck: Any = Stuck()
    await end_tracing(stuck, 0.05)
    assert stuck.asked.is_set()
    stuck.answers.set()
