"""The meter process: rolls up usage records and answers reports. The only place where parts are joined.

Run it with `python -m meter.app`. It ends on SIGTERM or SIGINT after the present flush.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog
from prometheus_client import start_http_server

from meter import settings as settings_module
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.migrate import migrate
from meter.adapters.clickhouse.reader import ClickHouseReader
from meter.adapters.clickhouse.series import ClickHouseSeries
from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.adapters.kafka.client import KafkaOptions, prepare_topics, quiet_driver
from meter.adapters.kafka.dead_letters import DeadLetters
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.log.cluster import outbox_log
from meter.adapters.sql.marks import SqlMarks
from meter.audit import Audit
from meter.crash import crash_points
from meter.errors import MisconfiguredError, UnavailableError
from meter.lookup import Lookup
from meter.metrics import Metrics, RelayMetrics
from meter.open_files import allow_many_files
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

    from meter.ports.log import LogSource
    from meter.settings import Settings

__all__ = ["main", "serve"]

_log = structlog.get_logger(__name__)

MISCONFIGURED = 78
"""Exit status for wrong settings, as EX_CONFIG of sysexits."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raise `MisconfiguredError` when the settings do not work out."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        services: list[ReportService | LedgerService] = []
        running: list[Running] = []
        if settings.kafka_servers:
            await _patiently(lambda: prepare_topics(KafkaOptions.of(settings), create=False), stop)
        if "rollup" in settings.meter_roles:
            await _add_rollup(settings, stop, stack, metrics, services, running)
        if "relay" in settings.meter_roles:
            await _add_relay(settings, stack, metrics, running)
        if stop.is_set():
            return
        server = Server(settings.meter_listen, *services)
        await server.start()
        stack.push_async_callback(server.stop)
        if settings.meter_metrics_listen:
            _serve_metrics(settings.meter_metrics_listen, metrics, stack)
        await server.ready(serving=True)
        _log.info("ready", listen=settings.meter_listen, roles=sorted(settings.meter_roles))
        await _run_until(stop, running)


class Running(Protocol):
    """What works until it is told to stop."""

    async def run(self) -> None:
        """Work."""
        ...

    def stop(self) -> None:
        """End `run` soon."""
        ...


async def _run_until(stop: asyncio.Event, running: list[Running]) -> None:
    """Run all until `stop`, or until one of them ends, which none should."""
    tasks = [asyncio.create_task(one.run()) for one in running]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for one in running:
        one.stop()
    _log.info("stopping")
    await asyncio.gather(*tasks)


async def _add_relay(
    settings: Settings, stack: AsyncExitStack, metrics: Metrics, running: list[Running]
) -> None:
    """Outboxes to Kafka."""
    member = f"{settings.kafka_instance or 'relay'}-{secrets.token_hex(4)}"
    source = outbox_log(settings.redis_url, range(settings.buckets), member)
    stack.push_async_callback(source.close)
    publisher = KafkaPublisher(KafkaOptions.of(settings))
    stack.push_async_callback(publisher.close)
    relay_metrics = RelayMetrics(metrics.registry)
    running.append(Relay(source, publisher, relay_metrics, steps=crash_points("relay")))


def _add_log(settings: Settings, stack: AsyncExitStack, metrics: Metrics) -> LogSource:
    """Where the rollup reads records: Kafka, or the outboxes themselves."""
    if not settings.kafka_servers:
        outbox = outbox_log(settings.redis_url, settings.share)
        stack.push_async_callback(outbox.close)
        return outbox
    options = KafkaOptions.of(settings)
    dead = DeadLetters(options, metrics.dead_letters.inc)
    stack.push_async_callback(dead.close)
    log = KafkaLog(options, settings.buckets, dead)
    stack.push_async_callback(log.close)
    return log


async def _add_rollup(
    settings: Settings,
    stop: asyncio.Event,
    stack: AsyncExitStack,
    metrics: Metrics,
    services: list[ReportService | LedgerService],
    running: list[Running],
) -> None:
    """Records to rollups, and the questions about them."""
    writer = ClickHouse(settings.clickhouse_url, "writer")
    stack.push_async_callback(writer.close)
    reader = ClickHouse(settings.clickhouse_url, "reader")
    stack.push_async_callback(reader.close)
    marks = SqlMarks(settings.meter_database_url)
    stack.push_async_callback(marks.close)
    await _patiently(marks.migrate, stop)
    await _patiently(lambda: migrate(writer), stop)
    source = _add_log(settings, stack, metrics)
    options = Options(
        flush_interval=settings.meter_flush_interval_ms / 1000,
        flush_records=settings.meter_flush_records,
        look_ahead=settings.meter_look_ahead,
        raw_days=settings.meter_raw_days,
        # One server for several processes; what is in a folder belongs to one.
        shared=settings.buckets if settings.clickhouse_url.startswith("http") else 0,
    )
    steps = crash_points("rollup")
    rollup = Rollup(source, marks, ClickHouseWarehouse(writer), metrics, options, steps)
    running.append(rollup)

    token = settings.internal_token.get_secret_value()
    questions = ClickHouseReader(reader)
    reports = Reports(questions, rollup.whole.fresh_until, token.encode())
    # An audit reads all of raw: reports do not wait behind it.
    auditor = ClickHouse(settings.clickhouse_url, "auditor")
    stack.push_async_callback(auditor.close)
    audited = ClickHouseReader(auditor)
    audit = Audit(rollup.whole, audited, marks, settings.meter_compare_wait_seconds)
    caller = Caller(token)
    recall = Recall(rollup.whole, questions, settings.meter_compare_wait_seconds)
    lookup = Lookup(rollup.whole, questions, settings.meter_compare_wait_seconds)
    series = Series(ClickHouseSeries(reader), rollup.whole.fresh_until, token.encode())
    services += [
        ReportService(reports, series, caller),
        LedgerService(audit, recall, lookup, rollup, caller),
    ]


def _serve_metrics(listen: str, metrics: Metrics, stack: AsyncExitStack) -> None:
    host, _, port = listen.rpartition(":")
    try:
        http, thread = start_http_server(int(port), host, metrics.registry)
    except OSError as error:
        raise MisconfiguredError(
            f"METERGATE_METER_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}"
        ) from error
    stack.callback(thread.join)
    stack.callback(http.server_close)
    stack.callback(http.shutdown)


async def _patiently(work: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Do the work when the store it needs is there; until then wait, longer each time."""
    pause = 0.2
    while not stop.is_set():
        try:
            await work()
        except UnavailableError as error:
            _log.warning("waiting", reason=error.reason, error=error.message, pause=pause)
            try:
                async with asyncio.timeout(pause):
                    await stop.wait()
            except TimeoutError:
                pause = min(pause * 2, 5.0)
        else:
            return


def _configure_logs(level: str) -> None:
    quiet_driver()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def calm_collector() -> None:
    """Look for garbage seldom: tens of thousands of records are alive at once, and none is in a cycle."""
    gc.set_threshold(50_000, 20, 50)


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> int:
    """Run the process; return its exit status: 0, or 78 with one line on stderr for wrong settings."""
    try:
        settings = settings_module.load()
        _configure_logs(settings.log_level)
        calm_collector()
        allow_many_files()
        run = asyncio.run
        if sys.platform != "win32":
            import uvloop  # noqa: PLC0415  # not on every platform

            run = uvloop.run
        run(_run(settings))
    except MisconfiguredError as error:
        sys.stderr.write(f"meter: {error.message}\n")
        return MISCONFIGURED
    return 0


if __name__ == "__main__":
    sys.exit(main())
