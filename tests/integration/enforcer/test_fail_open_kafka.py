"""The journal in Kafka: counted once like one on a disk; with Redis and Kafka both away everything fails closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from enforcer.adapters.journal.kafka import KafkaJournal
from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from tests.fixtures.valkey import ValkeyProcess
from tests.outpost import outpost, records_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.kafka import KafkaBroker


@pytest.mark.timeout(180)
async def test_uses_lie_in_kafka_until_they_are_counted(
    own_broker: KafkaBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = KafkaOptions(own_broker.servers, topic=f"records.{uuid4().hex[:8]}", partitions=2)
    await prepare_topics(options, create=True)
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    journal = KafkaJournal(options, 0)
    try:
        async with outpost(server.url, tmp_path, journal=journal) as post:
            await post.serving()
            await post.check("open")
            server.kill()
            await post.held_back("flag")
            answers = await asyncio.gather(*(post.timed() for _ in range(200)))
            assert {outcome for _, outcome in answers} == {"degraded"}
            times = sorted(seconds for seconds, _ in [await post.timed() for _ in range(50)])
            with capsys.disabled():
                print(f"\nKafka, alone: p50 {times[25] * 1e3:.1f}, p98 {times[49] * 1e3:.1f} ms")  # noqa: T201
            own_broker.kill()
            both = await asyncio.gather(*(post.timed() for _ in range(5)))
            # It may have reached the broker, or not: without a key nobody can tell.
            assert {outcome for _, outcome in both} <= {"OUTCOME_UNKNOWN", "JOURNAL_UNAVAILABLE"}
            seconds, outcome = await post.timed()
            assert (outcome, seconds < 1) == ("JOURNAL_UNAVAILABLE", True)
            own_broker.start()
            keyed = Counter[str]()
            async with asyncio.timeout(60):
                while not keyed["degraded"]:
                    keyed[(await post.timed(idempotency_key="k"))[1]] += 1
                    await asyncio.sleep(0.2)
        # Its successor finds what it left, and counts it.
        server.start()
        async with outpost(server.url, tmp_path, journal=KafkaJournal(options, 0)) as post:
            await post.serving()
            assert await post.counting.count() > 200
            assert await post.counting.count() == 0
            used = await post.used()
            recorded = sum(e.granted for body, e in records_of(server.url) if body.f == "open")
            assert 252 <= used <= 252 + len(both)
            assert used == recorded
    finally:
        server.stop()
