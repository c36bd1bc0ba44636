"""OpenTelemetry: the provider of a process's spans, and spans of batches of records.

A batch has a trace of its own, linked with the calls that its records come from. And each traced record of it has a span
in the trace of its call, linked with the batch: so that whoever looks at one call sees in one trace where its record went.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import structlog

from meter.core.traced import read_traceparent, traceparent_of
from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext, Tracer

    from meter.core.sequence import Entry

__all__ = ["SpannedBatches", "end_tracing", "parent_of", "start_tracing"]

_log = structlog.get_logger(__name__)

PROTOCOLS: Final = {"grpc": "grpc", "http/protobuf": "http"}
END_SECONDS: Final = 3.0
MOST_RECORDS: Final = 128
"""Of a batch: as many links as a span has at most by OpenTelemetry's default."""


def start_tracing(part: str) -> TracerProvider:
    """The provider of this process, which sends to a collector as the variables OTEL_… say; `end_tracing` is owed.

    `part` names the service unless OTEL_SERVICE_NAME does. Raise `MisconfiguredError` without the extra, or when one of the
    variables has no meaning.
    """
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if name not in os.environ:
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = os.environ.get(name, "http/protobuf")
    if protocol not in PROTOCOLS:
        raise MisconfiguredError(f"{name} is {protocol!r}: must be grpc or http/protobuf")
    package = f"opentelemetry.exporter.otlp.proto.{PROTOCOLS[protocol]}.trace_exporter"
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter: Any = import_module(package)
    except ImportError as error:
        raise MisconfiguredError(
            "METERGATE_TRACING needs the extra: pip install 'metergate[otel]'"
        ) from error
    try:
        sender = exporter.OTLPSpanExporter()
    except Exception as error:  # each variable has exceptions of its own
        raise MisconfiguredError(f"OTEL_EXPORTER_OTLP_…: {error}") from error
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", f"metergate-{part}"),
            "service.namespace": "metergate",
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(sender))
    return provider


async def end_tracing(provider: TracerProvider, seconds: float = END_SECONDS) -> None:
    """Send what waits. A collector that is away holds up the end of the process for so long, and no longer."""
    # Not by the loop's own threads: those are waited for when it is closed.
    ending = threading.Thread(target=provider.shutdown, name="end of tracing", daemon=True)
    ending.start()
    give_up = time.monotonic() + seconds
    while ending.is_alive():
        if time.monotonic() > give_up:
            _log.warning("spans were not sent", within_seconds=seconds)
            return
        await asyncio.sleep(0.01)


def parent_of(traceparent: str) -> SpanContext | None:
    """The span in another process that it names; None when there is none, or its trace is not wanted."""
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415 - an extra

    found = read_traceparent(traceparent)
    if found is None or not found.sampled:
        return None
    return SpanContext(
        found.trace_id, found.span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


class SpannedBatches:
    """Implements `meter.ports.traces.Traces` on a provider's tracer."""

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.context import Context  # noqa: PLC0415

        self._tracer, self._trace, self._nothing = tracer, trace, Context

    def batch(
        self, name: str, records: Iterable[tuple[int, Entry]]
    ) -> AbstractContextManager[object]:
        traced: list[tuple[int, Entry, SpanContext]] = []
        for bucket, entry in records:
            text = traceparent_of(entry.body)
            if text and (parent := parent_of(text)) is not None:
                traced.append((bucket, entry, parent))
                if len(traced) == MOST_RECORDS:
                    break
        return self._batch(name, traced) if traced else nullcontext()

    @contextmanager
    def _batch(self, name: str, traced: list[tuple[int, Entry, SpanContext]]) -> Iterator[None]:
        trace, tracer, began = self._trace, self._tracer, time.time_ns()
        with tracer.start_as_current_span(
            name,
            context=self._nothing(),
            record_exception=False,  # its text may tell what is for the log alone
            set_status_on_exception=False,
            kind=trace.SpanKind.CONSUMER,
            links=[trace.Link(parent, _place(bucket, entry)) for bucket, entry, parent in traced],
            attributes={"metergate.traced_records": len(traced)},
        ) as span:
            own = span.get_span_context()
            failed: str | None = None
            try:
                with structlog.contextvars.bound_contextvars(
                    trace_id=f"{own.trace_id:032x}", span_id=f"{own.span_id:016x}"
                ):
                    yield
            except BaseException as error:
                failed = type(error).__name__
                span.set_status(trace.StatusCode.ERROR, failed)
                raise
            finally:
                ended = time.time_ns()
                for bucket, entry, parent in traced:
                    one = tracer.start_span(
                        f"{name} record",
                        context=trace.set_span_in_context(
                            trace.NonRecordingSpan(parent), self._nothing()
                        ),
                        kind=trace.SpanKind.CONSUMER,
                        links=[trace.Link(own)],
                        attributes=_place(bucket, entry),
                        start_time=began,
                    )
                    if failed is not None:
                        one.set_status(trace.StatusCode.ERROR, failed)
                    one.end(ended)

    def stage(self, name: str) -> AbstractContextManager[object]:
        if not self._trace.get_current_span().is_recording():
            return nullcontext()
        return self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        )


def _place(bucket: int, entry: Entry) -> dict[str, str | int]:
    """Which record it is."""
    return {
        "metergate.bucket": bucket,
        "metergate.record": f"{entry.generation}-{entry.sequence}",
    }
