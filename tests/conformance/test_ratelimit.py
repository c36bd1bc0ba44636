"""What an Envoy may rely on, whatever carries its question."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from enforcer.ratelimit import rls_pb2 as pb
from enforcer.ratelimit.descriptor_pb2 import RateLimitDescriptor
from enforcer.ratelimit.rls_pb2_grpc import RateLimitServiceStub
from tests.conformance.conftest import KEY, Process, _needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OK, OVER = 1, 2


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    _needs(request.param)
    log = tmp_path_factory.mktemp("limited") / "log"
    opened = Process(request.param, log, module="tests.conformance.limited")
    asyncio.run(opened.serving())
    yield opened
    opened.end()


@pytest.fixture
async def opened(limited: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with limited.channel() as channel:
        yield channel


def question(*customers: str, domain: str = "shop", hits: int = 0) -> pb.RateLimitRequest:
    entry = RateLimitDescriptor.Entry
    return pb.RateLimitRequest(
        domain=domain,
        hits_addend=hits,
        descriptors=[
            RateLimitDescriptor(entries=[entry(key="customer", value=customer)])
            for customer in customers
        ],
    )


async def ask(channel: grpc.aio.Channel, request: pb.RateLimitRequest, key: Any = KEY) -> Any:
    stub: Any = RateLimitServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
    return await stub.ShouldRateLimit(request, metadata=key, timeout=30)


async def code(channel: grpc.aio.Channel, request: pb.RateLimitRequest, key: Any = KEY) -> str:
    try:
        await ask(channel, request, key)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_an_envoy_learns_what_passes_and_what_is_left(opened: grpc.aio.Channel) -> None:
    # Of the whole module, only here: the process keeps its counters.
    answers = [await ask(opened, question("acme", hits=hits)) for hits in (0, 3, 2)]
    left = [(answer.overall_code, answer.statuses[0].limit_remaining) for answer in answers]
    assert left == [(OK, 4), (OK, 1), (OVER, 1)]
    told = {header.key: header.value for header in answers[-1].response_headers_to_add}
    assert told["x-ratelimit-limit"] == '5, 5;w=86400;name="daily"'
    assert 0 < int(told["retry-after"]) <= 86_400
    both = await ask(opened, question("acme", "acme"))
    assert both.overall_code == OVER
    assert sorted(status.code for status in both.statuses) == [OK, OVER]
    last = await ask(opened, question("acme"))
    assert (last.overall_code, last.statuses[0].limit_remaining) == (OK, 0)


async def test_faults_are_errors_and_never_let_pass(opened: grpc.aio.Channel) -> None:
    fine = question("endless")
    assert await code(opened, fine) == "OK"
    assert await code(opened, fine, ()) == "UNAUTHENTICATED"
    assert await code(opened, fine, (("authorization", "Bearer x"),)) == "UNAUTHENTICATED"
    stranger = (("authorization", "Bearer a-strangers-key"),)
    assert await code(opened, fine, stranger) == "NOT_FOUND"
    assert await code(opened, question("endless", domain="x")) == "NOT_FOUND"
    assert await code(opened, question()) == "INVALID_ARGUMENT"
    assert await code(opened, question("endless", hits=666)) == "INTERNAL"


async def test_fields_that_are_not_known_here_do_not_matter(opened: grpc.aio.Channel) -> None:
    unknown = b"\x9a\x06\x03abc"  # field 99
    sent = pb.RateLimitRequest.FromString(question("endless").SerializeToString() + unknown)
    assert sent.SerializeToString().endswith(unknown)
    assert (await ask(opened, sent)).overall_code == OK


async def test_reflection_shows_the_service_with_its_messages(opened: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(opened)
    asked = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="envoy.service.ratelimit.v3.RateLimitService"
    )
    answer = await anext(aiter(stub.ServerReflectionInfo(iter([asked]), timeout=30)))
    pool = descriptor_pool.DescriptorPool()
    # What is imported comes last.
    for file in reversed(answer.file_descriptor_response.file_descriptor_proto):
        pool.AddSerializedFile(file)
    service = pool.FindServiceByName("envoy.service.ratelimit.v3.RateLimitService")
    (method,) = service.methods
    assert method.input_type.full_name == "envoy.service.ratelimit.v3.RateLimitRequest"
    assert method.input_type.fields_by_name["hits_addend"].number == 3
