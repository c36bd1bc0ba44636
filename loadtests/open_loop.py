"""The open-loop generator: a call is sent when it is due, and its time counts from then.

One process of it; `run` starts as many as are asked for and adds up what they say. A job comes on stdin as a
line of JSON; `ready` goes to stdout; the moment to begin at comes as a second line; the outcome goes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec
import uvloop

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.arrivals import dealt
from loadtests.latencies import Latencies
from loadtests.processes import READY, Job
from loadtests.record import Record
from loadtests.scenarios import make
from loadtests.sessions import Call, Pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from loadtests.outcome import Outcome

__all__ = ["Pace", "drive", "main"]

CONNECT_SECONDS: Final = 30.0


class Pace:
    """What `drive` saw of itself: how late it sent, and what it could not send."""

    def __init__(self, interval: float) -> None:
        self.delay = Latencies(interval)
        self.left_out = 0


async def drive(
    moments: Iterable[tuple[int, float]],
    begin: float,
    send: Callable[[int, float], Awaitable[None]],
    *,
    pace: Pace,
    most_in_flight: int = 10_000,
) -> None:
    """Start `send(number, due)` at each moment; return when all have ended.

    `begin` and `due` are of `time.monotonic`. A moment that has passed already is sent at once, as late as it
    is: nobody waits for an answer before the next call. One that finds `most_in_flight` calls unanswered is
    left out and counted. An exception of `send` ends it all, as a task group does.
    """
    free = most_in_flight

    async def one(number: int, due: float) -> None:
        nonlocal free
        try:
            await send(number, due)
        finally:
            free += 1

    async with asyncio.TaskGroup() as group:
        for number, moment in moments:
            due = begin + moment
            # Also without a wait: whoever is behind must not keep others from being answered.
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if not free:
                pace.left_out += 1
                continue
            free -= 1
            pace.delay.record(moment, time.monotonic() - due)
            group.create_task(one(number, due))


class _Generator:
    """One process's share of a run."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._scenario = make(job.scenario, job.options)
        self._record = Record(job.interval)
        self._metadata = (("authorization", f"Bearer {job.api_key}"),)
        self._stubs: list[Any] = []
        self._turn = 0

    async def run(self, ready: Callable[[], Awaitable[float]]) -> Outcome:
        """Connect, say so to get the moment to begin at, send, settle what is open."""
        job, pace = self._job, Pace(self._job.interval)
        channels = [
            grpc.aio.insecure_channel(job.endpoint, options=CHANNEL_OPTIONS)
            for _ in range(job.connections)
        ]
        self._stubs = [EnforcerServiceStub(channel) for channel in channels]
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
            begin = self._record.begin = await ready()
            moments = dealt(self._scenario.moments(), job.share, job.shares)
            await drive(moments, begin, self._session, pace=pace, most_in_flight=job.most_in_flight)
            for some in self._record.settling():
                if isinstance(some, Pause):
                    await asyncio.sleep(some.seconds)
                else:
                    await asyncio.gather(*(self._call(call, time.monotonic()) for call in some))
        finally:
            await asyncio.gather(*(channel.close(None) for channel in channels))
        return self._record.outcome(pace.delay, pace.left_out)

    async def _session(self, number: int, due: float) -> None:
        steps = self._scenario.session(number)
        answer: Any = None
        with contextlib.closing(steps), contextlib.suppress(StopIteration):
            while True:
                step = steps.send(answer)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    answer = None
                else:
                    answer = await self._call(step, due)
                    if answer is None:
                        return
                due = time.monotonic()

    async def _call(self, call: Call, due: float) -> Any:
        """The answer, or nothing after a fault; both are noted."""
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        sent = time.monotonic()
        try:
            answer = await getattr(stub, call.method)(
                call.request, metadata=self._metadata, timeout=self._job.deadline
            )
        except grpc.aio.AioRpcError as error:
            self._record.failed(call, error.code().name)
            return None
        self._record.answered(call, answer, due, sent)
        return answer


def main() -> None:
    """Read a job, do it, write the outcome."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)

    async def ready() -> float:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        return float(await asyncio.to_thread(sys.stdin.buffer.readline))

    gc.freeze()
    outcome = uvloop.run(_Generator(job).run(ready))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
