"""Checks that are asked for at the same time travel together.

There is no timer. What is asked for within one turn of the event loop is sent at its end: one check
alone as `Check`, several as `CheckBatch`. While `most_in_flight` calls are under way, further checks
collect, and go out together as soon as one of these calls has ended. So a lone check never waits, and
the busier a process is, the larger its batches are.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

import grpc

from enforcer.client.calls import out_of_time
from enforcer.client.errors import (
    CallError,
    ClosedError,
    InternalError,
    OverloadedError,
    from_fault,
)
from enforcer.client.questions import packed

if TYPE_CHECKING:
    from enforcer.client.calls import Calls
    from enforcer.client.questions import Question
    from enforcer.v1 import enforcer_pb2 as pb

__all__ = ["Coalescer"]

LARGEST_SHARED: Final = 16 * 1024
"""Bytes. A larger check travels alone: a batch has to stay below what a gateway takes."""


class Coalescer:
    """Sends checks for one client, in one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls, options = calls, calls.options
        self._most_in_flight, self._largest = options.most_in_flight, options.largest_batch
        self._most_waiting = options.most_waiting
        self._traced = calls.observers.propagator is not None
        self._attempt_timeout = options.attempt_timeout
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Question] = deque()
        self._sending: dict[asyncio.Task[None], list[Question]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = inf
        self._flush_planned = False
        self._closed = False

    def ask(self, question: Question, deadline: float) -> asyncio.Future[pb.CheckResponse]:
        """One attempt at a check, in whatever company. Raise `OverloadedError`; the answer may be a `CallError`.

        Cancelling it does not call the check back once it has been sent: it may count.
        """
        if self._closed:
            raise ClosedError("the client is closed")
        if len(self._waiting) >= self._most_waiting:
            raise OverloadedError(
                f"{self._most_waiting} checks wait in this client already: this one was not sent"
            )
        answered: asyncio.Future[pb.CheckResponse] = self._loop.create_future()
        question.answered, question.deadline = answered, deadline
        if self._traced:
            question.place = self._calls.observers.place()
        self._waiting.append(question)
        if not self._flush_planned:
            self._plan()
        if deadline < self._sweep_at:
            self._sweep_then(deadline)
        return answered

    async def close(self) -> None:
        """Send nothing new; wait for what is under way, each call until its own deadline."""
        self._closed = True
        for one in self._waiting:
            if not one.answered.done():
                one.answered.set_exception(ClosedError("the client was closed: it was not sent"))
        self._waiting.clear()
        if self._sending:
            await asyncio.wait(list(self._sending))
        self._sweep_then(inf)

    def _sweep_then(self, moment: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = moment
        self._sweep = self._loop.call_at(moment, self._expire) if moment < inf else None

    def _expire(self) -> None:
        """End what has passed its deadline. One timer for all: most checks never need one."""
        now, next_one = time.monotonic(), inf
        for batch in (self._waiting, *self._sending.values()):
            for one in batch:
                if one.answered.done():
                    continue
                if one.deadline <= now:
                    one.answered.set_exception(out_of_time("the check"))
                elif one.deadline < next_one:
                    next_one = one.deadline
        self._sweep_then(next_one)

    def _plan(self) -> None:
        if not self._flush_planned and len(self._sending) < self._most_in_flight:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Give every free call what it can carry of what waits."""
        self._flush_planned = False
        while self._waiting and len(self._sending) < self._most_in_flight:
            batch = self._take()
            if not batch:
                break
            task = self._loop.create_task(self._send(batch))
            self._sending[task] = batch
            task.add_done_callback(self._sent)

    def _take(self) -> list[Question]:
        """The next batch, without what nobody waits for any more."""
        batch: list[Question] = []
        waiting, largest = self._waiting, self._largest
        while waiting and len(batch) < largest:
            one = waiting.popleft()
            if one.answered.done():
                continue
            if len(one.item) > LARGEST_SHARED:
                if batch:
                    waiting.appendleft(one)
                else:
                    batch.append(one)
                break
            batch.append(one)
        return batch

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        if self._waiting:
            # Planned, not done: whoever was just answered may have its next check to add.
            self._plan()

    async def _send(self, batch: list[Question]) -> None:
        latest = max(one.deadline for one in batch)
        timeout = min(latest - time.monotonic(), self._attempt_timeout)
        _, check, check_batch = self._calls.connection
        places = [one.place for one in batch] if self._traced else None
        try:
            if len(batch) == 1:
                answer = await self._calls.once(
                    "Check", check, batch[0].request, timeout, 1, places
                )
                if not batch[0].answered.done():
                    batch[0].answered.set_result(answer)
                return
            answers = await self._calls.once(
                "CheckBatch", check_batch, packed(batch), timeout, len(batch), places
            )
        except (CallError, ClosedError) as error:
            for one in batch:
                # An exception of its own for each: raising one in many tasks would mix their tracebacks.
                _fail(one, error.again() if isinstance(error, CallError) else error)
            return
        except BaseException:
            ended = ClosedError("the event loop is shutting down: the check may have counted")
            for one in batch:
                _fail(one, ended)
            raise
        self._deal(batch, answers)

    def _deal(self, batch: list[Question], answers: pb.CheckBatchResponse) -> None:
        """Each its own answer, in the order of the request."""
        if len(answers.items) != len(batch):
            broken = InternalError(
                f"{len(answers.items)} answers came to a batch of {len(batch)} checks",
                code=grpc.StatusCode.INTERNAL,
            )
            for one in batch:
                _fail(one, broken.again())
            return
        failure: CallError | None = None
        for one, item in zip(batch, answers.items, strict=True):
            if item.HasField("response"):
                if not (answered := one.answered).done():
                    answered.set_result(item.response)
                continue
            failure = from_fault(item.fault)
            _fail(one, failure)
        if failure is not None:
            self._calls.retries.failed(failure)


def _fail(one: Question, error: BaseException) -> None:
    if not one.answered.done():
        one.answered.set_exception(error)
