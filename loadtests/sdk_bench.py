"""What the Python client saves by sending checks together, beside bare unary calls, in one run on this machine.

    python -m loadtests.sdk_bench [--tasks 256] [--checks 5000] [--rounds 3] [--stream]
        [--meter-elsewhere] [--up=OPTIONS] [--json]

Starts a gateway of its own (one enforcer worker unless `--up` says otherwise) and asks it from one process with one
connection: `--tasks` tasks ask one check after the other, in turns by bare `grpc.aio` stubs and through the client, so
that a busy machine disturbs both alike; with `--stream` also by one bare `CheckStream`. Only the ratios of one run count. Checks are full: quota and rate of `acme`'s
`api.calls`, a new idempotency key each, a record on disk before the answer. At the end the counter has to have what
was granted to all. Afterwards decisions from an allowance are counted, in one task, refills and returns included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import shlex
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc.aio
import psutil

from enforcer.client import Client, Options
from enforcer.client.channel import channel_options, target_of
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.gateway import Target, started

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

CUSTOMER, FEATURE = "acme", "api.calls"
LOCAL = "llm-a", "llm.requests"
DECISIONS, TURN = 3_000_000, 1000
"""From an allowance; so many before the event loop has its turn."""
STREAM_SECONDS = 3600
WARM_UP = 0.2
"""Of a round's checks, before the first."""


class Stream:
    """One `CheckStream` for all tasks: questions in one direction, answers by id in the other."""

    def __init__(self, stub: Any, metadata: Any) -> None:
        self._call = stub.CheckStream(timeout=STREAM_SECONDS, metadata=metadata)
        self._asked: asyncio.Queue[pb.CheckStreamRequest | None] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._number = 0
        self._work = asyncio.gather(self._write(), self._read())

    async def ask(self) -> int:
        """What was granted."""
        self._number += 1
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self._asked.put_nowait(pb.CheckStreamRequest(id=self._number, check=request()))
        return await answer

    async def close(self) -> None:
        """Nothing more is asked."""
        self._asked.put_nowait(None)
        await self._work

    async def _write(self) -> None:
        while (question := await self._asked.get()) is not None:
            await self._call.write(question)
        await self._call.done_writing()

    async def _read(self) -> None:
        try:
            async for one in self._call:
                self._answers.pop(one.id).set_result(one.response.granted)
        finally:
            for answer in self._answers.values():
                answer.cancel()


@dataclass
class Figures:
    """Of all rounds of one way."""

    checks: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """What is printed: rates in checks/s, latencies in ms, processor time in µs for each check."""
        ordered = sorted(self.latencies)
        return {
            "checks_per_s": round(self.checks / self.seconds),
            "best_round": round(max(self.rates)),
            "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 2),
            **{f"{name}_us": round(cpu * 1e6 / self.checks, 1) for name, cpu in self.cpu.items()},
        }


def request() -> pb.CheckRequest:
    """A check with a key of its own."""
    return pb.CheckRequest(
        customer=CUSTOMER, feature=FEATURE, quantity=1, idempotency_key=secrets.token_hex(16)
    )


def processors(target: Target) -> dict[str, float]:
    """Seconds that this process, the enforcers, the store, and the meter with its relay have used, children included."""
    used = {"client": time.process_time(), "enforcer": 0.0, "store": 0.0, "meter": 0.0}
    for name, pid in target.pids().items():
        role = {"e": "enforcer", "v": "store", "m": "meter", "r": "meter"}.get(name[0], "")
        if role:
            process = psutil.Process(pid)
            for one in [process, *process.children(recursive=True)]:
                times = one.cpu_times()
                used[role] += times.user + times.system
    return used


