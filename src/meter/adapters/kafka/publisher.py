"""Writes records to their partitions, in order, and returns when all replicas have them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from meter.adapters.kafka.client import kafka_failures
from meter.core.events import CONTENT_TYPE, encode, encode_fresh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka.producer.message_accumulator import BatchBuilder

    from meter.adapters.kafka.client import KafkaOptions
    from meter.core.sequence import Entry

__all__ = ["KafkaPublisher"]

BATCH_BYTES = 512 * 1024
"""Of one request and partition; brokers take 1 MiB unless told otherwise."""
HEADERS = [("content-type", CONTENT_TYPE)]


class KafkaPublisher:
    """A producer at a time: after any failure it is thrown away, with all that waited in it.

    What it had sent may still arrive, behind what the next one sends: as repeats.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._producer: AIOKafkaProducer | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def publish(
        self, entries: Mapping[int, Sequence[Entry]], fresh: Mapping[int, int]
    ) -> None:
        """Write each bucket's entries in their order, then up to when the buckets are fresh, in ms.

        Raise `LogUnavailableError` when not all of it is known to be stored: then all of it has to be
        written again before anything that follows it.
        """
        try:
            async with kafka_failures("writing records"):
                producer = await self._started()
                waiting = [
                    await producer.send_batch(batch, self._options.topic, partition=partition)
                    for partition, batch in self._batches(producer, entries, fresh)
                ]
                for stored in waiting:
                    await stored
        except BaseException:
            self._throw_away()
            raise

    def _batches(
        self,
        producer: AIOKafkaProducer,
        entries: Mapping[int, Sequence[Entry]],
        fresh: Mapping[int, int],
    ) -> list[tuple[int, BatchBuilder]]:
        partitions: dict[int, list[tuple[bytes, bytes]]] = {}
        for bucket, records in entries.items():
            key = b"%d" % bucket
            into = partitions.setdefault(bucket % self._options.partitions, [])
            into += [(key, encode(bucket, record)) for record in records]
        marks: dict[int, dict[int, int]] = {}
        for bucket, ms in fresh.items():
            marks.setdefault(bucket % self._options.partitions, {})[bucket] = ms
        now = datetime.now(UTC)
        for partition, buckets in marks.items():
            partitions.setdefault(partition, []).append((b"fresh", encode_fresh(now, buckets)))
        out: list[tuple[int, BatchBuilder]] = []
        for partition, messages in partitions.items():
            batch = producer.create_batch()
            for key, value in messages:
                if batch.append(key=key, value=value, timestamp=None, headers=HEADERS) is None:
                    out.append((partition, batch))
                    batch = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None, headers=HEADERS)
            batch.close()
            out.append((partition, batch))
        return out

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                enable_idempotence=True, max_batch_size=BATCH_BYTES, **self._options.access
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer

    def _throw_away(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            task = asyncio.create_task(self._stop(producer))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    @staticmethod
    async def _stop(producer: AIOKafkaProducer) -> None:
        with suppress(KafkaError, OSError):  # what it could not send is sent again by another
            await producer.stop()

    async def close(self) -> None:
        """End all connections."""
        self._throw_away()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=5)
