"""The client for threads: one core, many callers, and the decorator over both kinds."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from enforcer.client import (
    Check,
    ClosedError,
    ConfigurationError,
    DeniedError,
    LeaseLostError,
    Options,
    Reason,
    SyncClient,
    Verdict,
    metered,
)
from enforcer.v1 import enforcer_pb2 as pb
from tests.fixtures.fake_gateway import KEY, Arrived, FakeGateway, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable


def opened(fake: FakeGateway, **more: Any) -> SyncClient:
    return SyncClient(fake.endpoint, KEY, options=Options(timeout=30), **more)


async def in_thread(work: Callable[[], Any]) -> Any:
    """The fake gateway lives in the test's own loop: whoever waits for it must not block that."""
    return await asyncio.to_thread(work)


async def test_threads_share_a_client_and_their_checks_travel_together(fake: FakeGateway) -> None:
    gate = threading.Barrier(64)

    def work() -> None:
        with opened(fake) as client, ThreadPoolExecutor(64) as pool:

            def check(number: int) -> int:
                gate.wait(30)
                return client.check("acme", "f", number).granted

            assert list(pool.map(check, range(1, 65))) == list(range(1, 65))

    await in_thread(work)
    assert fake.used["acme", "f"] == sum(range(1, 65))
    assert len(fake.calls) < 64


async def test_every_method_is_there_for_threads(fake: FakeGateway) -> None:
    fake.methods["GetBalance"] = lambda _: pb.GetBalanceResponse(
        allowed=True, reason=pb.REASON_ALLOWED
    )
    fake.methods["ListLeases"] = lambda _: pb.ListLeasesResponse(leases=[pb.Lease(id="one")])

    def work() -> None:
        with opened(fake) as client:
            assert client.check_each([Check("acme", "f", 2)]) == [Verdict(True, 2)]
            assert client.check_all([Check("acme", "f", 3)]) == [Verdict(True, 3)]
            assert client.balance("acme", "f").allowed
            assert [one.id for one in client.leases("acme", "seats")] == ["one"]
            with client.reserve("acme", "tokens", 10) as amount:
                amount.use(4)
            assert (amount.committed, amount.released) == (4, 6)
            with pytest.raises(KeyError), client.reserve("acme", "tokens", 10) as amount:
                raise KeyError
            assert (amount.committed, amount.released) == (0, 10)
            with client.lease("acme", "seats") as seat:
                assert seat.info.feature == "seats"
                assert seat.wait_lost(0.01) == ""
            assert client.uncounted == 0

    await in_thread(work)
    assert not fake.seated


async def test_a_lost_seat_is_told_to_the_thread_in_every_way(fake: FakeGateway) -> None:
    async def revoke(arrived: Arrived) -> None:
        if arrived.method == "RenewLease":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_REVOKED")

    fake.before = revoke
    told: list[str] = []

    def work() -> None:
        with opened(fake) as client:
            with (  # noqa: PT012 - what the block sees is the test
                pytest.raises(LeaseLostError),
                client.lease("acme", "seats", on_loss=told.append) as seat,
            ):
                assert seat.wait_lost(30) == seat.lost_because == "LEASE_REVOKED"
                assert seat.lost
                with pytest.raises(LeaseLostError):
                    seat.ensure()
            # What the block raises itself is not hidden.
            with (  # noqa: PT012 - what the block sees is the test
                pytest.raises(KeyError),
                client.lease("acme", "seats") as seat,
            ):
                seat.wait_lost(30)
                raise KeyError

    fake.seats = 2
    await in_thread(work)
    assert told == ["LEASE_REVOKED"]


async def test_a_client_for_threads_says_when_it_is_not_open(fake: FakeGateway) -> None:
    def work() -> None:
        client = opened(fake)
        with pytest.raises(ClosedError, match="not open"):
            client.check("acme", "f")
        with client:
            with pytest.raises(ClosedError, match="once"):
                client.open()

            async def inside() -> None:
                client.check("acme", "f")

            with pytest.raises(ConfigurationError, match="itself"):
                client.run(inside())
        with pytest.raises(ClosedError):
            client.check("acme", "f")
        client.close()
        assert not [one for one in threading.enumerate() if one.name == "metergate-client"]

    await in_thread(work)


async def test_a_metered_function_runs_only_if_its_check_was_allowed(fake: FakeGateway) -> None:
    def deny_many(request: pb.CheckRequest) -> pb.CheckResponse:
        if request.quantity > 3:
            return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
        return pb.CheckResponse(allowed=True, granted=request.quantity)

    fake.answer = deny_many
    ran: list[int] = []
    async with fake.client() as client:

        @metered(
            client,
            "pages",
            customer=lambda who, _: who,
            quantity=lambda _, pages: pages,
            key=lambda who, pages: f"{who}-{pages}",
            dimensions={"by": "decorator"},
        )
        async def print_pages(_: str, pages: int) -> int:
            """Prints."""
            ran.append(pages)
            return pages * 2

        assert print_pages.__doc__ == "Prints."
        assert await print_pages("acme", 3) == 6
        with pytest.raises(DeniedError) as caught:
            await print_pages("acme", 4)
        assert caught.value.verdict.reason is Reason.QUOTA_EXCEEDED
    assert ran == [3]
    assert fake.calls[0].keys == ["acme-3"]
    assert dict(fake.calls[0].request.dimensions) == {"by": "decorator"}


async def test_a_metered_function_of_a_thread_takes_a_client_that_comes_later(
    fake: FakeGateway,
) -> None:
    clients: list[SyncClient] = []

    def current() -> SyncClient:
        return clients[0]

    @metered(current, "pages", customer="acme")
    def print_page(text: str) -> str:
        return text.upper()

    def work() -> None:
        with opened(fake) as client:
            clients.append(client)
            assert print_page("a") == "A"

    await in_thread(work)
    assert fake.used == {("acme", "pages"): 1}


async def test_what_cannot_be_metered_is_refused_where_it_is_written(fake: FakeGateway) -> None:
    async def coroutine() -> None: ...

    def function() -> None: ...

    async def generator() -> Any:
        yield 1

    decorate: Any
    for wrong, functions in (
        (fake.client(), (generator, function)),
        (opened(fake), (generator, coroutine)),
    ):
        decorate = metered(cast("Any", wrong), "f", customer="a")
        for one in functions:
            with pytest.raises(ConfigurationError, match=r"generator|need"):
                decorate(one)
