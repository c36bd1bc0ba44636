"""Messages of the topic that are no records: kept verbatim with the reason, to look at and to replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from meter.adapters.kafka.client import kafka_failures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka.structs import ConsumerRecord

    from meter.adapters.kafka.client import KafkaOptions

__all__ = ["DeadLetter", "DeadLetters", "read_dead_letters", "replay_dead_letter"]

READ_SECONDS = 300.0

_log = structlog.get_logger(__name__)


class DeadLetter(NamedTuple):
    """A message, where it lies in the topic of dead letters, where it came from and why it is here."""

    number: int
    topic: str
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class DeadLetters:
    """Writes dead letters. A crash after writing may write one again: its origin tells."""

    def __init__(self, options: KafkaOptions, count: Callable[[], None]) -> None:
        self._options, self._count = options, count
        self._producer: AIOKafkaProducer | None = None

    async def put(self, message: ConsumerRecord[Any, Any], reason: str) -> None:
        """Keep the message. Durable on return; raise `LogUnavailableError` when that is not sure."""
        async with kafka_failures("writing a dead letter"):
            if self._producer is None:
                producer = AIOKafkaProducer(enable_idempotence=True, **self._options.access)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            await self._producer.send_and_wait(
                self._options.dead_letters,
                # A message without both is none that a producer may write.
                value=message.value or b"",
                key=message.key,
                partition=0,
                headers=[
                    *message.headers,
                    ("metergate-reason", reason.encode()),
                    ("metergate-origin", f"{message.partition}:{message.offset}".encode()),
                ],
            )
        self._count()
        _log.error(
            "a message is no record and went to the dead letters",
            partition=message.partition,
            offset=message.offset,
            reason=reason,
        )

    async def close(self) -> None:
        """End all connections."""
        producer, self._producer = self._producer, None
        if producer is not None:
            async with kafka_failures("closing the dead letters"):
                await producer.stop()


async def read_dead_letters(options: KafkaOptions, first: int = 0) -> AsyncIterator[DeadLetter]:
    """Every dead letter there is now, from number `first` on."""
    part = TopicPartition(options.dead_letters, 0)
    async with kafka_failures("reading the dead letters", READ_SECONDS):
        consumer = AIOKafkaConsumer(enable_auto_commit=False, **options.access)
        try:
            await consumer.start()
            consumer.assign([part])
            end = (await consumer.end_offsets([part]))[part]
            begin = (await consumer.beginning_offsets([part]))[part]
            consumer.seek(part, max(first, begin))
            while await consumer.position(part) < end:
                found = await consumer.getmany(part, timeout_ms=1000)
                for message in found.get(part, []):
                    yield _letter(options, message)
        finally:
            await consumer.stop()


def _letter(options: KafkaOptions, message: ConsumerRecord[Any, Any]) -> DeadLetter:
    ours = {name: value for name, value in message.headers if name.startswith("metergate-")}
    partition, _, offset = ours.get("metergate-origin", b"-1:-1").decode().partition(":")
    return DeadLetter(
        message.offset,
        options.topic,
        int(partition),
        int(offset),
        ours.get("metergate-reason", b"").decode(),
        message.key,
        message.value,
        tuple(pair for pair in message.headers if pair[0] not in ours),
    )


async def replay_dead_letter(options: KafkaOptions, letter: DeadLetter) -> int:
    """Write the message into its partition again; return its new offset there."""
    async with kafka_failures("replaying a dead letter"):
        producer = AIOKafkaProducer(enable_idempotence=True, **options.access)
        try:
            await producer.start()
            stored = await producer.send_and_wait(
                letter.topic,
                value=letter.value,
                key=letter.key,
                partition=letter.partition,
                headers=list(letter.headers),
            )
        finally:
            await producer.stop()
    return int(stored.offset)
