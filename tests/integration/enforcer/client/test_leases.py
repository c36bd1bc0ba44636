"""Seats held by a block: renewed beside it, given back whatever becomes of it, and told of when they are lost."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc
import pytest

from enforcer.client import Client, ClosedError, DeniedError, LeaseLostError, Reason
from tests.fixtures.fake_gateway import Arrived, FakeGateway, RefusalError, eventually

if TYPE_CHECKING:
    from enforcer.client import HeldLease


async def test_a_seat_is_renewed_while_the_block_runs_and_given_back_after_it(
    fake: FakeGateway,
) -> None:
    fake.ttl = 1.8
    async with fake.client() as client:
        async with client.lease("acme", "seats", holder="ann") as held:
            assert held.info.feature == "seats"
            assert held.verdict.granted == 1
            await eventually(lambda: fake.names.count("RenewLease") >= 4)  # longer than its time
            assert not held.lost
            held.ensure()
        assert not fake.seated
    assert fake.names[0] == "AcquireLease"
    assert fake.calls[0].request.holder == "ann"
    assert fake.names[-1] == "ReleaseLease"
    tokens = {call.request.token for call in fake.calls[1:]}
    assert tokens == {held.token}


async def test_no_seat_is_a_denial_that_tells_why(fake: FakeGateway) -> None:
    fake.seats = 0
    async with fake.client() as client:
        with pytest.raises(DeniedError) as caught:
            async with client.lease("acme", "seats"):
                raise AssertionError
    assert caught.value.verdict.reason is Reason.NO_SEATS
    assert (caught.value.customer, caught.value.feature) == ("acme", "seats")


async def test_what_the_block_raises_passes_and_the_seat_is_given_back(fake: FakeGateway) -> None:
    async with fake.client() as client:
        with pytest.raises(KeyError):
            async with client.lease("acme", "seats"):
                raise KeyError
        assert not fake.seated


async def _hold(client: Client, entered: asyncio.Event, cleanup: float = 0) -> None:
    async with client.lease("acme", "seats"):
        entered.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(cleanup)


async def test_a_cancelled_holder_keeps_its_heartbeat_to_the_end_and_gives_the_seat_back(
    fake: FakeGateway,
) -> None:
    fake.ttl = 1.8
    async with fake.client() as client:
        entered = asyncio.Event()
        holder = asyncio.create_task(_hold(client, entered, cleanup=2.5))
        await entered.wait()
        holder.cancel()
        # It cleans up for longer than the lease would live without a heartbeat.
        await eventually(lambda: fake.names.count("RenewLease") >= 4)
        assert not holder.done()
        with pytest.raises(asyncio.CancelledError):
            await holder
        assert fake.names[-1] == "ReleaseLease"
        assert not fake.seated


async def test_the_seat_is_given_back_even_if_the_holder_is_cancelled_again_meanwhile(
    fake: FakeGateway,
) -> None:
    release = asyncio.Event()

    async def slow(arrived: Arrived) -> None:
        if arrived.method == "ReleaseLease":
            await release.wait()

    fake.before = slow
    async with fake.client() as client:
        entered = asyncio.Event()
        holder = asyncio.create_task(_hold(client, entered))
        await entered.wait()
        holder.cancel()
        await eventually(lambda: "ReleaseLease" in fake.names)
        for _ in range(3):
            holder.cancel()
            await asyncio.sleep(0.01)
        assert not holder.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await holder
        assert not fake.seated


async def test_a_seat_that_was_taken_for_a_holder_cancelled_meanwhile_is_given_back(
    fake: FakeGateway,
) -> None:
    answer = asyncio.Event()

    async def slow(arrived: Arrived) -> None:
        if arrived.method == "AcquireLease":
            await answer.wait()

    fake.after = slow
    async with fake.client() as client:
        entered = asyncio.Event()
        holder = asyncio.create_task(_hold(client, entered))
        await eventually(lambda: bool(fake.seated))
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder
        answer.set()
    # Closing waited for it.
    assert not entered.is_set()
    assert not fake.seated
    assert fake.names == ["AcquireLease", "ReleaseLease"]


async def test_a_lost_acquire_is_asked_again_under_its_key(fake: FakeGateway) -> None:
    async def lose(_: Arrived) -> None:
        if len(fake.calls) == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.after = lose
    async with fake.client() as client, client.lease("acme", "seats"):
        assert len(fake.seated) == 1
    keys = [call.request.idempotency_key for call in fake.calls if call.method == "AcquireLease"]
    assert len(keys) == 2
    assert keys[0] == keys[1]


async def test_a_revoked_seat_cancels_the_block_and_says_so(fake: FakeGateway) -> None:
    async def revoke(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")

    fake.before = revoke
    async with fake.client() as client:
        with pytest.raises(LeaseLostError) as caught:
            async with client.lease("acme", "seats") as held:
                await asyncio.sleep(60)
        assert caught.value.reason == held.lost_because == "LEASE_REVOKED"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_a_seat_that_could_not_be_renewed_in_time_is_lost_at_its_end(
    fake: FakeGateway,
) -> None:
    async def away(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    fake.before = away
    async with fake.client() as client:
        with pytest.raises(LeaseLostError) as caught:
            async with client.lease("acme", "seats"):
                await asyncio.sleep(60)
        assert caught.value.reason == "LEASE_EXPIRED"
        assert fake.names.count("RenewLease") >= 2  # not given up at the first failure


async def test_an_outage_shorter_than_the_lease_is_waited_out(fake: FakeGateway) -> None:
    fake.ttl = 3.0

    async def away(arrived: Arrived) -> None:
        if arrived.method == "RenewLease" and fake.names.count("RenewLease") == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.before = away
    async with fake.client() as client, client.lease("acme", "seats") as held:
        await eventually(lambda: fake.names.count("RenewLease") >= 3)
        assert not held.lost


async def test_a_holder_that_wants_to_be_told_only_is_not_cancelled(fake: FakeGateway) -> None:
    async def revoke(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")

    fake.before = revoke
    async with (
        fake.client() as client,
        client.lease("acme", "seats", cancel_on_loss=False) as held,
    ):
        assert await held.wait_lost() == "LEASE_REVOKED"
        with pytest.raises(LeaseLostError, match="revoked"):
            held.ensure()


async def test_a_block_that_ends_at_the_moment_of_the_loss_is_told_too(fake: FakeGateway) -> None:
    async def revoke(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")

    fake.before = revoke

    async def work(held: HeldLease) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await held.wait_lost()

    async with fake.client() as client:
        with pytest.raises(LeaseLostError):
            async with client.lease("acme", "seats") as held:
                await work(held)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0.01)  # nothing is left that would cancel this


async def test_a_cancellation_by_somebody_else_stays_one_although_the_seat_is_lost(
    fake: FakeGateway,
) -> None:
    async def revoke(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")

    fake.before = revoke
    async with fake.client() as client:
        lost = asyncio.Event()

        async def hold() -> None:
            async with client.lease("acme", "seats") as held:
                try:
                    await asyncio.sleep(60)
                finally:
                    assert held.lost
                    lost.set()
                    await asyncio.sleep(60)

        holder = asyncio.create_task(hold())
        await lost.wait()
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder


async def test_a_lease_is_entered_once(fake: FakeGateway) -> None:
    async with fake.client() as client:
        lease = client.lease("acme", "seats")
        async with lease:
            pass
        with pytest.raises(ClosedError):
            await lease.__aenter__()
