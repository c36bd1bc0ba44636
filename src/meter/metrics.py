"""Every metric of the meter. Labels are buckets and stages, never customers: cardinality is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Metrics", "RelayMetrics"]

STAGES = (
    *("read", "store", "claim", "review", "usage", "ledger", "aggregates", "recompute"),
    *("seats", "denials", "applied", "commit"),
)


class Metrics:
    """The catalogue, in a registry of its own, so that two meters in one process do not collide."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.read = Counter("meter_records_read", "Records read from the log.", registry=registry)
        self.rolled = Counter(
            "meter_records_rolled", "Records whose effects are in the rollups.", registry=registry
        )
        self.repeats = Counter(
            "meter_record_repeats", "Records that came again and were dropped.", registry=registry
        )
        self.review = Counter(
            "meter_records_for_review",
            "Records that could not be decoded, or came too late for their generation.",
            registry=registry,
        )
        self.dead_letters = Counter(
            "meter_dead_letters",
            "Messages of the topic that were no records and went to the dead letters.",
            registry=registry,
        )
        self.days_dropped = Counter(
            "meter_raw_days_dropped", "Days of raw records that were dropped.", registry=registry
        )
        self.expired_windows = Counter(
            "meter_windows_not_recomputed",
            "Corrected windows whose least, greatest, latest and distinct values stay: raw is gone.",
            registry=registry,
        )
        self.held = Gauge(
            "meter_bucket_held",
            "1 for a bucket that waits at a gap in its sequence.",
            ["bucket"],
            registry=registry,
        )
        self.lag = Gauge(
            "meter_lag_records", "Records in the log that are not rolled up yet.", registry=registry
        )
        self.freshness = Gauge(
            "meter_freshness_seconds",
            "Age of the newest moment up to which every record is rolled up.",
            registry=registry,
        )
        self.stage = Histogram(
            "meter_flush_seconds",
            "Duration of a flush's stages.",
            ["stage"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=registry,
        )
        self.failures = Counter(
            "meter_rollup_failures",
            "Flushes that failed and began again from the durable marks, by reason.",
            ["reason"],
            registry=registry,
        )


class RelayMetrics:
    """What a relay shows, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.relayed = Counter(
            "relay_records", "Records stored in Kafka and trimmed.", registry=registry
        )
        self.failures = Counter(
            "relay_failures",
            "Rounds that failed; what was not trimmed is sent again.",
            registry=registry,
        )
        self.buckets = Gauge("relay_buckets", "Buckets that this relay serves.", registry=registry)
        self.waiting = Gauge(
            "relay_outbox_records", "Records in all outboxes, not yet trimmed.", registry=registry
        )
        self.publishing = Histogram(
            "relay_publish_seconds",
            "From handing records to Kafka until they are stored.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=registry,
        )
