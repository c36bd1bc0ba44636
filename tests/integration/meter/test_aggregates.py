"""Every aggregation against a plain computation, over random records, slices, kills and corrections."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from meter.adapters.clickhouse.warehouse import ClickHouseWarehouse
from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry, Position, Range
from meter.core.windows import QUARTER, Window, boundaries, zone
from meter.metrics import STAGES
from meter.ports.marks import Manifest
from meter.ports.usage import Scope
from meter.reports import UsageQuery
from tests.fixtures.meter import NOW, Crash

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fixtures.meter import Stand

START = NOW // 1000 // 3600 * 3600 - 6 * 3600
HOURS = 6
METER = "tokens"
CUSTOMERS = ("acme", "acme/eu")
WAYS = (
    *(Aggregation.SUM, Aggregation.COUNT, Aggregation.MIN),
    *(Aggregation.MAX, Aggregation.LATEST, Aggregation.UNIQUE),
)


@dataclass(frozen=True)
class Event:
    """What the plain computation knows of a record."""

    place: Position
    body: Body
    value: int
    version: int = 0
    void: bool = False

    @property
    def order(self) -> tuple[int, Position]:
        """By which the latest is found."""
        return self.body.at, self.place


class World:
    """Writes random records and remembers what they are."""

    def __init__(self, meter: Stand, seed: int, first: int = START, hours: int = HOURS) -> None:
        self.meter, self.rng = meter, random.Random(seed)
        self.first, self.seconds = first, hours * 3600
        self.events: dict[Position, Event] = {}

    async def use(self) -> None:
        """An event at any time, so that most of them come late."""
        rng = self.rng
        at = (self.first + rng.randrange(self.seconds)) * 1000 + rng.randrange(3)
        if rng.random() < 0.3:
            at = self.first * 1000 + 3_600_000  # many at one instant
        labels = {"user": f"u{rng.randrange(6)}", "region": rng.choice(["eu", "us"])}
        if rng.random() < 0.2:
            del labels["user"]
        customer = rng.choice(CUSTOMERS)
        value = rng.choice([1, 5, rng.randrange(1, 1000), 2**53 - 1])
        body = Body("t", "acme", customer, METER, METER, q=value, d=labels, at=at)
        kind = rng.choice([RecordType.USAGE, RecordType.COMMIT, RecordType.BACKFILL])
        place = await self.meter.outbox.use(0, value, body=body, kind=kind)
        self.events[place] = Event(place, body, value)

    async def correct(self) -> None:
        """Void or amend an event that is not void."""
        left = [event for event in self.events.values() if not event.void]
        if not left:
            return
        event = self.rng.choice(left)
        void = self.rng.random() < 0.5
        value = 0 if void else self.rng.randrange(0, 2000)
        after = replace(event, value=value, version=event.version + 1, void=void)
        self.events[event.place] = after
        new = None if void else value
        await self.meter.outbox.correct(0, event.body, event.place, event.value, new, after.version)

    def expected(
        self,
        way: Aggregation,
        windows: int | Sequence[int],
        by: tuple[str, ...] = (),
        filters: tuple[tuple[str, tuple[str, ...]], ...] = (),
    ) -> dict[tuple[int, str, tuple[str, ...]], int | None]:
        """The answer, computed plainly; `windows` are their width, or where they begin and the last ends."""
        rows: dict[tuple[int, str, tuple[str, ...]], list[Event]] = {}
        for event in self.events.values():
            labels = event.body.d
            if event.void or not all(labels.get(name) in allowed for name, allowed in filters):
                continue
            begin = event.body.at // 1000
            if isinstance(windows, int):
                begin -= begin % windows
            elif not windows[0] <= begin < windows[-1]:
                continue
            else:
                begin = windows[bisect_right(windows, begin) - 1]
            key = begin, event.body.c, tuple(labels.get(name, "") for name in by)
            rows.setdefault(key, []).append(event)
        return {key: plain(way, found) for key, found in rows.items()}


def plain(way: Aggregation, events: list[Event]) -> int:
    """One value."""
    values = [event.value for event in events]
    if way is Aggregation.SUM:
        return sum(values)
    if way is Aggregation.COUNT:
        return len(values)
    if way is Aggregation.MIN:
        return min(values)
    if way is Aggregation.MAX:
        return max(values)
    if way is Aggregation.LATEST:
        return max(events, key=lambda event: event.order).value
    return len({event.body.d["user"] for event in events if "user" in event.body.d})


def query(way: Aggregation, window: Window = Window.HOUR, **scope: Any) -> UsageQuery:
    """A question about the meter's whole time."""
    dimension = "user" if way is Aggregation.UNIQUE else ""
    return UsageQuery(
        Scope("t", METER, **scope),
        window,
        start=START,
        end=START + HOURS * 3600,
        aggregations=(MeterAggregation(METER, way, dimension),),
    )


async def answer(meter: Stand, question: UsageQuery) -> dict[Any, int | None]:
    """Value by start, customer and dimensions, over all pages."""
    out: dict[Any, int | None] = {}
    while True:
        page = await meter.reports().query(question)
        for line in page.lines:
            if line.row.events:
                out[line.start, line.row.key.customer, line.row.key.values] = line.value
        if not page.next_page_token:
            return out
        question = replace(question, page_token=page.next_page_token)


