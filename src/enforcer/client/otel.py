"""What a client tells of itself to OpenTelemetry: metrics, and a span for each attempt. Needs `opentelemetry-api`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from enforcer.client.results import Verdict

__all__ = ["OpenTelemetryObserver"]

NAME: Final = "enforcer.client"
SERVICE: Final = "enforcer.v1.EnforcerService"


class OpenTelemetryObserver:
    """An `Observer` with instruments `metergate.client.…`; providers None: the global ones.

    The span of a batch is a child of whatever span the check was in that made it leave.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
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
        now = time.time_ns()
        span = self._tracer.start_span(
            f"{SERVICE}/{method}",
            kind=SpanKind.CLIENT,
            start_time=now - int(seconds * 1e9),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": SERVICE,
                "rpc.method": method,
                "metergate.checks": items,
                "metergate.outcome": outcome,
            },
        )
        if outcome != "OK":
            span.set_status(Status(StatusCode.ERROR, outcome))
        span.end(now)

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
