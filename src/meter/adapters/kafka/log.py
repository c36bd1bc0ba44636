"""The log of the distributed profile: a Kafka topic, read as a member of a consumer group.

What is committed here only says where to begin reading: what counts is the rollup's mark in SQL. An
offset is committed when everything before it is rolled up, so a held bucket holds its partition's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from meter.adapters.kafka.client import PATIENCE, REQUEST_MS, kafka_failures
from meter.core.events import Fresh, decode
from meter.core.sequence import Entry, Position
from meter.errors import LogMovedError, LogUnavailableError
from meter.ports.log import Batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka.structs import ConsumerRecord

    from meter.adapters.kafka.client import KafkaOptions
    from meter.adapters.kafka.dead_letters import DeadLetters

__all__ = ["KafkaLog"]

_log = structlog.get_logger(__name__)

JOIN_SECONDS = 30.0
"""Longer than a dead member is waited for."""
PARTITION_BYTES = 4 * 1024 * 1024
GATHER_SECONDS = 0.5
"""How long one read goes on while the topic has more: what follows has a price of its own for each slice."""


@dataclass(slots=True)
class _Chunk:
    """What one read took of a partition: where it ended, and the last place of each bucket in it."""

    end: int
    last: dict[int, Position]


class KafkaLog:
    """Reads the records of `buckets` buckets. What is no record goes to the dead letters."""

    def __init__(self, options: KafkaOptions, buckets: int, dead: DeadLetters) -> None:
        self._options, self._buckets, self._dead = options, buckets, dead
        self._consumer: AIOKafkaConsumer | None = None
        self._members = _Membership()
        self._chunks: dict[TopicPartition, deque[_Chunk]] = {}
        self._read: dict[TopicPartition, int] = {}
        self._begin: dict[int, Position] = {}
        self._done: dict[int, Position] = {}

    async def assigned(self) -> frozenset[int]:
        consumer = await self._joined()
        async with kafka_failures("reading the committed offsets"):
            parts = consumer.assignment()
            for part in parts:
                offset = await consumer.committed(part)
                if offset is None:
                    await consumer.seek_to_beginning(part)
                else:
                    consumer.seek(part, offset)
        self._chunks = {part: deque() for part in parts}
        self._read, self._begin, self._done = {}, {}, {}
        owned = {part.partition for part in parts}
        mine = frozenset(b for b in range(self._buckets) if b % self._options.partitions in owned)
        _log.info("partitions assigned", partitions=sorted(owned), buckets=len(mine))
        return mine

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        consumer = self._present()
        entries: dict[int, list[Entry]] = {}
        fresh: dict[int, int] = {}
        more, until = True, time.monotonic() + timeout_ms / 1000 + GATHER_SECONDS
        while more and limit > 0 and timeout_ms > 0:
            async with kafka_failures("reading records", PATIENCE + timeout_ms / 1000):
                found = await consumer.getmany(timeout_ms=timeout_ms, max_records=limit)
            self._present()
            for part, messages in found.items():
                await self._take(part, messages, after, entries, fresh)
                limit -= len(messages)
            more = any(at < (consumer.highwater(part) or 0) for part, at in self._read.items())
            timeout_ms = int((until - time.monotonic()) * 1000)
        return Batch(entries, fresh, more)

    async def _take(
        self,
        part: TopicPartition,
        messages: Sequence[ConsumerRecord[Any, Any]],
        after: Mapping[int, Position],
        entries: dict[int, list[Entry]],
        fresh: dict[int, int],
    ) -> None:
        """Sort messages of a partition into what was read, and into the dead letters."""
        found: dict[int, list[Entry]] = {}
        for message in messages:
            try:
                event = decode(message.value or b"")
            except (ValueError, RecursionError) as error:
                await self._dead.put(message, str(error) or type(error).__name__)
                continue
            if isinstance(event, Fresh):
                fresh.update({b: ms for b, ms in event.buckets.items() if b in after})
                continue
            bucket, entry = event
            if bucket in found:
                found[bucket].append(entry)
            elif bucket < self._buckets and bucket % self._options.partitions == part.partition:
                found[bucket] = [entry]
            else:
                reason = f"bucket {bucket} does not belong into this partition"
                await self._dead.put(message, reason)
        last = {bucket: max(new).position for bucket, new in found.items()}
        for bucket, new in found.items():
            if bucket not in after:
                continue  # held: read again when it goes on, since this chunk is not committed
            # Reading begins at the last commit, which may lie before the mark: that is no repeat.
            begin = self._begin.setdefault(bucket, after[bucket])
            unread = new
            if min(new).position <= begin:
                unread = [
                    entry
                    for entry in new
                    if entry.position > begin or entry.generation < begin.generation
                ]
            if unread:
                entries.setdefault(bucket, []).extend(unread)
        if part in self._chunks and messages:
            self._read[part] = messages[-1].offset + 1
            self._chunks[part].append(_Chunk(self._read[part], last))

    async def commit(self, upto: Mapping[int, Position]) -> None:
        self._done.update(upto)
        consumer = self._present()
        offsets: dict[TopicPartition, int] = {}
        for part, chunks in self._chunks.items():
            while chunks and self._is_done(chunks[0]):
                offsets[part] = chunks.popleft().end
        if offsets:
            async with kafka_failures("committing offsets"):
                await consumer.commit(offsets)

    def _is_done(self, chunk: _Chunk) -> bool:
        start = Position(-1, -1)
        return all(place <= self._done.get(bucket, start) for bucket, place in chunk.last.items())

    async def backlog(self) -> int:
        consumer = self._present()
        await self.commit({})
        total = 0
        async with kafka_failures("measuring the topic"):
            parts = list(consumer.assignment())
            ends = await consumer.end_offsets(parts) if parts else {}
            begins = await consumer.beginning_offsets(parts) if parts else {}
            for part in parts:
                committed = await consumer.committed(part)
                total += ends[part] - (begins[part] if committed is None else committed)
        return total

    async def close(self) -> None:
        """Leave the group."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            async with kafka_failures("leaving the group"):
                await consumer.stop()

    def _present(self) -> AIOKafkaConsumer:
        if self._consumer is None or self._members.moved:
            raise LogMovedError("the group has moved partitions between its members")
        return self._consumer

    async def _joined(self) -> AIOKafkaConsumer:
        """A consumer that has its partitions; joins the group where none is there."""
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                group_id=self._options.group,
                group_instance_id=self._options.instance or None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=PARTITION_BYTES,
                session_timeout_ms=REQUEST_MS,
                **self._options.access,
            )
            consumer.subscribe([self._options.topic], listener=self._members)
            async with kafka_failures("joining the group"):
                try:
                    await consumer.start()
                except BaseException:
                    await consumer.stop()
                    raise
            self._consumer = consumer
        until = time.monotonic() + JOIN_SECONDS
        while not self._members.placed:
            if time.monotonic() > until:
                raise LogUnavailableError("Kafka: no partitions were assigned in time")
            await asyncio.sleep(0.05)
        self._members.moved = False
        return self._consumer


class _Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped in the driver
    """What the group has told this member."""

    def __init__(self) -> None:
        self.placed = False
        self.moved = True

    def on_partitions_revoked(self, revoked: Any) -> None:
        """The driver calls this before each rebalance."""
        self.placed, self.moved = False, True

    def on_partitions_assigned(self, assigned: Any) -> None:
        """The driver calls this after each rebalance."""
        self.placed, self.moved = True, True
