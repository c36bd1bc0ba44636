"""The meter process: rolls up usage records and answers reports. The only place where parts are joined.

Run it with `python -m meter.app`. It ends on SIGTERM or SIGINT after the present flush.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import sys
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog
from prometheus_client import CollectorRegistry

from meter import settings as settings_module
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.migrate import migrate
from meter.adapters.clickhouse.reader import ClickHouseReader
from meter.adapters.clickhouse.series import ClickHouseSeries
from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.adapters.kafka.client import (
    ASK_KAFKA_SECONDS,
    KafkaOptions,
    ask_kafka,
    prepare_topics,
    quiet_driver,
)
from meter.adapters.kafka.dead_letters import DeadLetters
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.levels import Levels, LevelWatch
from meter.adapters.log.cluster import outbox_log
from meter.adapters.sql.marks import SqlMarks
from meter.adapters.traces import SpannedBatches, end_tracing, start_tracing
from meter.audit import Audit
from meter.core.redact import redacted
from meter.crash import crash_points
from meter.errors import MisconfiguredError, UnavailableError
from meter.exposition import whole
from meter.health import ASK_EVERY, FIRST_PAUSE, Health, Need, State, backoff, watch
from meter.logs import configure_logs, secrets_in
from meter.lookup import Lookup
from meter.metrics import Metrics, RelayMetrics
from meter.open_files import allow_many_files
from meter.ports.traces import Untraced
from meter.recall import Recall
from meter.relay import Relay
from meter.reports import Reports
from meter.rollup import Options, Rollup
from meter.series import Series
from meter.transport.calls import Caller
from meter.transport.ledger_service import LedgerService
from meter.transport.report_service import ReportService
from meter.transport.server import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meter.adapters.log.cluster import Outboxes
    from meter.health import Dependency
    from meter.ports.log import LogSource
    from meter.ports.traces import Traces
    from meter.settings import Settings

__all__ = ["main", "serve"]

_log = structlog.get_logger("meter.app")  # also when it is run as a program

MISCONFIGURED = 78
"""Exit status for wrong settings, as EX_CONFIG of sysexits."""
TELL_SECONDS = 0.1
STOP_SECONDS = 8.0
"""So long a flush or a round may take to come to its end."""
END_SECONDS = 2.0
"""And so long, then, what a thread still does."""
MOST_SECONDS = 20.0
"""From the signal to the end of the process, whatever hangs: a statement to a server that is deaf takes minutes."""


class _Process:
    """What one process is put together of: its parts, and what it depends on.

    `prepare`: what has to be done with each dependency before the work begins. `probes`: how it is asked later.
    """

    def __init__(self, settings: Settings, stack: AsyncExitStack, traces: Traces) -> None:
        self.settings, self.stack, self.traces = settings, stack, traces
        self.registry, self.health = CollectorRegistry(), Health()
        self.observe: Callable[[str, str, float], None] | None = None
        self.services: list[ReportService | LedgerService] = []
        self.running: list[Running] = []
        self.prepare: list[tuple[Dependency, Callable[[], Awaitable[object]]]] = []
        self.probes: list[tuple[Dependency, Callable[[], Awaitable[object]], float]] = []

    def needs_kafka(self, without: str) -> None:
        """Its topics have to be there."""
        if any(one.name == "kafka" for one in self.health.dependencies):
            return
        options = KafkaOptions.of(self.settings)
        kafka = self.health.add("kafka", Need.ALWAYS, without)

        async def prepare() -> None:
            await ask_kafka(options)  # first: it tells a wrong password from a broker that is away
            await prepare_topics(options, create=False)

        self.prepare.append((kafka, prepare))
        self.probes.append((kafka, lambda: ask_kafka(options), ASK_KAFKA_SECONDS))

    def needs_redis(self, source: Outboxes, need: Need, without: str) -> None:
        """Where records come from."""
        if not any(one.name == "redis" for one in self.health.dependencies):
            self.probes.append((self.health.add("redis", need, without), source.ask, ASK_EVERY))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raise `MisconfiguredError` when the settings do not work out.

    Whatever is away is waited for: calls are answered UNAVAILABLE meanwhile, naming what is missing.
    """
    async with AsyncExitStack() as stack:
        process = _Process(settings, stack, _traces(settings, stack))
        if "rollup" in settings.meter_roles:
            _add_rollup(process)
        if "relay" in settings.meter_roles:
            _add_relay(process)
        health = process.health
        server = Server(
            settings.meter_listen,
            *process.services,
            tls=settings.tls,
            health=health,
            observe=process.observe,
        )
        await server.start()
        stack.push_async_callback(server.stop)
        if settings.meter_metrics_listen:
            from meter.transport.http import Pages  # noqa: PLC0415 - where it is wanted

            pages = Pages(settings.meter_metrics_listen, whole(process.registry), health)
            stack.callback(pages.close)
        telling = asyncio.create_task(_tell_health(server, health))
        stack.push_async_callback(_cancel, telling)
        await _prepare(process, stop)
        if stop.is_set():
            return
        levels = Levels(settings.redis_url)
        stack.push_async_callback(levels.close)
        process.running.append(LevelWatch(levels, sorted(settings.meter_roles), settings.log_level))
        health.started = True
        _log.info("started", listen=settings.meter_listen, roles=sorted(settings.meter_roles))
        asking = [asyncio.create_task(watch(*probe)) for probe in process.probes]
        stack.push_async_callback(_cancel, *asking)
        await _run_until(stop, health, process.running)


