"""Gives blocks of supply back and tells what was used of them, until a gateway has answered."""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.client.errors import CallError, ClosedError
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from enforcer.client.calls import Calls

__all__ = ["Block", "Returns"]

_log: Final = logging.getLogger("enforcer.client")

PATIENCE: Final = 60.0
"""Seconds after a block's end, or after it is given back if that is later."""
PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 5.0


class Block(NamedTuple):
    """A part of the supply that this process decides about, until `until` by its own clock."""

    request: pb.TakeAllowanceRequest
    token: str
    size: int
    until: float


class Returns:
    """Of one client. What could not be told in the end is in `unreported`, by feature."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        self.unreported = 0
        """Uses, in their features' own units."""

    def give(self, block: Block, used: int, left_for: float) -> asyncio.Task[None]:
        """Begin. `left_for`: seconds until the block's end."""
        task = asyncio.get_running_loop().create_task(self._give(block, used, left_for))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """What can be told within a call's time; the rest is unreported."""
        self._hurry.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._calls.options.timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _give(self, block: Block, used: int, left_for: float) -> None:
        give_up = time.monotonic() + max(0.0, left_for) + PATIENCE
        told: object = "the client was closed"
        pause = PAUSE
        try:
            while True:
                try:
                    await self._tell(block, used)
                except ClosedError as error:
                    told = error
                    break
                except CallError as error:
                    told = error
                    if not error.retryable or time.monotonic() + pause >= give_up:
                        break
                else:
                    return
                await self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except asyncio.CancelledError:
            self._lost(block, used, told)
            raise
        self._lost(block, used, told)

    async def _wait(self, pause: float) -> None:
        if self._hurry.is_set():
            await asyncio.sleep(PAUSE / 10)  # the client is being closed: as often as may help
            return
        try:
            await asyncio.wait_for(self._hurry.wait(), pause)
        except TimeoutError:
            return

    async def _tell(self, block: Block, used: int) -> None:
        """Return the block, or, where it is too late for that, record what was used of it past the limits."""
        calls, feature = self._calls, block.request.feature
        request = pb.ReturnAllowanceRequest(allowance=block.token, used=used)
        try:
            answer = await calls.once(
                "ReturnAllowance",
                calls.stub.ReturnAllowance,
                request,
                calls.options.attempt_timeout,
            )
        except CallError as error:
            if error.reason != "ALLOWANCE_EXPIRED":
                raise
            if used:
                await self._record(block, used)
            if calls.observers:
                calls.observers.allowance_returned(feature, used, 0)
            return
        if calls.observers:
            calls.observers.allowance_returned(feature, answer.used, answer.returned)

    async def _record(self, block: Block, used: int) -> None:
        calls, asked = self._calls, block.request
        request = pb.CheckRequest(
            customer=asked.customer,
            feature=asked.feature,
            quantity=used,
            # The same however often this is tried.
            idempotency_key=f"late-{sha256(block.token.encode()).hexdigest()}",
            dimensions=asked.dimensions,
            mode=pb.MODE_RECORD_ONLY,
            product_version=asked.product_version,
        )
        answer = await calls.once("Check", calls.stub.Check, request, calls.options.attempt_timeout)
        if not answer.allowed:
            _log.error(
                "a use of %d of %s by %s, from an allowance, was not recorded: reason %d",
                used,
                asked.feature,
                asked.customer,
                answer.reason,
            )

    def _lost(self, block: Block, used: int, told: object) -> None:
        """Nobody was told of it. The block counts as used whole, so no limit is passed; it is not reported."""
        self.unreported += used
        if self._calls.observers:
            self._calls.observers.allowance_unreported(block.request.feature, used)
        if used:
            _log.error(
                "a use of %d of %s by %s, from an allowance, was not reported: %s",
                used,
                block.request.feature,
                block.request.customer,
                told,
            )
