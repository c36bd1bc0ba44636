"""Seats and denials over time against a plain computation, over random records, slices and kills."""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from meter.core.records import Body, Effects, RecordType, encode_body, encode_effects
from meter.core.windows import Window
from meter.metrics import STAGES
from meter.ports.series import DenialKey, SeatGroup, SeatKey
from meter.ports.usage import Scope
from meter.series import DenialQuery, SeatQuery
from tests.fixtures.meter import NOW, Crash, crash_at

if TYPE_CHECKING:
    from tests.fixtures.meter import Stand

DAY = 86_400
START = NOW // 1000 // DAY * DAY - 40 * DAY
UNTIL = NOW + 7_200_000
"""As of when the series of the stand tells, in ms."""
CUSTOMERS = {"acme": "acme", "acme/eu": "acme", "globex": "globex"}


@dataclass
class Lease:
    """A seat that was held in [start, end) ms; None: still."""

    body: Body
    start: int
    end: int | None = None


class World:
    """Writes random leases and denials and remembers them."""

    def __init__(self, meter: Stand, seed: int) -> None:
        self.meter, self.rng = meter, random.Random(seed)
        self.leases: list[Lease] = []
        self.denials: dict[tuple[int, str, int, int], tuple[int, int]] = {}
        self.now = START * 1000

    async def step(self) -> None:
        """Let time pass, then write something."""
        rng = self.rng
        self.now += rng.choice([0, 0, 1, 250, 60_000, 899_999, 3_600_000, 2 * DAY * 1000])
        self.now = min(self.now, NOW)
        live = [lease for lease in self.leases if lease.end is None]
        kind = rng.random()
        if kind < 0.15:
            await self.deny()
        elif kind < 0.6 or not live:
            customer = rng.choice(list(CUSTOMERS))
            body = Body("t", CUSTOMERS[customer], customer, "seats", "seats", id="x")
            self.leases.append(Lease(body, self.now))
            await self.write(RecordType.LEASE_START, body, self.now)
        else:
            lease = rng.choice(live)
            lease.end = max(lease.start, self.now - rng.choice([0, 5, 70_000]))
            kinds = [RecordType.LEASE_END, RecordType.LEASE_EXPIRED]
            await self.write(rng.choice(kinds), lease.body, lease.end, lease.start)

    async def deny(self) -> None:
        """Some checks at once."""
        rng = self.rng
        customer, reason, limit = (
            rng.choice(list(CUSTOMERS)),
            rng.choice([9, 13]),
            rng.choice([0, 7]),
        )
        count, quantity = rng.randrange(1, 5), rng.randrange(0, 100)
        body = encode_body(Body("t", CUSTOMERS[customer], customer, "seats", "seats"))
        effects = Effects(
            *(RecordType.DENIAL, self.now // 1000 * 1000, 0, 0),
            *(reason, count, quantity, limit),
        )
        await self.meter.outbox.add(0, 1, body, encode_effects(effects))
        key = self.now // 1000, customer, reason, limit
        before = self.denials.get(key, (0, 0))
        self.denials[key] = before[0] + count, before[1] + quantity

    async def write(self, kind: RecordType, body: Body, at: int, extra: int = 0) -> None:
        """Append what a lease does."""
        effects = Effects(kind, at, granted=1, quantity=1, extra=extra)
        await self.meter.outbox.add(0, 1, encode_body(body), encode_effects(effects))

    def seats(
        self, group: SeatGroup, starts: list[int], end: int
    ) -> dict[SeatKey, tuple[int, int, int]]:
        """Peak, p95 and seat-ms by window and group, computed plainly. `end` in ms."""
        by: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for lease in self.leases:
            name = {
                SeatGroup.CUSTOMER: (lease.body.a, lease.body.c),
                SeatGroup.ACCOUNT: (lease.body.a, ""),
                SeatGroup.ALL: ("", ""),
            }[group]
            by[name].append((lease.start, end if lease.end is None else lease.end))
        out = {}
        for name, spans in by.items():
            for first, last in pairwise([*(start * 1000 for start in starts), end]):
                found = window(spans, first, last)
                if found[0]:
                    out[SeatKey(first // 1000, "seats", *name)] = found
        return out


def window(spans: list[tuple[int, int]], first: int, last: int) -> tuple[int, int, int]:
    """Peak, p95, seat-ms in [first, last), by walking every moment at which something changes."""
    inside = [(max(a, first), min(b, last)) for a, b in spans if max(a, first) < min(b, last)]
    moments = sorted({first, last, *(moment for span in inside for moment in span)})
    time: dict[int, int] = defaultdict(int)
    for one, two in pairwise(moments):
        time[sum(a <= one < b for a, b in inside)] += two - one
    total, reached, p95 = last - first, 0, 0
    for level in sorted(time):
        reached += time[level]
        if Fraction(reached, total) >= Fraction(95, 100):
            p95 = level
            break
    return max(time), p95, sum(level * ms for level, ms in time.items())


async def seats(meter: Stand, query: SeatQuery) -> dict[SeatKey, tuple[int, int, int]]:
    """All pages."""
    out: dict[SeatKey, tuple[int, int, int]] = {}
    while True:
        page = await meter.series().seats(query)
        for line in page.lines:
            assert line.start_ms < line.end_ms <= UNTIL
            out[line.row.key] = line.row.peak, line.row.p95, line.row.seat_ms
        if not page.next_page_token:
            assert list(out) == sorted(out)
            return out
        query = replace(query, page_token=page.next_page_token)


@pytest.mark.parametrize("seed", range(3))
async def test_seats_and_denials_are_exact_over_random_slices_and_kills(
    meter: Stand, seed: int
) -> None:
    world = World(meter, seed)
    await meter.outbox.open(0, 1)
    for _ in range(6):
        for _ in range(world.rng.randrange(1, 40)):
            await world.step()
        if world.rng.random() < 0.7:
            step = world.rng.choice([*STAGES[2:5], "seats", "denials", "applied"])
            with suppress(Crash):
                await meter.drain(meter.rollup(crash_at(step)))
        await meter.drain()
    days = list(range(START, UNTIL // 1000, DAY))
    for group in SeatGroup:
        whole = SeatQuery(Scope("t", "seats"), Window.DAY, start=START, group=group, page_size=50)
        assert await seats(meter, whole) == world.seats(group, days, UNTIL)
    start, end = START + 3 * DAY + 900, START + 6 * DAY - 900
    for width, seconds in ((Window.QUARTER_HOUR, 900), (Window.HOUR, 3600)):
        starts = [start, *(at for at in range(START, end, seconds) if at > start)]
        part = SeatQuery(Scope("t"), width, start=start, end=end)
        assert await seats(meter, part) == world.seats(SeatGroup.CUSTOMER, starts, end * 1000)
    total = await seats(meter, SeatQuery(Scope("t", customers=("acme",)), group=SeatGroup.ALL))
    held = sum((one.end or UNTIL) - one.start for one in world.leases if one.body.c == "acme")
    assert sum(row[2] for row in total.values()) == held
    assert await denials(meter, Window.DAY) == plain(world, DAY)
    assert await denials(meter, Window.QUARTER_HOUR, page_size=3) == plain(world, 900)


def plain(world: World, width: int) -> dict[DenialKey, tuple[int, int]]:
    """Denials by window, computed plainly."""
    out: dict[DenialKey, tuple[int, int]] = {}
    for (at, customer, reason, limit), (count, quantity) in world.denials.items():
        key = DenialKey(at // width * width, customer, "seats", reason, limit)
        before = out.get(key, (0, 0))
        out[key] = before[0] + count, before[1] + quantity
    return out


async def denials(meter: Stand, width: Window, **fields: Any) -> dict[DenialKey, tuple[int, int]]:
    """All pages."""
    query = DenialQuery(Scope("t"), width, start=START, **fields)
    out: dict[DenialKey, tuple[int, int]] = {}
    while True:
        page = await meter.series().denials(query)
        out |= {line.row.key: (line.row.events, line.row.quantity) for line in page.lines}
        if not page.next_page_token:
            assert list(out) == sorted(out)
            return out
        query = replace(query, page_token=page.next_page_token)
