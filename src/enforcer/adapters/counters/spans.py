"""Spans of what the store did for traced calls: for each of their asks, the script call that decided it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context

from meter.adapters.traces import parent_of
from meter.core.traced import traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from enforcer.adapters.counters.waiting import Batch

__all__ = ["StoreSpans"]

MOST_SPANS = 32
"""Of one script call, which has up to 256 checks."""


class StoreSpans:
    """Is told of batches by the line. `url` is the store's: its host is named, and nothing else of it."""

    def __init__(self, tracer: Tracer, url: str) -> None:
        self._tracer = tracer
        self._attributes: dict[str, str | int] = {
            "db.system.name": "redis",
            "db.operation.name": "FCALL",
        }
        parts = urlsplit(url)
        if parts.hostname and "," not in parts.netloc:  # Sentinels are asked where it is
            self._attributes["server.address"] = parts.hostname
            self._attributes["server.port"] = parts.port or 6379

    def __call__(self, batch: Batch, now: float) -> None:
        """A batch was answered, `now` by the clock of `time.monotonic`. Calls of one span are told once."""
        told: dict[str, tuple[float, int]] = {}
        checks = 0
        for place in batch.order:
            waiting = batch.waiting[place]
            checks += len(waiting.group)
            for ask in waiting.group:
                if traceparent := traceparent_of(ask.body):
                    since, bucket = told.get(traceparent, (waiting.since, ask.program.bucket))
                    told[traceparent] = min(since, waiting.since), bucket
        if not told:
            return
        ended = time.time_ns()
        began = ended - int((now - batch.sent) * 1e9)
        for traceparent, (since, bucket) in list(told.items())[:MOST_SPANS]:
            parent = parent_of(traceparent)
            if parent is None:
                continue
            span = self._tracer.start_span(
                "FCALL decide",
                context=set_span_in_context(NonRecordingSpan(parent), Context()),
                kind=SpanKind.CLIENT,
                start_time=began,
                attributes={
                    **self._attributes,
                    "db.operation.batch.size": checks,
                    "metergate.bucket": bucket,
                    "metergate.waited_seconds": round(batch.sent - since, 6),
                },
            )
            span.end(ended)
