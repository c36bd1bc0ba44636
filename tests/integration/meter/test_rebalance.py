"""Members of one consumer group on one ClickHouse over HTTP and one PostgreSQL, that join and go under load."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from meter.adapters.kafka.dead_letters import DeadLetters
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.log.outbox import OutboxLog
from meter.audit import BucketCounters
from meter.metrics import RelayMetrics
from meter.ports.warehouse import Counter
from meter.relay import Relay, RelayOptions
from meter.rollup import Options
from tests.fixtures.meter import eventually, stand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meter.audit import Comparison
    from meter.core.sequence import Position
    from tests.fixtures.meter import Stand
    from tests.fixtures.valkey import ValkeyProcess

BUCKETS = 6


class Member:
    """A rollup with stores and a log of its own; `kill` is a crash: it leaves the group without a word."""

    def __init__(self, on: Stand, log: KafkaLog) -> None:
        self.stand, self._log = on, log
        on.source = log
        options = Options(flush_records=200, flush_interval=0.01, shared=BUCKETS)
        self.rollup = on.rollup(options=options)
        self._task = asyncio.create_task(self.rollup.run())

    @property
    def buckets(self) -> int:
        """How many it has."""
        return len(self.rollup.progress.marks)

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._log.close()

    async def end(self) -> None:
        self.rollup.stop()
        await asyncio.wait({self._task})
        await self._log.close()


@pytest.fixture
async def topic(kafka_broker: str) -> KafkaOptions:
    name = uuid4().hex[:12]
    options = KafkaOptions(
        kafka_broker, topic=f"records.{name}", partitions=3, group=f"rollup.{name}"
    )
    await prepare_topics(options, create=True)
    return options


@asynccontextmanager
async def relaying(url: str, kafka: KafkaOptions, on: Stand) -> AsyncIterator[None]:
    """A relay at work."""
    source = OutboxLog(url, range(BUCKETS), f"relay-{uuid4().hex}")
    publisher = KafkaPublisher(kafka)
    relay = Relay(source, publisher, RelayMetrics(on.metrics.registry), RelayOptions())
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        relay.stop()
        await task
        await publisher.close()
        await source.close()


def assert_exact(found: Comparison) -> None:
    assert (found.gaps, found.drift, found.rollup_difference) == ([], [], 0)


@pytest.mark.timeout(300)
async def test_two_then_three_then_one_process_under_load_count_everything_once(
    valkey: ValkeyProcess,
    topic: KafkaOptions,
    clickhouse_url: str,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:

        async def join() -> Member:
            on = await stack.enter_async_context(
                stand(
                    valkey.url,
                    tmp_path,
                    buckets=(),
                    warehouse=clickhouse_url,
                    marks=postgres_url,
                )
            )
            await on.source.close()
            dead = DeadLetters(topic, on.metrics.dead_letters.inc)
            stack.push_async_callback(dead.close)
            member = Member(on, KafkaLog(topic, BUCKETS, dead))
            stack.push_async_callback(member.end)
            return member

        first, second = await join(), await join()
        await stack.enter_async_context(relaying(valkey.url, topic, first.stand))
        outbox = first.stand.outbox
        last: dict[int, Position] = {}
        used = dict.fromkeys(range(BUCKETS), 0)
        for bucket in used:
            last[bucket] = await outbox.open(bucket, 1)
        going = asyncio.Event()

        async def load() -> None:
            number = 0
            while not going.is_set():
                number += 1
                bucket = number % BUCKETS
                last[bucket] = await outbox.use(bucket, number)
                used[bucket] += number
                await asyncio.sleep(0.002)

        def states() -> list[BucketCounters]:
            """What the counters show now, and as of which record."""
            return [
                BucketCounters(
                    bucket,
                    last[bucket],
                    {Counter(7, 1000): (sum_, 0), Counter(8, 0): (sum_, 0)},
                )
                for bucket, sum_ in used.items()
            ]

        loading = asyncio.create_task(load())
        try:
            await eventually(lambda: (first.buckets, second.buckets) in {(4, 2), (2, 4)}, 90)
            third = await join()
            three = [first, second, third]
            await eventually(lambda: [one.buckets for one in three] == [2, 2, 2], 90)
            # Whichever is asked: one answer, of one moment.
            for member in three:
                assert_exact(found := await member.stand.audit(60).compare(states()))
                assert found.counters == 2 * BUCKETS
            await second.kill()
            await third.end()
            await eventually(lambda: first.buckets == BUCKETS, 90)
        finally:
            going.set()
            await loading
        await first.rollup.whole.reached(last, 90)
        assert_exact(found := await first.stand.audit(60).compare(states()))
        assert found.records == sum(place.sequence + 1 for place in last.values())
        assert await first.stand.total() == sum(used.values())
        assert await first.stand.marks.unapplied() == []
