"""Every metric of the meter's processes. Labels are buckets and stages, never customers: cardinality is bounded.

docs/metrics.md is made from here and from `enforcer.metrics`.
"""

from __future__ import annotations

from typing import Final

from grpc import StatusCode
from prometheus_client import CollectorRegistry

from meter.errors import (
    FencedError,
    LogMovedError,
    LogUnavailableError,
    MarksUnavailableError,
    WarehouseUnavailableError,
)
from meter.exposition import BUILD, Catalogue, Label, built

__all__ = [
    "ABOUT_DEPENDENCY",
    "BUCKET",
    "CODE",
    "METER",
    "RELAY",
    "STAGES",
    "Metrics",
    "RelayMetrics",
]

STAGES = (
    *("read", "store", "claim", "review", "usage", "ledger", "aggregates", "recompute"),
    *("seats", "denials", "applied", "commit"),
)
FAILED: Final = (
    FencedError,
    LogMovedError,
    LogUnavailableError,
    MarksUnavailableError,
    WarehouseUnavailableError,
)
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)

BUCKET: Final = Label("bucket", "a bucket's number, below `METERGATE_BUCKETS`", 65_536)
_METHOD = Label("method", "service and method", 32)
CODE: Final = Label.of("code", "gRPC's name of the status", (code.name for code in StatusCode))
_STAGE = Label.of("stage", "a part of a flush", STAGES)
_REASON = Label.of(
    "reason",
    "the reason of the error, as logs have it",
    (error.reason for error in FAILED),
)

ABOUT_DEPENDENCY: Final = (
    "1 for a server that this process works with and that can be worked with, 0 while it is away, refuses or waits:"
    " `/readyz` says why."
)
_DEPENDENCY = Label.of(
    "dependency", "as `/readyz` names it", ("clickhouse", "kafka", "redis", "sql")
)

METER: Final = Catalogue("meter", "Processes with the role `rollup`.")
RPCS = METER.counter("rpcs", "Calls by method and gRPC status.", _METHOD, CODE)
RPC_SECONDS = METER.histogram(
    "rpc_seconds", "Time from a call's arrival to its answer.", _METHOD, bounds=SECONDS
)
READ = METER.counter("records_read", "Records read from the log.")
ROLLED = METER.counter("records_rolled", "Records whose effects are in the rollups.")
REPEATS = METER.counter("record_repeats", "Records that came again and were dropped.")
REVIEW = METER.counter(
    "records_for_review",
    "Records that could not be decoded, or came too late for their generation.",
)
DEAD_LETTERS = METER.counter(
    "dead_letters", "Messages of the topic that were no records and went to the dead letters."
)
DAYS_DROPPED = METER.counter(
    "raw_partitions_dropped", "Days of raw records that were dropped, as a whole each."
)
NOT_RECOMPUTED = METER.counter(
    "windows_not_recomputed",
    "Corrected windows whose least, greatest, latest and distinct values stay: raw is gone.",
)
HELD = METER.gauge("bucket_held", "1 for a bucket that waits at a gap in its sequence.", BUCKET)
LAG = METER.gauge(
    "lag_records",
    "Records in the log that are not rolled up yet: the rollup's lag. Without Kafka the log is the outboxes.",
)
FRESH = METER.gauge(
    "fresh_timestamp_seconds",
    "Every record that was decided before this time is rolled up: reports are so fresh. 0 until it is known.",
    of="least",
)
FLUSH = METER.histogram("flush_seconds", "Duration of a flush's stages.", _STAGE)
FAILURES = METER.counter(
    "rollup_failures",
    "Flushes that failed and began again from the durable marks, by reason.",
    _REASON,
)
METER_DEPENDENCY = METER.gauge("dependency_up", ABOUT_DEPENDENCY, _DEPENDENCY, of="least")
METER_BUILD = METER.gauge("build_info", "1 for the version that runs.", *BUILD)

RELAY: Final = Catalogue("relay", "Processes with the role `relay`: the outboxes to Kafka.")
RELAYED = RELAY.counter("records", "Records stored in Kafka and trimmed.")
RELAY_FAILURES = RELAY.counter(
    "failures", "Rounds that failed; what was not trimmed is sent again."
)
BUCKETS = RELAY.gauge("buckets", "Buckets that this relay serves.")
WAITING = RELAY.gauge(
    "outbox_records",
    "Records in all outboxes, not yet trimmed: the relays' lag, as this one sees it.",
)
PUBLISHING = RELAY.histogram(
    "publish_seconds", "From handing records to Kafka until they are stored."
)
RELAY_DEPENDENCY = RELAY.gauge("dependency_up", ABOUT_DEPENDENCY, _DEPENDENCY, of="least")
RELAY_BUILD = RELAY.gauge("build_info", "1 for the version that runs.", *BUILD)


class Metrics:
    """What a rollup counts, in a registry of its own unless one is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self.read = READ.on(registry)
        self.rolled = ROLLED.on(registry)
        self.repeats = REPEATS.on(registry)
        self.review = REVIEW.on(registry)
        self.dead_letters = DEAD_LETTERS.on(registry)
        self.days_dropped = DAYS_DROPPED.on(registry)
        self.expired_windows = NOT_RECOMPUTED.on(registry)
        self.held = HELD.on(registry)
        self.lag = LAG.on(registry)
        self.fresh = FRESH.on(registry)
        self.stage = FLUSH.on(registry)
        self.failures = FAILURES.on(registry)
        self._rpcs, self._seconds = RPCS.on(registry), RPC_SECONDS.on(registry)
        self._up = METER_DEPENDENCY.on(registry)
        built(METER_BUILD.on(registry))

    def call(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        self._rpcs.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def depends(self, name: str, up: bool) -> None:  # noqa: FBT001 - told so by `Health`
        """How a server was found."""
        self._up.labels(name).set(up)


class RelayMetrics:
    """What a relay counts, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.relayed = RELAYED.on(registry)
        self.failures = RELAY_FAILURES.on(registry)
        self.buckets = BUCKETS.on(registry)
        self.waiting = WAITING.on(registry)
        self.publishing = PUBLISHING.on(registry)
        self._up = RELAY_DEPENDENCY.on(registry)
        built(RELAY_BUILD.on(registry))

    def depends(self, name: str, up: bool) -> None:  # noqa: FBT001 - told so by `Health`
        """How a server was found."""
        self._up.labels(name).set(up)
