"""What the enforcer itself spends on a full check, without any transport: request's bytes to response's bytes.

    python -m loadtests.gateway_bench [--checks N] [--rounds N] [--profile]

Drives the gateway of this process on a Valkey of its own that writes nothing to disk: unary checks, as many at once as
`--at-once` says, and `CheckBatch` of 100. Prints the processor time of this process for each check, the least of the
rounds, and what of it the messages alone take (parse a request, make and serialize its response). Ratios of one run count.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvloop

from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.core.model import Customer, Entitlement, Feature, Node
from enforcer.gateway import Gateway
from enforcer.gateway.programs import Programs
from enforcer.metrics import Metrics
from enforcer.v1 import enforcer_pb2 as pb
from loadtests.script_bench import FEATURE, QUOTA, RATE, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from enforcer.core.rebuild import Account

BATCH = 100
ALLOWED = pb.CheckResponse(allowed=True, granted=1, reason=1).SerializeToString()  # type: ignore[arg-type]


class Definitions:
    """One customer with a quota and a rate, and generations from 1."""

    node = Node(
        1,
        "acme",
        entitlements=(
            Entitlement(7, "q", FEATURE.key, QUOTA),
            Entitlement(8, "r", FEATURE.key, RATE),
        ),
    )

    async def next_generation(self, bucket: int, at_least: int) -> int:
        return at_least + 1

    async def was_opened(self, bucket: int) -> bool:
        return False

    async def confirm_opened(self, bucket: int) -> None:
        """Nobody asks."""

    async def last_generation(self, bucket: int) -> int:
        raise AssertionError(bucket)

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        raise AssertionError(bucket, after, most)

    async def resolve_all(self, names: Sequence[tuple[str, str]]) -> list[Customer]:
        return [Customer(tenant, 1, customer, 0, 1, (self.node,)) for tenant, customer in names]

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        (found,) = await self.resolve_all([(tenant, customer)])
        return found

    async def feature(self, tenant: str, key: str) -> Feature | None:
        return FEATURE


def check(number: int) -> pb.CheckRequest:
    key = f"bench-{number:09}"
    return pb.CheckRequest(customer="acme", feature=FEATURE.key, quantity=1, idempotency_key=key)


async def unary(gateway: Gateway, raw: list[bytes], at_once: int) -> None:
    """Each of `at_once` clients sends its next check when the last was answered."""
    waiting = iter(raw)

    async def client() -> None:
        for one in waiting:
            response = await gateway.check("demo", one)
            if not response.startswith(ALLOWED):
                raise AssertionError(pb.CheckResponse.FromString(response))

    await asyncio.gather(*(client() for _ in range(at_once)))


async def batches(gateway: Gateway, raw: list[bytes], at_once: int) -> None:
    """The same with batches."""
    waiting = iter(raw)

    async def client() -> None:
        for one in waiting:
            response = await gateway.check_batch("demo", one)
            if response.count(ALLOWED) < BATCH:
                raise AssertionError(pb.CheckBatchResponse.FromString(response))

    await asyncio.gather(*(client() for _ in range(at_once)))


async def messages(gateway: Gateway, raw: list[bytes], _: int) -> None:
    """Parse the requests, and make a response for each."""
    made = await gateway.check("demo", check(0).SerializeToString())
    for one in raw:
        pb.CheckRequest.FromString(one)
        pb.CheckResponse.FromString(made).SerializeToString()


async def measure(args: argparse.Namespace, port: int) -> None:
    definitions = Definitions()
    counters = RedisCounters(RedisOptions(f"redis://127.0.0.1:{port}/0", 1), definitions)
    counters.start()
    metrics = Metrics()
    gateway = Gateway(
        counters, Programs(cast("Any", definitions), counters), b"s" * 32, metrics.decision
    )
    keys: Iterator[int] = count(1)

    def of_one() -> list[bytes]:
        return [check(next(keys)).SerializeToString() for _ in range(args.checks)]

    def of_many() -> list[bytes]:
        return [
            pb.CheckBatchRequest(
                items=[check(next(keys)) for _ in range(BATCH)]
            ).SerializeToString()
            for _ in range(args.checks // BATCH)
        ]

    kinds: list[tuple[str, Callable[[], list[bytes]], Callable[..., Awaitable[None]], int]] = [
        ("messages alone", of_one, messages, 1),
        ("unary, one at a time", of_one, unary, 1),
        (f"unary, {args.at_once} at once", of_one, unary, args.at_once),
        ("CheckBatch of 100", of_many, batches, 4),
    ]
    await counters.ready.wait()
    await counters.project(0, 1, 1)
    least: dict[str, float] = {}
    profile = cProfile.Profile()
    for turn in range(args.rounds + 1):
        for name, prepare, run, at_once in kinds:
            raw = prepare()
            gc.collect()
            gc.freeze()
            if args.profile and name == f"unary, {args.at_once} at once" and turn:
                profile.enable()
            before = time.process_time()
            await run(gateway, raw, at_once)
            spent = (time.process_time() - before) * 1e6 / args.checks
            profile.disable()
            if turn:
                least[name] = min(spent, least.get(name, spent))
    await counters.close()
    print("µs of this process's processor time a check")
    for name, spent in least.items():
        print(f"{name:<28}{spent:>10.1f}")
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=128)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    gc.set_threshold(50_000, 50, 50)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        server = Server(Path(folder), counted=False)
        try:
            uvloop.run(measure(args, server.port))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
