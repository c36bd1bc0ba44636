"""Outbox, relay, Kafka, rollup: what a crash, a repeat, a bad message or a rebalance does to the totals."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from prometheus_client import CollectorRegistry

from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from meter.adapters.kafka.dead_letters import DeadLetters, read_dead_letters, replay_dead_letter
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.log.outbox import OutboxLog
from meter.core.events import encode
from meter.core.keys import outbox
from meter.core.records import Body, Effect, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import START, Entry, Position
from meter.errors import LogUnavailableError, MisconfiguredError, TopicMissingError
from meter.metrics import RelayMetrics
from meter.relay import Relay, RelayOptions
from meter.rollup import Options, Rollup
from tests.fixtures.meter import NOW, eventually, stand
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tests.fixtures.kafka import KafkaBroker
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
    before, meter.source = meter.source, log
    try:
        yield meter.rollup(options=Options(flush_records=1000, flush_interval=0.01))
    finally:
        meter.source = before
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


async def write(meter: Stand, bucket: int, quantities: range, *, generation: int = 1) -> int:
    """Append usage; return its sum."""
    for quantity in quantities:
        await meter.outbox.use(bucket, quantity, generation=generation)
    return sum(quantities)


async def put(kafka: KafkaOptions, partition: int, value: bytes | None, key: bytes = b"x") -> None:
    """A message of somebody else's."""
    producer = AIOKafkaProducer(**kafka.access)
    await producer.start()
    try:
        await producer.send_and_wait(kafka.topic, value, key=key, partition=partition)
    finally:
        await producer.stop()


@pytest.mark.parametrize("point", ["read", "publish", "trim"])
async def test_a_relay_that_dies_anywhere_loses_nothing_and_repeats_are_dropped(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions, point: str
) -> None:
    await meter.outbox.open(0, 1)
    total = await write(meter, 0, range(1, 21))

    def die(step: str) -> None:
        if step == point:
            raise Crashed

    async with relaying(valkey.url, kafka, die) as first:
        with suppress(Crashed):
            await first.round(0.01)
    assert await meter.source.backlog() == 21, "nothing is trimmed before the last step"
    total += await write(meter, 0, range(21, 31))
    async with relaying(valkey.url, kafka) as second:
        await relay_all(second)
    async with rolling(meter, kafka) as rollup, running(rollup):
        await rolled_up(rollup, {0: Position(1, 30)})
        assert await meter.total() == total
    repeats = 21 if point == "trim" else 0
    assert await meter.marks.repeats([0]) == repeats


async def test_two_relays_that_both_believe_a_bucket_is_theirs_do_no_harm(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "meter.adapters.log.shares.deal", lambda buckets, _members, _member: frozenset(buckets)
    )
    total = 0
    async with relaying(valkey.url, kafka) as one, relaying(valkey.url, kafka) as other:
        for bucket in range(BUCKETS):
            await meter.outbox.open(bucket, 1)
        for start in range(0, 60, 20):
            total += await write(meter, 0, range(start + 1, start + 21))
            total += await write(meter, 1, range(start + 1, start + 21))
            await asyncio.gather(relay_all(one), relay_all(other))
        async with rolling(meter, kafka) as rollup, running(rollup):
            await rolled_up(rollup, dict.fromkeys(range(BUCKETS), Position(1, 60)))
            assert await meter.total() == total


async def test_relays_share_the_buckets_and_take_over_from_a_dead_one(
    valkey: ValkeyProcess,
) -> None:
    many = range(32)
    async with asyncio.timeout(60):
        one = OutboxLog(valkey.url, many, "one")
        other = OutboxLog(valkey.url, many, "other")
        assert await one.assigned() == frozenset(many), "alone it has all"
        of_other = await other.assigned()
        of_one = await one.assigned()
        assert of_one | of_other == frozenset(many)
        assert not of_one & of_other
        assert min(len(of_one), len(of_other)) >= 4
        await other.close()
        assert await one.assigned() == frozenset(many), "one that leaves says so"
        dead = OutboxLog(valkey.url, many, "dead")
        await dead.assigned()
        await dead._redis.aclose()  # gone without a word
        assert await one.assigned() != frozenset(many)
        for _ in range(200):
            await asyncio.sleep(0.1)
            if await one.assigned() == frozenset(many):
                break
        assert await one.assigned() == frozenset(many), "after seconds without a sign it is dead"
        await one.close()


async def test_what_is_no_record_goes_to_the_dead_letters_and_reading_goes_on(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions
) -> None:
    await meter.outbox.open(0, 1)
    total = await write(meter, 0, range(1, 6))
    await put(kafka, 0, b"not JSON at all")
    await put(kafka, 0, None, key=b"a tombstone")
    stray = encode(1, Entry(1, 0, *usage(1000)))
    await put(kafka, 0, stray)
    async with relaying(valkey.url, kafka) as relay:
        await relay_all(relay)
    missing = encode(0, Entry(1, 6, *usage(50)))
    async with rolling(meter, kafka) as rollup, running(rollup):
        await rolled_up(rollup, {0: Position(1, 5)})
        letters = [letter async for letter in read_dead_letters(kafka)]
        assert [(one.partition, one.offset) for one in letters] == [(0, 0), (0, 1), (0, 2)]
        assert letters[0].value == b"not JSON at all"
        assert "belong" in letters[2].reason
        assert all(letter.reason for letter in letters)
        # One that its reader was wrong about can be sent once more.
        await put(kafka, 1, missing)
        await eventually(lambda: meter.metrics.dead_letters._value.get() == 4)
        (last,) = [letter async for letter in read_dead_letters(kafka, first=3)]
        assert last.value == missing
        await replay_dead_letter(kafka, last._replace(partition=0))
        await rolled_up(rollup, {0: Position(1, 6)})
        assert await meter.total() == total + 50


