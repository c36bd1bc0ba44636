"""How old the newest complete moment of a usage report is, while a gateway is under load.

    PYTHONPATH=. python loadtests/freshness.py [--rate 1000] [--seconds 60] [--kafka]

Starts `metergate up` in a folder that is removed again (with --kafka also a broker: `make kafka`) and
sends batches of ten checks at a steady rate. Ten times a second it asks for a report and notes how far
its `fresh_until` lies behind the clock: everything decided before it is counted in.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import grpc.aio

from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub
from tests.fixtures.kafka import KafkaBroker
from tests.fixtures.stack import Stack

EACH = 10
CATALOG = """
version: 1
accounts:
  - key: loaded
    entitlements:
      - {feature: api.calls, model: payg, per: month}
"""


async def load(channel: grpc.aio.Channel, key: str, rate: int, seconds: int) -> int:
    """Send checks at a steady rate; return how many."""
    stub, began = EnforcerServiceStub(channel), time.perf_counter()
    calls = []
    for number in range(rate * seconds // EACH):
        await asyncio.sleep(max(0.0, number * EACH / rate - (time.perf_counter() - began)))
        items = [
            pb.CheckRequest(customer="loaded", feature="api.calls", idempotency_key=uuid4().hex)
            for _ in range(EACH)
        ]
        calls.append(
            stub.CheckBatch(
                pb.CheckBatchRequest(items=items),
                metadata=(("authorization", f"Bearer {key}"),),
                timeout=10,
            )
        )
    answers = await asyncio.gather(*calls)
    return sum(item.response.allowed for answer in answers for item in answer.items)


async def ages(channel: grpc.aio.Channel, key: str, done: asyncio.Event) -> list[float]:
    """Ages of reports in seconds, sorted."""
    stub, found = ReportServiceStub(channel), []
    while not done.is_set():
        reply = await stub.QueryUsage(
            report_pb2.QueryUsageRequest(meter="api.calls", customers=["loaded"]),
            metadata=(("authorization", f"Bearer {key}"),),
            timeout=10,
        )
        if reply.HasField("fresh_until"):
            found.append(time.time() - reply.fresh_until.ToNanoseconds() / 1e9)
        await asyncio.sleep(0.1)
    return sorted(found)


async def measure(stack: Stack, rate: int, seconds: int) -> None:
    """Load and watch, then print."""
    async with grpc.aio.insecure_channel(stack.endpoint) as channel:
        await load(channel, stack.api_key, rate, 3)
        done = asyncio.Event()
        watch = asyncio.create_task(ages(channel, stack.api_key, done))
        began = time.perf_counter()
        sent = await load(channel, stack.api_key, rate, seconds)
        took = time.perf_counter() - began
        done.set()
        found = await watch
    print(
        f"{sent / took:,.0f} checks/s, {len(found)} reports: age p50 {found[len(found) // 2]:.2f} s, "
        f"p99 {found[len(found) * 99 // 100]:.2f} s, greatest {found[-1]:.2f} s"
    )


def main() -> None:
    """Start everything, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kafka", action="store_true")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        broker = KafkaBroker(Path(name) / "kafka")
        options: tuple[str, ...] = ()
        if arguments.kafka:
            broker.start()
            options = ("--kafka", broker.servers)
        stack = Stack(Path(name) / "data", "--workers", "1", *options)
        try:
            stack.start()
            stack.apply(CATALOG)
            asyncio.run(measure(stack, arguments.rate, arguments.seconds))
        finally:
            stack.close()
            broker.stop()


if __name__ == "__main__":
    main()
