"""Every metric of the enforcer. No label is a customer or a tenant: cardinality is bounded.

With several workers, PROMETHEUS_MULTIPROC_DIR names a folder that they share; any of them then answers for all.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import IntEnum

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Tally:
    """What was observed and is not in its histogram yet."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts, self.total = [0] * (len(bounds) + 1), 0.0

    def observe(self, amount: float) -> None:
        """One more."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount

    def settle(self, histogram: Histogram) -> int:
        """Put all of it into the histogram; return how many there were."""
        found = sum(self.counts)
        if found:
            for bucket, count in zip(histogram._buckets, self.counts, strict=True):  # noqa: SLF001 - it takes only one at a time
                if count:
                    bucket.inc(count)
            histogram._sum.inc(self.total)  # noqa: SLF001
            self.counts, self.total = [0] * len(self.counts), 0.0
        return found


def _forget_dead(folder: Path) -> None:
    """Drop what workers said of themselves that have died. What they counted stays."""
    for place in folder.glob("gauge_live*_*.db"):
        try:
            os.kill(int(place.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            place.unlink(missing_ok=True)


class Metrics:
    """The catalogue. What every call changes is tallied, and put into the registry by `settle`.

    There one number costs as much as the rest of a call's way through the transport.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        if self._shared:
            _forget_dead(Path(self._shared))
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
        self._descriptors = Counter(
            "enforcer_ratelimit_descriptors",
            "Descriptors that Envoys sent, by outcome: decided, unmapped, unknown, unusable.",
            ("outcome",),
            registry=registry,
        )
        self._over_share = Counter(
            "enforcer_tenant_refusals",
            "Calls that were not taken as their tenant had its share, by limit: concurrency, rate.",
            ("limit",),
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
        self._finished: dict[tuple[str, str], _Tally] = {}
        self._decided: dict[int, int] = {}
        self._named: dict[int, tuple[str, str]] = {}
        self._batches, self._scripts = _Tally(_SIZES), _Tally(_SECONDS)

    def call(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        tally = self._finished.get((method, code))
        if tally is None:
            tally = self._finished[method, code] = _Tally(_SECONDS)
        tally.observe(seconds)

    def decision(self, mode: IntEnum, reason: IntEnum) -> None:
        """One decision."""
        # One number, as the hash of an enum is a call.
        key = mode << 8 | reason
        try:
            self._decided[key] += 1
        except KeyError:
            self._decided[key] = 1
            self._named[key] = mode.name, reason.name

    def descriptor(self, outcome: str) -> None:
        """One descriptor of an Envoy."""
        self._descriptors.labels(outcome).inc()

    def over_share(self, limit: str) -> None:
        """One call beyond its tenant's share."""
        self._over_share.labels(limit).inc()

    def audited(self, bucket: int, drift: int, gaps: int) -> None:
        """One bucket was held against its records."""
        self._drift.labels(str(bucket)).set(drift)
        self._gaps.labels(str(bucket)).set(gaps)

    def batched(self, checks: int, seconds: float) -> None:
        """One script call."""
        self._batches.observe(checks)
        self._scripts.observe(seconds)

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

    def settle(self) -> None:
        """Bring the registry up to date: before it is read, and now and then where other workers read it."""
        for (method, code), tally in self._finished.items():
            if count := tally.settle(self._seconds.labels(method)):
                self._calls.labels(method, code).inc(count)
        for key, count in self._decided.items():
            self._decisions.labels(*self._named[key]).inc(count)
        self._decided.clear()
        self._batches.settle(self.batch)
        self._scripts.settle(self.script)

    def text(self) -> bytes:
        """The exposition, of all workers if they share a folder."""
        self.settle()
        if not self._shared:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
