"""The rollup on real stores: exact totals, whatever happens between two steps."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import TYPE_CHECKING

import pytest

from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.audit import BucketCounters
from meter.core.keys import outbox
from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry, Position
from meter.errors import FencedError, GapUnknownError, RollupBehindError
from meter.metrics import STAGES
from meter.ports.log import Batch
from meter.ports.warehouse import Counter
from meter.rollup import Options
from tests.fixtures.meter import NOW, Crash, crash_at, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.fixtures.meter import Stand


def state(bucket: int, used: int, place: Position) -> BucketCounters:
    """The counters as Redis would show them."""
    return BucketCounters(bucket, place, {Counter(7, 1000): (used, 0), Counter(8, 0): (used, 0)})


async def test_each_record_counts_once_and_is_trimmed(meter: Stand) -> None:
    for bucket in (0, 1):
        await meter.outbox.open(bucket, 1)
    places = [await meter.outbox.use(number % 2, number) for number in range(1, 101)]
    rollup = await meter.drain()
    assert await meter.total() == 5050
    assert rollup.progress.marks == {0: places[-1], 1: places[-2]}
    assert await meter.source.backlog() == 0
    found = await meter.audit().compare([state(0, 2550, places[-1]), state(1, 2500, places[-2])])
    assert (found.records, found.counters) == (102, 4)
    assert (found.gaps, found.repeats, found.drift, found.rollup_difference) == ([], 0, [], 0)


@pytest.mark.parametrize("step", STAGES)
@pytest.mark.parametrize("again", [False, True], ids=["once", "again on the way back"])
async def test_a_crash_before_any_step_changes_no_total(
    meter: Stand, step: str, again: bool
) -> None:
    for bucket in (0, 1):
        await meter.outbox.open(bucket, 1)
    place = Position(0, 0)
    body = Body("t", "acme", "acme", "api.calls", "api.calls", q=1)
    for number in range(1, 41):
        place = await meter.outbox.use(0, number)
        await meter.outbox.use(1, 1)
        if number == 20:
            await meter.drain()
    # So that every step has something to do.
    place = await meter.outbox.use(0, 500, body=body)
    await meter.outbox.correct(0, body, place, 500, 500)
    for kind in (RecordType.LEASE_START, RecordType.DENIAL):
        await meter.outbox.add(0, 1, encode_body(body), encode_effects(Effects(kind, NOW)))
    # Recovery itself has a commit; the crash is to come in the flush after it.
    crash = crash_at(step, 2 if step == "commit" else 1)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash))
    place = await meter.outbox.use(0, 1000)
    if again:
        with pytest.raises(Crash):
            await meter.drain(meter.rollup(crash_at(step)))
    await meter.drain()
    await meter.drain()
    assert await meter.total() == 820 + 40 + 500 + 1000
    found = await meter.audit().compare([state(0, 2320, place)])
    assert (found.gaps, found.repeats, found.drift, found.rollup_difference) == ([], 0, [], 0)
    assert found.records == 46


async def test_a_token_noted_without_its_rows_does_not_lose_the_slice(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("applied")))
    (manifest,) = await meter.marks.unapplied()
    for table in ("usage", "ledger"):
        rows = await meter.writer.rows(
            "SELECT name FROM system.parts WHERE active AND database = currentDatabase()"
            " AND table = {table:String}",
            {"table": table},
        )
        assert len(rows) == 1, "one slice is one part"
    await _forget_rows(meter)
    assert await meter.total() == 0
    await meter.drain()
    assert await meter.total() == 5
    assert (await meter.marks.unapplied()) == []
    assert manifest.ranges


async def _forget_rows(meter: Stand) -> None:
    """Leave the tokens and take the rows, as a kill between the two would."""
    for table in ("usage", "ledger"):
        await meter.writer.command(
            f"ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2"
        )


async def test_a_paused_process_that_was_replaced_changes_nothing(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    zombie = meter.rollup()
    await zombie.recover()
    await meter.outbox.use(0, 5)
    batch = await meter.source.read({0: Position(0, -1), 1: Position(0, -1)}, 100, 1)
    part = zombie._accept(batch)
    await meter.drain()
    with pytest.raises(FencedError):
        await zombie._write(part)
    await meter.drain()
    assert await meter.total() == 5


async def test_two_processes_that_run_one_manifest_add_it_once(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("usage")))
    (manifest,) = await meter.marks.unapplied()
    two = [ClickHouseWarehouse(client) for client in (meter.writer, meter.second)]
    await asyncio.gather(*(warehouse.add_usage(manifest) for warehouse in two * 2))
    await asyncio.gather(*(warehouse.add_ledger(manifest) for warehouse in two * 2))
    await meter.drain()
    assert await meter.total() == 5


async def test_a_new_generation_continues_the_bucket(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    last = await meter.outbox.use(0, 5)
    await meter.outbox.open(0, 4, previous=1, last=last.sequence)
    place = await meter.outbox.use(0, 6, generation=4)
    rollup = await meter.drain()
    assert rollup.progress.marks[0] == place == Position(4, 1)
    assert await meter.total() == 11
    # The counters of an earlier moment, in the generation before: what came later is taken off.
    found = await meter.audit().compare([state(0, 5, last)])
    assert (found.gaps, found.drift, found.records) == ([], [], 2)


async def test_a_bucket_with_a_gap_is_held_and_named_while_others_go_on(meter: Stand) -> None:
    for bucket in (0, 1):
        await meter.outbox.open(bucket, 1)
    await meter.outbox.use(0, 1)
    lost = await meter.outbox.use(0, 10)
    await meter.outbox.use(0, 100)
    await meter.outbox.use(1, 1000)
    await meter.outbox.redis.xdel(outbox(0), f"1-{lost.sequence}")
    rollup = meter.rollup(options=Options(look_ahead=1, flush_interval=0.001, idle_wait=0.01))
    running = asyncio.create_task(rollup.run())
    await meter.outbox.use(0, 10_000)
    await eventually(lambda: 0 in rollup.progress.held and rollup.progress.marks[1].sequence == 1)
    rollup.stop()
    await running
    assert await meter.total() == 1001
    found = await meter.audit().compare([state(0, 1, Position(1, 4))])
    assert (0, 1, 2, 3) in [gap[:4] for gap in found.gaps]
    assert meter.metrics.registry.get_sample_value("meter_bucket_held", {"bucket": "0"}) == 1
    assert await meter.source.backlog() == 2, "what lies beyond the gap stays in the outbox"


async def test_a_generation_whose_end_was_not_seen_is_a_gap(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 1)
    await meter.drain()
    await meter.outbox.open(0, 2, previous=1, last=5)
    await meter.outbox.use(0, 1, generation=2)
    rollup = meter.rollup(options=Options(look_ahead=1))
    await meter.drain(rollup)
    assert rollup.progress.held[0][:4] == (0, 1, 2, 6)
    assert await meter.total() == 1


def _doubles(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


SOUND = encode_effects(Effects(RecordType.USAGE, NOW, granted=1, quantity=1))
BODY = encode_body(Body("t", "acme", "acme", "f", "f"))


@pytest.mark.parametrize(
    ("body", "effects"),
    [
        (b"{not json", SOUND),
        (b"", SOUND),
        (b"\xff\x00\xfe", SOUND),
        (b"[1, 2]", SOUND),
        (encode_body(Body("", "acme", "acme", "f", "f")), SOUND),
        (encode_body(Body("t", "acme", "acme", "f", "f", at=2**60)), SOUND),
        (encode_body(Body("t", "acme", "acme", "f", "f", at=-5)), SOUND),
        (BODY, b""),
        (BODY, b"abc"),
        (BODY, SOUND[:-1]),
        (BODY, SOUND + _doubles(1.0)),
        (BODY, _doubles(2, 1, NOW, 1, 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 77, NOW, 1, 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 1, NOW, float("nan"), 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 1, float("inf"), 1, 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 1, NOW, 1.5, 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 1, NOW, 1e300, 0, 0, 1, 1, 0)),
        (BODY, _doubles(1, 1, -5, 1, 0, 0, 1, 1, 0)),
    ],
)
async def test_a_record_that_cannot_be_decoded_is_kept_for_review(
    meter: Stand, body: bytes, effects: bytes
) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    bad = await meter.outbox.add(0, 1, body, effects)
    place = await meter.outbox.use(0, 6)
    await meter.drain()
    assert await meter.total() == 11
    rows = await meter.writer.rows(
        "SELECT bucket, generation, seq, hex(body), length(effects) * 8 + length(rest)"
        " FROM review FINAL"
    )
    assert [tuple(row) for row in rows] == [(0, 1, bad.sequence, body.hex().upper(), len(effects))]
    assert meter.metrics.registry.get_sample_value("meter_records_for_review_total") == 1
    found = await meter.audit().compare([state(0, 11, place)])
    assert (found.gaps, found.drift, found.rollup_difference, found.records) == ([], [], 0, 4)


async def test_entries_with_foreign_fields_are_poison_too(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.redis.xadd(outbox(0), {"x": "y"}, id="1-*")
    await meter.outbox.use(0, 6)
    await meter.drain()
    assert await meter.total() == 6
    assert meter.metrics.registry.get_sample_value("meter_records_for_review_total") == 1


class Repeating:
    """A log that delivers every batch twice, as at-least-once logs may."""

    def __init__(self, meter: Stand) -> None:
        self._source = meter.source
        self.assigned = meter.source.assigned
        self.commit = meter.source.commit
        self.backlog = meter.source.backlog

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        batch = await self._source.read(after, limit, timeout_ms)
        twice = {bucket: [*entries, *entries] for bucket, entries in batch.entries.items()}
        return Batch(twice, batch.fresh, batch.more)


async def test_repeats_are_dropped_and_counted_durably(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    place = [await meter.outbox.use(0, 5) for _ in range(4)][-1]
    rollup = meter.rollup()
    rollup._source = Repeating(meter)
    await meter.drain(rollup)
    assert await meter.total() == 20
    await meter.drain()
    found = await meter.audit().compare([state(0, 20, place)])
    assert found.repeats == 5
    assert (found.gaps, found.drift, found.records) == ([], [], 5)
    assert meter.metrics.registry.get_sample_value("meter_record_repeats_total") == 5


async def test_late_records_of_an_old_generation_go_to_review(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.open(0, 2, previous=1, last=0)
    rollup = await meter.drain()
    late = Entry(1, 9, BODY, SOUND)
    await rollup._write(rollup._accept(Batch({0: [late]}, {})))
    rows = await meter.writer.rows("SELECT bucket, generation, seq, reason FROM review FINAL")
    assert [tuple(row) for row in rows] == [(0, 1, 9, "late generation")]
    assert await meter.total() == 0


async def test_records_that_the_log_lost_after_they_were_stored_count(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 1)
    await meter.drain()
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("claim")))
    # The server comes back on a copy that lacks them.
    await meter.outbox.redis.delete(outbox(0))
    await meter.outbox.open(0, 2, previous=1, last=2)
    place = await meter.outbox.use(0, 6, generation=2)
    await meter.drain()
    assert await meter.total() == 12
    found = await meter.audit().compare([state(0, 12, place)])
    assert (found.rollup_difference, found.drift, found.gaps, found.repeats) == (0, [], [], 0)


async def test_a_flush_cut_short_before_its_first_claim_is_adopted(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("claim")))
    await meter.outbox.redis.delete(outbox(0))
    await meter.outbox.open(0, 1)
    await meter.outbox.open(0, 2, previous=1, last=0)
    place = await meter.outbox.use(0, 6, generation=2)
    await meter.drain()
    assert await meter.total() == 11
    found = await meter.audit().compare([state(0, 11, place)])
    assert (found.rollup_difference, found.drift, found.gaps, found.repeats) == (0, [], [], 0)


async def test_behind_an_accepted_gap_a_bucket_goes_on_and_what_is_there_of_it_counts(
    meter: Stand,
) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 1)
    await meter.drain()
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("claim")))
    await meter.outbox.redis.delete(outbox(0))
    await meter.outbox.open(0, 2, previous=1, last=4)
    place = await meter.outbox.use(0, 6, generation=2)
    rollup = meter.rollup()
    running = asyncio.create_task(rollup.run())
    try:
        await eventually(lambda: 0 in rollup.progress.held)
        gap = rollup.progress.held[0]
        assert gap[:4] == (0, 1, 3, 5)
        for wrong in (gap._replace(last=6), gap._replace(bucket=1)):
            with pytest.raises(GapUnknownError):
                await rollup.accept(wrong, "ann", 5)
        before = await meter.audit().compare([state(0, 12, place)])
        assert (0, 1, 3, 5) in [one[:4] for one in before.gaps]
        assert await rollup.accept(gap, "ann", 10) == 0
        found = await meter.audit().compare([state(0, 12, place)])
    finally:
        rollup.stop()
        await running
    assert await meter.total() == 12
    assert (found.rollup_difference, found.drift, found.gaps) == (0, [], [])
    assert [one[:4] for one in found.accepted] == [(0, 1, 3, 5)]


async def test_a_loss_told_of_later_holds_nothing_up_and_is_named_until_it_is_accepted(
    meter: Stand,
) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    await meter.outbox.open(0, 2, previous=1, last=1)
    await meter.outbox.use(0, 6, generation=2)
    # An enforcer that was answered as far as place 4 of the generation before meets the new one.
    await meter.outbox.open(0, 2, previous=1, last=4)
    place = await meter.outbox.use(0, 7, generation=2)
    await meter.drain()
    assert await meter.total() == 18
    audit = meter.audit()
    (gap,) = (await audit.compare([state(0, 18, place)])).gaps
    assert gap == (0, 1, 2, 5, "missing")
    for wrong in (gap._replace(last=4), gap._replace(generation=2), gap._replace(bucket=1)):
        with pytest.raises(GapUnknownError):
            await audit.accept(wrong, "ann")
    await audit.accept(gap, "ann")
    found = await audit.compare([state(0, 18, place)])
    assert (found.rollup_difference, found.drift, found.gaps, found.repeats) == (0, [], [], 0)
    assert [one[:4] for one in found.accepted] == [(0, 1, 2, 5)]
    with pytest.raises(GapUnknownError):
        await audit.accept(gap, "bob")


async def test_a_trickle_of_records_leaves_the_processor_to_others_half_of_the_time(
    meter: Stand,
) -> None:
    await meter.outbox.open(0, 1)
    begun: list[float] = []
    rested: list[float] = []
    ended = time.monotonic()

    def steps(name: str) -> None:
        """As if each flush with records took at least 0.2 s."""
        nonlocal ended
        if name == "read" and len(begun) > len(rested):
            rested.append(time.monotonic() - ended)
        elif name == "store":
            begun.append(time.monotonic())
            time.sleep(0.2)
        elif name == "commit":
            ended = time.monotonic()

    rollup = meter.rollup(steps, Options(flush_interval=0.001))
    running = asyncio.create_task(rollup.run())
    async with asyncio.timeout(60):
        while len(rested) < 3:
            await meter.outbox.use(0, 1)
            await asyncio.sleep(0.02)
    rollup.stop()
    await running
    assert min(rested) >= 0.2


async def test_drift_is_named_with_both_sides(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    place = await meter.outbox.use(0, 5)
    await meter.outbox.use(0, 6)
    await meter.drain()
    counters = {Counter(7, 1000): (5, 0), Counter(8, 0): (4, 1), Counter(99, 0): (0, 0)}
    found = await meter.audit().compare([BucketCounters(0, place, counters)])
    assert [tuple(part) for part in found.drift] == [(0, (8, 0), (4, 1), (5, 0))]
    assert found.counters == 3


async def test_an_audit_of_a_place_that_does_not_come_says_how_far_the_rollup_is(
    meter: Stand,
) -> None:
    await meter.outbox.open(0, 1)
    await meter.drain()
    with pytest.raises(RollupBehindError, match="bucket 0 is at 1-0 of 1-7"):
        await meter.audit(wait=0.05).compare([BucketCounters(0, Position(1, 7), {})])


async def test_a_rollup_that_lost_a_slice_is_seen(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    place = await meter.outbox.use(0, 5)
    await meter.drain()
    await _forget_rows(meter)
    found = await meter.audit().compare([state(0, 5, place)])
    assert found.rollup_difference == 5
    assert len(found.drift) == 2


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("ALTER TABLE usage UPDATE quantity = quantity - 2 WHERE grain = 2 AND tenant != ''", 4),
        ("ALTER TABLE usage UPDATE events = events + 1 WHERE grain = 1 AND tenant != ''", 2),
        ("ALTER TABLE usage DELETE WHERE grain = 3 AND tenant != ''", 12),
        ("ALTER TABLE aggregates UPDATE least = 4 WHERE grain = 1 AND tenant != ''", 2),
        ("ALTER TABLE aggregates DELETE WHERE grain = 3 AND tenant != ''", 1),
    ],
)
async def test_an_hour_day_or_month_that_is_not_the_sum_of_its_parts_is_seen(
    meter: Stand, change: str, differs: int
) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    place = await meter.outbox.use(0, 7)
    await meter.drain()
    for table in ("usage", "aggregates"):
        await meter.writer.command(f"OPTIMIZE TABLE {table} FINAL")
    assert (await meter.audit().compare([state(0, 12, place)])).rollup_difference == 0
    await meter.writer.command(f"{change} SETTINGS mutations_sync = 2")
    found = await meter.audit().compare([state(0, 12, place)])
    assert (found.rollup_difference, found.drift, found.gaps) == (differs, [], [])


async def test_records_missing_from_raw_are_seen(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    place = [await meter.outbox.use(0, 5) for _ in range(5)][-1]
    await meter.drain()
    await meter.writer.command(
        "ALTER TABLE raw DELETE WHERE seq IN (2, 3) SETTINGS mutations_sync = 2"
    )
    found = await meter.audit().compare([state(0, 25, place)])
    assert [gap[:4] for gap in found.gaps] == [(0, 1, 2, 4)]


async def test_a_million_times_the_largest_quantity_is_summed_exactly(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    most = 2**53 - 1
    for _ in range(1030):
        await meter.outbox.use(0, most)
    await meter.drain()
    rows = await meter.writer.rows("SELECT sum(quantity) FROM usage GROUP BY grain")
    assert [row[0] for row in rows] == [1030 * most] * 4
