"""Who waits for the rollup, and for how long the rollup itself waits."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from meter.core.sequence import Position
from meter.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def test_who_waits_for_the_end_of_the_log_waits_for_no_pause_after_failures() -> None:
    progress = Progress()
    progress.begin({0: Position(0, -1)})
    waiting = asyncio.create_task(progress.caught_up([0], 5, 60))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        for _ in range(3):  # failures, each with a pause, before it succeeds
            await progress.pause(60)
    progress.fresh_ms[0] = 5
    await progress.moved()
    await waiting


@pytest.mark.parametrize(
    "wait",
    [
        lambda progress: progress.caught_up([0], 5, 60),
        lambda progress: progress.reached({0: Position(1, 7)}, 60),
    ],
)
async def test_a_long_pause_ends_when_somebody_waits(
    wait: Callable[[Progress], Awaitable[None]],
) -> None:
    progress = Progress()
    progress.begin({0: Position(0, -1)})
    pausing = asyncio.create_task(progress.pause(60))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(wait(progress))
    async with asyncio.timeout(10):
        await pausing
    waiting.cancel()


async def test_a_pause_has_a_least_that_waiting_does_not_shorten() -> None:
    progress = Progress()
    with progress.waited_for():
        began = time.monotonic()
        async with asyncio.timeout(10):
            await progress.pause(60, 0.2)
        assert time.monotonic() - began >= 0.2