class Running(Protocol):
    """What works until it is told to stop."""

    async def run(self) -> None:
        """Work."""
        ...

    def stop(self) -> None:
        """End `run` soon."""
        ...


async def _prepare(process: _Process, stop: asyncio.Event) -> None:
    """Have all that is needed, in whichever order it comes."""
    work = [asyncio.create_task(_patiently(*one, stop)) for one in process.prepare]
    if not work:
        return
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await _cancel(*work)


async def _run_until(stop: asyncio.Event, health: Health, running: list[Running]) -> None:
    """Run all until `stop`, or until one of them ends, which none should.

    What takes too long to come to its end is left where it stands, as a kill would leave it: the next start goes on there.
    """
    tasks = [asyncio.create_task(one.run()) for one in running]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    health.stopping = True
    for one in running:
        one.stop()
    _log.info("stopping")
    _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
    if late:
        _log.warning("left where it stands: the next start goes on there", waited=STOP_SECONDS)
        _end_for_sure(END_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.wait(late)
    for task in tasks:
        if not task.cancelled():
            task.result()


def _end_for_sure(seconds: float) -> None:
    """Be over in so long, whatever a thread still waits for: a statement that is under way cannot be taken back."""
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_health(server: Server, health: Health) -> None:
    told: tuple[bool, bool] | None = None
    while True:
        if told != (now := (health.ready, health.started)):
            told = now
            # Reports are answered of what there is, also while no records come.
            await server.ready(serving=now[0], answering=now[1])
            _log.info("readiness", serving=now[0], state=health.state, missing=health.missing)
        await asyncio.sleep(TELL_SECONDS)


def _add_relay(process: _Process) -> None:
    """Outboxes to Kafka."""
    settings, stack = process.settings, process.stack
    process.needs_kafka("records wait in the outboxes")
    member = f"{settings.kafka_instance or 'relay'}-{secrets.token_hex(4)}"
    source = outbox_log(settings.redis_url, range(settings.buckets), member)
    stack.push_async_callback(source.close)
    process.needs_redis(source, Need.ALWAYS, "nothing is relayed")
    publisher = KafkaPublisher(KafkaOptions.of(settings))
    stack.push_async_callback(publisher.close)
    relay_metrics = RelayMetrics(process.registry)
    process.health.observe(relay_metrics.depends)
    steps = crash_points("relay")
    relay = Relay(source, publisher, relay_metrics, steps=steps, traces=process.traces)
    process.running.append(relay)


def _traces(settings: Settings, stack: AsyncExitStack) -> Traces:
    """Spans to a collector, if they are wanted. What waits to be sent is sent at the end."""
    if not settings.tracing:
        return Untraced()
    provider = start_tracing("-".join(sorted(settings.meter_roles)))
    stack.push_async_callback(end_tracing, provider)
    return SpannedBatches(provider.get_tracer("metergate.meter"))


def _add_log(process: _Process, metrics: Metrics) -> LogSource:
    """Where the rollup reads records: Kafka, or the outboxes themselves."""
    settings, stack = process.settings, process.stack
    if not settings.kafka_servers:
        outbox = outbox_log(settings.redis_url, settings.share)
        stack.push_async_callback(outbox.close)
        process.needs_redis(outbox, Need.START, "reports are as of when it went away")
        return outbox
    process.needs_kafka("reports are as of when it went away")
    options = KafkaOptions.of(settings)
    dead = DeadLetters(options, metrics.dead_letters.inc)
    stack.push_async_callback(dead.close)
    log = KafkaLog(options, settings.buckets, dead)
    stack.push_async_callback(log.close)
    return log


def _add_rollup(process: _Process) -> None:
    """Records to rollups, and the questions about them."""
    settings, stack, metrics = process.settings, process.stack, Metrics(process.registry)
    process.observe = metrics.call
    process.health.observe(metrics.depends)

    def clickhouse(role: str) -> ClickHouse:
        client = ClickHouse(settings.clickhouse_url, role, settings.clickhouse_cluster)
        stack.push_async_callback(client.close)
        return client

    writer, reader = clickhouse("writer"), clickhouse("reader")
    marks = SqlMarks(settings.meter_database_url)
    stack.push_async_callback(marks.close)
    sql = process.health.add("sql", Need.ALWAYS, "nothing is rolled up")
    warehouse = process.health.add("clickhouse", Need.ALWAYS, "no reports, nothing is rolled up")
    process.prepare += [(sql, marks.migrate), (warehouse, lambda: migrate(writer))]
    process.probes.append((sql, marks.ask, ASK_EVERY))
    remote = settings.clickhouse_url.startswith("http")
    if remote:  # what is in this process is there when it is
        process.probes.append((warehouse, clickhouse("probe").ask, ASK_EVERY))
    source = _add_log(process, metrics)
    options = Options(
        flush_interval=settings.meter_flush_interval_ms / 1000,
        flush_records=settings.meter_flush_records,
        look_ahead=settings.meter_look_ahead,
        raw_days=settings.meter_raw_days,
        # One server for several processes; what is in a folder belongs to one.
        shared=settings.buckets if remote else 0,
    )
    steps = crash_points("rollup")
    rollup = Rollup(
        source, marks, ClickHouseWarehouse(writer), metrics, options, steps, process.traces
    )
    process.running.append(rollup)

    token = settings.internal_token.get_secret_value()
    questions = ClickHouseReader(reader)
    reports = Reports(questions, rollup.whole.fresh_until, token.encode())
    # An audit reads all of raw: reports do not wait behind it.
    audited = ClickHouseReader(clickhouse("auditor"))
    audit = Audit(rollup.whole, audited, marks, settings.meter_compare_wait_seconds)
    caller = Caller(token)
    recall = Recall(rollup.whole, questions, settings.meter_compare_wait_seconds)
    lookup = Lookup(rollup.whole, questions, settings.meter_compare_wait_seconds)
    series = Series(ClickHouseSeries(reader), rollup.whole.fresh_until, token.encode())
    process.services += [
        ReportService(reports, series, caller),
        LedgerService(audit, recall, lookup, rollup, caller),
    ]


async def _patiently(
    dependency: Dependency, work: Callable[[], Awaitable[object]], stop: asyncio.Event
) -> None:
    """Do the work when the server it needs is there; until then wait, longer each time, and tell why."""
    pause = FIRST_PAUSE
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            working = asyncio.ensure_future(work())
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
                return
            try:
                working.result()
            except UnavailableError as error:
                dependency.failed(error)
                pause = await backoff(stop, pause)
            else:
                dependency.tell(State.UP)
                return
    finally:
        stopping.cancel()


def calm_collector() -> None:
    """Look for garbage seldom: tens of thousands of records are alive at once, and none is in a cycle."""
    gc.set_threshold(50_000, 20, 50)


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        if not stop.is_set():
            stop.set()
            _end_for_sure(MOST_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await serve(settings, stop)


def main() -> int:
    """Run the process; return its exit status: 0, or 78 with one line on stderr for wrong settings."""
    try:
        settings = settings_module.load()
        quiet_driver()
        configure_logs(
            settings.log_level,
            form=settings.log_format,
            part="-".join(sorted(settings.meter_roles)),
            secrets=secrets_in(settings),
        )
        calm_collector()
        allow_many_files()
        run = asyncio.run
        if sys.platform != "win32":
            import uvloop  # noqa: PLC0415  # not on every platform

            run = uvloop.run
        run(_run(settings))
    except MisconfiguredError as error:
        sys.stderr.write(f"meter: {redacted(error.message)}\n")
        return MISCONFIGURED
    return 0


if __name__ == "__main__":
    sys.exit(main())
