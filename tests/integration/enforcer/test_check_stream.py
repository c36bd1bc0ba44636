"""`CheckStream` of a real enforcer on either transport: every question answered once, and none lost when it ends."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from enforcer.transport.envoy import obstacle
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from tests.chaos.deployment import CAP, Deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 60
OWN_ERROR = "Internal error from Core"


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def transport(request: pytest.FixtureRequest) -> str:
    if request.param == "envoy" and (missing := obstacle()):
        pytest.skip(missing)
    return str(request.param)


@pytest.fixture
async def gateway(transport: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with Deployment(tmp_path, names="a", METERGATE_TRANSPORT=transport) as made:
        yield made


def question(place: int, feature: str = "capped", quantity: int = 1) -> pb.CheckStreamRequest:
    check = pb.CheckRequest(
        customer="ada", feature=feature, quantity=quantity, idempotency_key=f"{feature}-{place}"
    )
    return pb.CheckStreamRequest(id=place, check=check)


async def ends_for_a_stranger(stub: Any) -> None:
    nobody = (("authorization", "Bearer nobody"),)
    refused = stub.CheckStream(metadata=nobody, timeout=SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await refused.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_decides_as_single_calls_do_and_ends_without_losing_an_answer(
    gateway: Deployment,
) -> None:
    metadata = (("authorization", f"Bearer {gateway.key}"),)
    async with grpc.aio.insecure_channel(gateway.enforcers[0].listen) as channel:
        stub: Any = EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]

        # The limit lies in the midst of them: as many are allowed as it has.
        questions = [question(place, quantity=10) for place in range(CAP // 10 + 100)]
        questions += [question(9001, "nothing"), pb.CheckStreamRequest(id=9002)]
        stream = stub.CheckStream(iter_of(questions), metadata=metadata, timeout=SECONDS)
        answers = [answer async for answer in stream]
        assert sorted(one.id for one in answers) == sorted(one.id for one in questions)
        by_id = {one.id: one for one in answers}
        assert by_id.pop(9001).fault.reason == "UNKNOWN_FEATURE"
        assert by_id.pop(9002).fault.reason == "BAD_MESSAGE"
        assert sum(one.response.granted for one in by_id.values()) == CAP
        places = {
            (one.response.record.bucket, one.response.record.sequence)
            for one in by_id.values()
            if one.response.allowed
        }
        assert len(places) == CAP // 10, "a record each"
        balance = pb.GetBalanceRequest(customer="ada", feature="capped")
        (limit,) = (await stub.GetBalance(balance, metadata=metadata)).limits
        assert limit.used == CAP
        again = stub.CheckStream(iter_of([questions[0]]), metadata=metadata, timeout=SECONDS)
        (replayed,) = [answer async for answer in again]
        assert replayed.response.replayed

        await ends_for_a_stranger(stub)

        # SIGTERM in the midst of a stream that would go on for ever.
        sent: list[int] = []
        told: dict[int, bool] = {}

        async def ask() -> AsyncIterator[pb.CheckStreamRequest]:
            for place in range(10_000_000):
                sent.append(place)
                yield question(place, "calls")
                await asyncio.sleep(0.001)

        endless = stub.CheckStream(ask(), metadata=metadata, timeout=SECONDS)

        async def read() -> None:
            async for answer in endless:
                told[answer.id] = answer.response.allowed
                if len(told) == 100:
                    process = gateway.enforcers[0].process
                    assert process is not None
                    process.send_signal(signal.SIGTERM)

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read()
        # grpc.aio calls it its own error when it still writes at that moment.
        if ended.value.details() != OWN_ERROR:
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "under the same keys" in (ended.value.details() or "")
    assert await asyncio.to_thread(gateway.enforcers[0].end) == 0
    assert all(told.values())
    gateway.enforcers[0].start()
    await gateway.enforcers[0].serving()
    async with grpc.aio.insecure_channel(gateway.enforcers[0].listen) as channel:
        stub = EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        open_ones = [question(place, "calls") for place in sent]
        stream = stub.CheckStream(iter_of(open_ones), metadata=metadata, timeout=SECONDS)
        replayed_ids = {answer.id async for answer in stream if answer.response.replayed}
        assert set(told) <= replayed_ids, "what was told to be allowed counts"
        assert replayed_ids == set(told), "what was decided was told, in an end that is in order"


async def iter_of(questions: list[pb.CheckStreamRequest]) -> AsyncIterator[pb.CheckStreamRequest]:
    for one in questions:
        yield one
