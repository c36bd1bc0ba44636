"""What any gRPC client may rely on, whatever carries the calls."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from tests.conformance.conftest import KEY, Process, method, until
from tests.conformance.served import MOST_CALLS, SERVICE

if TYPE_CHECKING:
    from collections.abc import Awaitable

Channel = grpc.aio.Channel
MIB = 1024 * 1024
OWN_ERROR = "Internal error from Core"
"""What grpc.aio may call it when a stream is refused while it still writes."""


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 1000, 65_535, 200_000, 3 * MIB, 8 * MIB - 64])
async def test_a_message_comes_back_as_it_went(channel: Channel, size: int) -> None:
    sent = BytesValue(value=bytes(i % 251 for i in range(min(size, 9973))) * (size // 9973 + 1))
    sent.value = sent.value[:size]
    assert await method(channel, "Echo")(sent, metadata=KEY, timeout=60) == sent


@pytest.mark.parametrize("size", [32 * 1024, 300_000, 20 * MIB])
async def test_a_large_answer_comes_whole(channel: Channel, size: int) -> None:
    grown = await method(channel, "Grow")(StringValue(value=str(size)), metadata=KEY, timeout=60)
    assert grown.value == b"x" * size


@pytest.mark.parametrize("name", ["Echo", "Flow"])
async def test_a_message_that_is_too_large_is_refused(channel: Channel, name: str) -> None:
    sent = BytesValue(value=b"x" * (8 * MIB + 1))
    if name == "Echo":
        error = await failure(method(channel, name)(sent, metadata=KEY, timeout=60))
    else:
        flow = method(channel, name, "stream_stream")
        error = await failure(anext(aiter(flow(iter([sent]), metadata=KEY, timeout=60))))
        for _ in range(20):
            if error.details() != OWN_ERROR:
                break
            error = await failure(anext(aiter(flow(iter([sent]), metadata=KEY, timeout=60))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_answer_that_is_too_large_is_refused(channel: Channel) -> None:
    asked = StringValue(value=str(65 * MIB))
    error = await failure(method(channel, "Grow")(asked, metadata=KEY, timeout=60))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_compressed_messages_are_understood(
    process: Process, coding: grpc.Compression, kind: str
) -> None:
    sent = BytesValue(value=b"abc" * 50_000)
    async with process.channel(compression=coding) as channel:
        if kind == "unary_unary":
            got = await method(channel, "Echo")(sent, metadata=KEY, timeout=30)
        else:
            call = method(channel, "Flow", kind)(iter([sent]), metadata=KEY, timeout=30)
            got = await anext(aiter(call))
    assert got == sent


async def test_a_small_message_that_unpacks_to_a_huge_one_is_refused(process: Process) -> None:
    sent = BytesValue(value=bytes(9 * MIB))
    async with process.channel(compression=grpc.Compression.Gzip) as channel:
        error = await failure(method(channel, "Echo")(sent, metadata=KEY, timeout=60))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("metadata", "name", "code"),
    [
        ((), "Whom", "UNAUTHENTICATED"),
        ((("authorization", "Bearer nobody"),), "Whom", "UNAUTHENTICATED"),
        ((("authorization", "Basic abc"),), "Whom", "UNAUTHENTICATED"),
        (KEY, "Admin", "PERMISSION_DENIED"),
        ((("authorization", "Bearer an-admin-key"),), "Admin", "OK"),
        ((("authorization", "Bearer an-admin-key"),), "Whom", "OK"),
    ],
)
async def test_the_api_key_says_who_calls(
    channel: Channel, metadata: Any, name: str, code: str
) -> None:
    called = method(channel, name)(StringValue(), metadata=metadata, timeout=20)
    if code == "OK":
        assert (await called).value == "k2"
    else:
        assert (await failure(called)).code().name == code


async def test_a_stream_needs_an_api_key_too(channel: Channel) -> None:
    # Nothing is written: gRPC's client calls it its own error when an answer is faster than a question.
    call = method(channel, "Flow", "stream_stream")(timeout=20)
    assert (await failure(call.read())).code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("text", ["plain", "100 % größer\nzweite Zeile ✓", "x" * 1500])
async def test_an_error_comes_with_its_text_and_details(channel: Channel, text: str) -> None:
    error = await failure(
        method(channel, "Fail")(StringValue(value=text), metadata=KEY, timeout=20)
    )
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, text)
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "BAD_FEATURE",
        "metergate",
        {"field": "feature"},
    )


async def test_a_bug_is_internal_and_tells_nothing(channel: Channel) -> None:
    error = await failure(
        method(channel, "Fail")(StringValue(value="bug"), metadata=KEY, timeout=20)
    )
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")


async def test_a_method_that_nobody_serves_is_unimplemented(channel: Channel) -> None:
    for name in (f"/{SERVICE}/Nothing", "/no.Service/Check"):
        error = await failure(channel.unary_unary(name, None, None)(b"", metadata=KEY, timeout=20))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_no_message_are_an_invalid_argument(channel: Channel) -> None:
    error = await failure(
        channel.unary_unary(f"/{SERVICE}/Echo", None, None)(b"\x0a\xff", metadata=KEY, timeout=20)
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_call_ends_at_its_deadline_here_and_there(channel: Channel) -> None:
    begun = time.monotonic()
    error = await failure(
        method(channel, "Wait")(StringValue(value="60"), metadata=KEY, timeout=0.5)
    )
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun < 10
    await until(channel, "cancelled")


async def test_a_call_whose_deadline_has_passed_when_it_is_begun_does_nothing(
    channel: Channel,
) -> None:
    seen = method(channel, "Seen")
    before = await seen(StringValue(), metadata=KEY, timeout=20)
    blocked = method(channel, "Block")(StringValue(value="1"), metadata=KEY, timeout=20)
    await asyncio.sleep(0.2)
    late = [
        failure(method(channel, "Wait")(StringValue(value="0"), metadata=KEY, timeout=0.3))
        for _ in range(5)
    ]
    codes = {error.code() for error in await asyncio.gather(*late)}
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await blocked
    assert (await seen(StringValue(), metadata=KEY, timeout=20)).value == before.value


async def refusal(channel: Channel) -> grpc.aio.AioRpcError | None:
    """Why a call is not taken, if it is not."""
    try:
        await method(channel, "Echo")(BytesValue(), metadata=KEY, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_beyond_the_most_calls_one_learns_when_to_come_again(channel: Channel) -> None:
    waits = [
        method(channel, "Wait")(StringValue(value="60"), metadata=KEY) for _ in range(MOST_CALLS)
    ]
    give_up = time.monotonic() + 40
    while (told := await refusal(channel)) is None:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    assert told.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(told)  # type: ignore[arg-type]  # the stubs know grpc's calls only
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    request = error_details_pb2.RequestInfo()
    details = zip(status.details, (info, retry, request), strict=True)
    assert all([detail.Unpack(into) for detail, into in details])  # noqa: C419 - each is unpacked
    assert request.request_id
    assert (info.reason, retry.retry_delay.ToMilliseconds()) == ("OVERLOADED", 100)
    stub = health_pb2_grpc.HealthStub(channel)
    healthy = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert healthy.status == health_pb2.HealthCheckResponse.SERVING
    for call in waits:
        call.cancel()
    while await refusal(channel) is not None:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


async def test_a_call_whose_client_goes_is_cancelled(process: Process) -> None:
    async with process.channel() as channel:
        before = await method(channel, "Seen")(StringValue(), metadata=KEY, timeout=20)
        call = method(channel, "Wait")(StringValue(value="60"), metadata=KEY)
        await until(channel, "begun", before.value.count("begun") + 1)
        call.cancel()
        give_up = time.monotonic() + 20
        while True:
            now = await method(channel, "Seen")(StringValue(), metadata=KEY, timeout=20)
            if now.value.count("cancelled") > before.value.count("cancelled"):
                break
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_call_knows_its_deadline_and_metadata_and_adds_trailing_metadata(
    channel: Channel, kind: str
) -> None:
    sent = (*KEY, ("x-colour", "blue"))
    if kind == "unary_unary":
        call = method(channel, "About")(StringValue(), metadata=sent, timeout=30)
        told = (await call).value
    else:
        call = method(channel, "Abouts", kind)(iter([StringValue()]), metadata=sent, timeout=30)
        (told,) = [answer.value async for answer in call]
    left, colour = told.split(",")
    assert 0 < float(left) <= 30.1, "gRPC's client sends tenths of a second, rounded up"
    assert colour == "blue"
    assert ("x-count", "2") in tuple(await call.trailing_metadata())


async def test_a_call_without_a_deadline_has_none(channel: Channel) -> None:
    told = await method(channel, "About")(StringValue(), metadata=KEY)
    assert told.value == "no limit,None"


async def test_messages_of_a_stream_are_answered_as_they_come(channel: Channel) -> None:
    call = method(channel, "Flow", "stream_stream")(metadata=KEY, timeout=30)
    for number in range(20):
        sent = BytesValue(value=str(number).encode())
        await call.write(sent)
        assert await call.read() == sent
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    assert await call.code() is grpc.StatusCode.OK


async def test_many_messages_may_have_one_answer(channel: Channel) -> None:
    messages = iter([BytesValue(value=b"x" * 1000)] * 500)
    call = method(channel, "Count", "stream_unary")(messages, metadata=KEY, timeout=30)
    assert (await call).value == "500000"


async def test_answers_that_travel_together_do_not_end_their_connection(channel: Channel) -> None:
    """gRPC's clients widen a window with each message that they send or read; Envoy takes many for a flood."""
    call = method(channel, "Together", "stream_stream")(metadata=KEY, timeout=60)
    room, count = asyncio.Semaphore(256), 20_000

    async def ask() -> None:
        for _ in range(count):
            await room.acquire()
            await call.write(BytesValue(value=bytes(80)))
        await call.done_writing()

    asking = asyncio.create_task(ask())
    read = 0
    async for _ in call:
        read += 1
        room.release()
    await asking
    assert read == count - count % 64
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_may_fail_between_its_messages(channel: Channel) -> None:
    call = method(channel, "Flow", "stream_stream")(metadata=KEY, timeout=30)
    await call.write(BytesValue(value=b"a"))
    # Before it fails: gRPC's clients throw away what they have not read yet when a status is an error.
    assert (await call.read()).value == b"a"
    await call.write(BytesValue(value=b"fail"))
    error = await failure(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "as asked")


