"""The line to the server: one bare connection, and all checks that wait in one script call on it.

Checks that arrive while earlier ones are being decided travel together; no timer delays a lone one. A batch that was on
its way when the connection broke may have run or not: the next connection first makes sure that it cannot run any more,
then asks whether it did (design: fencing).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
import structlog

from enforcer.adapters.counters import codec
from enforcer.adapters.counters.codec import MISSING
from enforcer.adapters.counters.connection import Connection, ConnectionLostError, connect
from enforcer.adapters.counters.handshake import Handshake, shake_hands
from enforcer.adapters.counters.mend import Mender, Process
from enforcer.adapters.counters.opening import LONGEST_PAUSE, keep_open
from enforcer.adapters.counters.places import Places
from enforcer.adapters.counters.waiting import Batch, Lot, Waiting, settled
from enforcer.core.breaker import Breaker
from enforcer.core.commands import SEQUENCE, Decision, Sent
from enforcer.errors import (
    CountersRebuildingError,
    MetergateError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from meter.core.cluster import is_elsewhere
from meter.core.keys import bucket_tag

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Container,
        Coroutine,
        Mapping,
        Sequence,
    )

    from enforcer.adapters.counters.mend import Marks, Truth, Vouch
    from enforcer.adapters.counters.options import RedisOptions
    from enforcer.core.breaker import BreakerState
    from enforcer.core.commands import Answer, Ask
    from enforcer.ports.ledger import Ledger

__all__ = ["NOT_LOADED", "Line"]

_log = structlog.get_logger(__name__)
ENDS = 8
"""Earlier generations of a bucket whose last place is remembered, on average."""
SLOTS = 64
"""Places of a connection where outcomes of batches are kept; one whose answer came too late keeps its place."""
NOT_LOADED = ("NOSCRIPT", "ERR Function not found")
"""How a server answers that does not execute the functions: it is not the process they were loaded on."""
WATCH, LATE = 0.05, 0.5
"""Seconds between two looks at what waits, and from when on one comes late."""


class Line:
    """The line to the server. `start` it, then wait for `ready` or just ask.

    `truth` knows generations and definitions, `ledger` the records: without it buckets that were opened on another
    server process stay closed. `marks` tell how far the records are rolled up while the ledger is away. `observe(checks, seconds)` is told of every batch.
    One of several lines has `join`ed them, and the buckets that `come` to it.
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
        self.options, self._truth, self._observe = options, truth, observe
        self.buckets = set(range(options.buckets))
        self.breaker = Breaker(options.breaker, on_breaker)
        self._probing = False
        self._slots: list[int] = []
        self._parked_since: dict[int, float] = {}
        self._greeting: Connection | None = None
        self._ledger, self._marks, self._steps = ledger, marks, steps
        self.enforcer = secrets.token_hex(8)
        self._loop: asyncio.AbstractEventLoop
        self.link: Connection | None = None
        self.hands: Handshake | None = None
        self._connections = self._batches = 0
        self._queue: list[Waiting] = []
        self._parked: list[Waiting] = []
        self._vouch: Vouch | None = None
        self.places = Places(ENDS * options.buckets, self.tell)
        self._note = self.places.note
        self._doubt: list[Batch] = []
        self._flying: dict[int, Batch] = {}
        self._scheduled = False
        self.ready = asyncio.Event()
        self._down = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.last_error = "not connected yet"
        self.failure: Exception | None = None
        """Why the last attempt to connect failed."""
        self.met = False
        self.answered: Callable[[Batch, float], None] = lambda _batch, _now: None
        """Is told of every batch that was answered, and when."""

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
        if self.link is not None:
            self.link.close()

    async def _stay_connected(self) -> None:
        delay = 0.02
        while True:
            self._down = down = asyncio.Event()
            link: Connection | None = None
            try:
                link = await connect(self.options.url, down.set, self.options.connect_timeout)
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
                self.last_error, self.failure = str(error) or type(error).__name__, error
                if link is not None:
                    link.close()
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_PAUSE)
                continue
            finally:
                self._greeting = None
            delay = 0.02
            assert self.hands is not None
            opening = asyncio.create_task(self._open(link, self.hands), name="redis buckets")
            try:
                await down.wait()
            finally:
                opening.cancel()
                await asyncio.wait({opening})
            self.drop(link)
            self.last_error = "connection lost"

    def drop(self, link: Connection) -> None:
        """Stop using a connection, unless another has taken its place already."""
        if self.link is link:
            self.ready.clear()
            self.link = None
        link.close()

    async def _greet(self, link: Connection) -> None:
        """Handshake, fence off the connection before this one, and settle what became of its batches."""
        buckets, options = sorted(self.buckets), self.options
        hands = await shake_hands(
            link, buckets, self._truth, options.clock, self._steps, cluster=options.cluster
        )
        self._connections += 1
        self.hands = hands
        for bucket in self.buckets.difference(buckets):
            hands.closed[bucket] = "it has just come here"
        await self._fence(link, hands, dict.fromkeys(set(buckets) - set(hands.closed), True))
        self.link = link
        self._slots = list(range(1, SLOTS + 1))
        self._probing = False
        self.ready.set()
        self.failure = None
        self.met = self.met or self.connected
        self._schedule()

    async def _fence(self, link: Connection, hands: Handshake, opened: Mapping[int, bool]) -> None:
        """Refuse what older connections may still have on its way to these buckets, and settle what became of it.

        A bucket that had lost something (False) does not know which batches ran.
        """
        self._steps("fence")
        ran: dict[int, float] = {}
        for bucket, intact in opened.items():
            try:
                reply = await link.call(*self.command(hands, "fence", bucket))
            except hiredis.ReplyError as error:
                if str(error).startswith(NOT_LOADED):
                    link.close()  # hands are shaken anew
                if not is_elsewhere(str(error)):
                    raise
                hands.closed[bucket] = str(error)
                continue
            if reply[0] == b"lost":
                hands.closed[bucket] = MISSING
                continue
            ran[bucket] = int(reply[0]) if intact else float("inf")
            if not intact:  # what was told may be lost as well
                self.places.untell(bucket)
            self.places.ask_about(bucket)
        self.places.tell(link, self.buckets, hands.closed, partial(self.command, hands, "tell"))
        self._doubt, again = settled(self._doubt, ran)
        self._queue = again + self._queue

    # -- buckets that are closed until they are proven

    @property
    def connected(self) -> bool:
        """Whether there is a connection, and at least one bucket can be asked."""
        hands = self.hands
        return self.ready.is_set() and hands is not None and not self.buckets <= hands.closed.keys()

    def close_bucket(self, bucket: int, why: str = MISSING) -> None:
        """Redis lacks it, although it was opened on this very process, or it is elsewhere in the cluster."""
        assert self.hands is not None
        if bucket not in self.hands.closed:
            (_log.error if why == MISSING else _log.info)(
                "a bucket is closed", bucket=bucket, why=why
            )
            self.hands.closed[bucket] = why
        self._closing.set()

    def rebuilding(self, bucket: int, sent: Sent | None = None) -> CountersRebuildingError:
        """Why a closed bucket is not asked."""
        why = "" if self.hands is None else self.hands.closed.get(bucket, "")
        return CountersRebuildingError(bucket, why, sent)

    def _park(self, waiting: Waiting) -> None:
        """It waits for its bucket to be opened; one with a policy does not when that has lasted already."""
        now = time.monotonic()
        since = self._parked_since.setdefault(waiting.bucket, now)
        wait = self.options.fail_open_wait
        if wait is not None and waiting.hasty and now - since > wait:
            waiting.fail(self.rebuilding(waiting.bucket, waiting.sent))
        else:
            self._parked.append(waiting)

    def _open(self, link: Connection, hands: Handshake) -> Coroutine[Any, Any, None]:
        """Open what is closed for as long as the connection lasts."""
        options, mender = self.options, None
        if self._ledger is not None:
            mender = Mender(
                link,
                Process(hands.run_id, options.clock, options.window_ms, self.enforcer),
                self._truth,
                self._ledger,
                self.places.furthest,
                self._marks,
                self._steps,
            )
            mender.vouch, mender.reign = self._vouch, hands.reign
        return keep_open(
            hands.closed, mender, self._closing, partial(self._fence, link, hands), self._serve
        )

    def _serve(self, opened: Mapping[int, bool]) -> None:
        """Ask what has waited for these buckets."""
        for bucket in opened:
            self._parked_since.pop(bucket, None)
        self.met = True
        self._queue, self._parked = self._parked + self._queue, []
        self._schedule()

    def tell(self) -> None:
        """A bucket has begun a generation: see `Places`."""
        link, hands = self.link, self.hands
        if link is not None and hands is not None:
            self.places.tell(link, self.buckets, hands.closed, partial(self.command, hands, "tell"))

    # -- a line to one node of several: buckets come and go

    def join(self, enforcer: str, places: Places, vouch: Vouch) -> None:
        """Be one of the lines of a store, which have a name and what was answered in common; without buckets at first.

        `vouch` as of `Mender`.
        """
        self.enforcer, self.places, self._note = enforcer, places, places.note
        self._vouch = vouch
        self.buckets = set()

    @property
    def troubled(self) -> bool:
        """Whether a bucket of this line cannot be asked now."""
        hands = self.hands
        if hands is None or not self.ready.is_set():
            return bool(self.buckets)
        return not self.buckets.isdisjoint(hands.closed)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The newest connection, its last batch, and the oldest batch on its way (0: none is)."""
        return self._connections, self._batches, next(iter(self._flying), 0)

    def leave(self, buckets: Container[int]) -> tuple[list[Waiting], list[Batch]]:
        """Give up buckets; return what waits for them, and batches of which nobody knows whether they ran on them.

        What is on its way comes back later: ask again while `numbers` tell of such batches.
        """
        self.buckets = {one for one in self.buckets if one not in buckets}
        gone: list[Waiting] = []
        for waiting in (self._parked, self._queue):
            gone += [one for one in waiting if one.bucket in buckets]
            waiting[:] = [one for one in waiting if one.bucket not in buckets]
        doubt: list[Batch] = []
        for batch in self._doubt:
            ours = [one for one in batch.waiting if one.bucket in buckets]
            if ours:
                doubt.append(Batch(batch.number, batch.sent, ours))
                batch.waiting = [one for one in batch.waiting if one.bucket not in buckets]
        self._doubt = [batch for batch in self._doubt if batch.waiting]
        for known in (self._parked_since, {} if self.hands is None else self.hands.closed):
            for bucket in [one for one in known if one in buckets]:
                del known[bucket]
        return gone, doubt

    def come(
        self,
        buckets: Collection[int],
        waiting: Sequence[Waiting],
        doubt: Sequence[Batch],
        newest: tuple[int, int],
    ) -> None:
        """Take buckets over from another line, closed until they are proven here, and what waits for them.

        `newest`: connection and batch of all lines. Numbers in a bucket only grow, whichever line it was asked on, so
        that what another line has sent cannot run any more once the bucket is fenced off here.
        """
        self._connections = max(self._connections, newest[0]) + 1
        self._batches = max(self._batches, newest[1])
        self.buckets.update(buckets)
        self._queue += waiting
        self._doubt += doubt
        if buckets and self.hands is not None:
            self.hands.closed.update(dict.fromkeys(buckets, "it has just come here"))
            self._closing.set()
        self._schedule()

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
            if oldest is not None and now - oldest.sent > self.options.reply_timeout:
                self.last_error = "no reply"
                if self.link is not None:
                    self.drop(self.link)
            link = self.link or self._greeting
            if link is not None and link.silence(now) > self.options.reply_timeout:
                self.last_error = "no reply"
                self.drop(link)
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
        return self.options.fail_open_wait is not None and waiting.hasty

    def _withdraw(self, batch: Batch, now: float) -> None:
        """Give up those checks of a batch on its way that need not wait for it."""
        wait = self.options.fail_open_wait
        if wait is None or now - batch.sent <= wait:
            return
        for waiting in batch.waiting:
            if not waiting.done and waiting.hasty:
                batch.withdrawn = True
                self._given_up(waiting, now, sent=True)

    def _given_up(self, waiting: Waiting, now: float, *, sent: bool) -> bool:
        """Whether nobody waits for it any more."""
        if waiting.done:
            return True
        wait = self.options.fail_open_wait
        if wait is None or not waiting.hasty:
            wait = self.options.patience
        if now - waiting.since <= wait:
            return False
        if sent and not waiting.repeatable:
            waiting.fail(OutcomeUnknownError(waiting.sent))
        elif self.ready.is_set() and not sent and waiting.bucket in self._parked_since:
            # The server answers: that is no failure of its.
            waiting.fail(self.rebuilding(waiting.bucket, waiting.sent))
            return True
        else:
            waiting.fail(StoreUnavailableError(self.last_error, waiting.sent))
        self.breaker.failed(now)
        return True

    def _probe(self, now: float) -> None:
        """Find out whether calls may pass again."""
        link = self.link
        if self.breaker.closed or self._probing or link is None or not self.ready.is_set():
            return
        limit = min(self.options.reply_timeout, self.options.fail_open_wait or 1.0)

        def answered(reply: Any) -> None:
            self._probing = False
            in_time = time.monotonic() - now <= limit
            if not self.breaker.closed:
                self.breaker.probed(success=in_time and not isinstance(reply, Exception))

        self._probing = True
        link.send(answered, "PING")

    def let_pass(self) -> None:
        """Raise unless calls may pass."""
        if not self.breaker.closed:
            raise self._held_back()

    def _held_back(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.last_error}; calls are held back for now")

    # -- checks

    def decide(self, group: Sequence[Ask]) -> Awaitable[list[Answer]]:
        # No coroutine of its own: who asks waits for the answer itself.
        if not self.breaker.closed:
            raise self._held_back()
        future: asyncio.Future[list[Answer]] = self._loop.create_future()
        self._queue.append(Waiting(group, future, time.monotonic()))
        if not self._scheduled:
            self._schedule()
        return future

    def decide_all(
        self, groups: Sequence[Sequence[Ask]]
    ) -> Awaitable[list[list[Answer] | MetergateError]]:
        future: asyncio.Future[list[list[Answer] | MetergateError]] = self._loop.create_future()
        if not groups:
            future.set_result([])
        elif not self.breaker.closed:
            future.set_result([self._held_back() for _ in groups])
        else:
            now, lot = time.monotonic(), Lot(len(groups), future)
            self._queue += [
                Waiting(group, future, now, lot, place) for place, group in enumerate(groups)
            ]
            self._schedule()
        return future

    def _schedule(self) -> None:
        if (
            self._queue
            and not self._scheduled
            and len(self._flying) < self.options.in_flight
            and self.ready.is_set()
        ):
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        link, hands = self.link, self.hands
        if link is None or hands is None or not self.ready.is_set():
            return
        sections: dict[int, codec.Section] = {}
        order: dict[int, list[int]] = {}
        slot, number = self._slots[-1], self._batches + 1
        taken: list[Waiting] = []
        checks = 0
        for waiting in self._queue:
            if taken and checks + len(waiting.group) > self.options.batch:
                break
            taken.append(waiting)
            if waiting.done:
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
                waiting.sent = Sent(self.enforcer, self._connections, slot, number, section.count)
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
            0,
            self.enforcer,
            self._connections,
            batch.number,
            self.options.window_ms,
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
            self.answered(batch, now)
            if batch.withdrawn:
                # What the batch granted stays where the counting of the journal looks for it.
                self.last_error = "slow replies"
                if len(self._slots) <= self.options.in_flight:
                    self.drop(link)  # the next connection has places of its own
            else:
                self.breaker.succeeded(now, len(batch.order))
                if batch.slot and link is self.link:
                    self._slots.append(batch.slot)
            furthest = self._deliver_all(batch, reply)
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
        if text.startswith(NOT_LOADED) or (self.options.cluster and text.startswith("READONLY")):
            # Another process answers than the one that hands were shaken with, or it is no primary any more: nothing ran.
            for waiting in open_:
                waiting.sent = None
            self._queue = open_ + self._queue
            self.drop(link)
            return
        for waiting in open_:
            waiting.fail(StoreUnavailableError(text, waiting.sent))
        if text.startswith(("LOADING", "READONLY", "MASTERDOWN")):
            self.drop(link)
        self._schedule()

    def _deliver_all(self, batch: Batch, reply: list[Any]) -> dict[int, Decision]:
        """Give everybody their answers; return each bucket's last decision with a record of its own."""
        at, waits, decided = 0, batch.waiting, codec.decided
        furthest: dict[int, Decision] = {}
        for place in batch.order:
            waiting = waits[place]
            group = waiting.group
            one = reply[at]
            if len(group) == 1 and type(one) is bytes:
                # Decided just now, as nearly all are.
                bucket = group[0].program.bucket
                decision = decided(bucket, one)
                if decision.numbers[SEQUENCE] >= 0:
                    furthest[bucket] = decision
                else:
                    self._note(bucket, decision.generation, decision.sequence)
                waiting.tell([decision])
                at += 1
                continue
            count = len(group)
            self._deliver(waiting, reply[at : at + count], furthest)
            at += count
        return furthest

    def _deliver(self, waiting: Waiting, replies: list[Any], furthest: dict[int, Decision]) -> None:
        bucket = waiting.group[0].program.bucket
        try:
            answers = [codec.answer(bucket, reply) for reply in replies]
        except codec.LostError as lost:
            waiting.sent = None
            self.close_bucket(bucket, str(lost))
            self._park(waiting)
            return
        except codec.FencedError:
            waiting.sent = None
            self._queue.append(waiting)
            if self.link is not None:
                self.drop(self.link)  # nothing of it will ever run again
            return
        for answer in answers:
            if isinstance(answer, Decision):
                if answer.sequence >= 0 and not answer.replayed:
                    furthest[bucket] = answer
                else:
                    self._note(bucket, answer.generation, answer.sequence)
        waiting.tell(answers)

    def command(self, hands: Handshake, operation: str, bucket: int, *arguments: Any) -> Any:
        """A call of `hold.lua`. Each has a number of its own: what is older than the fence is refused."""
        self._batches += 1
        tag = bucket_tag(bucket)
        return (
            "FCALL",
            hands.hold,
            1,
            f"{tag}m",
            self.enforcer,
            self._connections,
            self._batches,
            self.options.window_ms,
            operation,
            tag,
            *arguments,
        )
