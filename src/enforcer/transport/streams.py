"""`EnforcerService.CheckStream`: checks as they come, answered by id as they are decided."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from enforcer.errors import InvalidRequestError, MetergateError, UnavailableError
from enforcer.gateway.replies import answered, fault_of
from enforcer.gateway.requests import parsed
from enforcer.gateway.wire import question_of, varint
from enforcer.transport.services import Method
from enforcer.transport.tenants import Tenants
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from enforcer.ports.definitions import Caller
    from enforcer.transport.dispatch import Call

    CheckEach = Callable[[str, Sequence[bytes]], Awaitable[list[bytes | pb.CheckFault]]]
    Sender = Callable[[str | None], Awaitable[Caller]]

__all__ = ["MOST_UNANSWERED", "stream_methods"]

MOST_UNANSWERED: Final = 1024
"""Questions of one stream without an answer; what comes beyond is read later, so that the client has to wait."""
LARGEST: Final = 256
CHECKS_A_WEIGHT: Final = 10
"""So many count as much as one call of their tenant."""
MOST_DECIDING: Final = 4
"""Batches of one stream; what comes meanwhile collects."""
READ_SECONDS: Final = 0.2
"""gRPC's clients throw away the answers that they have not read yet when an error comes: so long they have for that."""


def stream_methods(
    check_each: CheckEach, sender: Sender, tenants: Tenants | None = None
) -> list[Method]:
    """`sender` says who calls, again for every batch: a key may be revoked while its stream lasts."""
    among = tenants or Tenants()

    async def answer(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
        stream = _Stream(call, check_each, sender, among)
        try:
            async for response in stream.run(requests):
                yield response
        finally:
            await stream.close()

    return [
        Method(
            "enforcer.v1.EnforcerService",
            "CheckStream",
            pb.CheckStreamRequest,
            pb.CheckStreamResponse,
            "check",
            answer,
            stream=True,
            as_bytes=True,
        )
    ]


def _looked_at(message: bytes) -> tuple[int, bytes | None]:
    """A question that is written in another way than most."""
    request = parsed(pb.CheckStreamRequest, message)
    return request.id, request.check.SerializeToString() if request.HasField("check") else None


class _Stream:
    """One of them. Without a timer: what has been read in one turn of the event loop is decided together."""

    def __init__(self, call: Call, check_each: CheckEach, sender: Sender, tenants: Tenants) -> None:
        self._call, self._check_each, self._sender = call, check_each, sender
        self._tenants = tenants
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._answers: list[bytes] = []
        self._unanswered = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._deciding = 0
        self._planned = False
        self._reading = True
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self, requests: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
        """Answers, as they travel, until the client has asked its last question, or the process ends. Raise what ends it early."""
        reading = self._start(self._read(requests))
        self._start(self._stop_when_ending(reading))
        while True:
            if self._answers:
                answers, self._answers = self._answers, []
                self._unanswered -= len(answers)
                self._room.set()
                yield answers
                continue
            if self._failure is not None:
                raise self._failure
            if not self._reading and not self._unanswered:
                break
            self._news.clear()
            await self._news.wait()
        if self._call.ending.is_set():
            await asyncio.sleep(READ_SECONDS)
            raise UnavailableError(
                "this process ends: ask what has no answer elsewhere, under the same keys"
            )

    async def close(self) -> None:
        """End whatever still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error  # told to the client by `run`
            self._news.set()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for message in requests:
                self._unanswered += 1
                place, check = question_of(message) or _looked_at(message)
                if check is not None:
                    self._waiting.append((place, check))
                    self._plan()
                else:
                    missing = InvalidRequestError("BAD_MESSAGE", "a question has a `check`")
                    self._tell(place, fault_of(missing))
                while self._unanswered >= MOST_UNANSWERED:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._reading = False
            self._news.set()

    async def _stop_when_ending(self, reading: asyncio.Task[None]) -> None:
        await self._call.ending.wait()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading

    def _plan(self) -> None:
        if not self._planned and self._deciding < MOST_DECIDING:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._decide_what_came)

    def _decide_what_came(self) -> None:
        self._planned = False
        while self._waiting and self._deciding < MOST_DECIDING:
            some = [self._waiting.popleft() for _ in range(min(LARGEST, len(self._waiting)))]
            self._deciding += 1
            self._start(self._decide(some))

    async def _decide(self, asked: list[tuple[int, bytes]]) -> None:
        caller = await self._sender(self._call.authorization)
        weight = 1 + len(asked) // CHECKS_A_WEIGHT
        share = await self._tenants.turn(caller.tenant, weight)
        try:
            outcomes = await self._check_each(caller.tenant, [check for _, check in asked])
        except MetergateError as error:
            outcomes = [fault_of(error)] * len(asked)
        finally:
            share.running -= weight
        for (place, _), outcome in zip(asked, outcomes, strict=True):
            self._tell(place, outcome)
        self._deciding -= 1
        if self._waiting:
            self._plan()

    def _tell(self, of: int, outcome: bytes | pb.CheckFault) -> None:
        # `id` is field 1 of the answer, `response` field 2, `fault` field 3
        self._answers.append(b"\x08" + varint(of) + answered(b"\x12", b"\x1a", outcome))
        self._news.set()
