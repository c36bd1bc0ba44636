"""Every process starts while what it needs is away: it waits, says for what, serves what it can, and becomes ready by itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.transport.envoy import obstacle
from enforcer.v1 import catalog_pb2, catalog_pb2_grpc, enforcer_pb2_grpc
from enforcer.v1 import enforcer_pb2 as pb
from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from meter.v1 import report_pb2, report_pb2_grpc
from tests.chaos.clients import reason_of
from tests.chaos.matrix import kafka_settings
from tests.chaos.proxy import Proxy, to_port, to_socket
from tests.fixtures.clickhouse import ClickHouseProcess
from tests.fixtures.enforcer_process import EnforcerProcess
from tests.fixtures.kafka import KafkaBroker, why_no_kafka
from tests.fixtures.meter import Outbox
from tests.fixtures.meter_process import TOKEN, MeterProcess, metadata
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

SECONDS = 60.0
CATALOG = """
version: 1
features:
  - {key: closed}
  - {key: open, on_outage: fail_open, emergency: 1_000}
plans:
  - key: all
    items:
      - {feature: closed, model: quota, limit: 10, per: total}
      - {feature: open, model: quota, limit: 10, per: total}
accounts:
  - key: ada
    subscriptions: [{plan: all}]
"""


def read(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Probes:
    """What a process says of itself at its port for operators."""

    def __init__(self) -> None:
        self.port = free_port()
        self.listen = f"127.0.0.1:{self.port}"

    async def live(self) -> bool:
        try:
            return await asyncio.to_thread(read, f"http://{self.listen}/healthz") == (200, "ok\n")
        except OSError:
            return False

    async def ready(self) -> dict[str, Any]:
        status, text = await asyncio.to_thread(read, f"http://{self.listen}/readyz")
        page: dict[str, Any] = json.loads(text)
        assert status == (200 if page["ready"] else 503)
        return page

    async def states(self) -> dict[str, str]:
        page = await self.ready()
        return {name: one["state"] for name, one in page["dependencies"].items()}

    async def until(self, holds: Callable[[dict[str, Any]], bool], log: Callable[[], str]) -> Any:
        """The page, as soon as this holds of it."""
        give_up = time.monotonic() + SECONDS
        while True:
            page: dict[str, Any] = {}
            if await self.live():
                page = await self.ready()
                if holds(page):
                    return page
            assert time.monotonic() < give_up, f"{page}\n{log()[-3000:]}"
            await asyncio.sleep(0.05)


def lines(log: str, dependency: str) -> list[str]:
    """What the log says of it."""
    told = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [str(one["event"]) for one in told if one.get("dependency") == dependency]


@pytest.mark.parametrize("transport", ["grpcio", "envoy"])
async def test_an_enforcer_serves_what_it_can_and_becomes_ready(  # noqa: PLR0915 - one story, in its order
    transport: str, tmp_path: Path
) -> None:
    if transport == "envoy" and (missing := obstacle()):
        pytest.skip(missing)
    probes, valkey = Probes(), ValkeyProcess(tmp_path / "valkey")
    meter = MeterProcess(tmp_path / "meter", valkey.url)
    database = f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}"
    enforcer = EnforcerProcess(
        tmp_path / "enforcer.log",
        METERGATE_TRANSPORT=transport,
        METERGATE_HTTP_LISTEN=probes.listen,
        METERGATE_REDIS_URL=valkey.url,
        METERGATE_DATABASE_URL=database,
        METERGATE_BUCKETS="2",
        METERGATE_METER_ENDPOINT=meter.listen,
        METERGATE_INTERNAL_TOKEN=TOKEN,
        METERGATE_JOURNAL_DIR=str(tmp_path / "journal"),
    )
    enforcer.start()
    channel = grpc.aio.insecure_channel(
        enforcer.listen, options=[("grpc.max_reconnect_backoff_ms", 200)]
    )
    key = "mg_made_up"

    def call(stub: Any, request: Any) -> Any:
        return stub(
            request,
            metadata=(("authorization", f"Bearer {key}"),),
            timeout=30,
            wait_for_ready=True,
        )

    checks = enforcer_pb2_grpc.EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]

    async def check(feature: str) -> Any:
        return await call(checks.Check, pb.CheckRequest(customer="ada", feature=feature))

    async def fault(asked: Awaitable[Any]) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        return reason_of(caught.value)

    def known(page: dict[str, Any]) -> bool:
        return bool(page["dependencies"]["sql"].get("error"))

    try:
        # Nothing is there, not even a schema.
        page = await probes.until(known, lambda: enforcer.log)
        assert (page["state"], page["missing"]) == ("waiting", ["redis", "sql"])
        assert page["dependencies"]["sql"]["state"] == "refused"
        assert "no schema yet" in page["dependencies"]["sql"]["error"]
        assert await fault(check("open")) == "UNAVAILABLE DEFINITIONS_UNAVAILABLE"

        # The definitions come: what fails open is decided, the rest has a clear fault.
        definitions = SqlDefinitions(database, 2)
        await definitions.migrate()
        await definitions.ensure_tenant("demo")
        key = await definitions.create_api_key("demo", "admin")
        await definitions.close()
        page = await probes.until(lambda page: page["missing"] == ["redis"], lambda: enforcer.log)
        request = catalog_pb2.ApplyRequest(document=CATALOG, file_name="catalog.yaml")
        catalogs = catalog_pb2_grpc.CatalogServiceStub(channel)
        # It is stored; that it counts waits for the counters.
        assert await fault(call(catalogs.Apply, request)) == "UNAVAILABLE STORE_UNAVAILABLE"
        answer = await check("open")
        assert (answer.allowed, answer.degraded) == (True, True)
        assert await fault(check("closed")) == "UNAVAILABLE STORE_UNAVAILABLE"

        # Redis comes: ready, though there is no meter.
        await asyncio.to_thread(valkey.start)
        page = await probes.until(lambda page: bool(page["ready"]), lambda: enforcer.log)
        assert page["dependencies"]["meter"]["state"] == "away"
        assert page["state"] == "degraded"
        assert (await check("closed")).allowed

        # The meter comes: all adds up.
        meter.start()
        await probes.until(lambda page: page["state"] == "ready", lambda: enforcer.log)
        reports: Any = report_pb2_grpc.ReportServiceStub(channel)
        give_up = time.monotonic() + SECONDS
        while True:
            used = await call(
                reports.QueryUsage, report_pb2.QueryUsageRequest(meter="open", customers=["ada"])
            )
            if used.total == 1:
                break
            assert time.monotonic() < give_up, "what was allowed without Redis is not counted"
            await asyncio.sleep(0.1)
        found = await call(reports.Audit, report_pb2.AuditRequest())
        assert not found.gaps
        assert not found.drift
        assert (found.repeats, found.rollup_difference) == (0, 0)
        assert enforcer.process is not None
        assert enforcer.process.poll() is None
        # One line for each change, however often it was tried.
        assert len(lines(enforcer.log, "redis")) <= 3, enforcer.log
        assert lines(enforcer.log, "sql") == ["dependency refuses", "dependency is up"]
        assert lines(enforcer.log, "meter") == ["dependency is away", "dependency is up"]
        assert enforcer.log.count("buckets are closed") == 0
    finally:
        await channel.close(None)
        assert enforcer.end() == 0
        assert meter.end() == 0
        valkey.stop()


@pytest.mark.parametrize("transport", ["grpcio", "envoy"])
async def test_an_enforcer_does_not_start_on_a_schema_of_which_it_could_spoil_something(
    transport: str, tmp_path: Path
) -> None:
    if transport == "envoy" and (missing := obstacle()):
        pytest.skip(missing)
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}", 2)
    await definitions.migrate()
    await definitions.close()
    with closing(sqlite3.connect(tmp_path / "definitions.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0099'")
        database.execute("UPDATE schema_needs SET needs = '0098'")
    enforcer = EnforcerProcess(
        tmp_path / "enforcer.log",
        METERGATE_TRANSPORT=transport,
        METERGATE_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0",
        METERGATE_DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}",
        METERGATE_METER_ENDPOINT=f"127.0.0.1:{free_port()}",
        METERGATE_INTERNAL_TOKEN=TOKEN,
    )
    enforcer.start()
    assert enforcer.process is not None
    assert await asyncio.to_thread(enforcer.process.wait, SECONDS) == 78, enforcer.log
    (line,) = [line for line in enforcer.log.splitlines() if line.startswith("enforcer: ")]
    assert line.startswith("enforcer: METERGATE_DATABASE_URL: the database has schema 0099 and")


@pytest.mark.timeout(150)
async def test_relay_and_rollup_wait_for_each_server_and_go_on(  # noqa: PLR0915 - one story, in its order
    postgres_url: str, tmp_path: Path
) -> None:
    if reason := why_no_kafka():
        pytest.skip(reason)
    broker, valkey = KafkaBroker(tmp_path / "kafka"), ValkeyProcess(tmp_path / "valkey")
    clickhouse = ClickHouseProcess(tmp_path / "clickhouse")
    options = KafkaOptions(broker.servers, partitions=2)
    address, _, folder = postgres_url.partition("?host=")
    async with AsyncExitStack() as stack:
        sql = await stack.enter_async_context(Proxy(to_socket(f"{folder}/.s.PGSQL.5432")))
        warehouse = await stack.enter_async_context(Proxy(to_port(1)))
        sql.refusing = warehouse.refusing = True
        database = f"127.0.0.1:{sql.port}/{address.rpartition('/')[2]}"
        shared = kafka_settings(options)
        probes = {name: Probes() for name in ("rollup", "relay")}
        rollup = MeterProcess(
            tmp_path / "rollup",
            valkey.url,
            METERGATE_METER_METRICS_LISTEN=probes["rollup"].listen,
            METERGATE_METER_DATABASE_URL=f"postgresql+asyncpg://nobody_here@{database}",
            METERGATE_CLICKHOUSE_URL=f"http://127.0.0.1:{warehouse.port}/default",
            **shared,
        )
        relay = MeterProcess(
            tmp_path / "relay",
            valkey.url,
            METERGATE_METER_METRICS_LISTEN=probes["relay"].listen,
            METERGATE_METER_ROLES='["relay"]',
            **shared,
        )

        async def waits(name: str, *missing: str, **states: str) -> None:
            def holds(page: dict[str, Any]) -> bool:
                found = {one: page["dependencies"][one]["state"] for one in states}
                return page["missing"] == list(missing) and found == states

            process = rollup if name == "rollup" else relay
            await probes[name].until(holds, lambda: process.log)

        rollup.start()
        relay.start()
        try:
            await waits("rollup", "sql", "clickhouse", "kafka", sql="away")
            await waits("relay", "kafka", "redis", kafka="away")
            async with rollup_calls(rollup) as reports:
                with pytest.raises(grpc.aio.AioRpcError, match="waits for sql, clickhouse, kafka"):
                    await reports.QueryUsage(
                        report_pb2.QueryUsageRequest(meter="calls"), metadata=metadata(), timeout=20
                    )

            # PostgreSQL comes, and does not know the user: that is no server that is away.
            sql.refusing = False
            await waits("rollup", "sql", "clickhouse", "kafka", sql="refused")
            assert await asyncio.to_thread(rollup.end) == 0, "told to end while it waits"
            rollup.environment["METERGATE_METER_DATABASE_URL"] = (
                f"postgresql+asyncpg://metergate@{database}"
            )
            rollup.start()
            await waits("rollup", "clickhouse", "kafka", sql="up", clickhouse="away")

            await asyncio.to_thread(clickhouse.start)
            warehouse.upstream, warehouse.refusing = to_port(clickhouse.port), False
            await waits("rollup", "kafka", clickhouse="up", kafka="away")

            # Kafka comes without the topics.
            await asyncio.to_thread(broker.start)
            await waits("rollup", "kafka", kafka="refused")
            await waits("relay", "kafka", "redis", kafka="refused")
            await prepare_topics(options, create=True)
            await waits("rollup", kafka="up")
            await waits("relay", "redis", kafka="up", redis="away")

            await asyncio.to_thread(valkey.start)
            await waits("relay", kafka="up", redis="up")
            outbox = Outbox(valkey.url)
            await outbox.open(0, 1)
            await outbox.use(0, 5)
            await outbox.redis.aclose()
            async with rollup_calls(rollup) as reports:
                give_up = time.monotonic() + SECONDS
                while True:
                    found = await reports.QueryUsage(
                        report_pb2.QueryUsageRequest(meter="api.calls"),
                        metadata=metadata(),
                        timeout=20,
                    )
                    if found.total == 5:
                        break
                    assert time.monotonic() < give_up, rollup.log[-3000:]
                    await asyncio.sleep(0.1)
            for process in (rollup, relay):
                for name in ("redis", "sql", "clickhouse", "kafka"):
                    assert len(lines(process.log, name)) <= 6, process.log
        finally:
            assert rollup.end() == 0
            assert relay.end() == 0
            broker.kill()
            valkey.stop()
            if clickhouse.port:
                clickhouse.stop()


class rollup_calls:  # noqa: N801 - reads as a function
    """The reports of a rollup, whether it is ready or not."""

    def __init__(self, process: MeterProcess) -> None:
        self._channel = grpc.aio.insecure_channel(process.listen)

    async def __aenter__(self) -> Any:
        return report_pb2_grpc.ReportServiceStub(self._channel)

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)
