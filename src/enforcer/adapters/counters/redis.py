"""The counter store on Redis or Valkey: its operations, each one script call on the line to the server."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import hiredis

from enforcer.adapters.counters import codec
from enforcer.adapters.counters.connection import ConnectionLostError
from enforcer.adapters.counters.line import NOT_LOADED, Line
from enforcer.adapters.counters.options import RedisOptions
from enforcer.core.commands import EpochStale, HoldGone, KeyReused, TooMuch, idempotency
from enforcer.core.corrections import Corrected
from enforcer.errors import (
    DefinitionsUnavailableError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from meter.core.cluster import is_elsewhere
from meter.core.records import RecordType
from meter.core.sequence import Position
from meter.health import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.mend import Marks, Truth
    from enforcer.adapters.counters.places import Places
    from enforcer.adapters.counters.waiting import Batch
    from enforcer.core.breaker import BreakerState
    from enforcer.core.commands import BucketState, Counter, LeaseInfo, Settled
    from enforcer.core.corrections import Correction, Levels, Outcome
    from enforcer.ports.ledger import Ledger

__all__ = ["Operations", "RedisCounters", "RedisOptions", "standing_of"]

_LOOK = 0.05
"""Seconds after which a call that waits for a connection looks whether its bucket has another line by now."""


_STARTING = ("LOADING", "MASTERDOWN", "TRYAGAIN", "BUSY")


def _refused(failure: Exception | None) -> bool:
    """Whether the server was there and did not let this process work: a wrong password, a setting that loses counters."""
    if isinstance(failure, hiredis.ReplyError):
        return not str(failure).startswith(_STARTING)
    return isinstance(failure, StoreMisconfiguredError)


def standing_of(line: Line) -> tuple[State, str]:
    """How a line's server is found, and why it is of no use."""
    if line.connected and line.breaker.closed:
        return State.UP, ""
    if line.ready.is_set():
        if not line.breaker.closed:
            return State.AWAY, line.last_error
        closed = "" if line.hands is None else "; ".join(sorted(set(line.hands.closed.values())))
        return State.WAITING, f"the counters are held against the records: {closed}"
    if isinstance(line.failure, DefinitionsUnavailableError):
        return State.WAITING, line.last_error
    if line.failure is None and not line.met:
        return State.UNKNOWN, line.last_error
    return (State.REFUSED if _refused(line.failure) else State.AWAY), line.last_error


class Operations(ABC):
    """All of the store's operations but checks, each on the line that its bucket has."""

    options: RedisOptions
    _places: Places

    @abstractmethod
    def _line_of(self, bucket: int) -> Line:
        """The line to the server that has the bucket."""

    @abstractmethod
    def trace(self, told: Callable[[Batch, float], None]) -> None:
        """Call `told` with every batch that was answered, and when on the clock of `time.monotonic`."""

    @abstractmethod
    def standing(self) -> tuple[State, str]:
        """How the store is found, and why it is of no use."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether there is a connection, and at least one bucket can be asked."""

    @property
    @abstractmethod
    def met(self) -> bool:
        """Whether that was ever so."""

    @property
    @abstractmethod
    def serving(self) -> bool:
        """Whether there is a connection, calls pass, and at least one bucket can be asked."""

    @property
    @abstractmethod
    def last_error(self) -> str:
        """Why there was no connection."""

    async def _hold(self, operation: str, bucket: int, *arguments: Any) -> list[Any]:
        """One operation of `hold.lua`. They may all be repeated, so a lost connection only costs time."""
        line = self._line_of(bucket)
        line.let_pass()
        deadline = time.monotonic() + line.options.patience
        while True:
            left = deadline - time.monotonic()
            line = self._line_of(bucket)
            try:
                async with asyncio.timeout(min(max(left, 0), _LOOK)):
                    await line.ready.wait()
            except TimeoutError:
                if left > 0:
                    continue
                line.breaker.failed(time.monotonic())
                raise StoreUnavailableError(line.last_error) from None
            link, hands = line.link, line.hands
            if link is None or hands is None:
                await asyncio.sleep(0)
                continue
            if bucket in hands.closed:
                if left <= 0:
                    raise line.rebuilding(bucket)
                await asyncio.sleep(0.01)
                continue
            reply = await _called(
                line, link, bucket, line.command(hands, operation, bucket, *arguments)
            )
            if reply is not None:
                return reply

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
                self._places.note(bucket, settled.generation, settled.sequence)
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
        self._places.note(bucket, *place)
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
        self._places.note(bucket, generation, 0)
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
                self._places.note(bucket, one.generation, one.sequence)
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


async def _called(
    line: Line, link: Connection, bucket: int, command: Sequence[Any]
) -> list[Any] | None:
    """The reply; None: it has to be asked again when line or bucket are back, or on the bucket's next line."""
    try:
        async with asyncio.timeout(line.options.reply_timeout):
            reply = await link.call(*command)
    except TimeoutError:
        line.breaker.failed(time.monotonic())
        line.drop(link)
        raise StoreUnavailableError("no reply") from None
    except ConnectionLostError:
        line.drop(link)
        return None
    except hiredis.ReplyError as error:
        if is_elsewhere(str(error)):
            line.close_bucket(bucket, str(error))
        elif str(error).startswith(NOT_LOADED):
            line.drop(link)
        else:
            raise StoreUnavailableError(str(error)) from error
        return None
    if reply and reply[0] == b"lost":
        line.close_bucket(bucket)
        return None
    if reply and reply[0] == b"fenced":
        line.drop(link)
        return None
    return list(reply)


class RedisCounters(Operations):
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
        self.options = options
        self._line = line = Line(
            options,
            truth,
            observe,
            ledger=ledger,
            marks=marks,
            steps=steps,
            on_breaker=on_breaker,
        )
        self.breaker, self.ready = line.breaker, line.ready
        self.start, self.close = line.start, line.close
        # Checks are the line's own affair: no call between.
        self.decide, self.decide_all = line.decide, line.decide_all
        self._places = line.places

    def _line_of(self, bucket: int) -> Line:
        del bucket  # one has all
        return self._line

    def trace(self, told: Callable[[Batch, float], None]) -> None:
        self._line.answered = told

    def standing(self) -> tuple[State, str]:
        return standing_of(self._line)

    @property
    def connected(self) -> bool:
        return self._line.connected

    @property
    def met(self) -> bool:
        return self._line.met

    @property
    def last_error(self) -> str:
        return self._line.last_error

    @property
    def serving(self) -> bool:
        return self._line.connected and self.breaker.closed

    def shards(self) -> list[list[int]]:
        """The buckets, those together that one server has."""
        return [list(range(self.options.buckets))]
