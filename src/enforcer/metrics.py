"""Every metric of the enforcer. No label is a customer or a tenant: cardinality is bounded.

With several workers, PROMETHEUS_MULTIPROC_DIR names a folder that they share; any of them then answers for all.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The catalogue. Children are looked up once and kept: `labels` costs as much as counting."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._calls = Counter(
            "enforcer_rpcs",
            "Calls by method and gRPC status.",
            ("method", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "enforcer_rpc_seconds",
            "Time from a call's arrival to its answer.",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._decisions = Counter(
            "enforcer_decisions",
            "Decisions by mode and reason.",
            ("mode", "reason"),
            registry=registry,
        )
        self.batch = Histogram(
            "enforcer_batch_checks",
            "Checks that travelled to Redis in one script call.",
            buckets=_SIZES,
            registry=registry,
        )
        self.script = Histogram(
            "enforcer_script_seconds",
            "Time from sending a script call to its reply.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ended = Counter(
            "enforcer_tick_records",
            "Records that the background tick wrote: expiries and merged denials.",
            registry=registry,
        )
        self.tick_errors = Counter(
            "enforcer_tick_errors", "Ticks that failed; they are tried again.", registry=registry
        )
        self._emergencies = Counter(
            "enforcer_emergency_checks",
            "Checks that came while the counters were away, by outcome.",
            ("outcome",),
            registry=registry,
        )
        self._counted = Counter(
            "enforcer_emergency_counted",
            "Uses that were allowed without counters and are counted now.",
            registry=registry,
        )
        self._over_use = Counter(
            "enforcer_emergency_over_use_units",
            "Units allowed without counters that went past a limit when they were counted.",
            registry=registry,
        )
        self.counting_errors = Counter(
            "enforcer_emergency_counting_errors",
            "Times that the counting of journals had to stop; it is begun again.",
            registry=registry,
        )
        self._breaker = Gauge(
            "enforcer_breaker_state",
            "Whether calls to Redis pass: 0 they do, 1 a probe has succeeded, 2 they are held back.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._transitions = Counter(
            "enforcer_breaker_transitions",
            "Changes of the breaker by the state that it turned to.",
            ("state",),
            registry=registry,
        )
        self._drift = Gauge(
            "enforcer_audit_drift_counters",
            "Counters that differ from their records, at the last comparison of each bucket.",
            ("bucket",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._gaps = Gauge(
            "enforcer_audit_gaps",
            "Open gaps in sequences, at the last comparison of each bucket.",
            ("bucket",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.audit_age = Gauge(
            "enforcer_audit_age_seconds",
            "How long ago the bucket was compared with its records that has waited longest.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.ready = Gauge(
            "enforcer_ready",
            "1 while this worker has a Redis connection with opened generations, and calls pass.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._call_children: dict[tuple[str, str], Counter] = {}
        self._second_children: dict[str, Histogram] = {}
        self._decision_children: dict[tuple[str, str], Counter] = {}

    def call(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        child = self._call_children.get((method, code))
        if child is None:
            child = self._call_children[method, code] = self._calls.labels(method, code)
        child.inc()
        timer = self._second_children.get(method)
        if timer is None:
            timer = self._second_children[method] = self._seconds.labels(method)
        timer.observe(seconds)

    def decision(self, mode: str, reason: str) -> None:
        """One decision."""
        child = self._decision_children.get((mode, reason))
        if child is None:
            child = self._decision_children[mode, reason] = self._decisions.labels(mode, reason)
        child.inc()

    def audited(self, bucket: int, drift: int, gaps: int) -> None:
        """One bucket was held against its records."""
        self._drift.labels(str(bucket)).set(drift)
        self._gaps.labels(str(bucket)).set(gaps)

    def batched(self, checks: int, seconds: float) -> None:
        """One script call."""
        self.batch.observe(checks)
        self.script.observe(seconds)

    def emergency(self, outcome: str) -> None:
        """One check without counters."""
        self._emergencies.labels(outcome).inc()

    def counted(self, uses: int, overage: int) -> None:
        """Uses of a journal."""
        self._counted.inc(uses)
        self._over_use.inc(overage)

    def breaker(self, state: str, number: int) -> None:
        """The breaker has turned."""
        self._breaker.set(number)
        self._transitions.labels(state).inc()

    def text(self) -> bytes:
        """The exposition, of all workers if they share a folder."""
        if not self._shared:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
