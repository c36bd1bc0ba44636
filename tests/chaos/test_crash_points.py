"""Every process killed before every named step, on both ways of the records: nothing lost, nothing counted twice.

This is the small matrix: once before the steps between which the most can go wrong. `make matrix` hits
every point many times and writes docs/guarantees.md.
"""

from __future__ import annotations

import random
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from meter.crash import POINTS
from tests.chaos import results
from tests.chaos.crashes import PATHS, points
from tests.chaos.deployment import Deployment
from tests.chaos.matrix import hit, kafka_settings

if TYPE_CHECKING:
    from pathlib import Path

    from meter.adapters.kafka.client import KafkaOptions

LEAST_KILLS = 200
SMALL = {
    "embedded": [
        "enforcer.send",
        "enforcer.answer",
        "enforcer.correct",
        "enforcer.projected",
        "rollup.claim",
        "rollup.commit",
        "valkey",
    ],
    "kafka": ["rollup.claim", "rollup.commit", *(p for p in POINTS if p.startswith("relay."))],
}
"""The rest of the rollup's is in integration/meter/test_rollup.py, of the journal's in test_fail_open.py."""


def part_of(point: str) -> str:
    """The process that a point is in."""
    return point.partition(".")[0]


async def crash_each(path: str, folder: Path, kafka: dict[str, str] | None = None) -> None:
    """Hit each point of the small matrix; hold the outcome against the table."""
    dice = random.Random(1)
    known = results.crashes()
    async with Deployment(folder, kafka=kafka) as gateway, gateway.clients(seed=1) as clients:
        for part, group in groupby(SMALL[path], part_of):
            times = {"kill": 1, "stop": 1 if part == "valkey" else 0}
            for row in await hit(gateway, clients, list(group), times, dice, path):
                assert row.findings == []
                table = known[path, row.point]
                assert (row.lost, row.repeated) == (table.lost, table.repeated) == (0, 0)


@pytest.mark.timeout(600)
async def test_a_crash_before_any_step_loses_and_repeats_nothing(tmp_path: Path) -> None:
    await crash_each("embedded", tmp_path)


@pytest.mark.timeout(600)
async def test_a_crash_on_the_way_through_kafka_loses_and_repeats_nothing(
    kafka: KafkaOptions, tmp_path: Path
) -> None:
    await crash_each("kafka", tmp_path, kafka_settings(kafka))


def test_every_point_has_its_row_in_the_table() -> None:
    known = results.crashes()
    assert set(known) == {(path, point) for path in PATHS for point in points(path)}
    assert sum(row.kills for row in known.values()) >= LEAST_KILLS
    for row in known.values():
        assert row.kills
        assert (row.lost, row.repeated, row.findings) == (0, 0, [])


def test_the_tables_are_those_of_the_last_run() -> None:
    assert results.tables() in results.DOCUMENT.read_text()
