"""A block of supply that this process decides about by itself: no call for each decision.

The gateway has counted the block against every limit when it handed it out, so no hard limit is passed
whatever happens here: what a killed process did not use of its block stays counted until the period ends.

A block ends by a clock of this machine that is read before the gateway is asked for it, so it ends here
before it ends there; and each decision reads that clock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from contextlib import nullcontext
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from weakref import WeakSet

from enforcer.client.ends import finish
from enforcer.client.errors import CallError, ClosedError, ConfigurationError
from enforcer.client.results import Verdict, verdict_of
from enforcer.client.returns import Block
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractContextManager

    from enforcer.client.calls import Calls
    from enforcer.client.ends import LooseEnds
    from enforcer.client.returns import Returns

__all__ = ["FIRST", "HORIZON", "MOST", "Allowance", "Sizes"]

_log: Final = logging.getLogger("enforcer.client")

FIRST: Final = 100
MOST: Final = 1_000_000
HORIZON: Final = 1.0
LEAST: Final = 16
"""Smaller blocks save no calls: with less to be had, each decision is a check."""
GROWTH: Final = 8
"""Times the last block: a burst must not take hold of what others need."""
EARLY: Final = 0.2
"""Of its lifetime: so long before its end a block in use is replaced."""
LIFETIME: Final = 60.0
"""Seconds, where the gateway has not said how long a block lives."""
PAUSE: Final = 0.5
"""Seconds without asking for a block after none was to be had; doubled each further time."""
LONGEST_PAUSE: Final = 10.0

_CLOSED: Final = "the allowance is closed"
_FORKED: Final = "the allowance was opened before this process was forked: open one after the fork"
_NOT_OPEN: Final = "the allowance is not open: use it in `async with`"
_ONE: Final = Verdict(allowed=True, granted=1)
clock: Final[Callable[[], float]] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
"""Seconds, also while the machine sleeps: `time.monotonic` stands still then on Linux, and blocks expire."""


class Sizes:
    """How large the next block should be, by how fast the last was used. Knows no clock."""

    def __init__(self, first: int, most: int, horizon: float) -> None:
        if type(first) is not int or type(most) is not int or not 0 < first <= most:
            raise ConfigurationError(
                f"first is {first!r} and most is {most!r}: whole numbers from 1 are expected, "
                "first not above most"
            )
        if not 0 < horizon < math.inf:
            raise ConfigurationError(
                f"horizon is {horizon!r}: a number of seconds above 0 is expected"
            )
        self.most, self.least = most, min(first, LEAST)
        self._horizon, self._first = horizon, first
        self._last, self._rate = 0, 0.0
        self.seconds = 0.0
        """That a refill takes, lately."""

    def took(self, seconds: float) -> None:
        """A refill has taken so long."""
        self.seconds = seconds if not self.seconds else (3 * self.seconds + seconds) / 4

    def wanted(self, used: int, seconds: float, short: int) -> int:
        """After so much was used in so long. `short`: what one decision needed and did not find."""
        size = self._first
        if self._last:
            self._rate = used / max(seconds, 1e-3)
            ahead = math.ceil(self._rate * max(self._horizon, 4 * self.seconds))
            size = max(self.least, min(ahead, GROWTH * self._last))
        return min(self.most, max(size, short))

    def got(self, size: int) -> None:
        """So large was it."""
        self._last = size

    def low(self, size: int) -> int:
        """When so little is left, ask for the next: the rest should last twice as long as that takes."""
        return min(size // 2, max(size // 4, math.ceil(self._rate * 2 * self.seconds)))


class _Used(NamedTuple):
    """What became of a block."""

    block: Block
    used: int
    decisions: int


class Allowance:
    """`async with client.allowance(…) as allowance`. Made by `Client.allowance`, entered once.

    `take` decides here and now; `check` decides here too if it can, and else asks the gateway.
    """

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        calls: Calls,
        ends: LooseEnds,
        returns: Returns,
        ask: Callable[[int], Awaitable[Verdict]],
        request: pb.TakeAllowanceRequest,
        sizes: Sizes,
        *,
        patience: float,
        timeout: float | None,
    ) -> None:
        self._calls, self._ends, self._returns, self._ask = calls, ends, returns, ask
        self._request, self._sizes = request, sizes
        self._patience, self._timeout = patience, timeout
        self._clock = clock
        # What `take` looks at: what is left, from where on it has more to do, and until when.
        self._left = self._low = self._decisions = 0
        self._until = -math.inf
        self.lock: AbstractContextManager[Any] = nullcontext()
        """Held by threads while they `take`, and while a block is put in place of another."""
        self._threads = False
        self._loop = asyncio.get_running_loop()
        self._state = _NOT_OPEN
        self._block: Block | None = None
        self._since, self._life = 0.0, LIFETIME
        self._asked: tuple[pb.TakeAllowanceRequest, float] | None = None
        """What was not answered, and when it was first sent: it is repeated under its key."""
        self._wanted, self._asking, self._overdue = False, False, False
        self._short = self._late = 0
        self._not_before, self._pause = -math.inf, PAUSE
        self._wake, self._news = asyncio.Event(), asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._state != _NOT_OPEN:
            raise ClosedError("an allowance is entered once: call client.allowance again")
        self._state = ""
        _opened.add(self)
        try:
            await self._refill(first=True)
        except BaseException:
            self._state = _CLOSED
            raise
        if self._state:
            raise ClosedError(self._state)
        self._keeper = self._loop.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        await finish(self.close())

    @property
    def left(self) -> int:
        """How much can be decided here, in the feature's own unit."""
        return self._left if self._clock() < self._until else 0

    def take(self, quantity: int = 1) -> bool:
        """Use so much here and now, if it is there. False is no denial, it only means: ask `check`."""
        left = self._left - quantity
        if (
            left >= self._low
            and quantity > 0
            and type(quantity) is int
            and self._clock() < self._until
        ):
            self._left = left
            self._decisions += 1
            return True
        return self._take(quantity)

    async def check(self, quantity: int = 1) -> Verdict:
        """Decide here, at once or after a refill; else by `Client.check`, with what it raises and its policies."""
        taken = self._take_in_turn(quantity) if self._threads else self.take(quantity)
        if not taken and quantity <= self._sizes.most and self._may_refill():
            await self._news.wait()
            taken = not self._state and self._take_in_turn(quantity)
        if taken:
            return _ONE if quantity == 1 else Verdict(allowed=True, granted=quantity)
        return await self._ask(quantity)

    async def close(self) -> None:
        """Decide nothing any more and return what is left, within the time of one call."""
        if self._state:
            return
        self._state = _CLOSED
        if self._keeper is not None:
            # A refill under way becomes a loose end: what it gets is returned.
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._news.set()
        with self.lock:
            last = self._take_out()
        if self._asked is not None and not self._asking:
            self._ends.add(self._resolve(*self._asked))
        if last is not None:
            await asyncio.wait([self._settle(last)], timeout=self._calls.options.timeout)

    def share(self) -> None:
        """Threads other than the event loop's will `take` from it, and hold `lock` meanwhile."""
        self.lock, self._threads = threading.Lock(), True

    # -- what `take` leaves to others

    def _take_in_turn(self, quantity: int) -> bool:
        with self.lock:
            return self.take(quantity)

    def _take(self, quantity: int) -> bool:
        try:
            amount = index(quantity)
        except TypeError:
            amount = 0
        if amount < 1:
            raise ConfigurationError(f"quantity is {quantity!r}: a whole number from 1 is expected")
        if self._state:
            raise (ConfigurationError if self._state == _FORKED else ClosedError)(self._state)
        left = self._left - amount
        if left >= 0 and self._clock() < self._until:
            self._left = left
            self._decisions += 1
            self._want(0)
            return True
        self._want(amount)
        return False

    def _want(self, short: int) -> None:
        self._short = max(self._short, short)
        self._low = 0
        if not self._wanted:
            self._wanted = True
            if self._threads:
                self._loop.call_soon_threadsafe(self._wake.set)
            else:
                self._wake.set()

    def _may_refill(self) -> bool:
        """One is under way and not overdue, or begins as soon as the keeper has its turn."""
        alive = self._keeper is not None and not self._keeper.done()
        return alive and not self._overdue and self._clock() >= self._not_before

    # -- the keeper: the only one that refills

    async def _keep(self) -> None:
        try:
            while True:
                await self._look()
        except ClosedError:
            return  # so is the client
        except Exception:  # noqa: BLE001 - logged; decisions go on, by full checks
            _log.exception("the allowance of %s is not refilled any more", self._request.feature)
        finally:
            self._tell()

    async def _look(self) -> None:
        """Drop what has expired, refill where it is wanted, else sleep until something may have changed."""
        now = self._clock()
        if self._block is not None and now >= self._until:
            with self.lock:
                expired = self._take_out()
            if expired is not None:
                self._settle(expired)
        early = self._early()
        if self._decisions and now >= early:
            self._wanted = True
        if self._wanted and now >= self._not_before:
            await self._refill()
            return
        moments = [
            early if self._decisions else math.inf,
            self._until if self._block is not None else math.inf,
            self._not_before if self._wanted else math.inf,
        ]
        pause = min(moment for moment in moments if moment > now) - now
        self._wake.clear()
        try:
            async with asyncio.timeout(None if pause == math.inf else pause):
                await self._wake.wait()
        except TimeoutError:
            return

    def _early(self) -> float:
        """When a block in use is replaced although there is some left."""
        if self._block is None:
            return math.inf
        return self._until - max(EARLY * self._life, min(2 * self._sizes.seconds, self._life / 2))

    async def _refill(self, *, first: bool = False) -> None:
        """One question for a block, with all the retries that its time allows."""
        if self._asked is not None and self._clock() >= self._asked[1] + self._life:
            self._asked = None  # whatever it got has expired
        request, before = self._asked or self._next()
        self._asked, self._asking, begun = (request, before), True, time.monotonic()
        # Who waits for it should not wait for all the retries: full checks have a time of their own.
        patience = self._loop.call_later(self._patience, self._be_overdue)
        try:
            answer = await self._ends.take(self._call(request), self._give_up(request, before))
        except asyncio.CancelledError:
            self._asked = None  # a loose end now
            raise
        except CallError as error:
            self._failed(error)
            self._observe(error.reason, 0, begun)
            if first and not error.retryable:
                raise
        else:
            self._asked = None
            self._sizes.took(time.monotonic() - begun)
            self._answered(request, answer, before)
            reason = verdict_of(answer.check).reason.value
            self._observe(reason, answer.check.granted, begun)
        finally:
            patience.cancel()
            self._asking = self._overdue = False
            self._tell()

    def _be_overdue(self) -> None:
        self._overdue = True
        self._tell()

    def _tell(self) -> None:
        """Those who wait for a refill look again."""
        self._news.set()
        self._news = asyncio.Event()

    def _observe(self, outcome: str, granted: int, begun: float) -> None:
        if self._calls.observers:
            self._calls.observers.allowance_refilled(
                self._request.feature, outcome, granted, time.monotonic() - begun
            )

    def _next(self) -> tuple[pb.TakeAllowanceRequest, float]:
        request, now = pb.TakeAllowanceRequest(), self._clock()
        request.CopyFrom(self._request)
        request.idempotency_key = os.urandom(16).hex()
        used = self._block.size - self._left if self._block is not None else 0
        request.quantity = self._sizes.wanted(used, now - self._since, self._short)
        return request, now

    async def _call(self, request: pb.TakeAllowanceRequest) -> pb.TakeAllowanceResponse:
        stub = self._calls.stub
        return await self._calls.call("TakeAllowance", stub.TakeAllowance, request, self._timeout)

    def _failed(self, error: CallError) -> None:
        _log.warning("no allowance of %s was got: %s", self._request.feature, error)
        if not error.retryable:
            self._asked = None
        # While there is a block, its end should be met with another; then only who asks brings a refill about.
        self._wanted = error.retryable and self._block is not None
        self._rest(error.retry_after)

    def _rest(self, wait: float | None) -> None:
        """Ask for no block for a while: decisions are full checks then."""
        self._not_before = self._clock() + max(self._pause, wait or 0.0)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _answered(
        self, request: pb.TakeAllowanceRequest, answer: pb.TakeAllowanceResponse, before: float
    ) -> None:
        block = _block_of(request, answer, before)
        short, self._short = self._short, 0
        if block is None:
            self._wanted = False
            wait = verdict_of(answer.check).retry_after
            self._rest(wait.total_seconds() if wait is not None else None)
            return
        self._sizes.got(block.size)
        self._life = block.until - before
        if self._state or self._clock() >= block.until:
            self._settle(_Used(block, 0, 0))
            self._short, self._late = short, self._late + 1
            if self._late > 1:  # once it is bad luck, and another is asked for at once
                self._wanted = False
                self._rest(None)
            return
        self._late = 0
        with self.lock:
            old = self._take_out()
            self._block, self._left, self._until = block, block.size, block.until
            self._low = self._sizes.low(block.size)
            self._since, self._wanted = self._clock(), False
        if old is not None:
            self._settle(old)
        if block.size < min(self._sizes.least, request.quantity):
            self._rest(None)  # the end of the supply
        else:
            self._pause = PAUSE

    def _take_out(self) -> _Used | None:
        """Decide nothing more from the block that is there; `lock` is held."""
        block, left, decisions = self._block, self._left, self._decisions
        self._block, self._left, self._low, self._decisions = None, 0, 0, 0
        self._until = -math.inf
        return None if block is None else _Used(block, block.size - left, decisions)

    def _settle(self, what: _Used) -> asyncio.Task[None]:
        block, used, decisions = what
        if decisions and self._calls.observers:
            self._calls.observers.decided_locally(self._request.feature, decisions, used)
        return self._returns.give(block, used, block.until - self._clock())

    def _give_up(
        self, request: pb.TakeAllowanceRequest, before: float
    ) -> Callable[[pb.TakeAllowanceResponse], Coroutine[Any, Any, None]]:
        async def give_up(answer: pb.TakeAllowanceResponse) -> None:
            if (block := _block_of(request, answer, before)) is not None:
                await asyncio.wait([self._settle(_Used(block, 0, 0))])

        return give_up

    async def _resolve(self, request: pb.TakeAllowanceRequest, before: float) -> None:
        """Nobody knows whether this brought a block. If so, return it."""
        try:
            answer = await self._call(request)
        except (CallError, ClosedError) as error:
            _log.warning(
                "an allowance of %s may stay out until it expires: %s", request.feature, error
            )
        else:
            await self._give_up(request, before)(answer)

    def forget(self) -> None:
        """This process is a fork: the block is its parent's."""
        self._block, self._left, self._low, self._until = None, 0, 0, -math.inf
        self._state = self._state or _FORKED
        if self._threads:
            self.lock = threading.Lock()  # somebody may have held it in the parent


def _block_of(
    request: pb.TakeAllowanceRequest, answer: pb.TakeAllowanceResponse, before: float
) -> Block | None:
    if not answer.check.allowed or not answer.allowance:
        return None
    lifetime = answer.lifetime.seconds + answer.lifetime.nanos / 1e9
    return Block(request, answer.allowance, answer.check.granted, before + lifetime)


_opened: Final[WeakSet[Allowance]] = WeakSet()


def _forked() -> None:
    for allowance in list(_opened):
        allowance.forget()


if hasattr(os, "register_at_fork"):  # where processes fork at all
    os.register_at_fork(after_in_child=_forked)
