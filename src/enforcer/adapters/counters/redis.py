"""The counter store on Redis or Valkey: one script call for all checks that wait, on one bare connection.

Checks that arrive while earlier ones are being decided travel together; no timer delays a lone one. A batch that was on
its way when the connection broke may have run or not: the next connection first makes sure that it cannot run any more,
then asks whether it did (design: fencing).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hiredis
import structlog

from enforcer.adapters.counters import codec
from enforcer.adapters.counters.connection import Connection, ConnectionLostError, connect
from enforcer.adapters.counters.handshake import Handshake, shake_hands
from enforcer.adapters.counters.mend import Mender, Process
from enforcer.adapters.counters.scripts import SERVER_CLOCK
from enforcer.adapters.counters.waiting import Batch, Waiting
from enforcer.core.breaker import Breaker, BreakerOptions
from enforcer.core.commands import (
    Decision,
    EpochStale,
    HoldGone,
    KeyReused,
    Sent,
    TooMuch,
    idempotency,
)
from enforcer.core.corrections import Corrected
from enforcer.errors import (
    CountersRebuildingError,
    MetergateError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from meter.core.keys import bucket_tag
from meter.core.records import RecordType
from meter.core.sequence import START, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from enforcer.adapters.counters.mend import Marks, Truth
    from enforcer.core.breaker import BreakerState
    from enforcer.core.commands import Answer, Ask, BucketState, Counter, LeaseInfo, Settled
    from enforcer.core.corrections import Correction, Levels, Outcome
    from enforcer.ports.ledger import Ledger

__all__ = ["RedisCounters", "RedisOptions"]

_log = structlog.get_logger(__name__)
ENDS = 8
"""Earlier generations of a bucket whose last place is remembered, on average."""
SLOTS = 64
"""Places of a connection where outcomes of batches are kept; one whose answer came too late keeps its place."""
LONGEST_PAUSE = 0.25
"""Between two attempts to connect, or to open buckets, in seconds."""
NOT_LOADED = ("NOSCRIPT", "ERR Function not found")
"""How a server answers that does not execute the functions: it is not the process they were loaded on."""
WATCH, LATE = 0.05, 0.5
"""Seconds between two looks at what waits, and from when on one comes late."""


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Bounds of the store. Times in seconds but for `window_ms`.

    `window_ms`: answers are remembered at least so long. `in_flight`: batches on their way at once. `batch`: checks in
    one of them. `reply_timeout`: a silent server is given up. `patience`: how long a call waits for a connection.
    `fail_open_wait`: a check that has a failure policy to fall back on waits no longer than that; None: none has.
    """

    url: str
    buckets: int
    window_ms: int = 86_400_000
    in_flight: int = 4
    batch: int = 256
    connect_timeout: float = 1.0
    reply_timeout: float = 2.0
    patience: float = 1.0
    clock: str = SERVER_CLOCK
    fail_open_wait: float | None = None
    breaker: BreakerOptions = field(default_factory=BreakerOptions)


