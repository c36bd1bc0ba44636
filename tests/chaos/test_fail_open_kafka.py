"""The journal in Kafka with enforcers as they are run: what one that died has allowed counts once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio
import pytest

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from tests.chaos.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path

CATALOG = """
version: 1
features: [{key: open, on_outage: fail_open, emergency: 1000000}]
accounts:
  - key: acme
    entitlements: [{feature: open, model: payg, per: month}]
"""
USES = 30


class Client:
    """Of one enforcer."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._stub: Any = EnforcerServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),)

    async def check(self, key: str) -> bool:
        """Whether it was decided without the counters; allowed it is."""
        request = pb.CheckRequest(customer="acme", feature="open", idempotency_key=key)
        answer = await self._stub.Check(request, metadata=self._metadata, timeout=20)
        assert answer.allowed
        return bool(answer.degraded)

    async def used(self) -> int:
        request = pb.GetBalanceRequest(customer="acme", feature="open")
        answer = await self._stub.GetBalance(request, metadata=self._metadata, timeout=20)
        return sum(limit.used for limit in answer.limits)


@pytest.mark.timeout(240)
async def test_what_a_killed_enforcer_has_journaled_in_kafka_counts_once(
    kafka_broker: str, tmp_path: Path
) -> None:
    options = KafkaOptions(kafka_broker, topic=f"records.{uuid4().hex[:8]}", partitions=2)
    await prepare_topics(options, create=True)
    made = Deployment(tmp_path)
    for number, one in enumerate(made.enforcers):
        del one.environment["METERGATE_JOURNAL_DIR"]
        one.environment |= {
            "METERGATE_JOURNAL_KAFKA": "true",
            "METERGATE_KAFKA_SERVERS": options.servers,
            "METERGATE_KAFKA_TOPIC": options.topic,
            "METERGATE_ENFORCER_NUMBER": str(number),
        }
    async with made:
        doomed, other = made.enforcers
        await made.apply(CATALOG)
        async with (
            grpc.aio.insecure_channel(doomed.listen, options=CHANNEL_OPTIONS) as first,
            grpc.aio.insecure_channel(other.listen, options=CHANNEL_OPTIONS) as second,
        ):
            dying, lasting = Client(first, made.key), Client(second, made.key)
            for client in (dying, lasting):
                assert not await client.check(uuid4().hex)
            await asyncio.to_thread(made.valkey.kill)
            for number in range(USES):
                assert await dying.check(f"key {number}"), "journaled in Kafka"
            doomed.kill()
            await asyncio.to_thread(made.valkey.start)
            doomed.start()
            await doomed.serving()
            await other.serving()
            give_up = time.monotonic() + 90
            while await lasting.used() < USES + 2:
                assert time.monotonic() < give_up, doomed.log
                await asyncio.sleep(0.1)
            # Its clients come again with their keys: nothing is used once more.
            for number in range(USES):
                assert not await lasting.check(f"key {number}")
            assert await lasting.used() == USES + 2
