"""The enforcer process: answers products. The only place where its parts are joined.

`enforcer.launch` starts it, on grpcio by `run`, within Envoy by `serve`.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import structlog

from enforcer.adapters.counters.cluster import ClusterCounters
from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.definitions.corrections import SqlCorrections
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.adapters.journal.files import FileJournal
from enforcer.adapters.journal.kafka import KafkaJournal
from enforcer.adapters.meter import MeterClient
from enforcer.catalog.ratelimit import read_domains
from enforcer.core.breaker import BreakerOptions
from enforcer.core.emergency import Shares
from enforcer.errors import (
    CatalogInvalidError,
    DefinitionsUnavailableError,
    JournalUnavailableError,
    MetergateError,
    MisconfiguredError,
)
from enforcer.gateway import Gateway
from enforcer.gateway.audits import Audits
from enforcer.gateway.backfill import Backfilling
from enforcer.gateway.carrying import Carrier
from enforcer.gateway.corrections import Correcting, CorrectionRules
from enforcer.gateway.counting import Counting
from enforcer.gateway.emergency import Emergency
from enforcer.gateway.events import Events
from enforcer.gateway.programs import Programs
from enforcer.gateway.ratelimit import RateLimits
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.corrections import correction_methods
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.events import EventsEndpoint
from enforcer.transport.grpcio import GrpcServer, end_for_sure
from enforcer.transport.http import HttpServer
from enforcer.transport.ratelimit import ratelimit_methods
from enforcer.transport.services import methods
from enforcer.transport.streams import stream_methods
from meter.adapters.kafka.client import KafkaOptions
from meter.adapters.sql.marks import SqlMarks
from meter.core.cluster import clustered
from meter.crash import crash_points
from meter.errors import MeterError
from meter.settings import load_kafka

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from enforcer.adapters.counters.mend import Marks
    from enforcer.core.descriptors import Domain
    from enforcer.ports.journal import Journal
    from enforcer.settings import Settings
    from enforcer.transport.services import Method

__all__ = ["Server", "run", "serve"]

Counters = RedisCounters | ClusterCounters

_log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
UNFINISHED_SECONDS = 5.0
"""A change that was stored but not projected counts after this long at the latest."""
COUNTING_SECONDS = 0.5
"""Between two looks at the journals."""
LONGEST_COUNTING_PAUSE = 10.0


class Server(Protocol):
    """What carries calls to the services."""

    async def start(self, listen: str) -> None:
        """Let calls come."""

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""

    async def stop(self) -> None:
        """Let running calls end."""


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    carry: Callable[[Dispatch], Server] = GrpcServer,
) -> None:
    """Run until `stop`. Raise `MisconfiguredError` when the settings do not work out.

    `carry` makes what carries the calls; they come from its `start` on.
    """
    metrics = Metrics()
    steps, domains = _steps(), _domains(settings)
    async with AsyncExitStack() as stack:
        definitions = SqlDefinitions(settings.database_url, settings.buckets)
        stack.push_async_callback(definitions.close)
        usage = MeterClient(settings.meter_endpoint, settings.internal_token.get_secret_value())
        stack.push_async_callback(usage.close)
        store = ClusterCounters if clustered(settings.redis_url) else RedisCounters
        counters = store(
            RedisOptions(
                settings.redis_url,
                settings.buckets,
                window_ms=int(settings.replay_window.total_seconds() * 1000),
                patience=settings.store_patience_seconds,
                reply_timeout=settings.store_reply_seconds,
                fail_open_wait=settings.fail_open_wait_seconds if settings.fails_open else None,
                breaker=BreakerOptions(
                    settings.breaker_window_seconds,
                    settings.breaker_least_calls,
                    settings.breaker_failure_percent / 100,
                ),
            ),
            definitions,
            observe=metrics.batched,
            ledger=usage,
            marks=_marks(settings, stack),
            steps=steps,
            on_breaker=lambda state: metrics.breaker(state.name, state.value),
        )
        http = None
        if settings.http_listen:
            http = _serve_http(settings.http_listen, metrics, counters, stack)
        secret = await _lease_secret(definitions, stop)
        if secret is None:
            return
        counters.start()
        stack.push_async_callback(counters.close)
        programs = Programs(definitions, counters, settings.cached_programs)
        journal = _journal(settings, steps)
        if journal is not None:
            stack.push_async_callback(journal.close)
        emergency = Emergency(
            journal, Shares(settings.most_enforcers), programs.now_ms, metrics.emergency
        )
        gateway = Gateway(counters, programs, secret, observe=metrics.decision, emergency=emergency)
        counting = None
        if journal is not None:
            counting = Counting(journal, counters, programs, emergency, metrics.counted)
            await _weigh(counting)
        rules = CorrectionRules(settings.buckets, settings.backfill_days, settings.seal_after_days)
        listed = SqlCorrections(definitions)
        carrier = Carrier(listed, counters, programs, usage, steps)
        correcting = Correcting(listed, carrier, counters, usage, rules, definitions.aggregations)
        backfilling = Backfilling(listed, carrier, counters, programs, usage, rules)
        callers = Callers(definitions)
        served = [
            *methods(gateway, definitions, counters, usage, settings.buckets, steps),
            *stream_methods(gateway.check_each, callers.sender),
            *correction_methods(correcting, backfilling),
            *_for_envoys(domains, gateway, metrics),
        ]
        server = carry(Dispatch(served, callers, metrics, settings.most_calls))
        await server.start(settings.listen)
        stack.push_async_callback(server.stop)
        if http is not None:
            pages, end = http
            pages.events = EventsEndpoint(Events(definitions, gateway), callers, metrics)
            # Events that have begun end before the counters do.
            stack.push_async_callback(end)
        _log.info("listening", listen=settings.listen)
        background = [
            asyncio.create_task(_tell_health(server, counters, metrics)),
            asyncio.create_task(
                _watch(Audits(counters, usage, definitions, settings.buckets), settings, metrics)
            ),
            asyncio.create_task(_tick(counters, metrics)),
            asyncio.create_task(_finish_changes(definitions, counters)),
            asyncio.create_task(_finish_corrections(carrier, counters)),
        ]
        if counting is not None:
            background.append(asyncio.create_task(_count(counting, counters, metrics)))
        _calm_collector()
        await stop.wait()
        _log.info("stopping")
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


def _calm_collector() -> None:
    """What was made so far stays for the life of the process: no need to look at it again and again.

    Nor often at what calls make, which is in no cycles: by default it is looked through every 700 objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _domains(settings: Settings) -> Mapping[tuple[str, str], Domain] | None:
    if settings.ratelimit_file is None:
        return None
    try:
        return read_domains(settings.ratelimit_file)
    except CatalogInvalidError as error:
        raise MisconfiguredError(f"METERGATE_RATELIMIT_FILE:\n{error.message}") from error


