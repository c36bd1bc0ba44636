"""What the stores of the rollup have to do together: one body over chDB with SQLite, and ClickHouse with PostgreSQL.

Over HTTP several processes share a server. There every statement may still run when its sender is gone.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meter.adapters.clickhouse.migrate import migrate
from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.adapters.sql.marks import SqlMarks
from meter.audit import BucketCounters
from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry, Gap, Position, Range
from meter.core.windows import Window
from meter.errors import FencedError, InvalidRequestError, WarehouseUnavailableError
from meter.metrics import STAGES
from meter.ports.marks import Standing
from meter.ports.usage import Scope, SetAside
from meter.ports.warehouse import Counter
from meter.reports import UsageQuery
from tests.fixtures.meter import NOW, Crash, crash_at, stand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.fixtures.clickhouse import ClickHouseProcess
    from tests.fixtures.meter import Stand
    from tests.fixtures.valkey import ValkeyProcess

EMBEDDED, DISTRIBUTED = "chdb and sqlite", "clickhouse and postgres"


@pytest.fixture
def stores(request: pytest.FixtureRequest) -> dict[str, Any]:
    """URLs of the stores of a test, which several stands may open."""
    if request.param == EMBEDDED:
        return {}
    return {
        "warehouse": request.getfixturevalue("clickhouse_url"),
        "marks": request.getfixturevalue("postgres_url"),
    }


@pytest.fixture
async def another(
    stores: dict[str, Any], valkey: ValkeyProcess, tmp_path: Path
) -> AsyncIterator[Callable[..., Any]]:
    """Opens stands on the same stores, as processes do."""
    async with AsyncExitStack() as stack:

        async def make(**more: Any) -> Stand:
            return await stack.enter_async_context(stand(valkey.url, tmp_path, **stores, **more))

        yield make


@pytest.fixture
async def meter(another: Callable[..., Any]) -> Stand:
    made: Stand = await another()
    return made


both = pytest.mark.parametrize("stores", [EMBEDDED, DISTRIBUTED], indirect=True)
distributed = pytest.mark.parametrize("stores", [DISTRIBUTED], indirect=True)


async def audited(meter: Stand, place: Position, used: int) -> int:
    """How many records there are, when nothing else is found."""
    counters = {Counter(7, 1000): (used, 0), Counter(8, 0): (used, 0)}
    found = await meter.audit().compare([BucketCounters(0, place, counters)])
    assert (found.gaps, found.repeats, found.drift, found.rollup_difference) == ([], 0, [], 0)
    return found.records


@both
async def test_records_become_usage_ledger_and_reports_once(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    who = Body("t", "acme", "acme/eu", "api.calls", "api.calls", d={"region": "eu"})
    quantities = [5, 2, 9, 2**53 - 1, 2**53 - 1]
    place = Position(0, 0)
    for quantity in quantities:
        place = await meter.outbox.use(0, quantity, body=who)
    await meter.outbox.add(0, 1, b"no JSON", b"odd")
    place = await meter.outbox.use(0, 1, body=replace_name(who, "O'Neil \\ % {x:String}"))
    await meter.drain()
    assert await audited(meter, place, sum(quantities) + 1) == len(quantities) + 3
    assert await meter.total() == sum(quantities) + 1
    assert await meter.total("another tenant") == 0
    ways = (MeterAggregation("api.calls", Aggregation.MAX),)
    scope = Scope("t", "api.calls", ("acme/eu",), (("region", ("eu",)),), ("region",))
    page = await meter.reports().query(
        UsageQuery(scope, Window.DAY, "Europe/Berlin", aggregations=ways)
    )
    (line,) = page.lines
    assert (line.row.quantity, line.row.events, line.value) == (sum(quantities), 5, 2**53 - 1)
    assert line.row.key.values == ("eu",)
    flawed = await meter.writer.rows("SELECT body, reason FROM review")
    assert [tuple(row) for row in flawed] == [("no JSON", "effects")]


def replace_name(who: Body, customer: str) -> Body:
    return Body(who.t, who.a, customer, who.f, who.m, d=who.d)


@both
async def test_what_was_put_aside_is_listed_for_its_tenant_alone(meter: Stand) -> None:
    await meter.outbox.open(0, 2)
    who = Body("t", "acme", "acme/eu", "api.calls", "api.calls", q=5)
    await meter.outbox.add(0, 2, b"no JSON", b"odd")
    effects = encode_effects(Effects(RecordType.USAGE, NOW, 5, quantity=5))
    late = [
        (0, Entry(1, place, encode_body(replace_name(body, body.c)), effects))
        for place, body in enumerate([who, Body("another", "x", "x", "f", "f", q=9), who])
    ]
    await meter.drain()
    await ClickHouseWarehouse(meter.writer).review_late(late)
    found, following = await meter.reports().set_aside("t", 100, "")
    assert [(one[:4], one.customer, one.granted) for one in found] == [
        ((0, 1, 0, "late generation"), "acme/eu", 5),
        ((0, 1, 2, "late generation"), "acme/eu", 5),
        ((0, 2, 1, "effects"), "", 0),
    ]
    assert following == ""
    pages: list[SetAside] = []
    token = ""
    while True:
        page, token = await meter.reports().set_aside("t", 1, token)
        pages += page
        if not token:
            break
    assert pages == found
    with pytest.raises(InvalidRequestError):
        await meter.reports().set_aside("t", 1, "elsewhere")


@both
async def test_a_crash_before_any_step_changes_no_total(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    crashed: list[str] = []
    used, place = 0, Position(0, 0)
    for number, step in enumerate(STAGES, 1):
        used += number
        place = await meter.outbox.use(0, number)
        try:
            await meter.drain(meter.rollup(crash_at(step)))
        except Crash:
            crashed.append(step)
        if number % 3 == 0:
            await meter.drain()
    # Corrections, seats and denials have steps of their own.
    assert set(STAGES) - set(crashed) <= {"recompute", "seats", "denials"}
    await meter.drain()
    assert await meter.total() == used
    assert await audited(meter, place, used) == len(STAGES) + 1


@both
async def test_tokens_noted_without_their_rows_lose_no_slice(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    # Twice: the second attempt is cut off in the same way.
    for _ in range(2):
        with pytest.raises(Crash):
            await meter.drain(meter.rollup(crash_at("applied")))
        for table in ("usage", "ledger"):
            await meter.writer.command(
                f"ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2"
            )
        assert await meter.total() == 0
    await meter.drain()
    assert await meter.total() == 5


@both
async def test_a_process_that_slept_beyond_the_deduplication_window_adds_nothing(
    meter: Stand,
) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("usage")))
    (manifest,) = await meter.marks.unapplied()
    await meter.drain()
    # Its token is forgotten by now: as good as another one.
    await ClickHouseWarehouse(meter.writer).add_usage(replace(manifest, token="forgotten"))
    assert await meter.total() == 5


@both
async def test_marks_move_by_compare_and_set(meter: Stand) -> None:
    marks = meter.marks
    start, one, two = Position(0, -1), Position(1, 4), Position(1, 9)
    first = await marks.claim({0: (start, one), 1: (start, one)}, [Range(0, 1, 0, 5)], {0: 2})
    with pytest.raises(FencedError):
        await marks.claim({0: (start, two)}, [Range(0, 1, 0, 10)], {})
    with pytest.raises(FencedError):  # all or nothing
        await marks.claim({1: (one, two), 0: (two, one)}, [Range(1, 1, 5, 10)], {})
    assert await marks.load([0, 1, 2]) == {0: one, 1: one, 2: start}
    second = await marks.claim({1: (one, two)}, [Range(1, 1, 5, 10)], {})
    assert second.number > first.number
    assert await marks.unapplied() == [first, second]
    assert await marks.unapplied([0]) == [first]
    assert await marks.unapplied([2]) == []
    await marks.applied(first)
    assert await marks.unapplied([0, 1]) == [second]
    assert await marks.repeats([0, 1]) == 2


@both
async def test_processes_know_of_each_other_what_each_has_told(meter: Stand) -> None:
    marks, start = meter.marks, Position(0, -1)
    first = await marks.claim({0: (start, Position(1, 4))}, [Range(0, 1, 0, 5)], {})
    second = await marks.claim({1: (start, Position(1, 9))}, [Range(1, 1, 0, 10)], {})
    await marks.applied(first)
    assert (await marks.standing()).marks == {0: Position(1, 4), 1: Position(1, -1)}
    await marks.applied(second)
    gap = Gap(1, 1, 10, 12, "missing")
    one = Standing({0: Position(1, 4)}, {}, {0: Position(1, 4)}, {0: 500, 2: 600})
    two = Standing({1: Position(1, 9)}, {1: gap}, {1: Position(1, 30)}, {1: 400, 2: 700})
    await marks.report("one", one)
    await marks.report("two", two)
    reached = {0: Position(1, 4), 1: Position(1, 9)}
    known = Standing(reached, {1: gap}, {1: Position(1, 30)}, {0: 500, 1: 400, 2: 700})
    assert await marks.standing() == known
    assert await marks.standing([0]) == Standing({0: Position(1, 4)}, {}, {}, {0: 500})
    # What was told of as fresh stays so when another has the bucket; a gap is over when the mark has moved.
    await marks.report("two", Standing({}, {}, {}, {}))
    await marks.report("two", two)
    await marks.applied(
        await marks.claim({1: (Position(1, 9), Position(1, 12))}, [Range(1, 1, 10, 13)], {})
    )
    assert (await marks.standing()).held == {}
    assert (await marks.standing()).fresh_ms == known.fresh_ms


@both
async def test_nothing_is_claimed_in_stillness(meter: Stand, another: Callable[..., Any]) -> None:
    other, marks = await another(), meter.marks
    start, place = Position(0, -1), Position(1, 4)
    assert await marks.keep_still("one", 60)
    assert not await other.marks.keep_still("two", 60)
    claim = asyncio.create_task(other.marks.claim({0: (start, place)}, [Range(0, 1, 0, 5)], {}))
    await asyncio.wait({claim}, timeout=0.3)
    assert not claim.done()
    assert await marks.load([0]) == {0: start}
    assert await marks.keep_on("one", 60)
    assert not await other.marks.keep_on("two", 60)
    await marks.let_go("one", 60)
    await claim
    assert await marks.load([0]) == {0: place}
    # Rollups get their rest.
    assert not await marks.keep_still("three", 60)
    assert not await marks.keep_on("one", 60)


@both
async def test_stillness_ends_with_who_wanted_it(meter: Stand) -> None:
    marks = meter.marks
    assert await marks.keep_still("one", 0.2)
    await marks.claim({0: (Position(0, -1), Position(1, 4))}, [Range(0, 1, 0, 5)], {})
    assert not await marks.keep_on("one", 60)
    assert await marks.keep_still("two", 60)
    await marks.let_go("one", 0)
    assert await marks.keep_on("two", 60), "only its holder ends it"


@both
async def test_of_two_that_claim_at_the_same_time_one_has_it(
    meter: Stand, another: Callable[..., Any]
) -> None:
    other = await another()
    start = Position(0, -1)
    for sequence in range(5):
        old = Position(1, sequence - 1) if sequence else start
        move = {0: (old, Position(1, sequence))}
        claims = [
            marks.claim(move, [Range(0, 1, sequence, sequence + 1)], {})
            for marks in (meter.marks, other.marks) * 2
        ]
        done = await asyncio.gather(*claims, return_exceptions=True)
        assert len([one for one in done if not isinstance(one, Exception)]) == 1
    assert len(await meter.marks.unapplied()) == 5


@distributed
async def test_schemas_are_made_once_by_many(
    stores: dict[str, Any], clickhouse_url: str, another: Callable[..., Any]
) -> None:
    many = [SqlMarks(stores["marks"]) for _ in range(4)]
    await asyncio.gather(*(marks.migrate() for marks in many))
    for marks in many:
        await marks.close()
    stands = [await another() for _ in range(2)]
    await asyncio.gather(*(migrate(one.writer) for one in stands))
    assert clickhouse_url


@distributed
async def test_what_the_slices_ask_of_raw_is_refused_by_name(meter: Stand) -> None:
    with pytest.raises(WarehouseUnavailableError, match="code: 60"):
        await meter.writer.rows("SELECT 1 FROM nothing")
    await ClickHouseWarehouse(meter.writer).store([(0, Entry(1, 0, b"\xff\n\0", b"x"))])
    assert (await meter.writer.rows("SELECT hex(body), rest FROM raw"))[0] == ("FF0A00", "x")


@distributed
async def test_an_insert_whose_sender_died_still_runs_when_another_takes_over(
    meter: Stand, another: Callable[..., Any], clickhouse_server: ClickHouseProcess
) -> None:
    other: Stand = await another()
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    clickhouse_server.hold("-usage")
    try:
        left = asyncio.create_task(meter.drain())
        await running(other, "-usage")
        # The server does not run the same statement twice at a time.
        with pytest.raises(WarehouseUnavailableError, match="code: 216"):
            await other.drain()
    finally:
        clickhouse_server.go()
    await asyncio.wait({left})
    await other.drain()
    assert await other.total() == 5
    assert await other.marks.unapplied() == []


@distributed
async def test_a_second_attempt_waits_for_every_insert_of_the_manifest(
    meter: Stand, another: Callable[..., Any], clickhouse_server: ClickHouseProcess
) -> None:
    other: Stand = await another()
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 5)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("applied")))
    await meter.writer.command("ALTER TABLE usage DELETE WHERE 1 SETTINGS mutations_sync = 2")
    (manifest,) = await meter.marks.unapplied()
    # One has seen that the first token came to nothing, and its second insert runs long.
    clickhouse_server.hold(f"{manifest.token}/2-usage")
    try:
        first = asyncio.create_task(ClickHouseWarehouse(meter.writer).add_usage(manifest))
        await running(other, "/2-usage")
        second = asyncio.create_task(ClickHouseWarehouse(other.writer).add_usage(manifest))
        done, _ = await asyncio.wait({second}, timeout=0.5)
        assert not done, "it did not wait"
    finally:
        clickhouse_server.go()
    await asyncio.gather(first, second)
    assert await other.total() == 5


async def running(meter: Stand, name: str) -> None:
    """Wait until the server runs a statement with such a name."""
    async with asyncio.timeout(30):
        while True:
            rows = await meter.second.rows(
                "SELECT count() FROM system.processes WHERE endsWith(query_id, {name:String})",
                {"name": name},
            )
            if rows[0][0]:
                return
            await asyncio.sleep(0.02)


@distributed
async def test_a_bucket_that_moves_takes_what_was_claimed_with_it(
    meter: Stand, another: Callable[..., Any]
) -> None:
    """Two live processes: a manifest of both buckets is in doubt when one bucket moves."""
    for bucket in (0, 1):
        await meter.outbox.open(bucket, 1)
        await meter.outbox.use(bucket, 10 + bucket)
    with pytest.raises(Crash):
        await meter.drain(meter.rollup(crash_at("usage")))
    one, two = await another(buckets=[0]), await another(buckets=[1])
    await asyncio.gather(one.settle(), two.settle())
    assert await meter.total() == 21
    await meter.outbox.use(0, 100)
    await meter.outbox.use(1, 1000)
    await asyncio.gather(one.settle(), two.settle())
    assert await meter.total() == 1121
    assert await meter.marks.unapplied() == []


@distributed
async def test_denials_and_seats_work_over_http_too(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    await meter.outbox.use(0, 3, kind=RecordType.LEASE_START)
    await meter.outbox.use(0, 3, kind=RecordType.DENIAL, now=NOW)
    await meter.drain()
    assert (await meter.writer.rows("SELECT count() FROM seats WHERE tenant != ''"))[0][0]
    assert (await meter.writer.rows("SELECT sum(events) FROM denials"))[0][0] == 1
