"""A gateway under steady load whose Kafka is killed for a minute: what its clients notice.

    PYTHONPATH=. python loadtests/kafka_away.py [--rate 200] [--seconds 60]

Starts a broker of its own (`make kafka`) and `metergate up --kafka` in a folder that is removed again.
Open loop, by the generator of `open_loop.py`: a call is sent when it is due, and its time counts from then.
Three equal stretches: Kafka there, Kafka killed, Kafka back. At the end every check has to be in the
usage report once, and the audit clean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio

from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.arrivals import Spacing, arrivals, steady
from loadtests.latencies import Latencies, merged, percentiles_ms
from loadtests.open_loop import Pace, drive
from tests.fixtures.kafka import KafkaBroker
from tests.fixtures.stack import Stack

CATALOG = """
version: 1
accounts:
  - key: loaded
    entitlements:
      - {feature: api.calls, model: payg, per: month}
"""


async def stretch(stub: Any, key: str, rate: int, seconds: int) -> dict[str, float]:
    """Send checks at `rate` for `seconds`; return percentiles in ms. A failure is raised."""
    begin, latencies = time.monotonic(), Latencies(seconds)

    async def send(_: int, due: float) -> None:
        await stub.Check(
            pb.CheckRequest(customer="loaded", feature="api.calls", idempotency_key=uuid4().hex),
            metadata=(("authorization", f"Bearer {key}"),),
            timeout=10,
        )
        latencies.record(due - begin, time.monotonic() - due)

    moments = enumerate(arrivals(steady(rate, seconds), Spacing.EVEN, 1))
    await drive(moments, begin, send, pace=Pace(seconds))
    return percentiles_ms(merged([latencies.packed()]))


async def measure(stack: Stack, broker: KafkaBroker, rate: int, seconds: int) -> int:
    """Drive the three stretches and print them; return how many checks were sent."""
    total, first = 0, 0.0
    async with grpc.aio.insecure_channel(stack.endpoint) as channel:
        stub: Any = EnforcerServiceStub(channel)
        await stretch(stub, stack.api_key, rate, 3)
        total += 3 * rate
        for name in ("Kafka there", "Kafka killed", "Kafka back"):
            if name == "Kafka killed":
                broker.kill()
            if name == "Kafka back":
                await asyncio.to_thread(broker.start)
            times = await stretch(stub, stack.api_key, rate, seconds)
            total += rate * seconds
            first = first or times["p99"]
            print(
                f"{name:<14} {rate * seconds:>7,} checks, 0 failed, p50 {times['p50']:6.1f} ms, "
                f"p99 {times['p99']:6.1f} ms, p99 ratio {times['p99'] / first:.2f}"
            )
    return total


def main() -> None:
    """Start everything, measure, compare, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"aiokafka {version('aiokafka')}, grpcio {version('grpcio')}, Apache Kafka 4.3.1")
    with tempfile.TemporaryDirectory() as name:
        broker = KafkaBroker(Path(name) / "kafka")
        broker.start()
        stack = Stack(Path(name) / "data", "--workers", "1", "--kafka", broker.servers)
        try:
            stack.start()
            stack.apply(CATALOG)
            total = asyncio.run(measure(stack, broker, arguments.rate, arguments.seconds))
            began = time.perf_counter()
            audit = stack.json("audit")
            usage = stack.json("usage", "--customer", "loaded")["total"]
            wrong = {name: audit[name] for name in ("gaps", "drift", "rollup_difference")}
            print(
                f"{total:,} checks sent, {usage:,} in the report; {json.dumps(wrong)}, "
                f"{audit['repeats']} repeats dropped; caught up {time.perf_counter() - began:.1f} s later"
            )
            assert usage == total
        finally:
            stack.close()
            broker.stop()


if __name__ == "__main__":
    main()
