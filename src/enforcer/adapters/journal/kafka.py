"""Journals in a Kafka topic, for enforcers whose own disks do not outlive them.

A message is one use: its key is the number of the enforcer, a header names the journal, enforcer and boot. Whoever counts
begins at the committed offset of a partition and commits when all before it is counted. Two that count the same do no
harm: marks decide. What others have written is looked at when it is old enough that its enforcer would have counted it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from enforcer.core.emergency import decode_use, encode_use
from enforcer.errors import JournalUnavailableError
from meter.adapters.kafka.client import kafka_failures
from meter.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aiokafka.structs import ConsumerRecord

    from enforcer.core.emergency import Use
    from meter.adapters.kafka.client import KafkaOptions

__all__ = ["KafkaJournal"]

_log = structlog.get_logger(__name__)
APPEND_SECONDS = 3.0
"""An append that has not been acknowledged by then has failed."""
HELD_BACK_SECONDS = 1.0
"""After a failure nothing is tried for so long: checks do not wait again and again."""
READ_SECONDS = 30.0
CHUNK = 2_000


class _Read(NamedTuple):
    """A message: which enforcer and journal wrote it, when, and what it says (None: no use)."""

    offset: int
    enforcer: bytes
    journal: str
    at: float
    use: Use | None


class KafkaJournal:
    """Implements `enforcer.ports.journal.Journal`.

    `number`: this enforcer's among those of the deployment; no two at once have the same. `old`: after so many seconds
    what others wrote is counted here, too.
    """

    def __init__(self, options: KafkaOptions, number: int, old: float = 10.0) -> None:
        self._options, self._number, self._old = options, b"%d" % number, old
        self._partition = number % options.partitions
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._pending: list[tuple[Use, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._held_back_until = self._looked = 0.0
        self._uncounted = True
        self._leaving: set[asyncio.Task[None]] = set()
        self._begin_boot()

    def _begin_boot(self) -> None:
        """A name that was never used, under which numbers begin again."""
        self._name = f"{self._number.decode()}.{secrets.token_hex(8)}"
        self._numbers: defaultdict[int, int] = defaultdict(int)

    # -- writing

    async def append(self, use: Use) -> None:
        self._pass()
        written = asyncio.get_running_loop().create_future()
        self._pending.append((use, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        await written

    def _pass(self) -> None:
        if time.monotonic() < self._held_back_until:
            message = "the journal's topic was away a moment ago"
            raise JournalUnavailableError(message)

    async def _write_all(self) -> None:
        while self._pending:
            group, self._pending = self._pending, []
            error: JournalUnavailableError | None = None
            try:
                await self._write([use for use, _ in group])
            except JournalUnavailableError as failure:
                error = failure
            for _, written in group:
                if written.done():
                    continue  # nobody waits any more; the use counts all the same
                if error is None:
                    written.set_result(None)
                else:
                    written.set_exception(error)

    async def _write(self, uses: list[Use]) -> None:
        """In their order, acknowledged by all replicas on return."""
        self._pass()
        sent = False
        try:
            async with kafka_failures("writing the journal", APPEND_SECONDS):
                producer = await self._started()
                sent, self._uncounted = True, True
                waiting = []
                for use in uses:
                    self._numbers[use.bucket] += 1
                    numbered = msgspec.structs.replace(use, number=self._numbers[use.bucket])
                    waiting.append(
                        await producer.send(
                            self._options.journal,
                            encode_use(numbered),
                            key=self._number,
                            partition=self._partition,
                            headers=[("journal", self._name.encode())],
                        )
                    )
                for stored in waiting:
                    await stored
        except LogUnavailableError as error:
            self._held_back_until = time.monotonic() + HELD_BACK_SECONDS
            self._throw_away()
            # What was sent may still arrive, in part: its numbers are given to no other use.
            self._begin_boot()
            raise JournalUnavailableError(error.message, certain=not sent) from error

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                enable_idempotence=True, linger_ms=0, **self._options.access
            )
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer
        return self._producer

    def _throw_away(self) -> None:
        for client in (self._producer, self._consumer):
            if client is not None:
                task = asyncio.create_task(_stop(client))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        self._producer = self._consumer = None

    # -- counting

    async def left_over(self) -> Sequence[Use]:
        try:
            async with kafka_failures("reading the journal", READ_SECONDS):
                # Ready before the first emergency: connecting then would cost the first ones their time.
                await self._started()
                consumer = await self._reading()
                part = TopicPartition(self._options.journal, self._partition)
                read = await self._read(consumer, part, None)
        except LogUnavailableError as error:
            self._throw_away()
            raise JournalUnavailableError(error.message) from error
        return [one.use for one in read if one.use is not None and one.enforcer == self._number]

    async def seal(self) -> AsyncGenerator[_Sealed, None]:
        look = time.monotonic() - self._looked >= self._old / 2
        if not self._uncounted and not look:
            return
        partitions = range(self._options.partitions) if look else [self._partition]
        for number in partitions:
            part = TopicPartition(self._options.journal, number)
            while True:
                chunk = await self._chunk(part)
                sealed = [
                    _Sealed(name, uses, own=own)
                    for name, own, uses in _journals(chunk, self._number)
                ]
                for one in sealed:
                    yield one
                if not chunk or not all(one.discarded for one in sealed):
                    break
                await self._commit(part, chunk[-1].offset + 1)
            if number == self._partition and not chunk:
                self._uncounted = False
        if look:
            self._looked = time.monotonic()

    async def _chunk(self, part: TopicPartition) -> list[_Read]:
        """What of a partition can be counted next."""
        try:
            async with kafka_failures("reading the journal", READ_SECONDS):
                read = await self._read(await self._reading(), part, CHUNK)
        except LogUnavailableError as error:
            self._throw_away()
            raise JournalUnavailableError(error.message) from error
        young = time.time() - self._old
        for place, one in enumerate(read):
            if one.enforcer != self._number and one.at > young:
                return read[:place]
        return read

    async def _reading(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                group_id=f"{self._options.journal}.counting",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                **self._options.access,
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            parts = range(self._options.partitions)
            consumer.assign([TopicPartition(self._options.journal, part) for part in parts])
            self._consumer = consumer
        return self._consumer

    async def _read(
        self, consumer: AIOKafkaConsumer, part: TopicPartition, most: int | None
    ) -> list[_Read]:
        """From the committed offset to the end of this moment."""
        end = (await consumer.end_offsets([part]))[part]
        begin = (await consumer.beginning_offsets([part]))[part]
        at = max(begin, await consumer.committed(part) or 0)
        consumer.seek(part, at)
        found: list[_Read] = []
        while at < end and (most is None or len(found) < most):
            messages = (await consumer.getmany(part, timeout_ms=500, max_records=CHUNK)).get(
                part, []
            )
            found += [_decoded(message) for message in messages if message.offset < end]
            at = await consumer.position(part)
        return found[:most]

    async def _commit(self, part: TopicPartition, offset: int) -> None:
        try:
            async with kafka_failures("committing the journal", READ_SECONDS):
                await (await self._reading()).commit({part: offset})
        except LogUnavailableError as error:
            self._throw_away()
            raise JournalUnavailableError(error.message) from error

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        self._throw_away()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=15)


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError):  # it is of no use any more
        await client.stop()


def _decoded(message: ConsumerRecord[Any, Any]) -> _Read:
    headers = dict(message.headers)
    try:
        use = decode_use(message.value or b"")
    except msgspec.MsgspecError:
        use = None
        _log.exception("a message of the journal is no use", offset=message.offset)
    journal = headers.get("journal", b"").decode(errors="replace")
    return _Read(message.offset, message.key or b"", journal, message.timestamp / 1_000, use)


def _journals(chunk: list[_Read], own: bytes) -> list[tuple[str, bool, list[Use]]]:
    """The uses of each journal in their order."""
    found: dict[tuple[str, bool], list[Use]] = {}
    for one in chunk:
        if one.use is not None:
            found.setdefault((one.journal, one.enforcer == own), []).append(one.use)
    return [(name, mine, uses) for (name, mine), uses in found.items()]


class _Sealed:
    """Implements `enforcer.ports.journal.Sealed` on what was read."""

    def __init__(self, journal: str, uses: list[Use], *, own: bool) -> None:
        self.journal, self.own, self._uses = journal, own, uses
        self.discarded = False

    async def batches(self, most: int) -> AsyncGenerator[Sequence[Use], None]:
        for at in range(0, len(self._uses), most):
            yield self._uses[at : at + most]

    async def discard(self) -> None:
        self.discarded = True
