"""What one tenant's flood does to another tenant's latencies, in one run on this machine.

    python -m loadtests.flood [--seconds 10] [--rate 50] [--in-flight 512] [--share 32] [--calls 0] [--rounds 2]

Two gateways of their own, one enforcer worker each: one lets every tenant have all there is, one lets a tenant have
`--share` calls at once (METERGATE_TENANT_MOST_CALLS), and `--calls` a second (METERGATE_TENANT_CALLS_PER_SECOND; 0: as
many as come). On each, in turns, a quiet tenant asks `--rate` checks a second,
alone and beside a flood: another process, another tenant, `--in-flight` checks unanswered at any moment, which asks
again at once when it is refused. Latencies count from the moment when a check was due. Only ratios of one run count;
the flood's own process needs a core, too, which on a small machine is a part of what the quiet tenant notices.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc.aio
import psutil

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.cli.folder import DataFolder
from enforcer.cli.parts import BUCKETS, database_url
from enforcer.v1 import catalog_pb2
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.catalog_pb2_grpc import CatalogServiceStub
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests.gateway import Target, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CATALOG = """
version: 1
features: [{key: calls}]
accounts:
  - key: acme
    entitlements:
      - {feature: calls, key: daily, model: quota, limit: 1_000_000_000, per: day}
      - {feature: calls, key: fast, model: rate, limit: 1_000_000_000, per: 1s}
"""
TENANTS = ("loud", "quiet")
SETTLE_SECONDS = 1.0


def request() -> pb.CheckRequest:
    """A full check: quota, rate, a key of its own."""
    return pb.CheckRequest(
        customer="acme", feature="calls", quantity=1, idempotency_key=secrets.token_hex(16)
    )


async def keys(target: Target) -> dict[str, str]:
    """Make both tenants, with the same catalog; a key for each."""
    assert target.folder is not None, "it was started here"
    definitions = SqlDefinitions(database_url(DataFolder(target.folder)), int(BUCKETS))
    found = {}
    try:
        for tenant in TENANTS:
            await definitions.ensure_tenant(tenant)
            found[tenant] = await definitions.create_api_key(tenant, "admin")
    finally:
        await definitions.close()
    async with grpc.aio.insecure_channel(target.gateway.endpoint) as channel:
        stub = CatalogServiceStub(channel)
        for key in found.values():
            document = catalog_pb2.ApplyRequest(document=CATALOG, file_name="flood.yaml")
            await stub.Apply(document, metadata=bearer(key), timeout=60)
    return found


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of its calls."""
    return (("authorization", f"Bearer {key}"),)


async def quiet(endpoint: str, key: str, rate: float, seconds: float) -> list[float]:
    """Latencies of checks that are due at random moments, whatever has become of those before."""
    latencies: list[float] = []
    refused: list[float] = []
    dice = random.Random(1)
    async with grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS) as channel:
        stub: Any = EnforcerServiceStub(channel)

        async def one(due: float) -> None:
            try:
                await stub.Check(request(), metadata=bearer(key), timeout=60)
            except grpc.aio.AioRpcError as error:
                # One that waits too long has more calls at once than its own share, too.
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refused.append(due)
            else:
                latencies.append(time.perf_counter() - due)

        due = time.perf_counter()
        end = due + seconds
        async with asyncio.TaskGroup() as group:
            while due < end:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                group.create_task(one(due))
                due += dice.expovariate(rate)
    if refused:
        print(
            f"(of the quiet tenant {len(refused)} were refused: lower its rate, or raise the share)"
        )
    return sorted(latencies)


async def flood(endpoint: str, key: str, in_flight: int) -> None:
    """Until standard input ends; then tell what came of it."""
    answered = {"taken": 0, "refused": 0}
    async with grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS) as channel:
        stub: Any = EnforcerServiceStub(channel)

        async def ask() -> None:
            while True:
                try:
                    await stub.Check(request(), metadata=bearer(key), timeout=60)
                    answered["taken"] += 1
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    answered["refused"] += 1

        asking = asyncio.gather(*(ask() for _ in range(in_flight)))
        await asyncio.sleep(SETTLE_SECONDS)
        print("in flood", flush=True)
        ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    print(json.dumps(answered))


@asynccontextmanager
async def flooded(endpoint: str, key: str, in_flight: int) -> AsyncIterator[dict[str, int]]:
    """A flood from another process while the body runs; afterwards what came of it."""
    said: dict[str, int] = {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtests.flood", "--flood", endpoint),
        *("--in-flight", str(in_flight)),
        env={**os.environ, "METERGATE_API_KEY": key},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None, "is a pipe"
    try:
        assert await process.stdout.readline() == b"in flood\n"
        await asyncio.sleep(SETTLE_SECONDS)
        yield said
    finally:
        out, _ = await process.communicate(b"")
        said |= json.loads(out or b"{}")


async def measured(share: int, options: argparse.Namespace) -> dict[str, Any]:
    """p50 and p99 in ms, alone and beside the flood."""
    found: dict[str, list[float]] = {"alone": [], "beside": []}
    told = {"taken": 0, "refused": 0}
    settings = {"METERGATE_TENANT_MOST_CALLS": str(share)}
    if share:
        settings["METERGATE_TENANT_CALLS_PER_SECOND"] = str(options.calls)
    with started(("--workers", "1"), settings) as target:
        endpoint, known = target.gateway.endpoint, await keys(target)
        asked = (endpoint, known["quiet"], options.rate)
        await quiet(*asked, 2.0)  # warm
        for _ in range(options.rounds):
            found["alone"] += await quiet(*asked, options.seconds)
            async with flooded(endpoint, known["loud"], options.in_flight) as said:
                found["beside"] += await quiet(*asked, options.seconds)
            for name, count in said.items():
                told[name] += count
    row: dict[str, Any] = {"share": share, "calls": options.calls if share else 0, "flood": told}
    for name, latencies in found.items():
        ordered = sorted(latencies)
        row[name] = {
            "checks": len(ordered),
            "p50_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 2),
        }
    row["p99_ratio"] = round(row["beside"]["p99_ms"] / row["alone"]["p99_ms"], 2)
    return row


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--in-flight", type=int, default=512)
    parser.add_argument("--share", type=int, default=32)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flood", metavar="ENDPOINT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        asyncio.run(flood(options.flood, os.environ["METERGATE_API_KEY"], options.in_flight))
        return
    print(json.dumps({"cores": psutil.cpu_count(), "load_before": psutil.getloadavg()[0]}))
    for share in (0, options.share):
        print(json.dumps(asyncio.run(measured(share, options))), flush=True)


if __name__ == "__main__":
    main()