def crashing(rng: random.Random) -> Callable[[str], None]:
    """Steps that crash before a random one."""
    left = rng.randrange(1, 3 * len(STAGES))

    def steps(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Crash

    return steps


@pytest.mark.parametrize("seed", range(2))
async def test_every_aggregation_is_exact_over_random_slices_kills_and_corrections(
    meter: Stand, seed: int
) -> None:
    world = World(meter, seed)
    await meter.outbox.open(0, 1)
    for _ in range(8):
        for _ in range(world.rng.randrange(1, 25)):
            await (world.correct() if world.rng.random() < 0.15 else world.use())
        for _ in range(world.rng.randrange(3)):
            try:
                await meter.drain(meter.rollup(crashing(world.rng)))
            except Crash:
                continue
        await meter.drain()
        way = world.rng.choice(WAYS)
        assert await answer(meter, query(way)) == world.expected(way, 3600)
    # What corrections have replaced is gone, so that a window corrected for ever does not grow for ever.
    await meter.drain()
    revised, left = (
        await meter.writer.rows(
            "SELECT count(), countIf(revision < newest) FROM aggregates INNER JOIN"
            " (SELECT tenant, grain, account, meter, window, max(revisions.revision) AS newest"
            " FROM revisions GROUP BY tenant, grain, account, meter, window) AS n"
            " USING (tenant, grain, account, meter, window)"
        )
    )[0]
    assert (revised > 0, left) == (True, 0)
    for way in WAYS:
        assert await answer(meter, query(way, Window.QUARTER_HOUR)) == world.expected(way, QUARTER)
        whole = {
            (START, customer, values): value
            for (_, customer, values), value in world.expected(way, 10**10).items()
        }
        assert await answer(meter, query(way, Window.WHOLE)) == whole
        split = query(way, group_by=("region", "user"))
        assert await answer(meter, replace(split, page_size=7)) == world.expected(
            way, 3600, ("region", "user")
        )
        only = (("region", ("eu",)),)
        assert await answer(meter, query(way, filters=only)) == world.expected(
            way, 3600, filters=only
        )


ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"),
    *("Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"),
)
MONTHS = 1_788_220_800 - 40 * 86_400
"""In July 2026; clocks change in most zones in the hundred and ten days that follow."""


@pytest.mark.parametrize("seed", range(2))
async def test_hours_days_and_months_say_what_their_records_say_in_any_zone(
    meter: Stand, seed: int
) -> None:
    world, days = World(meter, seed, MONTHS, 110 * 24), 110
    rng = world.rng
    await meter.outbox.open(0, 1)
    for _ in range(4):
        for _ in range(rng.randrange(20, 60)):
            await (world.correct() if rng.random() < 0.25 else world.use())
        try:
            await meter.drain(meter.rollup(crashing(rng)))
        except Crash:
            await meter.drain()
    for turn in range(12):
        way, name = rng.choice(WAYS), rng.choice(ZONES)
        window = (Window.DAY, Window.MONTH, Window.WHOLE, Window.HOUR)[turn % 4]
        start = MONTHS + rng.randrange(days * 48) * QUARTER
        end = start + rng.randrange(1, days * 96) * QUARTER
        asked = replace(query(way, window), zone=name, start=start, end=end)
        edges = [*boundaries(start, end, window, zone(name), 5000), end]
        assert await answer(meter, asked) == world.expected(way, edges), (asked, edges)
        fine = replace(query(way, Window.QUARTER_HOUR), start=start, end=end)
        assert await answer(meter, fine) == world.expected(way, range(start, end + 1, QUARTER))
    found = await meter.audit().compare([])
    assert found.rollup_difference == 0


async def test_the_first_quarter_hour_is_found_whatever_the_month(meter: Stand) -> None:
    await meter.outbox.open(0, 1)
    for at in (MONTHS + 5000, MONTHS + 40 * 86_400, MONTHS + 900):
        body = Body("t", "acme", "acme", METER, METER, q=1, at=at * 1000)
        await meter.outbox.use(0, 1, body=body)
    await meter.drain()
    assert await meter.reader.first(Scope("t")) == MONTHS + 900
    assert await meter.reader.first(Scope("t", "another")) is None


async def test_a_report_over_a_year_reads_few_rows(meter: Stand) -> None:
    """A customer with usage in every quarter hour, beside a hundred others that have a little."""
    year, quarters = 1_767_225_600, 366 * 96  # 2026 and a day
    records = []
    for number in range(quarters + 100):
        customer = "acme" if number < quarters else f"c{number}"
        body = Body("t", "acme", customer, METER, METER, at=(year + number % quarters * 900) * 1000)
        effects = encode_effects(Effects(RecordType.USAGE, NOW, 2, quantity=2))
        records.append((0, Entry(1, number, encode_body(body), effects)))
    warehouse = ClickHouseWarehouse(meter.writer)
    await warehouse.store(records)
    manifest = Manifest(1, "a-year", (Range(0, 1, 0, len(records)),))
    await warehouse.add_usage(manifest)
    await warehouse.add_aggregates(manifest)
    for table in ("usage", "aggregates"):
        await meter.writer.command(f"OPTIMIZE TABLE {table} FINAL")
    for window, name in (
        *((Window.MONTH, "UTC"), (Window.DAY, "UTC")),
        *((Window.WHOLE, "Europe/Berlin"), (Window.WHOLE, "Asia/Kolkata")),
    ):
        asked = replace(query(Aggregation.MAX, window, customers=("acme",)), zone=name)
        asked = replace(asked, start=year + 1800, end=year + 365 * 86_400)
        before = await _rows_read(meter)
        page = await meter.reports().query(asked)
        read = await _rows_read(meter) - before
        assert page.total == 2 * (365 * 96 - 2)
        # Rows are read by 1,024; the edges, hours, days and months are places of their own.
        assert read <= 2 * 10 * 1024, (window, name, read)


async def _rows_read(meter: Stand) -> int:
    rows = await meter.writer.rows("SELECT value FROM system.events WHERE event = 'SelectedRows'")
    return int(rows[0][0])
