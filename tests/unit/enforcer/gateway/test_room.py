"""Batches find room, wait in their order, and never for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

from enforcer.gateway import Gateway
from enforcer.gateway.room import MOST_CHECKS, Room
from enforcer.v1 import enforcer_pb2 as pb

NEVER = 3600.0


async def settle() -> None:
    """Let everybody go on who can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Batches:
    """Batches in a room of ten checks, by number."""

    def __init__(self, still: float = NEVER) -> None:
        self.room = Room(10, still)
        self.inside: list[int] = []
        self._may_go = [asyncio.Event() for _ in range(10)]
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, *sizes: int) -> None:
        for size in sizes:
            self.tasks.append(asyncio.create_task(self._batch(len(self.tasks), size)))
        await settle()

    async def _batch(self, number: int, checks: int) -> None:
        await self.room.enter(checks)
        self.inside.append(number)
        try:
            await self._may_go[number].wait()
        finally:
            self.inside.remove(number)
            self.room.leave(checks)

    async def go(self, number: int) -> None:
        self._may_go[number].set()
        await settle()

    async def give_up(self, number: int) -> None:
        self.tasks[number].cancel()
        await settle()

    async def end(self) -> None:
        for one in self._may_go:
            one.set()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task


async def test_batches_wait_for_room_in_their_order() -> None:
    batches = Batches()
    await batches.come(4, 5, 6, 1)
    assert batches.inside == [0, 1]  # the last would fit, but it is not its turn
    await batches.go(0)
    assert batches.inside == [1]
    await batches.go(1)
    assert batches.inside == [2, 3]
    await batches.end()


async def test_a_batch_that_is_larger_than_the_room_has_it_alone() -> None:
    batches = Batches()
    await batches.come(11, 1)
    assert batches.inside == [0]
    await batches.go(0)
    assert batches.inside == [1]
    await batches.end()


async def test_who_gives_up_while_waiting_lets_those_behind_in() -> None:
    batches = Batches()
    await batches.come(4, 7, 6)
    assert batches.inside == [0]
    await batches.give_up(1)
    assert batches.inside == [0, 2]
    await batches.end()


async def test_who_is_let_in_and_gives_up_in_the_same_moment_takes_no_room() -> None:
    batches = Batches()
    await batches.come(10, 10)
    batches.tasks[0].cancel()
    await asyncio.sleep(0)  # the first has left, the second does not know it yet
    await batches.give_up(1)
    await batches.come(10)
    assert batches.inside == [2]
    await batches.end()


async def test_when_nobody_leaves_the_waiting_go_in() -> None:
    batches = Batches(still=0.01)
    await batches.come(10, 10, 3)
    async with asyncio.timeout(10):
        while batches.inside != [0, 1, 2]:  # noqa: ASYNC110 - the room tells nobody
            await asyncio.sleep(0.001)
    await batches.go(0)
    await batches.go(1)
    assert batches.inside == [2]
    await batches.come(7, 1)
    assert batches.inside == [2, 3]  # what went in unasked is counted all the same
    await batches.end()


async def test_batches_beyond_it_are_not_read_before_those_at_the_store_are_answered() -> None:
    class Store:
        """Knows what it was asked, and answers nothing."""

        def __init__(self) -> None:
            self.asked = 0

        def decide_all(self, groups: list[Any]) -> asyncio.Future[Any]:
            self.asked += len(groups)
            return asyncio.get_running_loop().create_future()

    class Programs:
        """Every check is common, and none is looked at."""

        skeletons: Any

    Programs.skeletons = type("", (), {"ask": lambda *_: object()})
    store = Store()
    gateway = Gateway(cast("Any", store), cast("Any", Programs), b"s" * 32)
    message = pb.CheckBatchRequest(items=[pb.CheckRequest(customer="a")] * 100).SerializeToString()
    calls = [asyncio.create_task(gateway.check_batch("demo", message)) for _ in range(12)]
    await settle()
    assert store.asked == MOST_CHECKS // 100 * 100
    calls[0].cancel()
    await settle()
    assert store.asked == MOST_CHECKS // 100 * 100 + 100
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