@contextmanager
def elsewhere(target: Target, *, really: bool) -> Iterator[None]:
    """The meter and its relay stand still, as if they had a machine of their own: records wait in the outbox."""
    pids = [pid for name, pid in target.pids().items() if really and name[0] in "mr"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def drive(
    ask: Callable[[], Awaitable[int]], tasks: int, checks: int
) -> tuple[int, list[float]]:
    """So many tasks, each with its share, one check after the other. What was granted, and how long each took."""
    latencies: list[float] = []
    clock = time.perf_counter

    async def work(share: int) -> int:
        granted = 0
        for _ in range(share):
            begun = clock()
            granted += await ask()
            latencies.append(clock() - begun)
        return granted

    shares = [checks // tasks + (number < checks % tasks) for number in range(tasks)]
    granted = await asyncio.gather(*(work(share) for share in shares))
    return sum(granted), latencies


async def decide(client: Client) -> dict[str, int]:
    """Decisions from an allowance of what is never denied: by `take`, and `check` where that has nothing; by `check`."""
    rates: dict[str, int] = {}
    async with client.allowance(*LOCAL, first=DECISIONS // TURN) as allowance:
        take, check = allowance.take, allowance.check
        for name in ("take", "check"):
            allowed, begun = 0, time.perf_counter()
            for _ in range(DECISIONS // TURN):
                if name == "take":
                    for _ in range(TURN):
                        allowed += take() or bool(await check())
                else:
                    for _ in range(TURN):
                        allowed += bool(await check())
                assert allowed % TURN == 0 < allowed, "some were denied"
                # Refills begin and returns are sent between, as in a program that also does something else.
                await asyncio.sleep(0)
            rates[f"allowance.{name}"] = round(allowed / (time.perf_counter() - begun))
    return rates


async def measure(
    target: Target, args: argparse.Namespace
) -> tuple[dict[str, Figures], dict[str, int], str]:
    """Rounds in turns; decisions from an allowance in a second; and whether the counter agrees."""
    gateway = target.gateway
    options = Options(
        timeout=120,
        attempt_timeout=120,
        largest_batch=args.largest_batch,
        most_in_flight=args.in_flight,
    )
    async with (
        grpc.aio.insecure_channel(target_of(gateway.endpoint), channel_options(options)) as channel,
        Client(gateway.endpoint, gateway.api_key, options=options) as client,
    ):
        stub: Any = EnforcerServiceStub(channel)
        metadata = gateway.metadata

        async def bare() -> int:
            answer = await stub.Check(request(), timeout=120, metadata=metadata)
            return int(answer.granted)

        async def together() -> int:
            return (await client.check(CUSTOMER, FEATURE)).granted

        ways = {"bare unary calls": bare, "enforcer.client": together}
        stream = Stream(stub, metadata) if args.stream else None
        if stream is not None:
            ways["one CheckStream"] = stream.ask
        figures = {name: Figures() for name in ways}
        granted = 0
        for number in range(args.rounds + 1):
            checks = args.checks if number else max(args.tasks, int(args.checks * WARM_UP))
            for name, ask in ways.items():
                before, begun = processors(target), time.perf_counter()
                got, latencies = await drive(ask, args.tasks, checks)
                seconds, after = time.perf_counter() - begun, processors(target)
                granted += got
                if not number:
                    continue
                row = figures[name]
                row.checks += checks
                row.seconds += seconds
                row.latencies += latencies
                row.rates.append(checks / seconds)
                for role, cpu in after.items():
                    row.cpu[role] = row.cpu.get(role, 0.0) + cpu - before[role]
        if stream is not None:
            await stream.close()
        balance = await client.balance(CUSTOMER, FEATURE)
        used = max(limit.used for limit in balance.limits)
        local = await decide(client)
    agrees = "" if used == granted else f"the counter has {used}, clients were granted {granted}"
    return figures, local, agrees


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--checks", type=int, default=5000, help="of a round and way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest-batch", type=int, default=Options().largest_batch)
    parser.add_argument("--in-flight", type=int, default=Options().most_in_flight)
    parser.add_argument("--stream", action="store_true", help="also by one CheckStream")
    parser.add_argument(
        "--meter-elsewhere", action="store_true", help="the meter and its relay stand still"
    )
    parser.add_argument("--up", default="--workers 1", help="options of `metergate up`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with (
        started(shlex.split(args.up)) as target,
        elsewhere(target, really=args.meter_elsewhere),
    ):
        figures, local, differs = asyncio.run(measure(target, args))
    rows = {name: one.row() for name, one in figures.items()}
    first = rows["bare unary calls"]
    ratios = {
        name: round(row["checks_per_s"] / first["checks_per_s"], 2) for name, row in rows.items()
    }
    machine = {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **{
            name: getattr(args, name)
            for name in ("tasks", "checks", "rounds", "up", "meter_elsewhere")
        },
        "largest_batch": args.largest_batch,
        "in_flight": args.in_flight,
    }
    if args.json:
        print(
            json.dumps(
                {
                    "machine": machine,
                    "rows": rows,
                    "ratios": ratios,
                    "local": local,
                    "differs": differs,
                }
            )
        )
    else:
        print(" ".join(f"{key}={value}" for key, value in machine.items()))
        print(f"{'way':<20}" + "".join(f"{key:>15}" for key in first) + f"{'ratio':>8}")
        for name, row in rows.items():
            figures_of = "".join(f"{value:>15,}" for value in row.values())
            print(f"{name:<20}{figures_of}{ratios[name]:>8}")
        for name, rate in local.items():
            print(f"{name:<20}{rate:>15,} decisions/s")
    if differs:
        sys.exit(differs)


if __name__ == "__main__":
    main()
