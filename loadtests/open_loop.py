"""The open-loop generator: a call is sent when it is due, and its time counts from then.

One process of it; `run` starts as many as are asked for and adds up what they say. A job comes on stdin as a
line of JSON; `ready` goes to stdout; the moment to begin at comes as a second line; the outcome goes out.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec
import uvloop

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.arrivals import Spacing, arrivals, dealt
from loadtests.latencies import Latencies
from loadtests.outcome import Interval, Outcome
from loadtests.processes import READY
from loadtests.scenarios import Options, make
from loadtests.sessions import Call, Pause
from loadtests.told import Told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["Job", "Pace", "drive", "main"]

MOST_LATE_SECONDS: Final = 60.0
"""How long the last calls may take, and so long doubtful ones are asked again."""
AGAIN_AT_ONCE: Final = 64


class Job(msgspec.Struct, frozen=True):
    """What one generator process is to do."""

    endpoint: str
    api_key: str
    scenario: str
    options: Options
    spacing: Spacing
    seed: int
    share: int
    shares: int
    connections: int
    deadline: float
    most_in_flight: int
    interval: float


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
        self._told = Told()
        self._latencies = Latencies(job.interval)
        self._intervals: dict[int, Interval] = {}
        self._metadata = (("authorization", f"Bearer {job.api_key}"),)
        self._stubs: list[Any] = []
        self._turn = 0
        self._begin = 0.0

    async def run(self, ready: Callable[[], Awaitable[float]]) -> Outcome:
        """Connect, say so to get the moment to begin at, send, settle what is open."""
        job = self._job
        channels = [
            grpc.aio.insecure_channel(job.endpoint, options=CHANNEL_OPTIONS)
            for _ in range(job.connections)
        ]
        self._stubs = [EnforcerServiceStub(channel) for channel in channels]
        pace = Pace(job.interval)
        try:
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            self._begin = await ready()
            moments = dealt(
                arrivals(self._scenario.plan(), job.spacing, job.seed), job.share, job.shares
            )
            await drive(
                moments, self._begin, self._session, pace=pace, most_in_flight=job.most_in_flight
            )
            for call in self._told.still_held():
                await self._call(call, time.monotonic(), measured=False)
            await self._settle()
        finally:
            await asyncio.gather(*(channel.close(None) for channel in channels))
        return Outcome(
            latency=self._latencies.packed(),
            latency_parts=self._latencies.packed_parts(),
            delay=pace.delay.packed(),
            left_out=pace.left_out,
            intervals=self._intervals,
            told=list(self._told.usage.values()),
            seats=list(self._told.seats.values()),
            codes=self._told.codes,
            asked_again=self._told.asked_again,
            in_doubt=len(self._told.doubtful),
        )

    async def _session(self, number: int, due: float) -> None:
        steps = self._scenario.session(number)
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    answer, due = None, time.monotonic()
                    continue
                answer = await self._call(step, due, measured=True)
                due = time.monotonic()
                if answer is None:
                    break
        except StopIteration:
            return
        steps.close()

    async def _call(self, call: Call, due: float, *, measured: bool) -> Any:
        """The answer, or nothing after a fault; both are noted."""
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        sent = time.monotonic()
        try:
            answer = await getattr(stub, call.method)(
                call.request, metadata=self._metadata, timeout=self._job.deadline
            )
        except grpc.aio.AioRpcError as error:
            self._told.failed(call, error.code().name)
            if measured:
                self._in(time.monotonic()).errors += 1
            return None
        now = time.monotonic()
        allowed, denied = self._told.answered(call, answer, sent, now)
        if measured:
            self._latencies.record(due - self._begin, now - due)
            at = self._in(now)
            at.answered += 1
            at.allowed += allowed
            at.denied += denied
        return answer

    def _in(self, now: float) -> Interval:
        place = max(int((now - self._begin) / self._job.interval), 0)
        return self._intervals.setdefault(place, Interval())

    async def _settle(self) -> None:
        """Ask again what had no answer, under the same keys, until all is known or the time is over."""
        give_up = time.monotonic() + MOST_LATE_SECONDS
        while self._told.doubtful and time.monotonic() < give_up:
            calls, self._told.doubtful = self._told.doubtful, []
            for first in range(0, len(calls), AGAIN_AT_ONCE):
                some = calls[first : first + AGAIN_AT_ONCE]
                self._told.asked_again += len(some)
                await asyncio.gather(
                    *(self._call(call, time.monotonic(), measured=False) for call in some)
                )
            for call in self._told.still_held():
                await self._call(call, time.monotonic(), measured=False)
            if self._told.doubtful:
                await asyncio.sleep(0.5)


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
