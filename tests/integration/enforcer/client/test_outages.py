"""No gateway answers: each feature follows its policy, says so, and what was allowed is counted once afterwards."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from enforcer.client import Client, FailClosed, FailOpen, Options, Reason, UnavailableError
from enforcer.v1 import enforcer_pb2 as pb
from tests.fixtures.fake_gateway import KEY, Arrived, FakeGateway, RefusalError, eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enforcer.client import Policy


async def away(_: Arrived) -> None:
    raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


def opened(fake: FakeGateway, policies: Mapping[str, Policy], *, timeout: float = 20) -> Client:
    return Client(fake.endpoint, KEY, policies=policies, options=Options(timeout=timeout))


async def test_an_answer_without_the_gateway_is_marked_and_comes_after_the_patience(
    fake: FakeGateway,
) -> None:
    fake.before = away
    policies: dict[str, Policy] = {
        "open": FailOpen(amount=5, patience=1),
        "closed": FailClosed(patience=1),
    }
    async with opened(fake, policies, timeout=2) as client:
        started = time.monotonic()
        first = await client.check("acme", "closed")
        assert time.monotonic() - started < 10
        assert (first.allowed, first.reason, first.degraded) == (
            False,
            Reason.GATEWAY_UNAVAILABLE,
            True,
        )
        tries = len(fake.calls)
        assert tries >= 2
        # Known to be away: the next ones are tried once.
        second = await client.check("acme", "open", 5)
        assert (second.allowed, second.granted, second.degraded) == (True, 5, True)
        asked = [call for call in fake.calls[tries:] if call.request.feature == "open"]
        assert len(asked) >= 1
        third = await client.check("acme", "open")
        assert (third.allowed, third.reason, third.degraded) == (
            False,
            Reason.EMERGENCY_EXHAUSTED,
            True,
        )
        with pytest.raises(UnavailableError):
            await client.check("acme", "no policy", timeout=0.1)
        assert client.uncounted == 1
        fake.before = None
        await eventually(lambda: client.uncounted == 0)
    assert fake.used == {("acme", "open"): 5}


@pytest.mark.parametrize("ran", [False, True], ids=["did not run", "ran unanswered"])
async def test_what_was_allowed_is_counted_once_when_the_gateway_is_back(
    fake: FakeGateway, *, ran: bool
) -> None:
    if ran:
        fake.after = away
    else:
        fake.before = away
    async with opened(fake, {"open": FailOpen(amount=100, patience=0.2)}) as client:
        verdicts = await asyncio.gather(*(client.check("acme", "open", 2) for _ in range(20)))
        assert all(one.allowed and one.degraded for one in verdicts)
        fake.before = fake.after = None
        # Closing counts what is left.
    assert client.uncounted == 0
    assert fake.used == {("acme", "open"): 40}


async def test_what_the_limits_no_longer_cover_is_recorded_past_them_once(
    fake: FakeGateway,
) -> None:
    lost: list[str] = []

    def limited(request: pb.CheckRequest) -> pb.CheckResponse:
        if request.mode == pb.MODE_RECORD_ONLY:
            return pb.CheckResponse(
                allowed=True, granted=request.quantity, reason=pb.REASON_ALLOWED
            )
        return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)

    async def lose_once(arrived: Arrived) -> None:
        if arrived.request.mode == pb.MODE_RECORD_ONLY and not lost:
            lost.append(arrived.request.idempotency_key)
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.before, fake.answer = away, limited
    async with opened(fake, {"open": FailOpen(amount=100, patience=0.2)}) as client:
        assert await client.check("acme", "open", 7)
        fake.before, fake.after = None, lose_once
        await eventually(lambda: client.uncounted == 0)
    assert lost
    assert fake.used == {("acme", "open"): 7}


async def test_a_gateway_that_hangs_is_away_too(fake: FakeGateway) -> None:
    stuck = asyncio.Event()

    async def hang(_: Arrived) -> None:
        await stuck.wait()

    fake.before = hang
    async with opened(fake, {"open": FailOpen(amount=100, patience=0.2)}) as client:
        verdicts = await asyncio.gather(*(client.check("acme", "open") for _ in range(10)))
        assert all(one.allowed and one.degraded for one in verdicts)
        stuck.set()
    assert fake.used == {("acme", "open"): 10}


async def test_what_can_never_be_counted_is_told_and_weighs_no_longer(
    fake: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def unknown(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.NOT_FOUND, "UNKNOWN_CUSTOMER")

    fake.before = away
    async with opened(fake, {"open": FailOpen(amount=1, patience=0.2)}) as client:
        assert await client.check("acme", "open")
        fake.before = unknown
        await eventually(lambda: client.uncounted == 0)
    assert "a use of 1 of open by acme" in caplog.text
    assert "cannot be counted" in caplog.text


async def test_what_is_left_uncounted_at_the_end_is_told(
    fake: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    fake.before = away
    async with opened(fake, {"open": FailOpen(amount=3, patience=0.1)}, timeout=0.3) as client:
        for _ in range(3):
            await client.check("acme", "open")
    assert client.uncounted == 3
    assert (
        "3 uses that were allowed while no gateway answered were not counted: open" in caplog.text
    )