async def test_a_record_that_cannot_be_read_keeps_its_place_and_is_reviewed(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions
) -> None:
    await meter.outbox.open(0, 1)
    await write(meter, 0, range(1, 3))
    await meter.outbox.add(0, 1, b"{torn", b"\0\1")
    await write(meter, 0, range(3, 5))
    async with relaying(valkey.url, kafka) as relay:
        await relay_all(relay)
    async with rolling(meter, kafka) as rollup, running(rollup):
        await rolled_up(rollup, {0: Position(1, 5)})
        assert await meter.total() == 1 + 2 + 3 + 4
        rows = await meter.second.rows("SELECT seq, body, rest FROM review")
        assert [(row[0], row[1]) for row in rows] == [(3, "{torn")]


async def test_a_rollup_that_joins_and_one_that_leaves_lose_and_repeat_nothing(
    meter: Stand, valkey: ValkeyProcess, kafka: KafkaOptions
) -> None:
    for bucket in range(BUCKETS):
        await meter.outbox.open(bucket, 1)
    total = 0
    done = 0

    async def feed(relay: Relay) -> None:
        nonlocal total, done
        for _ in range(10):
            for bucket in range(BUCKETS):
                total += await write(meter, bucket, range(1, 6))
            done += 5
            await relay_all(relay)

    async with relaying(valkey.url, kafka) as relay, rolling(meter, kafka) as first:
        async with running(first):
            await feed(relay)
            async with rolling(meter, kafka) as second, running(second):
                await feed(relay)
                await eventually(lambda: len(second.progress.marks) == 1, 60)
                await feed(relay)
            await feed(relay)
            await rolled_up(first, dict.fromkeys(range(BUCKETS), Position(1, done)))
        assert await meter.total() == total
        meter.current = first
        comparison = await meter.audit().compare([])
        assert comparison.rollup_difference == 0


async def test_a_broker_that_dies_and_comes_back_costs_nothing(
    valkey: ValkeyProcess, own_broker: KafkaBroker, tmp_path: Path
) -> None:
    kafka = KafkaOptions(own_broker.servers, partitions=2)
    await prepare_topics(kafka, create=True)
    async with stand(valkey.url, tmp_path) as meter, relaying(valkey.url, kafka) as relay:
        await meter.outbox.open(0, 1)
        total = await write(meter, 0, range(1, 101))
        task = asyncio.create_task(relay.run())
        async with rolling(meter, kafka) as rollup, running(rollup):
            await rolled_up(rollup, {0: Position(1, 100)})
            own_broker.kill()
            total += await write(meter, 0, range(101, 201))
            before = await meter.outbox.redis.xlen(outbox(0))
            assert before == 100, "records wait in the outbox"
            own_broker.start()
            await rolled_up(rollup, {0: Position(1, 200)})
            own_broker.signal(signal.SIGSTOP)
            total += await write(meter, 0, range(201, 301))
            await asyncio.sleep(1)
            own_broker.signal(signal.SIGCONT)
            await rolled_up(rollup, {0: Position(1, 300)})
            assert await meter.total() == total
            await eventually(lambda: relay._sent.get(0) == Position(1, 300))
        relay.stop()
        await task
        assert await meter.outbox.redis.xlen(outbox(0)) == 0


async def test_topics_that_do_not_fit_stop_the_start_and_missing_ones_are_waited_for(
    kafka: KafkaOptions,
) -> None:
    with pytest.raises(MisconfiguredError, match=r"METERGATE_KAFKA_PARTITIONS is 3, but .* has 2"):
        await prepare_topics(replace(kafka, partitions=3), create=True)
    with pytest.raises(TopicMissingError, match="is missing: run `metergate kafka init`") as caught:
        await prepare_topics(replace(kafka, topic=f"other.{uuid4().hex}"), create=False)
    assert caught.value.refused
    assert await prepare_topics(kafka, create=True) == {
        kafka.topic: False,
        kafka.dead_letters: False,
        kafka.journal: False,
    }


async def test_a_kafka_that_is_away_is_told_as_such() -> None:
    nowhere = KafkaOptions(f"127.0.0.1:{free_port()}")
    with pytest.raises(LogUnavailableError, match="Kafka: reaching the brokers failed"):
        await prepare_topics(nowhere, create=False)
    publisher = KafkaPublisher(nowhere)
    with pytest.raises(LogUnavailableError, match="Kafka: writing records failed"):
        await publisher.publish({0: [Entry(1, 0, *usage(1))]}, {})
    await publisher.close()
