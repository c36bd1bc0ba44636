"""The enforcer process: answers products. The only place where its parts are joined.

`enforcer.launch` starts it, on grpcio by `run`, within Envoy by `serve`.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from enforcer.adapters.counters.cluster import ClusterCounters
from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.counters.stock import RedisStock
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
    StoreUnavailableError,
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
from enforcer.metrics import WEIGH_SECONDS, Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.calllog import CallLog
from enforcer.transport.corrections import correction_methods
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.edge import certificates_of, edge_of
from enforcer.transport.events import EventsEndpoint
from enforcer.transport.grpcio import GrpcServer, end_for_sure
from enforcer.transport.http import HttpServer
from enforcer.transport.operations import operations_methods
from enforcer.transport.ratelimit import ratelimit_methods
from enforcer.transport.services import methods
from enforcer.transport.streams import stream_methods
from enforcer.transport.tenants import Tenants
from meter.adapters.kafka.client import ASK_KAFKA_SECONDS, KafkaOptions, ask_kafka
from meter.adapters.levels import Levels, LevelWatch
from meter.adapters.sql.marks import SqlMarks
from meter.adapters.traces import end_tracing, start_tracing
from meter.core.cluster import clustered
from meter.crash import crash_points
from meter.errors import MeterError
from meter.health import FIRST_PAUSE, Complaint, Health, Need, State, backoff, watch
from meter.settings import load_kafka

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from enforcer.adapters.counters.mend import Marks
    from enforcer.core.descriptors import Domain
    from enforcer.ports.journal import Journal
    from enforcer.settings import Settings
    from enforcer.transport.services import Method
    from meter.health import Dependency

__all__ = ["Server", "run", "serve"]

Counters = RedisCounters | ClusterCounters

_log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
UNFINISHED_SECONDS = 5.0
"""A change that was stored but not projected counts after this long at the latest."""
STOCK_SECONDS = 2.0
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


class _Needs(Health):
    """What an enforcer depends on."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__()
        self.observe(metrics.depends)
        self.redis = self.add(
            "redis",
            Need.START if settings.fails_open else Need.ALWAYS,
            "failure policies decide: what fails closed is answered UNAVAILABLE",
        )
        self.sql = self.add(
            "sql", Need.START, "changes, and customers that were not asked for yet, are UNAVAILABLE"
        )
        self.meter = self.add("meter", Need.NEVER, "no reports; a restarted Redis is waited for")


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    carry: Callable[[Dispatch], Server] = GrpcServer,
) -> None:
    """Run until `stop`. Raise `MisconfiguredError` when the settings do not work out.

    `carry` makes what carries the calls; they come from its `start` on.
    """
    metrics = Metrics(settings.metrics_accounts, settings.metrics_named)
    steps, domains = _steps(), _domains(settings)
    async with AsyncExitStack() as stack:
        health = _Needs(settings, metrics)
        definitions = SqlDefinitions(settings.database_url, settings.buckets)
        stack.push_async_callback(definitions.close)
        usage = _meter(settings, stack)
        counters = _counters(settings, definitions, usage, metrics, steps, stack)
        http = None
        if settings.http_listen:
            http = _serve_http(settings, metrics, health, stack)
        secret = _Secret(definitions)
        counters.start()
        stack.push_async_callback(counters.close)
        programs = Programs(definitions, counters, settings.cached_programs)
        journal = _journal(settings, steps, stack)
        emergency = Emergency(
            journal, Shares(settings.most_enforcers), programs.now_ms, metrics.emergency
        )
        gateway = Gateway(
            counters,
            programs,
            secret,
            metrics.decision,
            emergency,
            failed=metrics.fault,
            traced=settings.tracing,
        )
        counting = None
        if journal is not None:
            counting = Counting(journal, counters, programs, emergency, metrics.counted)
            await _weigh(counting)
        rules = CorrectionRules(settings.buckets, settings.backfill_days, settings.seal_after_days)
        listed = SqlCorrections(definitions)
        carrier = Carrier(listed, counters, programs, usage, steps)
        correcting = Correcting(listed, carrier, counters, usage, rules, definitions.aggregations)
        backfilling = Backfilling(listed, carrier, counters, programs, usage, rules)
        levels = _levels(settings, stack)
        callers = Callers(definitions, secret.read)
        tenants = Tenants(
            settings.tenant_most_calls, settings.tenant_calls_per_second, metrics.over_share
        )
        served = [
            *methods(gateway, definitions, counters, usage, settings.buckets, steps),
            *stream_methods(gateway.check_each, callers.sender, tenants),
            *correction_methods(correcting, backfilling),
            *_for_envoys(domains, gateway, metrics),
            *operations_methods(levels, definitions),
        ]
        dispatch = _dispatch(served, callers, metrics, settings, counters, stack, tenants)
        server = carry(dispatch)
        await server.start(settings.listen)
        stack.push_async_callback(server.stop)
        if http is not None:
            pages, end = http
            pages.events = EventsEndpoint(
                Events(definitions, gateway),
                callers,
                metrics,
                CallLog(settings.slow_call_seconds),
                tenants,
            )
            # Events that have begun end before the counters do.
            stack.push_async_callback(end)
        _log.info("listening", listen=settings.listen)
        health.started = True
        opening = asyncio.create_task(_open(secret, health.sql, stop))
        background = [
            asyncio.create_task(_tell_health(server, health, counters, metrics)),
            asyncio.create_task(watch(health.meter, usage.ask)),
            asyncio.create_task(
                _watch(Audits(counters, usage, definitions, settings.buckets), settings, metrics)
            ),
            asyncio.create_task(_tick(counters, metrics)),
            asyncio.create_task(_weigh_accounts(metrics)),
            asyncio.create_task(_take_stock(settings, metrics)),
            asyncio.create_task(_finish_changes(definitions, counters)),
            asyncio.create_task(_finish_corrections(carrier, counters)),
            asyncio.create_task(LevelWatch(levels, ["enforcer"], settings.log_level).run()),
            asyncio.create_task(_ask_definitions(opening, health.sql, definitions)),
        ]
        if counting is not None:
            background.append(asyncio.create_task(_count(counting, counters, metrics)))
        if settings.journal_kafka:
            background.append(asyncio.create_task(_ask_kafka(health)))
        _calm_collector()
        await _until(stop, health, opening, background)


