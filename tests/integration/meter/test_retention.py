"""Raw is dropped by days: reports and audits say what they said before, and late corrections are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from meter.audit import BucketCounters
from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.records import Body
from meter.core.sequence import Position
from meter.errors import RawExpiredError
from meter.ports.marks import Manifest
from meter.ports.usage import Scope
from meter.ports.warehouse import Counter, WindowKey
from meter.reports import UsageQuery
from meter.rollup import Options
from tests.fixtures.meter import Crash, age, copy, crash_at

if TYPE_CHECKING:
    from meter.audit import Comparison
    from meter.rollup import Rollup
    from tests.fixtures.meter import Stand

BODY = Body("t", "acme", "acme/eu", "api.calls", "api.calls", q=1)


async def days(meter: Stand) -> int:
    """How many days raw has."""
    rows = await meter.writer.rows("SELECT uniqExact(toDate(ingested)) FROM raw")
    return int(rows[0][0])


async def compared(meter: Stand, used: int, place: Position) -> Comparison:
    """The audit's findings about bucket 0."""
    counters = {Counter(7, 1000): (used, 0), Counter(8, 0): (used, 0)}
    return await meter.audit().compare([BucketCounters(0, place, counters)])


def keeping(meter: Stand, raw_days: int, crash: str = "") -> Rollup:
    """A rollup that keeps raw for so many days."""
    options = Options(flush_records=1000, raw_days=raw_days)
    return meter.rollup(crash_at(crash) if crash else lambda _: None, options)


async def three_days(meter: Stand) -> Position:
    """Records of 9, 5 and 0 days ago, 10 usages of 1, 10 and 100 each; one stored twice, on two days."""
    await meter.outbox.open(0, 1)
    place = Position(0, 0)
    for quantity, back in ((1, 9), (10, 5), (100, 0)):
        for _ in range(10):
            place = await meter.outbox.use(0, quantity)
        await meter.drain(keeping(meter, 90))
        if back:
            await age(meter, back)
    await copy(meter, "ingested + toIntervalDay(4)", "seq = 10")
    return place


@pytest.mark.parametrize("crash", ["", "expire", "drop"])
async def test_reports_and_audits_say_the_same_when_raw_is_dropped(
    meter: Stand, crash: str
) -> None:
    place = await three_days(meter)
    before = await compared(meter, 1110, place)
    assert (before.records, before.repeats, before.gaps, before.rollup_difference) == (31, 1, [], 0)
    for kept, left in ((6, 2), (3, 1)):
        if crash:
            with pytest.raises(Crash):
                await meter.drain(keeping(meter, kept, crash))
            assert await compared(meter, 1110, place) == before
        await meter.drain(keeping(meter, kept))
        assert await days(meter) == left
        assert await compared(meter, 1110, place) == before
        assert await meter.total() == 1110
    query = UsageQuery(Scope("t"), aggregations=(MeterAggregation("api.calls", Aggregation.MIN),))
    assert [line.value for line in (await meter.reports().query(query)).lines] == [1]
    place = await meter.outbox.use(0, 1000)
    await meter.drain()
    after = await compared(meter, 2110, place)
    assert (after.records, after.gaps, after.drift, after.rollup_difference) == (32, [], [], 0)


async def test_what_was_lost_is_still_named_when_its_day_is_dropped(meter: Stand) -> None:
    place = await three_days(meter)
    await meter.writer.command(
        "ALTER TABLE raw DELETE WHERE seq IN (3, 4, 25) SETTINGS mutations_sync = 2"
    )
    before = await compared(meter, 1110, place)
    await meter.drain(keeping(meter, 6))
    after = await compared(meter, 1110, place)
    assert [gap[:4] for gap in after.gaps] == [(0, 1, 3, 5), (0, 1, 25, 26)]
    assert before == after
    assert after.rollup_difference == 102


async def test_records_that_are_not_rolled_up_are_kept(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("claim")))
    await age(meter, 200)
    rollup = keeping(meter, 90)
    await rollup._expire()
    assert await days(meter) == 1
    await meter.drain(keeping(meter, 90))
    assert await days(meter) == 0
    assert await meter.total() == 5


async def test_windows_older_than_raw_are_refused_and_told(meter: Stand) -> None:
    old = int((datetime.now(UTC) - timedelta(days=9)).timestamp() * 1000)
    await meter.outbox.open(0, 1)
    place = await meter.outbox.use(0, 5, body=BODY, now=old)
    await meter.outbox.use(0, 3, body=BODY, now=old)
    await meter.drain()
    await age(meter, 9)
    rollup = await meter.drain(keeping(meter, 3))
    windows = [WindowKey("t", "acme", "api.calls", old // 900_000 * 900)]
    with pytest.raises(RawExpiredError):
        await rollup._warehouse.recompute(Manifest(9, "t", ()), windows)
    body = Body("t", "acme", "acme/eu", "api.calls", "api.calls", at=old)
    await meter.outbox.correct(0, body, place, 5, None)
    await meter.drain(keeping(meter, 3))
    sample = meter.metrics.registry.get_sample_value
    assert sample("meter_windows_not_recomputed_total") == 1
    assert sample("meter_raw_partitions_dropped_total") == 1
    query = UsageQuery(
        Scope("t"),
        end=windows[0].start + 900,
        aggregations=(MeterAggregation("api.calls", Aggregation.MAX),),
    )
    (line,) = (await meter.reports().query(query)).lines
    assert (line.value, line.row.quantity, line.row.events) == (5, 3, 1)