def _for_envoys(
    domains: Mapping[tuple[str, str], Domain] | None, gateway: Gateway, metrics: Metrics
) -> list[Method]:
    """Without a mapping file, an Envoy that asks learns that there is no such service."""
    if domains is None:
        return []
    return ratelimit_methods(RateLimits(gateway, domains, metrics.descriptor))


def _steps() -> Callable[[str], None]:
    try:
        return crash_points("enforcer")
    except MeterError as error:
        raise MisconfiguredError(error.message) from error


def _marks(settings: Settings, stack: AsyncExitStack) -> Marks | None:
    if not settings.meter_database_url:
        return None
    try:
        marks = SqlMarks(settings.meter_database_url)
    except MeterError as error:
        raise MisconfiguredError(error.message) from error
    stack.push_async_callback(marks.close)
    return marks


def _serve_http(
    listen: str, metrics: Metrics, counters: Counters, stack: AsyncExitStack
) -> tuple[HttpServer, Callable[[], Awaitable[None]]]:
    """The server, already serving, and what ends it: at the latest when `stack` is left."""
    http = HttpServer(listen, metrics, counters.readiness)
    serving = asyncio.create_task(http.serve())

    async def end() -> None:
        http.stop()
        await serving

    stack.push_async_callback(end)
    return http, end


async def _lease_secret(definitions: SqlDefinitions, stop: asyncio.Event) -> bytes | None:
    """Wait for the definitions' database; None when the process is to end before it is there."""
    pause = 0.2
    while not stop.is_set():
        try:
            return await definitions.lease_secret()
        except DefinitionsUnavailableError as error:
            _log.warning("waiting", error=error.message, pause=pause)
            try:
                async with asyncio.timeout(pause):
                    await stop.wait()
            except TimeoutError:
                pause = min(pause * 2, 5.0)
    return None


