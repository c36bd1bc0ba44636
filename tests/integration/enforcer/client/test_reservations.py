"""Amounts held by a block: what was used is committed, the rest given back, whatever becomes of the block."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from enforcer.client import (
    ConfigurationError,
    DeniedError,
    Mode,
    Reason,
    UnavailableError,
)
from enforcer.v1 import enforcer_pb2 as pb
from tests.fixtures.fake_gateway import Arrived, FakeGateway, RefusalError, eventually


async def test_what_was_used_is_committed_and_the_rest_given_back(fake: FakeGateway) -> None:
    async with (
        fake.client() as client,
        client.reserve("acme", "tokens", 100, ttl=5, mode=Mode.BEST_EFFORT) as held,
    ):
        assert held.granted == 100
        held.use(20)
        held.use(22)
    assert (held.committed, held.released, held.late) == (42, 58, 0)
    reserve, commit = fake.calls
    assert (reserve.request.ttl.seconds, reserve.request.mode) == (5, pb.MODE_BEST_EFFORT)
    assert commit.request.quantity == 42


async def test_where_nothing_is_said_all_of_it_was_used(fake: FakeGateway) -> None:
    async with fake.client() as client:
        async with client.reserve("acme", "tokens", 100) as held:
            pass
        assert held.committed == 100
        async with client.reserve("acme", "tokens", 100) as held:
            held.use(0)
        assert (held.committed, held.released) == (0, 100)


async def test_a_block_that_raises_gives_back_what_it_did_not_say_it_used(
    fake: FakeGateway,
) -> None:
    async with fake.client() as client:
        with pytest.raises(KeyError):
            async with client.reserve("acme", "tokens", 100) as nothing:
                raise KeyError
        with pytest.raises(KeyError):  # noqa: PT012 - what the block raises is the test
            async with client.reserve("acme", "tokens", 100) as some:
                some.use(30)
                raise KeyError
    assert (nothing.committed, nothing.released) == (0, 100)
    assert (some.committed, some.released) == (30, 70)
    assert not fake.held


async def test_a_cancelled_block_commits_what_it_used(fake: FakeGateway) -> None:
    async with fake.client() as client:
        entered = asyncio.Event()

        async def work() -> None:
            async with client.reserve("acme", "tokens", 100) as held:
                held.use(5)
                entered.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fake.used["committed", ""] == 5
        assert not fake.held


async def test_what_was_held_for_a_block_cancelled_meanwhile_is_given_back(
    fake: FakeGateway,
) -> None:
    answer = asyncio.Event()

    async def slow(arrived: Arrived) -> None:
        if arrived.method == "Reserve":
            await answer.wait()

    fake.after = slow
    async with fake.client() as client:

        async def work() -> None:
            async with client.reserve("acme", "tokens", 100):
                raise AssertionError

        task = asyncio.create_task(work())
        await eventually(lambda: bool(fake.held))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer.set()
    assert not fake.held
    assert fake.names == ["Reserve", "Release"]


async def test_what_was_used_beyond_what_is_held_is_recorded_past_the_limits_once(
    fake: FakeGateway,
) -> None:
    async def lose(arrived: Arrived) -> None:
        if arrived.method == "Check" and fake.names.count("Check") == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.after = lose
    async with (
        fake.client() as client,
        client.reserve("acme", "tokens", 100, dimensions={"model": "m"}) as held,
    ):
        held.use(130)
    assert (held.committed, held.late) == (100, 30)
    assert fake.used["acme", "tokens"] == 30
    check = fake.calls[-1].request
    assert check.mode == pb.MODE_RECORD_ONLY
    assert dict(check.dimensions) == {"model": "m"}


async def test_what_was_used_under_an_expired_reservation_is_recorded_all_the_same(
    fake: FakeGateway,
) -> None:
    async with fake.client() as client:
        async with client.reserve("acme", "tokens", 100) as held:
            fake.held.clear()
            held.use(60)
        assert (held.committed, held.late) == (0, 60)
        async with client.reserve("acme", "tokens", 100) as held:
            fake.held.clear()
            held.use(0)
        assert held.released == 0


async def test_usage_that_could_not_be_counted_is_told(fake: FakeGateway) -> None:
    async def away(arrived: Arrived) -> None:
        if arrived.method == "Commit":
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    fake.before = away
    async with fake.client(timeout=1.5) as client:
        with pytest.raises(UnavailableError, match="refused"):
            async with client.reserve("acme", "tokens", 100):
                pass
        # The block's own error is not hidden by it.
        with pytest.raises(KeyError) as caught:  # noqa: PT012 - what the block raises is the test
            async with client.reserve("acme", "tokens", 100) as held:
                held.use(7)
                raise KeyError
    assert "7 of 'tokens' was not counted" in caught.value.__notes__[0]


async def test_an_amount_that_is_not_there_is_a_denial(fake: FakeGateway) -> None:
    fake.answer = lambda _: pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
    async with fake.client() as client:
        with pytest.raises(DeniedError) as caught:
            async with client.reserve("acme", "tokens", 100):
                raise AssertionError
    assert caught.value.verdict.reason is Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize("used", [-1, 1.5, "3"])
async def test_used_is_a_whole_number(fake: FakeGateway, used: object) -> None:
    async with fake.client() as client:
        with pytest.raises(ConfigurationError, match="whole number"):
            async with client.reserve("acme", "tokens", 100) as held:
                held.use(used)  # type: ignore[arg-type]
