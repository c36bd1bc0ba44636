"""What a client tells of itself as Prometheus metrics. Needs `prometheus-client`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from enforcer.client.results import Verdict

__all__ = ["PrometheusObserver"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PrometheusObserver:
    """An `Observer` with metrics `metergate_client_…`. One for each registry; clients may share it."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._calls = Counter(
            "metergate_client_calls",
            "Attempts at calls, by method and outcome (OK or the reason of the fault).",
            ["method", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "metergate_client_call_seconds",
            "How long attempts took.",
            ["method"],
            registry=registry,
            buckets=SECONDS,
        )
        self._together = Histogram(
            "metergate_client_checks_per_call",
            "How many checks travelled together.",
            registry=registry,
            buckets=TOGETHER,
        )
        self._retries = Counter(
            "metergate_client_retries",
            "Calls that were tried again, by the reason of the fault.",
            ["method", "reason"],
            registry=registry,
        )
        self._decisions = Counter(
            "metergate_client_decisions",
            "Answers to checks, by feature and reason; degraded: without counters.",
            ["feature", "reason", "degraded"],
            registry=registry,
        )
        self._lost = Counter(
            "metergate_client_leases_lost",
            "Seats that were gone although their holders were not.",
            ["feature", "reason"],
            registry=registry,
        )
        self._local = Counter(
            "metergate_client_local_decisions",
            "Decisions from blocks of allowances, counted when a block ends.",
            ["feature"],
            registry=registry,
        )
        self._refills = Counter(
            "metergate_client_allowance_refills",
            "Blocks asked for, by the verdict's reason or that of the fault.",
            ["feature", "outcome"],
            registry=registry,
        )
        self._refill_seconds = Histogram(
            "metergate_client_allowance_refill_seconds",
            "How long it took to get a block.",
            registry=registry,
            buckets=SECONDS,
        )
        self._returned = Counter(
            "metergate_client_allowance_returns",
            "Blocks of which a gateway knows what was used.",
            ["feature"],
            registry=registry,
        )
        self._unreported = Counter(
            "metergate_client_allowance_unreported",
            "What was used of blocks, in the feature's own unit, and no gateway could be told.",
            ["feature"],
            registry=registry,
        )

    def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
        """See `Observer`."""
        self._calls.labels(method, outcome).inc()
        self._seconds.labels(method).observe(seconds)
        if method in {"Check", "CheckBatch"}:
            self._together.observe(items)

    def retrying(self, method: str, reason: str, pause: float) -> None:
        """See `Observer`."""
        self._retries.labels(method, reason).inc()

    def decided(self, feature: str, verdict: Verdict) -> None:
        """See `Observer`."""
        degraded = "true" if verdict.degraded else "false"
        self._decisions.labels(feature, verdict.reason.value, degraded).inc()

    def lease_lost(self, feature: str, reason: str) -> None:
        """See `Observer`."""
        self._lost.labels(feature, reason).inc()

    def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
        """See `Observer`."""
        self._local.labels(feature).inc(decisions)

    def allowance_refilled(self, feature: str, outcome: str, granted: int, seconds: float) -> None:
        """See `Observer`."""
        self._refills.labels(feature, outcome).inc()
        self._refill_seconds.observe(seconds)

    def allowance_returned(self, feature: str, used: int, returned: int) -> None:
        """See `Observer`."""
        self._returned.labels(feature).inc()

    def allowance_unreported(self, feature: str, used: int) -> None:
        """See `Observer`."""
        self._unreported.labels(feature).inc(used)