async def test_a_stream_whose_client_goes_is_cancelled(channel: Channel) -> None:
    call = method(channel, "Flow", "stream_stream")(metadata=KEY)
    await call.write(BytesValue(value=b"a"))
    assert (await call.read()).value == b"a"
    call.cancel()
    await until(channel, "flow cancelled")


async def test_calls_on_one_connection_do_not_wait_for_each_other(channel: Channel) -> None:
    begun = time.monotonic()
    waits = [
        method(channel, "Wait")(StringValue(value="0.5"), metadata=KEY, timeout=30)
        for _ in range(50)
    ]
    await asyncio.gather(*waits)
    assert time.monotonic() - begun < 10


async def test_health_is_told_and_watched(channel: Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", SERVICE):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert answer.status == serving
    error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=20))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert (await watched.read()).status == serving
    watched.cancel()


async def test_reflection_lists_services_and_describes_them(channel: Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    listed, described = [
        answer async for answer in stub.ServerReflectionInfo(iter(asked), timeout=20)
    ]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


GARBAGE = {
    "no HTTP": bytes(range(256)) * 40,
    "HTTP/1.1": b"POST /enforcer.v1.EnforcerService/Echo HTTP/1.1\r\nHost: a\r\n\r\n",
    "half a preface": b"PRI * HTTP/2.0\r\n\r\n",
    "half a frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x40\1",
    "a huge frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\1\4\0\0\0\1",
    "nothing": b"",
}


async def test_who_sends_garbage_or_never_reads_disturbs_nobody(
    process: Process, channel: Channel
) -> None:
    spoiled = []
    for sent in list(GARBAGE.values()) * 5:
        _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(sent)
        spoiled.append(writer)
    async with process.channel() as deaf:
        # Asks for far more than anybody buffers, and reads none of it.
        call = method(deaf, "Flow", "stream_stream")(metadata=KEY)
        sending = asyncio.create_task(_flood(call))
        for number in range(50):
            sent_back = BytesValue(value=str(number).encode())
            echo = await method(channel, "Echo")(sent_back, metadata=KEY, timeout=20)
            assert echo == sent_back
        sending.cancel()
        call.cancel()
    for writer in spoiled:
        writer.close()
    assert process.process.poll() is None


async def _flood(call: Any) -> None:
    while True:
        await call.write(BytesValue(value=bytes(100_000)))


CLIENTS = 1_000
"""More than the 1,024 open files that a process often begins with."""
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def watching() -> bytes:
    """What a client that watches health sends, in plain HTTP/2: a channel of gRPC's for each would take a minute."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Watch",
        ":authority": "here",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(
        bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in headers.items()
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, block)
        + frame(DATA, END_STREAM, 1, bytes(5))
    )


class Watcher:
    """One of many clients that hold a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Watcher:
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        made._writer.write(watching())
        return made

    async def hears(self, wanted: int, flags: int = 0) -> bytes:
        """Wait for a frame; return what is in it."""
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == SETTINGS and not head[4] & ACK:
                self._writer.write(frame(SETTINGS, ACK, 0))
            if head[3] == wanted and head[4] & flags == flags and payload:
                return payload

    async def lives(self) -> bool:
        self._writer.write(frame(PING, 0, 0, b"still on"))
        return await self.hears(PING, ACK) == b"still on"

    def close(self) -> None:
        self._writer.transport.abort()


async def test_a_thousand_connections_are_held_and_others_are_served(
    process: Process, channel: Channel
) -> None:
    watchers = await asyncio.gather(*(Watcher.connect(process.port) for _ in range(CLIENTS)))
    try:
        async with asyncio.timeout(100):
            told = await asyncio.gather(*(one.hears(DATA) for one in watchers))
            serving = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()
            assert set(told) == {bytes(4) + bytes((len(serving),)) + serving}
            for number in range(50):
                sent = BytesValue(value=str(number).encode())
                assert await method(channel, "Echo")(sent, metadata=KEY, timeout=20) == sent
            assert all(await asyncio.gather(*(one.lives() for one in watchers)))
    finally:
        for one in watchers:
            one.close()
    assert process.process.poll() is None
