"""The meter process: killed at random it loses and repeats nothing; it waits for what is away."""

from __future__ import annotations

import asyncio
import random
import signal
import urllib.request
from typing import TYPE_CHECKING

import pytest

from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc
from tests.fixtures.meter import Outbox
from tests.fixtures.meter_process import MeterProcess, metadata
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KILLS = 6


@pytest.fixture
async def outbox(valkey: ValkeyProcess) -> AsyncIterator[Outbox]:
    """The outbox of the shared server."""
    made = Outbox(valkey.url)
    yield made
    await made.redis.aclose()


def counters(bucket: int, last: int, used: int) -> ledger_pb2.BucketCounters:
    """What the enforcer would have read."""
    return ledger_pb2.BucketCounters(
        bucket=bucket,
        generation=1,
        last_sequence=last,
        counters=[
            ledger_pb2.Counter(limit=7, period_start=1000, used=used),
            ledger_pb2.Counter(limit=8, used=used),
        ],
    )


@pytest.mark.timeout(280)
async def test_kill_9_at_random_instants_leaves_totals_exact(
    valkey: ValkeyProcess, outbox: Outbox, tmp_path: Path
) -> None:
    rng = random.Random(4)
    meter = MeterProcess(tmp_path, valkey.url)
    done = asyncio.Event()
    granted = [0, 0]
    last = [0, 0]

    async def traffic() -> None:
        for bucket in (0, 1):
            await outbox.open(bucket, 1)
        while not done.is_set():
            for bucket in (0, 1):
                for _ in range(20):
                    quantity = rng.randrange(1, 100)
                    place = await outbox.use(bucket, quantity)
                    granted[bucket] += quantity
                    last[bucket] = place.sequence
            await asyncio.sleep(0.001)

    writing = asyncio.create_task(traffic())
    try:
        for _ in range(KILLS):
            meter.start()
            async with meter.channel():
                await asyncio.sleep(rng.random() * 0.5)  # the instant of the kill, not a wait
            meter.kill()
        done.set()
        await writing
        meter.start()
        async with meter.channel() as channel:
            found = await ledger_pb2_grpc.LedgerServiceStub(channel).Compare(
                ledger_pb2.CompareRequest(
                    buckets=[counters(bucket, last[bucket], granted[bucket]) for bucket in (0, 1)]
                ),
                metadata=metadata(),
            )
            usage = await report_pb2_grpc.ReportServiceStub(channel).QueryUsage(
                report_pb2.QueryUsageRequest(meter="api.calls"), metadata=metadata()
            )
    finally:
        done.set()
        await writing
        meter.end()
    assert usage.total == sum(granted)
    assert list(found.drift) == []
    assert list(found.gaps) == []
    assert (found.repeats, found.rollup_difference) == (0, 0)
    assert (found.records, found.counters) == (sum(last) + 2, 4)
    assert usage.fresh_until.seconds


async def test_sigterm_ends_it_after_the_present_flush_with_status_0(
    valkey: ValkeyProcess, outbox: Outbox, tmp_path: Path
) -> None:
    meter = MeterProcess(tmp_path, valkey.url)
    await outbox.open(0, 1)
    await outbox.use(0, 5)
    meter.start()
    async with meter.channel():
        assert meter.end(signal.SIGTERM) == 0
    assert '"event": "stopping"' in meter.log


async def test_it_waits_for_redis_and_goes_on_when_redis_comes_back(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path / "valkey")
    meter = MeterProcess(tmp_path / "meter", valkey.url)
    meter.start()
    try:
        async with meter.channel() as channel:
            ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
            valkey.start()
            outbox = Outbox(valkey.url)
            await outbox.open(0, 1)
            place = await outbox.use(0, 5)
            first = await ledger.Compare(
                ledger_pb2.CompareRequest(buckets=[counters(0, place.sequence, 5)]),
                metadata=metadata(),
            )
            await outbox.redis.aclose()
            valkey.kill()
            valkey.start()
            outbox = Outbox(valkey.url)
            place = await outbox.use(0, 6)
            second = await ledger.Compare(
                ledger_pb2.CompareRequest(buckets=[counters(0, place.sequence, 11)]),
                metadata=metadata(),
            )
            await outbox.redis.aclose()
    finally:
        meter.end()
        valkey.stop()
    assert (first.records, second.records) == (2, 3)
    for answer in (first, second):
        assert not answer.drift
        assert not answer.gaps


def read(url: str) -> str:
    """The body of a page."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310  # our own
        text: str = answer.read().decode()
        return text


async def test_metrics_are_served_where_the_setting_says(
    valkey: ValkeyProcess, outbox: Outbox, tmp_path: Path
) -> None:
    port = free_port()
    meter = MeterProcess(tmp_path, valkey.url, METERGATE_METER_METRICS_LISTEN=f"127.0.0.1:{port}")
    await outbox.open(0, 1)
    place = await outbox.use(0, 5)
    meter.start()
    try:
        async with meter.channel() as channel:
            await ledger_pb2_grpc.LedgerServiceStub(channel).Compare(
                ledger_pb2.CompareRequest(buckets=[counters(0, place.sequence, 5)]),
                metadata=metadata(),
            )
            text = await asyncio.to_thread(read, f"http://127.0.0.1:{port}/metrics")
    finally:
        meter.end()
    assert "meter_records_rolled_total 2.0" in text
    assert 'meter_flush_seconds_count{stage="usage"} 1.0' in text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("METERGATE_BUCKETS", "none", "METERGATE_BUCKETS"),
        ("METERGATE_REDIS_URL", "http://x", "redis://"),
        ("METERGATE_INTERNAL_TOKEN", "short", "METERGATE_INTERNAL_TOKEN"),
        ("METERGATE_CLICKHOUSE_URL", "ftp://x", "chdb:FOLDER"),
        ("METERGATE_METER_DATABASE_URL", "nonsense", "METERGATE_METER_DATABASE_URL"),
        ("METERGATE_METER_LISTEN", "here", "host:port"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    meter = MeterProcess(tmp_path, "redis://127.0.0.1:1", **{name: value})
    meter.start()
    assert meter.process is not None
    assert meter.process.wait(timeout=60) == 78
    lines = [line for line in meter.log.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "short" not in lines[0]


async def test_a_port_in_use_stops_the_start_with_one_line(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    meter = MeterProcess(tmp_path, valkey.url, METERGATE_METER_LISTEN=f"127.0.0.1:{valkey.port}")
    meter.start()
    assert meter.process is not None
    assert meter.process.wait(timeout=60) == 78
    assert "METERGATE_METER_LISTEN" in meter.log
