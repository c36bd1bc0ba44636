"""A stream of checks without any transport: what it reads, how it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.errors import MetergateError, UnauthenticatedError, UnavailableError
from enforcer.ports.definitions import Caller
from enforcer.transport.dispatch import Call
from enforcer.transport.streams import LARGEST, MOST_DECIDING, MOST_UNANSWERED, stream_methods
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

CALLER = Caller("acme", "key", "check")
SECONDS = 20


class Client:
    """Asks `questions`, and counts how many were taken."""

    def __init__(self, questions: int, *, stays: bool = False) -> None:
        self.questions, self.stays = questions, stays
        self.taken = 0
        self.leaves = asyncio.Event()

    async def ask(self) -> AsyncIterator[bytes]:
        for place in range(self.questions):
            self.taken += 1
            check = pb.CheckRequest(customer="c", feature="f", idempotency_key=str(place))
            yield pb.CheckStreamRequest(id=place, check=check).SerializeToString()
        if self.stays:
            await self.leaves.wait()


class Gateway:
    """Allows what it is asked, when `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.batches: list[int] = []
        self.revoked = False

    async def check_each(
        self, tenant: str, requests: Sequence[bytes]
    ) -> list[bytes | pb.CheckFault]:
        assert tenant == CALLER.tenant
        self.batches.append(len(requests))
        await self.open.wait()
        return [pb.CheckResponse(allowed=True, granted=1).SerializeToString() for _ in requests]

    async def sender(self, authorization: str | None) -> Caller:
        assert authorization == "Bearer key"
        if self.revoked:
            raise UnauthenticatedError("unknown or revoked API key")
        return CALLER


def called() -> Call:
    call = Call("Bearer key", 0.0, None)
    call.caller = CALLER
    call.ending = asyncio.Event()
    return call


async def answers(
    gateway: Gateway, call: Call, requests: Any
) -> AsyncIterator[pb.CheckStreamResponse]:
    (method,) = stream_methods(gateway.check_each, gateway.sender)
    assert (method.path, method.role) == ("/enforcer.v1.EnforcerService/CheckStream", "check")
    async for some in method.answer(call, requests):
        for packed in some:
            yield pb.CheckStreamResponse.FromString(packed)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - turns of the event loop are waited for
            await asyncio.sleep(0)


async def to_its_end(
    stream: AsyncIterator[pb.CheckStreamResponse],
) -> tuple[list[int], Exception | None]:
    """Which questions were answered, and what ended the stream."""
    got = []
    try:
        async with asyncio.timeout(SECONDS):
            async for one in stream:
                got.append(one.id)  # noqa: PERF401 - what came before the end counts
    except MetergateError as error:
        return got, error
    return got, None


async def test_each_question_gets_one_answer_and_what_comes_together_is_decided_together() -> None:
    gateway, client = Gateway(), Client(3000)
    got = [one.id async for one in answers(gateway, called(), client.ask())]
    assert sorted(got) == list(range(3000))
    assert max(gateway.batches) == LARGEST
    assert len(gateway.batches) < 3000 / 100


async def test_a_lone_question_is_answered_while_the_stream_stays_open() -> None:
    gateway, client = Gateway(), Client(1, stays=True)
    stream = answers(gateway, called(), client.ask())
    async with asyncio.timeout(SECONDS):
        assert (await anext(stream)).response.allowed
        client.leaves.set()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_client_that_asks_more_than_is_answered_has_to_wait() -> None:
    gateway, client = Gateway(), Client(5000)
    gateway.open.clear()
    stream = answers(gateway, called(), client.ask())
    ended = asyncio.create_task(to_its_end(stream))
    await until(lambda: client.taken >= MOST_UNANSWERED and len(gateway.batches) == MOST_DECIDING)
    for _ in range(100):
        await asyncio.sleep(0)
    assert client.taken == MOST_UNANSWERED
    gateway.open.set()
    got, error = await ended
    assert error is None
    assert sorted(got) == list(range(5000))


async def test_a_question_without_a_check_is_told_and_the_stream_goes_on() -> None:
    async def ask() -> AsyncIterator[bytes]:
        check = pb.CheckRequest(customer="c", feature="f")
        yield pb.CheckStreamRequest(id=1).SerializeToString()
        yield pb.CheckStreamRequest(id=2, check=check).SerializeToString()

    got = {one.id: one async for one in answers(Gateway(), called(), ask())}
    assert got[1].fault.reason == "BAD_MESSAGE"
    assert got[2].response.allowed


async def test_a_key_that_is_revoked_meanwhile_ends_the_stream() -> None:
    gateway, client = Gateway(), Client(1, stays=True)
    gateway.revoked = True
    got, error = await to_its_end(answers(gateway, called(), client.ask()))
    assert (got, gateway.batches) == ([], [])
    assert isinstance(error, UnauthenticatedError)


async def test_when_the_process_ends_what_was_read_is_answered_first() -> None:
    gateway, client, call = Gateway(), Client(500, stays=True), called()
    gateway.open.clear()
    stream = answers(gateway, call, client.ask())
    ended = asyncio.create_task(to_its_end(stream))
    await until(lambda: bool(gateway.batches))
    call.ending.set()
    await asyncio.sleep(0)
    gateway.open.set()
    got, error = await ended
    assert sorted(got) == list(range(500))
    assert isinstance(error, UnavailableError)
    assert "under the same keys" in error.message


async def test_a_fault_of_the_gateway_ends_the_stream_and_leaves_no_task() -> None:
    class Broken(Gateway):
        async def check_each(
            self, tenant: str, requests: Sequence[bytes]
        ) -> list[bytes | pb.CheckFault]:
            raise ZeroDivisionError

    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        await to_its_end(answers(Broken(), called(), Client(10, stays=True).ask()))
    assert asyncio.all_tasks() == before
