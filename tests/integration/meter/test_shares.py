"""Several rollup processes on one ClickHouse and PostgreSQL, each with its share of the buckets."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.meter import Outbox, stand
from tests.fixtures.meter_process import MeterProcess

if TYPE_CHECKING:
    from pathlib import Path

    from meter.core.sequence import Position
    from tests.fixtures.valkey import ValkeyProcess

BUCKETS, RECORDS, KILLS = 4, 400, 4


async def test_killed_processes_with_shares_lose_and_repeat_nothing(
    valkey: ValkeyProcess, clickhouse_url: str, postgres_url: str, tmp_path: Path
) -> None:
    outbox = Outbox(valkey.url)
    shares = ["0-1", "2,3"]
    meters = [
        MeterProcess(
            tmp_path / f"meter-{place}",
            valkey.url,
            METERGATE_BUCKETS=str(BUCKETS),
            METERGATE_METER_BUCKETS=share,
            METERGATE_CLICKHOUSE_URL=clickhouse_url,
            METERGATE_METER_DATABASE_URL=postgres_url,
        )
        for place, share in enumerate(shares)
    ]
    dice = random.Random(20)
    last: dict[int, Position] = {}
    total = 0
    for bucket in range(BUCKETS):
        await outbox.open(bucket, 1)
    for meter in meters:
        meter.start()
    try:
        for number in range(1, RECORDS + 1):
            bucket = number % BUCKETS
            last[bucket] = await outbox.use(bucket, number)
            total += number
            if number % (RECORDS // KILLS) == 0:
                await asyncio.sleep(dice.uniform(0.3, 1.0))
                meter = meters[dice.randrange(2)]
                meter.kill()
                meter.start()
        # A third one that has all buckets takes over from both, and meets what they left running.
        for meter in meters:
            meter.kill()
        async with stand(
            valkey.url,
            tmp_path,
            buckets=range(BUCKETS),
            warehouse=clickhouse_url,
            marks=postgres_url,
        ) as heir:
            await heir.settle()
            assert await heir.total() == total
            assert await heir.marks.load(range(BUCKETS)) == last
            assert await heir.marks.unapplied() == []
            assert await heir.source.backlog() == 0
    finally:
        for meter in meters:
            meter.kill()
        await outbox.redis.aclose()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"METERGATE_METER_BUCKETS": "0-2"}, "must name buckets from 0 to 1"),
        ({"METERGATE_METER_BUCKETS": "all"}, "must be numbers and ranges such as 0-3,6"),
        (
            {"METERGATE_METER_BUCKETS": "0", "METERGATE_CLICKHOUSE_URL": "chdb:/nowhere"},
            "needs a METERGATE_CLICKHOUSE_URL over HTTP",
        ),
    ],
)
def test_a_share_that_cannot_work_stops_the_start(
    tmp_path: Path, more: dict[str, str], says: str
) -> None:
    meter = MeterProcess(
        tmp_path,
        "redis://127.0.0.1:1",
        **{"METERGATE_CLICKHOUSE_URL": "http://127.0.0.1:1/x", **more},
    )
    meter.start()
    assert meter.process is not None
    assert meter.process.wait(timeout=60) == 78
    assert says in meter.log
