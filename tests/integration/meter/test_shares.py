"""Several rollup processes on one ClickHouse and PostgreSQL, each with its share of the buckets."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from meter.core.keys import outbox as outbox_key
from meter.core.records import Body, Effect, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Position
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc
from tests.fixtures.meter import NOW, Outbox, stand
from tests.fixtures.meter_process import MeterProcess, metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    import grpc.aio

    from tests.fixtures.valkey import ValkeyProcess

BUCKETS, RECORDS, KILLS = 4, 400, 4
SHARES = ("0-1", "2,3")


class Asked:
    """What one of the processes says."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._reports = report_pb2_grpc.ReportServiceStub(channel)
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)

    async def fresh_ms(self) -> int:
        """0: unknown."""
        answer = await self._reports.QueryUsage(report_pb2.QueryUsageRequest(), metadata=metadata())
        return int(answer.fresh_until.ToMilliseconds())

    async def caught_up(self) -> ledger_pb2.CatchUpResponse:
        answer: ledger_pb2.CatchUpResponse = await self._ledger.CatchUp(
            ledger_pb2.CatchUpRequest(
                buckets=range(BUCKETS), decided_before_ms=int(time.time() * 1000)
            ),
            metadata=metadata(),
        )
        return answer

    async def is_fresh(self, at_ms: int) -> bool:
        return await self.fresh_ms() >= at_ms

    async def is_held(self) -> bool:
        return (await self.caught_up()).reached[3].held

    async def has_gone_on(self) -> bool:
        return (await self.caught_up()).reached[3].sequence == 4

    async def compared(
        self, counters: dict[int, tuple[Position, int]]
    ) -> ledger_pb2.CompareResponse:
        question = ledger_pb2.CompareRequest()
        for bucket, (place, used) in counters.items():
            question.buckets.add(
                bucket=bucket,
                generation=place.generation,
                last_sequence=place.sequence,
                counters=[
                    ledger_pb2.Counter(limit=7, period_start=1000, used=used),
                    ledger_pb2.Counter(limit=8, used=used),
                ],
            )
        answer: ledger_pb2.CompareResponse = await self._ledger.Compare(
            question, metadata=metadata()
        )
        return answer

    async def skip(self, bucket: int, first: int, last: int) -> int:
        request = ledger_pb2.SkipGapRequest(
            bucket=bucket, generation=1, first=first, last=last, actor="a test"
        )
        return int((await self._ledger.SkipGap(request, metadata=metadata())).found)


def is_exact(found: ledger_pb2.CompareResponse) -> bool:
    return not (found.gaps or found.drift or found.repeats or found.rollup_difference)


async def until(so: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so."""
    give_up = time.monotonic() + 60
    while not await so():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


@asynccontextmanager
async def asked(*meters: MeterProcess) -> AsyncIterator[list[Asked]]:
    async with AsyncExitStack() as stack:
        for meter in meters:
            meter.start()
        yield [Asked(await stack.enter_async_context(meter.channel())) for meter in meters]


@pytest.fixture
def processes(
    valkey: ValkeyProcess, clickhouse_url: str, postgres_url: str, tmp_path: Path
) -> Iterator[list[MeterProcess]]:
    """Two, each with half of the buckets."""
    made = [
        MeterProcess(
            tmp_path / f"meter-{place}",
            valkey.url,
            METERGATE_BUCKETS=str(BUCKETS),
            METERGATE_METER_BUCKETS=share,
            METERGATE_CLICKHOUSE_URL=clickhouse_url,
            METERGATE_METER_DATABASE_URL=postgres_url,
        )
        for place, share in enumerate(SHARES)
    ]
    yield made
    for meter in made:
        meter.kill()


async def test_each_process_answers_for_the_whole_deployment(
    processes: list[MeterProcess], valkey: ValkeyProcess
) -> None:
    outbox = Outbox(valkey.url)
    used = dict.fromkeys(range(BUCKETS), 0)
    last: dict[int, Position] = {}
    for bucket in used:
        await outbox.open(bucket, 1)

    async def write(times: int) -> None:
        for number in range(times):
            bucket = number % BUCKETS
            last[bucket] = await outbox.use(bucket, number + 1)
            used[bucket] += number + 1

    try:
        async with asked(*processes) as both:
            await write(40)
            for one in both:
                reached = await one.caught_up()
                assert {r.bucket: (r.generation, r.sequence) for r in reached.reached} == last
                assert not any(r.held for r in reached.reached)
            # While records come in: each audit is of one moment in all processes.
            writing = asyncio.create_task(write(400))
            while not writing.done():
                for one in both:
                    state = {bucket: (last[bucket], used[bucket]) for bucket in used}
                    found = await one.compared(state)
                    assert is_exact(found), found
            await writing
            state = {bucket: (last[bucket], used[bucket]) for bucket in used}
            found = await both[0].compared(state)
            assert found == await both[1].compared(state)
            assert found.records == 440 + BUCKETS
            assert found.counters == 2 * BUCKETS
            assert is_exact(found), found
            before = int(time.time() * 1000)
            for one in both:
                await until(partial(one.is_fresh, before))
            # The least over all buckets counts: those of a dead process get no fresher.
            processes[1].kill()
            async with asyncio.timeout(60):
                stood = 0
                while (fresh := await both[0].fresh_ms()) != stood or not fresh:
                    stood = fresh
                    await asyncio.sleep(1)
    finally:
        await outbox.redis.aclose()


async def test_a_gap_is_accepted_by_a_process_that_does_not_have_the_bucket(
    processes: list[MeterProcess], valkey: ValkeyProcess
) -> None:
    outbox = Outbox(valkey.url)
    for bucket in range(BUCKETS):
        await outbox.open(bucket, 1)
    body = Body("t", "acme", "acme", "api.calls", "api.calls", q=5)
    effects = Effects(RecordType.USAGE, NOW, 5, quantity=5, entries=(Effect(7, 1000, 5, 0),))
    await outbox.redis.xadd(
        outbox_key(3), {"b": encode_body(body), "e": encode_effects(effects)}, id="1-4"
    )
    try:
        async with asked(*processes) as both:
            for one in both:
                await until(one.is_held)
                reached = (await one.caught_up()).reached[3]
                assert (reached.sequence, reached.seen_sequence) == (0, 4)
                (gap,) = (await one.compared({3: (Position(1, 0), 0)})).gaps
                assert (gap.bucket, gap.generation, gap.first, gap.last) == (3, 1, 1, 4)
            assert await both[0].skip(3, 1, 4) == 0
            for one in both:
                await until(one.has_gone_on)
                found = await one.compared({3: (Position(1, 4), 5)})
                assert [(gap.first, gap.last) for gap in found.accepted_gaps] == [(1, 4)]
                assert not found.gaps
    finally:
        await outbox.redis.aclose()


async def test_killed_processes_with_shares_lose_and_repeat_nothing(
    processes: list[MeterProcess],
    valkey: ValkeyProcess,
    clickhouse_url: str,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    outbox, meters = Outbox(valkey.url), processes
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
