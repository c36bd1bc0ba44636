"""A gateway that Envoys may ask, on either transport, as a process: `python limited.py TRANSPORT HOST:PORT`."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enforcer.adapters.counters.memory import MemoryStore
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.catalog.parse import parse
from enforcer.catalog.ratelimit import parse_domains
from enforcer.core.memory import MemoryCounters
from enforcer.gateway import Gateway
from enforcer.gateway.programs import Programs
from enforcer.gateway.ratelimit import RateLimits
from enforcer.metrics import Metrics
from enforcer.ports.definitions import Caller
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.envoy import run_envoy
from enforcer.transport.grpcio import GrpcServer
from enforcer.transport.lifespan import Application
from enforcer.transport.ratelimit import ratelimit_methods
from tests.conformance.served import SERVING

if TYPE_CHECKING:
    from enforcer.app import Server

BUCKETS = 1
KEYS = {
    "a-check-key": Caller("demo", "k1", "check"),
    "a-strangers-key": Caller("other", "k2", "check"),
}
CATALOG = """\
version: 1
features: [{key: calls}]
accounts:
  - {key: acme, entitlements: [{feature: calls, key: daily, model: quota, limit: 5, per: day}]}
  - {key: endless, entitlements: [{feature: calls, model: payg, per: month}]}
"""
MAPPING = """\
version: 1
domains:
  - domain: shop
    tenant: demo
    rules: [{match: {customer: "*"}, customer: "{customer}", feature: calls}]
"""


class _Callers:
    async def caller(self, key: str) -> Caller | None:
        return KEYS.get(key)


class _Breaking(RateLimits):
    """Has a bug in one place."""

    async def should_rate_limit(self, caller: Caller, message: bytes) -> bytes:
        if rls.RateLimitRequest.FromString(message).hits_addend == 666:
            raise ZeroDivisionError("a secret")
        return await super().should_rate_limit(caller, message)


async def _limits(folder: str) -> tuple[SqlDefinitions, RateLimits]:
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{Path(folder) / 'definitions.db'}", BUCKETS)
    await definitions.migrate()
    await definitions.ensure_tenant("demo")
    catalog = parse(CATALOG, "catalog.yaml").of_tenant("demo")
    applied = await definitions.apply(catalog, actor="test", dry_run=False)
    counters = MemoryCounters(lambda: time.time_ns() // 1_000_000)
    counters.open(0, 1)
    store = MemoryStore(counters)
    for account_id, bucket, epoch in applied.touched:
        await store.project(bucket, account_id, epoch)
    gateway = Gateway(store, Programs(definitions, store), b"secret")
    return definitions, _Breaking(gateway, parse_domains(MAPPING, "mapping.yaml"))


async def _serve(stop: asyncio.Event, carry: Any, listen: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        definitions, limits = await _limits(folder)
        callers = Callers(_Callers())  # type: ignore[arg-type]  # all that it asks them
        server: Server = carry(Dispatch(ratelimit_methods(limits), callers, Metrics()))
        await server.start(listen)
        await server.ready(serving=True)
        print(SERVING, flush=True)  # noqa: T201 - for whoever waits for it
        await stop.wait()
        await server.stop()
        await definitions.close()


application = Application(_serve)


async def _grpcio(listen: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await _serve(stop, GrpcServer, listen)


if __name__ == "__main__":
    if sys.argv[1] == "envoy":
        sys.exit(run_envoy(sys.argv[2], "tests.conformance.limited:application"))
    asyncio.run(_grpcio(sys.argv[2]))
