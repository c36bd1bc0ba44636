"""Locust's users, and the run that they make: each does a session, waits for its turn, does the next.

A closed loop: a user that waits for an answer sends nothing meanwhile, so a stall shows as fewer calls, not
in the percentiles. For a rate that does not give way there is the open loop. Imported in `locust_process` only.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent
import gevent.pool
import grpc
import msgspec
from locust import LoadTestShape, User, constant_throughput, task
from locust.env import Environment
from locust.exception import StopUser
from locust.stats import stats_history

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.latencies import Latencies
from loadtests.processes import READY, Job
from loadtests.record import AT_ONCE, Record
from loadtests.scenarios import make
from loadtests.sessions import Call, Pause

if TYPE_CHECKING:
    from loadtests.outcome import Outcome
    from loadtests.scenarios import Scenario

__all__ = ["serve"]

CONNECT_SECONDS: Final = 30.0
STOPPED_SECONDS: Final = 5.0
"""A run that somebody has stopped on Locust's page, and not started again, is over after so long."""
HOST: Final = "127.0.0.1"


class _Load:
    """One run: its scenario, its connections and what it has seen."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.scenario: Scenario = make(job.scenario, job.options)
        self.record = Record(job.interval)
        self.over = False
        self._numbers = itertools.count()
        self._most = len(list(self.scenario.moments())) if self.scenario.bounded else None
        self._metadata = (("authorization", f"Bearer {job.api_key}"),)
        self._channels = [
            grpc.insecure_channel(job.endpoint, options=CHANNEL_OPTIONS)
            for _ in range(job.connections)
        ]
        stubs: list[Any] = [EnforcerServiceStub(channel) for channel in self._channels]
        self._stubs = itertools.cycle(stubs)

    def connect(self) -> None:
        """Wait until all connections are there."""
        for channel in self._channels:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)

    def session(self, environment: Environment) -> None:
        """Do the next session; raise `StopUser` when the scenario has no more."""
        if self.over:
            raise StopUser
        number = next(self._numbers)
        if self._most is not None and number >= self._most:
            raise StopUser
        steps, answer = self.scenario.session(number), None
        with contextlib.closing(steps), contextlib.suppress(StopIteration):
            while True:
                step = steps.send(answer)
                if isinstance(step, Pause):
                    gevent.sleep(step.seconds)
                    answer = None
                    continue
                answer = self.call(step, environment)
                if answer is None:
                    return

    def call(self, call: Call, environment: Environment | None = None) -> Any:
        """The answer, or nothing after a fault; both are noted, and told to Locust."""
        sent, fault = time.monotonic(), None
        answer: Any = None
        try:
            answer = getattr(next(self._stubs), call.method)(
                call.request, metadata=self._metadata, timeout=self.job.deadline
            )
        except grpc.RpcError as error:
            fault = error
            self.record.failed(call, error.code().name)
        except gevent.GreenletExit:
            # Locust ends a user whose time is up, and one that has just begun to call with it.
            self.record.abandoned(call)
            raise
        else:
            self.record.answered(call, answer, sent, sent)
        if environment is not None:
            environment.events.request.fire(
                request_type="gRPC",
                name=call.method,
                response_time=(time.monotonic() - sent) * 1000,
                response_length=answer.ByteSize() if answer is not None else 0,
                exception=fault,
                context={},
            )
        return answer

    def settle(self) -> None:
        """Ask again what is in doubt, give back what is held."""
        pool = gevent.pool.Pool(AT_ONCE)
        for some in self.record.settling():
            if isinstance(some, Pause):
                gevent.sleep(some.seconds)
            else:
                pool.map(self.call, some)

    def close(self) -> None:
        """End the connections."""
        for channel in self._channels:
            channel.close()


class _Customer(User):
    """What Locust makes as many of as it is asked for."""

    abstract = True
    load: ClassVar[_Load]

    @task
    def session(self) -> None:
        """One session of the scenario."""
        self.load.session(self.environment)


def _user_class(load: _Load) -> type[User]:
    """Users that together do the rate of the job, each its share of it."""
    pace = constant_throughput(load.job.options.rate / load.job.users)
    return type(load.job.scenario, (_Customer,), {"load": load, "wait_time": pace})


def _shape(load: _Load) -> LoadTestShape | None:
    """As many users as the plan's rate of the moment wants; none where it is the same all the time."""
    plan, users = load.scenario.plan(), load.job.users
    if len(plan) == 1:
        return None

    class Shape(LoadTestShape):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]

        def tick(self) -> tuple[int, float] | None:
            left = float(self.get_run_time())  # type: ignore[no-untyped-call]
            for part in plan:
                if left < part.seconds:
                    wanted = round(users * part.rate / load.job.options.rate)
                    return wanted, float(max(wanted, users))
                left -= part.seconds
            return None

    return Shape()


def _run(load: _Load, begin: float) -> Outcome:
    job = load.job
    shape = _shape(load)
    environment = Environment(
        user_classes=[_user_class(load)],
        shape_class=shape,
        stop_timeout=job.deadline,
        host=job.endpoint,
    )
    runner = environment.create_local_runner()
    page = environment.create_web_ui(HOST, job.ui) if job.ui else None
    history = gevent.spawn(stats_history, runner)
    gevent.sleep(max(begin - time.monotonic(), 0))
    load.record.begin = begin
    if shape is None:
        runner.start(job.users, spawn_rate=job.users)
    else:
        runner.start_shape()
    stopped_at: float | None = None
    while (now := time.monotonic()) < begin + load.scenario.seconds:
        gevent.sleep(0.1)
        if runner.state not in {"stopped", "stopping"}:
            stopped_at = None
        elif stopped_at is None:
            stopped_at = now
        elif now - stopped_at > STOPPED_SECONDS:
            break
    load.over = True
    runner.quit()
    history.kill()
    if page is not None:
        page.stop()
    load.settle()
    load.close()
    return load.record.outcome(Latencies(job.interval), 0)


def serve() -> None:
    """As `processes.Sender` wants it: a job in, ready, a moment in, an outcome out."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    load = _Load(job)
    load.connect()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    outcome = _run(load, float(sys.stdin.buffer.readline()))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
    sys.stdout.buffer.flush()