def _meter(settings: Settings, stack: AsyncExitStack) -> MeterClient:
    usage = MeterClient(
        settings.meter_endpoint,
        settings.internal_token.get_secret_value(),
        None if settings.meter_tls is None else certificates_of(settings.meter_tls),
    )
    stack.push_async_callback(usage.close)
    return usage


def _counters(
    settings: Settings,
    definitions: SqlDefinitions,
    usage: MeterClient,
    metrics: Metrics,
    steps: Callable[[str], None],
    stack: AsyncExitStack,
) -> Counters:
    store = ClusterCounters if clustered(settings.redis_url) else RedisCounters
    return store(
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


def _calm_collector() -> None:
    """What was made so far stays for the life of the process: no need to look at it again and again.

    Nor often at what calls make, which is in no cycles: by default it is looked through every 700 objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _dispatch(
    served: list[Method],
    callers: Callers,
    metrics: Metrics,
    settings: Settings,
    counters: Counters,
    stack: AsyncExitStack,
    tenants: Tenants,
) -> Dispatch:
    """What answers calls: where they may be traced, it and the store tell a collector."""
    log = CallLog(settings.slow_call_seconds)
    if not settings.tracing:
        return Dispatch(served, callers, metrics, settings.most_calls, log, tenants)
    try:
        provider = start_tracing("enforcer")
    except MeterError as error:
        raise MisconfiguredError(error.message) from error
    # An extra: it is there by now.
    from enforcer.adapters.counters.spans import StoreSpans  # noqa: PLC0415
    from enforcer.transport.traced import Lot, TracedDispatch  # noqa: PLC0415

    stack.push_async_callback(end_tracing, provider)
    tracer = provider.get_tracer("metergate.enforcer")
    counters.trace(StoreSpans(tracer, settings.redis_url))
    dispatch = TracedDispatch(served, callers, metrics, settings.most_calls, log, tenants)
    dispatch.trace(tracer, Lot(settings.trace_ratio, settings.traces_per_second))
    return dispatch


def _levels(settings: Settings, stack: AsyncExitStack) -> Levels:
    levels = Levels(settings.redis_url)
    stack.push_async_callback(levels.close)
    return levels


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
    settings: Settings, metrics: Metrics, health: Health, stack: AsyncExitStack
) -> tuple[HttpServer, Callable[[], Awaitable[None]]]:
    """The server, already serving, and what ends it: at the latest when `stack` is left."""
    http = HttpServer(settings.http_listen, metrics, health, edge_of(settings))
    serving = asyncio.create_task(http.serve())

    async def end() -> None:
        http.stop()
        await serving

    stack.push_async_callback(end)
    return http, end


class _Secret:
    """What signs tokens. Calls come before it is there: `read` lets them through when it is."""

    def __init__(self, definitions: SqlDefinitions) -> None:
        self._definitions = definitions
        self._value: bytes | None = None

    def __call__(self) -> bytes:
        assert self._value is not None, "no call is let through before it is read"
        return self._value

    async def read(self) -> None:
        """Have it read. Raise `DefinitionsUnavailableError`."""
        if self._value is None:
            self._value = await self._definitions.lease_secret()


async def _open(secret: _Secret, sql: Dependency, stop: asyncio.Event) -> None:
    """Wait for the definitions' database. Raise `MisconfiguredError` when its schema is of no use to this version."""
    pause = FIRST_PAUSE
    while not stop.is_set():
        try:
            await secret.read()
        except DefinitionsUnavailableError as error:
            sql.failed(error)
            pause = await backoff(stop, pause)
        else:
            sql.tell(State.UP)
            return


async def _until(
    stop: asyncio.Event,
    health: Health,
    opening: asyncio.Task[None],
    background: list[asyncio.Task[None]],
) -> None:
    """Let all of it work until the process is to end; raise what `opening` raises."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({stopping, opening}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            await stopping
    finally:
        _log.info("stopping")
        health.stopping = True
        ending = (stopping, opening, *background)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _ask_kafka(health: Health) -> None:
    """Ask where the journals are."""
    kafka = health.add("kafka", Need.NEVER, "features that fail open fail closed")
    options = KafkaOptions.of(load_kafka())
    await watch(kafka, lambda: ask_kafka(options), ASK_KAFKA_SECONDS)


async def _ask_definitions(
    opening: asyncio.Task[None], sql: Dependency, definitions: SqlDefinitions
) -> None:
    """Ask the database now and then, once it was met."""
    await asyncio.wait({opening})
    await watch(sql, definitions.ask)


async def _watch(audits: Audits, settings: Settings, metrics: Metrics) -> None:
    """Audit all the time, unless another enforcer does."""
    if settings.audit_interval_seconds:
        await audits.watch(settings.audit_interval_seconds, metrics.audited, metrics.audit_age.set)


async def _tell_health(
    server: Server, health: _Needs, counters: Counters, metrics: Metrics
) -> None:
    told = None
    while True:
        health.redis.tell(*counters.standing())
        metrics.ready.set(counters.serving)
        if health.ready is not told:
            told = health.ready
            await server.ready(serving=told)
            _log.info("readiness", serving=told, state=health.state, missing=health.missing)
        await asyncio.sleep(0.1)


async def _finish_changes(definitions: SqlDefinitions, counters: Counters) -> None:
    """Project changes whose caller was cut off before their projection."""
    complaint = Complaint("changes are waiting")
    while True:
        await counters.ready.wait()
        try:
            done, waiting = [], ""
            for change in await definitions.pending():
                account_id, bucket, epoch = change
                try:
                    await counters.project(bucket, account_id, epoch)
                except MetergateError as error:
                    # The buckets of other servers are not to wait for one that is away.
                    waiting = error.reason
                    complaint.say(waiting, bucket=bucket)
                else:
                    done.append(change)
            if done:
                await definitions.projected(done)
                _log.info("finished changes", accounts=len(done))
            if not waiting:
                complaint.over()
        except MetergateError as error:
            complaint.say(error.reason)
        await asyncio.sleep(UNFINISHED_SECONDS)


async def _finish_corrections(carrier: Carrier, counters: Counters) -> None:
    """Carry out corrections whose caller was cut off before they were."""
    complaint = Complaint("corrections are waiting")
    while True:
        await counters.ready.wait()
        try:
            if buckets := await carrier.finish_all():
                _log.info("finished corrections", buckets=buckets)
            complaint.over()
        except MetergateError as error:
            complaint.say(error.reason)
        await asyncio.sleep(UNFINISHED_SECONDS)


def _journal(
    settings: Settings, steps: Callable[[str], None], stack: AsyncExitStack
) -> Journal | None:
    found = _journal_of(settings, steps)
    if found is not None:
        stack.push_async_callback(found.close)
    return found


def _journal_of(settings: Settings, steps: Callable[[str], None]) -> Journal | None:
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
    pause, complaint = COUNTING_SECONDS, Complaint("journals are waiting")
    while True:
        await asyncio.sleep(pause)
        if not counters.serving:
            continue
        try:
            await counting.count()
            pause = COUNTING_SECONDS
            complaint.over()
        except MetergateError as error:
            metrics.counting_errors.inc()
            complaint.say(error.reason, error=error.message)
            pause = min(pause * 2, LONGEST_COUNTING_PAUSE)


async def _tick(counters: Counters, metrics: Metrics) -> None:
    """End what has expired, second by second. Every enforcer does it; each end happens once."""
    complaint = Complaint("nothing expires for now")
    while True:
        await asyncio.sleep(TICK_SECONDS)
        metrics.settle()
        shards = counters.shards()
        done = await asyncio.gather(
            *(_tick_all(counters, shard, metrics, complaint) for shard in shards)
        )
        if all(done):
            complaint.over()


async def _tick_all(
    counters: Counters, shard: list[int], metrics: Metrics, complaint: Complaint
) -> bool:
    """Of the buckets of one server, as long as it answers. Whether it did."""
    for bucket in shard:
        try:
            metrics.ended.inc(await counters.tick(bucket))
        except MetergateError as error:
            metrics.tick_errors.inc()
            complaint.say(error.reason, bucket=bucket)
            return False
    return True


async def _weigh_accounts(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(WEIGH_SECONDS)
        metrics.weigh()


async def _take_stock(settings: Settings, metrics: Metrics) -> None:
    """Look at what lies in Redis, unless another enforcer does. While it is away the time of the last look stands still."""
    if not settings.audit_interval_seconds:
        return
    stock = RedisStock(settings.redis_url, settings.buckets, settings.store_reply_seconds)
    try:
        while True:
            try:
                metrics.taken_stock(await stock.look(), time.time())
            except StoreUnavailableError as error:
                _log.warning("no look at the outboxes", error=error.message)
            await asyncio.sleep(STOCK_SECONDS)
    finally:
        stock.close()


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(
        settings,
        stop,
        partial(GrpcServer, age=settings.connection_age_seconds, edge=edge_of(settings)),
    )
    end_for_sure()


def run(settings: Settings) -> None:
    """Serve on grpcio until SIGTERM or SIGINT. Raise `MisconfiguredError` when the settings do not work out."""
    if sys.platform == "win32":
        asyncio.run(_run(settings))
    else:
        import uvloop  # noqa: PLC0415  # not on every platform

        uvloop.run(_run(settings))
