"""The relay: takes records from the outboxes to Kafka, each bucket's in order, none left out.

One round: `read` what follows, `publish` it and wait until it is stored, `trim` it from the outbox.
After any failure everything that is not trimmed is sent again, so that before a record in the topic
always lies its predecessor. What is sent twice the rollup drops.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from meter.core.sequence import START, Position
from meter.errors import LogMovedError, LogUnavailableError
from meter.health import Complaint
from meter.ports.traces import Untraced

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter.metrics import RelayMetrics
    from meter.ports.log import Batch, LogSource, Publisher
    from meter.ports.traces import Traces

__all__ = ["Relay", "RelayOptions"]

_log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_UNTRACED = Untraced()
MEASURE_EVERY = 2.0


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a relay works: records at once, and times in seconds.

    `idle_wait`: how long one read waits. `fresh_every`: how often it says that a bucket is empty.
    `deal_every`: how often it asks which buckets are its own.
    """

    batch_records: int = 5_000
    idle_wait: float = 0.25
    fresh_every: float = 0.5
    deal_every: float = 1.0


class Relay:
    """Relays the buckets that `source` assigns. Run it with `run`; ask it to end with `stop`.

    `steps` is called with the name of each step before it begins and may raise.
    """

    def __init__(
        self,
        source: LogSource,
        publisher: Publisher,
        metrics: RelayMetrics,
        options: RelayOptions | None = None,
        steps: Callable[[str], None] = lambda _: None,
        traces: Traces = _UNTRACED,
    ) -> None:
        self._source, self._publisher, self._metrics = source, publisher, metrics
        self._traces = traces
        self._options = options or RelayOptions()
        self._steps = steps
        self._complaint = Complaint("relay starts again")
        self._stopping = asyncio.Event()
        self._sent: dict[int, Position] = {}
        self._ahead: asyncio.Task[Batch] | None = None
        self._dealt = self._fresh = self._measured = 0.0

    def stop(self) -> None:
        """End `run` when the present round is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Round after round until `stop`. Failures are logged, counted and retried."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                await self.round(self._options.idle_wait)
                pause = FIRST_PAUSE
                self._complaint.over()
            except LogMovedError:
                await self.begin_again()
            except LogUnavailableError as error:
                self._metrics.failures.inc()
                self._complaint.say(error.message)
                await self.begin_again()
                try:
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                except TimeoutError:
                    pause = min(pause * 2, LONGEST_PAUSE)
        await self.begin_again()

    async def begin_again(self) -> None:
        """Forget what was sent: all that the outboxes have is sent again."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait({ahead})
            if not ahead.cancelled():
                ahead.exception()  # seen: the read is done again
        self._sent = {}
        self._dealt = 0.0

    async def round(self, wait: float) -> int:
        """Do one round; wait up to `wait` seconds for the first record. Return how many were relayed."""
        await self._deal()
        self._steps("read")
        ahead, self._ahead = self._ahead, None
        batch = await (ahead or self._read(wait))
        last = {bucket: entries[-1].position for bucket, entries in batch.entries.items()}
        self._sent.update(last)
        if batch.more:
            # The outboxes have more: read it while this is on its way.
            self._ahead = asyncio.create_task(self._read(0.001))
        fresh = batch.fresh if time.monotonic() - self._fresh > self._options.fresh_every else {}
        if last or fresh:
            self._steps("publish")
            records = ((bucket, one) for bucket, many in batch.entries.items() for one in many)
            with self._metrics.publishing.time(), self._traces.batch("relay", records):
                await self._publisher.publish(batch.entries, fresh)
        if fresh:
            self._fresh = time.monotonic()
        if last:
            self._steps("trim")
            await self._source.commit(last)
        count = sum(map(len, batch.entries.values()))
        self._metrics.relayed.inc(count)
        await self._measure()
        return count

    async def _deal(self) -> None:
        """Ask which buckets are this relay's; begin new ones at what their outbox still has."""
        if time.monotonic() - self._dealt < self._options.deal_every:
            return
        mine = await self._source.assigned()
        self._dealt = time.monotonic()
        if mine != self._sent.keys():
            _log.info("buckets dealt", buckets=sorted(mine))
        self._sent = {bucket: self._sent.get(bucket, START) for bucket in mine}
        self._metrics.buckets.set(len(mine))

    async def _read(self, wait: float) -> Batch:
        if not self._sent:
            await asyncio.sleep(wait)
        return await self._source.read(
            dict(self._sent), self._options.batch_records, max(1, int(wait * 1000))
        )

    async def _measure(self) -> None:
        if time.monotonic() - self._measured > MEASURE_EVERY:
            self._metrics.waiting.set(await self._source.backlog())
            self._measured = time.monotonic()
