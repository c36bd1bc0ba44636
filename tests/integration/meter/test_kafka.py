"""Outbox, relay, Kafka, rollup: what a crash, a repeat, a bad message or a rebalance does to the totals."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from prometheus_client import CollectorRegistry

from meter.adapters.kafka.dead_letters import DeadLetters
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.log.outbox import OutboxLog
from meter.core.records import Body, Effect, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import START, Position
from meter.metrics import RelayMetrics
from meter.relay import Relay, RelayOptions
from meter.rollup import Options, Rollup
from tests.fixtures.meter import NOW, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from meter.adapters.kafka.client import KafkaOptions
    from tests.fixtures.meter import Stand
    from tests.fixtures.valkey import ValkeyProcess

BUCKETS = 2


class Crashed(Exception):  # noqa: N818 - what is raised instead of dying
    pass


@asynccontextmanager
async def relaying(
    url: str, kafka: KafkaOptions, steps: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Relay]:
    """A relay as its process composes it, not running."""
    source = OutboxLog(url, range(BUCKETS), f"relay-{uuid4().hex}")
    publisher = KafkaPublisher(kafka)
    metrics = RelayMetrics(CollectorRegistry())
    relay = Relay(source, publisher, metrics, RelayOptions(fresh_every=0.0), steps)
    try:
        yield relay
    finally:
        await relay.begin_again()
        await publisher.close()
        await source.close()


@asynccontextmanager
async def rolling(meter: Stand, kafka: KafkaOptions) -> AsyncIterator[Rollup]:
    """A rollup that reads the topic, on the stand's stores."""
    dead = DeadLetters(kafka, meter.metrics.dead_letters.inc)
    log = KafkaLog(kafka, BUCKETS, dead)
    outbox, meter.source = meter.source, log
    try:
        yield meter.rollup(options=Options(flush_records=1000, flush_interval=0.01))
    finally:
        meter.source = outbox
        await log.close()
        await dead.close()


@asynccontextmanager
async def running(rollup: Rollup) -> AsyncIterator[None]:
    """The rollup at work."""
    task = asyncio.create_task(rollup.run())
    try:
        yield
    finally:
        rollup.stop()
        await task


async def relay_all(relay: Relay) -> None:
    while await relay.round(0.01):
        pass


async def rolled_up(rollup: Rollup, places: Mapping[int, Position]) -> None:
    """Wait until the buckets' marks are there."""
    await eventually(
        lambda: all(rollup.progress.marks.get(b, START) >= at for b, at in places.items()), 60
    )


def usage(quantity: int) -> tuple[bytes, bytes]:
    body = Body("t", "acme", "acme/eu", "api.calls", "api.calls", q=quantity)
    effects = Effects(
        RecordType.USAGE, NOW, quantity, quantity=quantity, entries=(Effect(7, 1000, quantity, 0),)
    )
    return encode_body(body), encode_effects(effects)


async def test_records_pass_through_kafka_whole_and_leave_the_outbox(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions
) -> None:
    for bucket in range(BUCKETS):
        await meter.outbox.open(bucket, 1)
        for number in range(50):
            await meter.outbox.use(bucket, 10 + number)
    async with relaying(valkey.url, kafka) as relay:
        await relay_all(relay)
        assert await meter.source.backlog() == 0, "what Kafka has acknowledged is trimmed"
        async with rolling(meter, kafka) as rollup, running(rollup):
            await rolled_up(rollup, dict.fromkeys(range(BUCKETS), Position(1, 50)))
            assert await meter.total() == 2 * sum(range(10, 60))
            await eventually(lambda: rollup.progress.fresh_until_ms is not None)
    comparison = await meter.audit().compare([])
    assert comparison.rollup_difference == 0
