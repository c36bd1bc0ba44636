"""What waits for the rollup: places reached, held, or not in time."""

from __future__ import annotations

import asyncio

import pytest

from meter.core.sequence import START, Gap, Position
from meter.errors import RollupBehindError
from meter.progress import Progress


async def test_waiting_ends_when_the_marks_get_there() -> None:
    progress = Progress()
    progress.marks = {0: START, 1: Position(2, 9)}
    waiting = asyncio.create_task(progress.reached({0: Position(1, 5), 1: Position(1, 90)}, 10))
    await asyncio.sleep(0)
    progress.marks[0] = Position(1, 5)
    await progress.moved()
    await waiting


async def test_a_held_bucket_is_not_waited_for() -> None:
    progress = Progress()
    progress.held = {0: Gap(0, 1, 3, 4, "missing")}
    await progress.reached({0: Position(1, 5)}, 0.01)


async def test_the_lag_is_named_when_the_wait_is_over() -> None:
    progress = Progress()
    with pytest.raises(RollupBehindError, match="bucket 7 is at the start of 1-5") as caught:
        await progress.reached({7: Position(1, 5)}, 0.01)
    assert caught.value.metadata["lag"]


def test_freshness_is_that_of_the_stalest_bucket() -> None:
    progress = Progress()
    progress.marks = {0: START, 1: START}
    progress.fresh_ms = {0: 5}
    assert progress.fresh_until_ms is None
    progress.fresh_ms = {0: 5, 1: 3}
    assert progress.fresh_until_ms == 3