class RedisCounters:
    """Implements `enforcer.ports.counters.CounterStore`. `start` it, then wait for `ready` or just ask.

    `truth` knows generations and definitions, `ledger` the records: without it buckets that were opened on another
    server process stay closed. `marks` tell how far the records are rolled up while the ledger is away. `observe(checks, seconds)` is told of every batch.
    """

    def __init__(
        self,
        options: RedisOptions,
        truth: Truth,
        observe: Callable[[int, float], None] = lambda _checks, _seconds: None,
        *,
        ledger: Ledger | None = None,
        marks: Marks | None = None,
        steps: Callable[[str], None] = lambda _: None,
        on_breaker: Callable[[BreakerState], None] = lambda _state: None,
    ) -> None:
        self._options, self._truth, self._observe = options, truth, observe
        self.breaker = Breaker(options.breaker, on_breaker)
        self._probing = False
        self._slots: list[int] = []
        self._parked_since: dict[int, float] = {}
        self._greeting: Connection | None = None
        self._ledger, self._marks, self._steps = ledger, marks, steps
        self._enforcer = secrets.token_hex(8)
        self._loop: asyncio.AbstractEventLoop
        self._link: Connection | None = None
        self._hands: Handshake | None = None
        self._connections = self._batches = 0
        self._queue: list[Waiting] = []
        self._parked: list[Waiting] = []
        self._known: dict[int, Position] = {}
        self._ends: dict[tuple[int, int], int] = {}
        self._told: set[tuple[int, int]] = set()
        self._doubt: list[Batch] = []
        self._flying: dict[int, Batch] = {}
        self._scheduled = False
        self.ready = asyncio.Event()
        self._down = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.last_error = "not connected yet"
        self._met = False

    # -- life

    def start(self) -> None:
        """Connect in the background, again and again."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [
            asyncio.create_task(self._stay_connected(), name="redis connection"),
            asyncio.create_task(self._watch(), name="redis watchdog"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self._link is not None:
            self._link.close()

    async def _stay_connected(self) -> None:
        delay = 0.02
        while True:
            self._down = down = asyncio.Event()
            link: Connection | None = None
            try:
                link = await connect(self._options.url, down.set, self._options.connect_timeout)
                self._greeting = link
                async with asyncio.timeout(30):
                    await self._greet(link)
            except (
                OSError,
                TimeoutError,
                hiredis.HiredisError,
                ConnectionLostError,
                MetergateError,
            ) as error:
                self.last_error = str(error) or type(error).__name__
                _log.warning("no connection to Redis", error=self.last_error)
                if link is not None:
                    link.close()
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_PAUSE)
                continue
            finally:
                self._greeting = None
            delay = 0.02
            opening = asyncio.create_task(self._keep_open(link), name="redis buckets")
            try:
                await down.wait()
            finally:
                opening.cancel()
                await asyncio.wait({opening})
            self._drop(link)
            self.last_error = "connection lost"

    def _drop(self, link: Connection) -> None:
        """Stop using a connection, unless another has taken its place already."""
        if self._link is link:
            self.ready.clear()
            self._link = None
        link.close()

    async def _greet(self, link: Connection) -> None:
        """Handshake, fence off the connection before this one, and settle what became of its batches."""
        buckets = range(self._options.buckets)
        hands = await shake_hands(link, buckets, self._truth, self._options.clock, self._steps)
        self._connections += 1
        self._hands = hands
        await self._fence(link, hands, dict.fromkeys(set(buckets) - set(hands.closed), True))
        self._link = link
        self._slots = list(range(1, SLOTS + 1))
        self._probing = False
        self.ready.set()
        self._met = self._met or self._connected
        self._schedule()

    async def _fence(self, link: Connection, hands: Handshake, opened: Mapping[int, bool]) -> None:
        """Refuse what older connections may still have on its way to these buckets, and settle what became of it.

        A bucket that had lost something (False) does not know which batches ran.
        """
        self._steps("fence")
        ran: dict[int, float] = {}
        for bucket, intact in opened.items():
            reply = await link.call(*self._hold_command(hands, "fence", bucket))
            if reply[0] == b"lost":
                hands.closed[bucket] = "its data are missing"
                continue
            ran[bucket] = int(reply[0]) if intact else float("inf")
            if not intact:  # what was told may be lost as well
                self._told = {place for place in self._told if place[0] != bucket}
            self._ask_about(bucket)
        self._tell(link, hands)
        again: list[Waiting] = []
        for batch in self._doubt:
            for waiting in batch.waiting:
                last = ran.get(waiting.bucket)
                if last is None:
                    continue
                if last < batch.number:
                    waiting.sent = None
                    again.append(waiting)
                elif waiting.repeatable:
                    again.append(waiting)
                else:
                    waiting.fail(OutcomeUnknownError(waiting.sent))
            batch.waiting = [one for one in batch.waiting if one.bucket not in ran]
        self._doubt = [batch for batch in self._doubt if batch.waiting]
        self._queue = again + self._queue

    # -- buckets that are closed until they are proven

    @property
    def serving(self) -> bool:
        """Whether there is a connection, calls pass, and at least one bucket can be asked."""
        return self._connected and self.breaker.closed

    @property
    def _connected(self) -> bool:
        hands = self._hands
        return (
            self.ready.is_set() and hands is not None and len(hands.closed) < self._options.buckets
        )

    def readiness(self) -> tuple[bool, str]:
        """Whether calls should be sent to this enforcer, and why.

        Not before it has met the store. Later an outage of the store is no reason to be taken out of service: what fails
        open is answered here, the rest gets a clear fault, and other enforcers are no better off.
        """
        if self.serving:
            return True, "ready"
        if self._options.fail_open_wait is None or not self._met:
            return self._connected, f"counters: {self.last_error}"
        return True, f"degraded: failure policies decide, counters: {self.last_error}"

    def _close_bucket(self, bucket: int) -> None:
        """Redis lacks it, although it was opened on this very process."""
        assert self._hands is not None
        if bucket not in self._hands.closed:
            _log.error("the bucket's data are missing in Redis", bucket=bucket)
            self._hands.closed[bucket] = "its data are missing"
        self._closing.set()

    def _rebuilding(self, bucket: int, sent: Sent | None = None) -> CountersRebuildingError:
        why = "" if self._hands is None else self._hands.closed.get(bucket, "")
        return CountersRebuildingError(bucket, why, sent)

    def _park(self, waiting: Waiting) -> None:
        """It waits for its bucket to be opened; one with a policy does not when that has lasted already."""
        now = time.monotonic()
        since = self._parked_since.setdefault(waiting.bucket, now)
        wait = self._options.fail_open_wait
        if wait is not None and waiting.hasty and now - since > wait:
            waiting.fail(self._rebuilding(waiting.bucket, waiting.sent))
        else:
            self._parked.append(waiting)

    async def _keep_open(self, link: Connection) -> None:
        """Open what is closed, now and whenever a bucket turns out to be missing. Ends with its connection."""
        hands = self._hands
        assert hands is not None
        options, pause = self._options, 0.05
        ledger = self._ledger
        if ledger is None:
            hands.closed.update(dict.fromkeys(hands.closed, "there is no meter to ask"))
            return
        mender = Mender(
            link,
            Process(hands.run_id, options.clock, options.window_ms, self._enforcer),
            self._truth,
            ledger,
            lambda bucket: self._known.get(bucket, START),
            self._marks,
            self._steps,
        )
        while True:
            if not hands.closed:
                self._closing.clear()
                await self._closing.wait()
                pause = 0.05
            try:
                opened = await mender.mend(hands.closed)
                await self._fence(link, hands, opened)
            except (ConnectionLostError, hiredis.HiredisError, MetergateError) as error:
                hands.closed.update(dict.fromkeys(hands.closed, str(error)))
                opened = {}
            except Exception:  # noqa: BLE001 - logged here, and done again
                # Buckets are never left closed without another attempt, nor without a word.
                _log.exception("opening buckets failed")
                hands.closed.update(dict.fromkeys(hands.closed, "an internal error: see the log"))
                opened = {}
            for bucket in opened:
                hands.closed.pop(bucket, None)
                self._parked_since.pop(bucket, None)
            if opened:
                self._met = True
                pause = 0.05
                self._queue, self._parked = self._parked + self._queue, []
                self._schedule()
            if hands.closed:
                _log.warning("buckets are closed", buckets=hands.closed, pause=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _watch(self) -> None:
        """Give up on a silent server, and on waiting for one that is away."""
        late, woken = False, time.monotonic()
        while True:
            await asyncio.sleep(WATCH)
            now = time.monotonic()
            late, woken = not late and now - woken > LATE, now
            if late:
                continue  # This process stood still: judged when it has heard what came meanwhile.
            oldest = next(iter(self._flying.values()), None)
            if oldest is not None and now - oldest.sent > self._options.reply_timeout:
                self.last_error = "no reply"
                if self._link is not None:
                    self._drop(self._link)
            link = self._link or self._greeting
            if link is not None and link.silence(now) > self._options.reply_timeout:
                self.last_error = "no reply"
                self._drop(link)
            self._probe(now)
            for flying in list(self._flying.values()):
                self._withdraw(flying, now)
            self._parked = [one for one in self._parked if not self._given_up(one, now, sent=False)]
            for batch in self._doubt:
                batch.waiting = [
                    one for one in batch.waiting if not self._given_up(one, now, sent=True)
                ]
            # While there is a connection only those wait no longer that have a policy.
            self._queue = [
                one
                for one in self._queue
                if not (
                    (not self.ready.is_set() or self._opens(one))
                    and self._given_up(one, now, sent=False)
                )
            ]

    def _opens(self, waiting: Waiting) -> bool:
        return self._options.fail_open_wait is not None and waiting.hasty

    def _withdraw(self, batch: Batch, now: float) -> None:
        """Give up those checks of a batch on its way that need not wait for it."""
        wait = self._options.fail_open_wait
        if wait is None or now - batch.sent <= wait:
            return
        for waiting in batch.waiting:
            if not waiting.future.done() and waiting.hasty:
                batch.withdrawn = True
                self._given_up(waiting, now, sent=True)

    def _given_up(self, waiting: Waiting, now: float, *, sent: bool) -> bool:
        """Whether nobody waits for it any more."""
        if waiting.future.done():
            return True
        wait = self._options.fail_open_wait
        if wait is None or not waiting.hasty:
            wait = self._options.patience
        if now - waiting.since <= wait:
            return False
        if sent and not waiting.repeatable:
            waiting.fail(OutcomeUnknownError(waiting.sent))
        elif self.ready.is_set() and not sent and waiting.bucket in self._parked_since:
            # The server answers: that is no failure of its.
            waiting.fail(self._rebuilding(waiting.bucket, waiting.sent))
            return True
        else:
            waiting.fail(StoreUnavailableError(self.last_error, waiting.sent))
        self.breaker.failed(now)
        return True

    def _probe(self, now: float) -> None:
        """Find out whether calls may pass again."""
        link = self._link
        if self.breaker.closed or self._probing or link is None or not self.ready.is_set():
            return
        limit = min(self._options.reply_timeout, self._options.fail_open_wait or 1.0)

        def answered(reply: Any) -> None:
            self._probing = False
            in_time = time.monotonic() - now <= limit
            if not self.breaker.closed:
                self.breaker.probed(success=in_time and not isinstance(reply, Exception))

        self._probing = True
        link.send(answered, "PING")

    def _pass(self) -> None:
        """Raise unless calls may pass."""
        if not self.breaker.closed:
            raise self._held_back()

    def _held_back(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.last_error}; calls are held back for now")

    # -- checks

    async def decide(self, group: Sequence[Ask]) -> list[Answer]:
        if not self.breaker.closed:
            raise self._held_back()
        future: asyncio.Future[list[Answer]] = self._loop.create_future()
        self._queue.append(Waiting(group, future, time.monotonic()))
        if not self._scheduled:
            self._schedule()
        return await future

    async def decide_all(
        self, groups: Sequence[Sequence[Ask]]
    ) -> list[list[Answer] | MetergateError]:
        if not self.breaker.closed:
            return [self._held_back() for _ in groups]
        now, future = time.monotonic(), self._loop.create_future
        waiting = [Waiting(group, future(), now) for group in groups]
        self._queue += waiting
        self._schedule()
        found: list[list[Answer] | MetergateError] = []
        for one in waiting:
            try:
                found.append(await one.future)
            except MetergateError as error:
                found.append(error)
        return found

    def _schedule(self) -> None:
        if (
            self._queue
            and not self._scheduled
            and len(self._flying) < self._options.in_flight
            and self.ready.is_set()
        ):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        link, hands = self._link, self._hands
        if link is None or hands is None or not self.ready.is_set():
            return
        sections: dict[int, codec.Section] = {}
        order: dict[int, list[int]] = {}
        slot, number = self._slots[-1], self._batches + 1
        taken: list[Waiting] = []
        checks = 0
        for waiting in self._queue:
            if taken and checks + len(waiting.group) > self._options.batch:
                break
            taken.append(waiting)
            if waiting.future.done():
                continue
            group = waiting.group
            program = group[0].program
            bucket = program.bucket
            if bucket in hands.closed:
                self._park(waiting)
                continue
            section = sections.get(bucket)
            if section is None:
                section = sections[bucket] = codec.Section(bucket)
                order[bucket] = []
            if len(group) == 1:
                section.add_one(group[0])
            else:
                section.add(group)
            if program.emergency and waiting.hasty:
                waiting.sent = Sent(self._enforcer, self._connections, slot, number, section.count)
                section.keep |= slot * waiting.traced
            order[bucket].append(len(taken) - 1)
            checks += len(group)
        del self._queue[: len(taken)]
        if not sections:
            self._schedule()
            return
        self._batches += 1
        batch = Batch(
            self._batches,
            time.monotonic(),
            taken,
            [place for places in order.values() for place in places],
            slot if any(section.keep for section in sections.values()) else 0,
        )
        if batch.slot:
            self._slots.pop()
        self._flying[batch.number] = batch
        arguments: list[Any] = []
        for section in sections.values():
            arguments += section.arguments()
        self._steps("send")
        link.send(
            lambda reply: self._answered(link, batch, reply),
            "FCALL",
            hands.decide,
            1,
            f"{bucket_tag(next(iter(sections)))}m",
            self._enforcer,
            self._connections,
            batch.number,
            self._options.window_ms,
            len(sections),
            *arguments,
        )
        self._schedule()

    def _answered(self, link: Connection, batch: Batch, reply: Any) -> None:
        self._flying.pop(batch.number, None)
        if isinstance(reply, list):
            self._steps("answer")
            now = time.monotonic()
            self._observe(len(reply), now - batch.sent)
            if batch.withdrawn:
                # What the batch granted stays where the counting of the journal looks for it.
                self.last_error = "slow replies"
                if len(self._slots) <= self._options.in_flight:
                    self._drop(link)  # the next connection has places of its own
            else:
                self.breaker.succeeded(now, len(batch.order))
                if batch.slot and link is self._link:
                    self._slots.append(batch.slot)
            at = 0
            furthest: dict[int, Decision] = {}
            for place in batch.order:
                waiting = batch.waiting[place]
                count = len(waiting.group)
                self._deliver(waiting, reply[at : at + count], furthest)
                at += count
            for bucket, last in furthest.items():
                self._note(bucket, last.generation, last.sequence)
            self._schedule()
            return
        open_ = [batch.waiting[place] for place in batch.order]
        if isinstance(reply, ConnectionLostError):
            batch.waiting = open_
            self._doubt.append(batch)
            return
        text = str(reply)
        if text.startswith(NOT_LOADED):
            # Another process answers than the one that hands were shaken with: nothing ran.
            for waiting in open_:
                waiting.sent = None
            self._queue = open_ + self._queue
            self._drop(link)
            return
        for waiting in open_:
            waiting.fail(StoreUnavailableError(text, waiting.sent))
        if text.startswith(("LOADING", "READONLY", "MASTERDOWN")):
            self._drop(link)
        self._schedule()

    def _deliver(self, waiting: Waiting, replies: list[Any], furthest: dict[int, Decision]) -> None:
        bucket = waiting.group[0].program.bucket
        try:
            answers = [codec.answer(bucket, reply) for reply in replies]
        except codec.LostError:
            waiting.sent = None
            self._close_bucket(bucket)
            self._park(waiting)
            return
        except codec.FencedError:
            waiting.sent = None
            self._queue.append(waiting)
            if self._link is not None:
                self._drop(self._link)  # nothing of it will ever run again
            return
        for answer in answers:
            if isinstance(answer, Decision):
                if answer.sequence >= 0 and not answer.replayed:
                    furthest[bucket] = answer
                else:
                    self._note(bucket, answer.generation, answer.sequence)
        if not waiting.future.done():
            waiting.future.set_result(answers)

    def _note(self, bucket: int, generation: int, sequence: int) -> None:
        """A place that has been acknowledged: should Redis and the records both lack it, that is a loss to be named."""
        place, known = Position(generation, sequence), self._known.get(bucket, START)
        if place <= known:
            return
        if generation > known.generation:
            self._ask_about(bucket)
            if self._link is not None and self._hands is not None:
                self._tell(self._link, self._hands)
        self._known[bucket] = place

    def _ask_about(self, bucket: int) -> None:
        """Whether the outbox tells of the furthest place that was acknowledged here: another has opened the next one."""
        known = self._known.get(bucket, START)
        if known.generation:
            self._ends[bucket, known.generation] = known.sequence
            if len(self._ends) > ENDS * self._options.buckets:
                self._ends.pop(next(iter(self._ends)))

    def _tell(self, link: Connection, hands: Handshake) -> None:
        """Tell what is not told yet; what is not answered is told on the next connection."""
        for (bucket, generation), sequence in self._ends.items():
            if (bucket, generation) in self._told or bucket in hands.closed:
                continue

            def answered(reply: Any, key: tuple[int, int] = (bucket, generation)) -> None:
                if isinstance(reply, list) and reply[0] in (b"known", b"told"):
                    self._told.add(key)
                    if reply[0] == b"told":
                        _log.error("records are lost that were acknowledged here", places=key)

            link.send(answered, *self._hold_command(hands, "tell", bucket, generation, sequence))

    # -- what is held, and a bucket's own affairs

    def _hold_command(self, hands: Handshake, operation: str, bucket: int, *arguments: Any) -> Any:
        self._batches += 1
        tag = bucket_tag(bucket)
        return (
            "FCALL",
            hands.hold,
            1,
            f"{tag}m",
            self._enforcer,
            self._connections,
            self._batches,
            self._options.window_ms,
            operation,
            tag,
            *arguments,
        )

    async def _hold(self, operation: str, bucket: int, *arguments: Any) -> list[Any]:
        """One operation of `hold.lua`. They may all be repeated, so a lost connection only costs time."""
        self._pass()
        deadline = time.monotonic() + self._options.patience
        while True:
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(left, 0)):
                    await self.ready.wait()
            except TimeoutError:
                self.breaker.failed(time.monotonic())
                raise StoreUnavailableError(self.last_error) from None
            link, hands = self._link, self._hands
            if link is None or hands is None:
                await asyncio.sleep(0)
                continue
            if bucket in hands.closed:
                if left <= 0:
                    raise self._rebuilding(bucket)
                await asyncio.sleep(0.01)
                continue
            try:
                async with asyncio.timeout(self._options.reply_timeout):
                    reply = await link.call(
                        *self._hold_command(hands, operation, bucket, *arguments)
                    )
            except TimeoutError:
                self.breaker.failed(time.monotonic())
                self._drop(link)
                raise StoreUnavailableError("no reply") from None
            except ConnectionLostError:
                self._drop(link)
                continue
            except hiredis.ReplyError as error:
                if str(error).startswith(NOT_LOADED):
                    self._drop(link)
                    continue
                raise StoreUnavailableError(str(error)) from error
            if reply and reply[0] == b"lost":
                self._close_bucket(bucket)
                continue
            if reply and reply[0] == b"fenced":
                self._drop(link)
                continue
            return list(reply)

    async def commit(
        self, bucket: int, reservation: str, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return await self._settle(bucket, reservation, RecordType.COMMIT, quantity)

    async def release(self, bucket: int, reservation: str) -> Settled | HoldGone | KeyReused:
        settled = await self._settle(bucket, reservation, RecordType.RELEASE, 0)
        assert not isinstance(settled, TooMuch)
        return settled

    async def give_back(
        self, bucket: int, allowance: str, used: int
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return await self._settle(bucket, allowance, RecordType.ALLOWANCE_USE, used)

    async def _settle(
        self, bucket: int, name: str, kind: RecordType, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        wanted = "" if quantity is None else quantity
        key = idempotency(0, 0, name, kind.value, wanted)
        reply = await self._hold("settle", bucket, name, kind.value, wanted, key)
        match reply[0]:
            case b"gone":
                return HoldGone()
            case b"reused":
                return KeyReused()
            case b"much":
                return TooMuch(int(reply[1]))
            case _:
                settled = codec.settled(reply)
                self._note(bucket, settled.generation, settled.sequence)
                return settled

    async def renew(
        self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int
    ) -> LeaseInfo | EpochStale | None:
        reply = await self._hold("renew", bucket, lease, ttl_ms, account_id, epoch)
        if reply[0] == b"stale" and len(reply) == 2:  # noqa: PLR2004 - a lease has five parts
            return EpochStale(int(reply[1]))
        return None if reply == [b"gone"] else codec.lease(reply)

    async def release_lease(
        self, bucket: int, lease: str, *, unbind: bool
    ) -> tuple[int, int] | None:
        reply = await self._hold("end", bucket, lease, int(unbind))
        if reply[0] == b"gone":
            return None
        place = Position(int(reply[0]), int(reply[1]))
        self._note(bucket, *place)
        return place

    async def leases(
        self, bucket: int, suffix: str, after: tuple[int, str], most: int
    ) -> list[LeaseInfo]:
        reply = await self._hold("list", bucket, suffix, *after, most)
        return [codec.lease(one) for one in reply]

    async def project(self, bucket: int, account_id: int, epoch: int) -> int:
        return int((await self._hold("project", bucket, account_id, epoch))[0])

    async def tick(self, bucket: int) -> int:
        written, generation = map(int, await self._hold("tick", bucket))
        self._note(bucket, generation, 0)
        return written

    async def slots(self, bucket: int, suffixes: Sequence[str]) -> Levels:
        return codec.levels(await self._hold("slots", bucket, *suffixes))

    async def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> list[Outcome]:
        packed = [codec.correction(one) for one in corrections]
        reply = await self._hold("correct", bucket, acknowledged, int(certain), *packed)
        outcomes = [codec.outcome(one) for one in reply]
        for one in outcomes:
            if isinstance(one, Corrected):
                self._note(bucket, one.generation, one.sequence)
        return outcomes

    async def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
        words = [
            word
            for change in changes
            for word in (change.limit, change.period, change.used, change.held)
        ]
        return [changes[int(place)] for place in await self._hold("repair", bucket, body, *words)]

    async def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> bool:
        words = [word for change in changes for word in (change.limit, change.held)]
        (done,) = await self._hold("seats", bucket, *compared, body, *words)
        return bool(int(done))

    async def counters(self, bucket: int) -> BucketState:
        return codec.bucket_state(bucket, await self._hold("counters", bucket))