async def _watch(audits: Audits, settings: Settings, metrics: Metrics) -> None:
    """Audit all the time, unless another enforcer does."""
    if settings.audit_interval_seconds:
        await audits.watch(settings.audit_interval_seconds, metrics.audited, metrics.audit_age.set)


async def _tell_health(server: Server, counters: Counters, metrics: Metrics) -> None:
    told = ""
    while True:
        serving, why = counters.readiness()
        metrics.ready.set(counters.serving)
        if why != told:
            await server.ready(serving=serving)
            _log.info("readiness", serving=serving, state=why)
            told = why
        await asyncio.sleep(0.1)


async def _finish_changes(definitions: SqlDefinitions, counters: Counters) -> None:
    """Project changes whose caller was cut off before their projection."""
    while True:
        await counters.ready.wait()
        try:
            done = []
            for change in await definitions.pending():
                account_id, bucket, epoch = change
                try:
                    await counters.project(bucket, account_id, epoch)
                except MetergateError as error:
                    # The buckets of other servers are not to wait for one that is away.
                    _log.warning("changes are waiting", bucket=bucket, reason=error.reason)
                else:
                    done.append(change)
            if done:
                await definitions.projected(done)
                _log.info("finished changes", accounts=len(done))
        except MetergateError as error:
            _log.warning("changes are waiting", reason=error.reason)
        await asyncio.sleep(UNFINISHED_SECONDS)


async def _finish_corrections(carrier: Carrier, counters: Counters) -> None:
    """Carry out corrections whose caller was cut off before they were."""
    while True:
        await counters.ready.wait()
        try:
            if buckets := await carrier.finish_all():
                _log.info("finished corrections", buckets=buckets)
        except MetergateError as error:
            _log.warning("corrections are waiting", reason=error.reason)
        await asyncio.sleep(UNFINISHED_SECONDS)


def _journal(settings: Settings, steps: Callable[[str], None]) -> Journal | None:
    if settings.journal_kafka:
        try:
            options = KafkaOptions.of(load_kafka())
        except MeterError as error:
            raise MisconfiguredError(error.message) from error
        if not options.servers:
            raise MisconfiguredError("METERGATE_JOURNAL_KAFKA needs METERGATE_KAFKA_SERVERS")
        return KafkaJournal(options, settings.enforcer_number)
    if settings.journal_dir is None:
        return None
    most = settings.most_enforcers, settings.journal_most_bytes
    return FileJournal(settings.journal_dir, *most, steps)


async def _weigh(counting: Counting) -> None:
    try:
        await counting.weigh()
    except JournalUnavailableError as error:
        _log.error("features fail closed: no journal", error=error.message)


async def _count(counting: Counting, counters: Counters, metrics: Metrics) -> None:
    """Count what was allowed while the counters were away, here or by an enforcer that is gone."""
    pause = COUNTING_SECONDS
    while True:
        await asyncio.sleep(pause)
        if not counters.serving:
            continue
        try:
            await counting.count()
            pause = COUNTING_SECONDS
        except MetergateError as error:
            metrics.counting_errors.inc()
            _log.warning("journals are waiting", reason=error.reason, error=error.message)
            pause = min(pause * 2, LONGEST_COUNTING_PAUSE)


async def _tick(counters: Counters, metrics: Metrics) -> None:
    """End what has expired, second by second. Every enforcer does it; each end happens once."""
    while True:
        await asyncio.sleep(TICK_SECONDS)
        metrics.settle()
        await asyncio.gather(*(_tick_all(counters, shard, metrics) for shard in counters.shards()))


async def _tick_all(counters: Counters, shard: list[int], metrics: Metrics) -> None:
    """Of the buckets of one server, as long as it answers."""
    for bucket in shard:
        try:
            metrics.ended.inc(await counters.tick(bucket))
        except MetergateError as error:
            metrics.tick_errors.inc()
            _log.warning("tick failed", bucket=bucket, reason=error.reason)
            break


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)
    end_for_sure()


def run(settings: Settings) -> None:
    """Serve on grpcio until SIGTERM or SIGINT. Raise `MisconfiguredError` when the settings do not work out."""
    if sys.platform == "win32":
        asyncio.run(_run(settings))
    else:
        import uvloop  # noqa: PLC0415  # not on every platform

        uvloop.run(_run(settings))
