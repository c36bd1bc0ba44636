"""What a client tells of itself to OpenTelemetry: metrics, and a span for each attempt. Needs `opentelemetry-api`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from enforcer.client.results import Verdict

__all__ = ["OpenTelemetryObserver"]

NAME: Final = "enforcer.client"
SERVICE: Final = "enforcer.v1.EnforcerService"
_attempt: ContextVar[Span | None] = ContextVar("attempt", default=None)


class OpenTelemetryObserver:
    """An `Observer` with instruments `metergate.client.…`; providers None: the global ones.

    The gateway learns the trace context of each attempt as W3C's `traceparent`: its own spans, and those of the way of
    the record, are in the same trace. An attempt with several checks is in the trace of one of them, linked with the others.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        self._propagator = TraceContextTextMapPropagator()
        self._seconds = meter.create_histogram(
            "metergate.client.call.duration", unit="s", description="How long attempts took."
        )
        self._together = meter.create_histogram(
            "metergate.client.checks_per_call",
            unit="{check}",
            description="How many checks travelled together.",
        )
        self._retries = meter.create_counter(
            "metergate.client.retries", description="Calls that were tried again."
        )
        self._decisions = meter.create_counter(
            "metergate.client.decisions", unit="{check}", description="Answers to checks."
        )
        self._lost = meter.create_counter(
            "metergate.client.leases_lost",
            unit="{lease}",
            description="Seats that were gone although their holders were not.",
        )
        self._local = meter.create_counter(
            "metergate.client.local_decisions",
            unit="{check}",
            description="Decisions from blocks of allowances, counted when a block ends.",
        )
        self._refills = meter.create_counter(
            "metergate.client.allowance.refills", unit="{block}", description="Blocks asked for."
        )
        self._refill_seconds = meter.create_histogram(
            "metergate.client.allowance.refill.duration",
            unit="s",
            description="How long it took to get a block.",
        )
        self._returned = meter.create_counter(
            "metergate.client.allowance.returns",
            unit="{block}",
            description="Blocks of which a gateway knows what was used.",
        )
        self._unreported = meter.create_counter(
            "metergate.client.allowance.unreported",
            description="What was used of blocks, in the feature's own unit, and no gateway could be told.",
        )

    def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
        """See `Observer`."""
        attributes: dict[str, str | int] = {"rpc.method": method, "outcome": outcome}
        self._seconds.record(seconds, attributes)
        if method in {"Check", "CheckBatch"}:
            self._together.record(items)
        span = _attempt.get()
        if span is None:
            return  # it began before anybody was told
        _attempt.set(None)
        span.set_attribute("metergate.outcome", outcome)
        if outcome != "OK":
            span.set_status(Status(StatusCode.ERROR, outcome))
        span.end()

    def place(self) -> object:
        """See `Propagator`: the span that the code is in."""
        return trace.get_current_span().get_span_context()

    def calling(
        self, method: str, items: int, places: Sequence[object]
    ) -> Sequence[tuple[str, str]]:
        """See `Propagator`: a span for the attempt, which the gateway's is a child of.

        It is in the trace of the first who asked and is traced, and linked with the others that travel along.
        """
        asked = {
            place.span_id: place
            for place in places
            if isinstance(place, SpanContext) and place.is_valid
        }
        parent = next((place for place in asked.values() if place.trace_flags.sampled), None)
        parent = parent or next(iter(asked.values()), None)
        context = Context()
        if parent is not None:
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
        span = self._tracer.start_span(
            f"{SERVICE}/{method}",
            context=context,
            kind=SpanKind.CLIENT,
            links=[trace.Link(place) for place in asked.values() if place is not parent],
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": method,
                "metergate.checks": items,
            },
        )
        _attempt.set(span)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span, Context()))
        return list(carrier.items())

    def retrying(self, method: str, reason: str, pause: float) -> None:
        """See `Observer`."""
        self._retries.add(1, {"rpc.method": method, "reason": reason})

    def decided(self, feature: str, verdict: Verdict) -> None:
        """See `Observer`."""
        self._decisions.add(
            1,
            {
                "feature": feature,
                "reason": verdict.reason.value,
                "degraded": verdict.degraded,
            },
        )

    def lease_lost(self, feature: str, reason: str) -> None:
        """See `Observer`."""
        self._lost.add(1, {"feature": feature, "reason": reason})

    def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
        """See `Observer`."""
        self._local.add(decisions, {"feature": feature})

    def allowance_refilled(self, feature: str, outcome: str, granted: int, seconds: float) -> None:
        """See `Observer`."""
        self._refills.add(1, {"feature": feature, "outcome": outcome})
        self._refill_seconds.record(seconds)

    def allowance_returned(self, feature: str, used: int, returned: int) -> None:
        """See `Observer`."""
        self._returned.add(1, {"feature": feature})

    def allowance_unreported(self, feature: str, used: int) -> None:
        """See `Observer`."""
        self._unreported.add(used, {"feature": feature})
