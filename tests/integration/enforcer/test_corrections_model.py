"""Random usage and corrections against a plain model: a list of events, each with its newest quantity or void.

Every aggregation of every window in three widths, the live balance and the audit have to say the same.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from enforcer.v1 import enforcer_pb2 as pb
from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.windows import Window
from meter.ports.usage import Scope
from meter.reports import UsageQuery
from tests.fixtures.service_desk import DAY, TENANT, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meter.v1 import usage_pb2
    from tests.fixtures.service_desk import Desk

STEPS = 14
CATALOG = """
version: 1
features: [{key: calls}]
accounts:
  - key: acme
    entitlements: [{feature: calls, key: plan, model: quota, limit: 30, per: month, hard: false}]
"""


@dataclass
class Event:
    """What happened, and what it counts now; None: void."""

    record: usage_pb2.RecordPlace
    at_ms: int
    quantity: int | None
    region: str


def _way(kind: Aggregation) -> Callable[[list[Event]], int]:
    def values(events: Iterable[Event]) -> list[int]:
        return [event.quantity for event in events if event.quantity is not None]

    def order(event: Event) -> tuple[int, int, int]:
        return event.at_ms, event.record.generation, event.record.sequence

    ways: dict[Aggregation, Callable[[list[Event]], int]] = {
        Aggregation.SUM: lambda events: sum(values(events)),
        Aggregation.COUNT: len,
        Aggregation.MIN: lambda events: min(values(events)),
        Aggregation.MAX: lambda events: max(values(events)),
        Aggregation.LATEST: lambda events: values([max(events, key=order)])[0],
        Aggregation.UNIQUE: lambda events: len({event.region for event in events}),
    }
    return ways[kind]


def _start(at_ms: int, window: Window) -> int:
    at = at_ms // 1000
    if window is Window.QUARTER_HOUR:
        return at // 900 * 900
    if window is Window.DAY:
        return at // 86_400 * 86_400
    day = datetime.fromtimestamp(at, UTC)
    return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())


async def _reported(desk: Desk, window: Window, kind: Aggregation) -> dict[int, int]:
    ways = (MeterAggregation("calls", kind, "region" if kind is Aggregation.UNIQUE else ""),)
    query = UsageQuery(
        Scope(TENANT, "calls", ("acme",)),
        window,
        start=0,
        end=desk.now // 1000 // 900 * 900 + 900,
        aggregations=ways,
    )
    page = await desk.meter.reports().query(query)
    return {
        line.start: line.value for line in page.lines if line.value is not None and line.row.events
    }


async def _use(desk: Desk, dice: random.Random) -> Event:
    region, quantity = dice.choice(["eu", "us"]), dice.choice([1, 2, 7, 20])
    if dice.random() < 0.5:
        request = pb.CheckRequest(
            customer="acme",
            feature="calls",
            quantity=quantity,
            dimensions={"region": region},
            mode=pb.MODE_RECORD_ONLY,
        )
        response = pb.CheckResponse.FromString(
            await desk.gateway.check(TENANT, request.SerializeToString())
        )
        record = place(response.record)
        return Event(record, desk.now, quantity, region)
    age = dice.choice([DAY + 60_000, DAY + 120_000, 3 * DAY, 40 * DAY])
    event = desk.event("calls", quantity, age)
    event.dimensions["region"] = region
    (outcome,) = await desk.backfill(event)
    assert outcome.accepted, outcome
    return Event(place(outcome), desk.now - age, quantity, region)


@pytest.mark.parametrize("seed", range(2))
async def test_corrections_leave_what_a_plain_list_of_events_says(desk: Desk, seed: int) -> None:
    dice = random.Random(seed)
    await desk.apply(CATALOG)
    events: list[Event] = []
    for _ in range(STEPS):
        desk.forward(dice.choice([1, 1_000, 3_600_000, DAY]))
        if len(events) < 5 or dice.random() < 0.4:
            events.append(await _use(desk, dice))
            continue
        event = dice.choice(events)
        if event.quantity is not None and dice.random() < 0.4:
            await desk.void(event.record)
            event.quantity = None
        else:
            event.quantity = dice.choice([0, 1, 5, 40])
            await desk.amend(event.record, event.quantity)
    await desk.audit()
    alive = [event for event in events if event.quantity is not None]
    for window in (Window.QUARTER_HOUR, Window.DAY, Window.MONTH):
        groups: dict[int, list[Event]] = defaultdict(list)
        for event in alive:
            groups[_start(event.at_ms, window)].append(event)
        for kind in Aggregation:
            expected = {start: _way(kind)(group) for start, group in groups.items()}
            assert await _reported(desk, window, kind) == expected, (window, kind)
    month = _start(desk.now, Window.MONTH)
    used = [e.quantity or 0 for e in alive if _start(e.at_ms, Window.MONTH) == month]
    assert await desk.balance("calls") == {"plan": sum(used)}
