"""The open loop: latencies count from when a call was due, whatever happens before it."""

from __future__ import annotations

import asyncio
import time

import pytest

from loadtests.arrivals import Spacing, arrivals, steady
from loadtests.latencies import Latencies, merged, percentiles_ms
from loadtests.open_loop import Pace, drive


async def test_a_server_that_stalls_is_told_by_all_calls_that_were_due_meanwhile() -> None:
    """A closed loop would see one slow call; here half of them are."""
    stalled = asyncio.Event()
    begin, latencies = time.monotonic(), Latencies(1)

    async def send(_: int, due: float) -> None:
        await stalled.wait()
        latencies.record(due - begin, time.monotonic() - due)

    asyncio.get_running_loop().call_later(0.4, stalled.set)
    moments = enumerate(arrivals(steady(100, 0.8), Spacing.EVEN, 1))
    await drive(moments, begin, send, pace=Pace(1))
    found = merged([latencies.packed()])
    assert found.get_total_count() == 80
    slow = found.get_total_count() - sum(
        1
        for one in found.get_recorded_iterator()
        for _ in range(one.count_added_in_this_iter_step)
        if one.value_iterated_to < 20_000
    )
    assert slow >= 35


async def test_a_moment_that_has_passed_is_sent_at_once_and_its_delay_is_told() -> None:
    sent: list[int] = []

    async def send(number: int, _: float) -> None:
        sent.append(number)

    pace = Pace(1)
    await drive([(0, 0.0), (1, 0.01)], time.monotonic() - 5, send, pace=pace)
    assert sent == [0, 1]
    assert percentiles_ms(merged([pace.delay.packed()]))["p50"] >= 4900


async def test_beyond_the_bound_calls_are_left_out_and_counted() -> None:
    done = asyncio.Event()
    started = 0

    async def send(_: int, __: float) -> None:
        nonlocal started
        started += 1
        if started == 3:
            asyncio.get_running_loop().call_later(0.05, done.set)
        await done.wait()

    pace = Pace(1)
    moments = [(number, 0.0) for number in range(10)]
    await drive(moments, time.monotonic(), send, pace=pace, most_in_flight=3)
    assert (started, pace.left_out) == (3, 7)


async def test_a_failure_of_the_sender_ends_the_drive_with_it() -> None:
    async def send(_: int, __: float) -> None:
        raise ZeroDivisionError

    moments = [(0, 0.0), (1, 0.01), (2, 3600.0)]
    with pytest.raises(ExceptionGroup) as caught:
        await drive(moments, time.monotonic(), send, pace=Pace(1))
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
