"""gRPC over ASGI, without a server: what is sent for what is received."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from enforcer.metrics import Metrics
from enforcer.ports.definitions import Caller
from enforcer.transport.asgi import AsgiServer
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.services import Method
from enforcer.transport.tenants import Tenants

if TYPE_CHECKING:
    from enforcer.transport.dispatch import Call

KEY = (b"authorization", b"Bearer key")


class _Definitions:
    async def caller(self, key: str) -> Caller | None:
        return Caller("demo", "k", "check") if key == "key" else None


async def _echo(_: Call, request: BytesValue) -> BytesValue:
    return request


def _message(body: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(body).to_bytes(4, "big") + body


async def ask(
    *chunks: bytes, slow: bool = False, tenants: Tenants | None = None, **changes: Any
) -> dict[str, Any]:
    """Send one request in chunks; the answer: HTTP status, body, headers and trailers together. `slow`: it does not end."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/a.B/Echo",
        "headers": [KEY, (b"content-type", b"application/grpc"), (b"te", b"trailers")],
    } | {name: value for name, value in changes.items() if name != "more"}
    scope["headers"] = [*scope["headers"], *changes.get("more", [])]
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": slow or place + 1 < len(chunks)}
        for place, chunk in enumerate(chunks)
    ]
    answer: dict[str, Any] = {"body": b"", "headers": {}}

    async def receive() -> dict[str, Any]:
        if not waiting and slow:
            await asyncio.Event().wait()
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        answer["status"] = event.get("status", answer.get("status"))
        answer["body"] += event.get("body", b"")
        answer["headers"] |= dict(event.get("headers", ()))

    method = Method("a.B", "Echo", BytesValue, BytesValue, "check", _echo)
    callers = Callers(_Definitions())  # type: ignore[arg-type]
    server = AsgiServer(Dispatch([method], callers, Metrics(), tenants=tenants))
    await server(scope, receive, send)
    assert server.running == 0
    return answer


ECHO = BytesValue(value=b"abc" * 100).SerializeToString()


async def test_who_waits_for_a_refusal_is_not_asked_whether_it_is_still_there() -> None:
    """It takes longer than what is watched, and a flood has hundreds: this client would say that it has gone."""
    tenants = Tenants(rate=1)
    tenants.enter("demo", 100, time.monotonic())
    answer = await ask(_message(ECHO), tenants=tenants)
    assert answer["headers"][b"grpc-status"] == b"8"


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100, 10_000])
async def test_a_message_may_come_in_any_pieces(size: int) -> None:
    whole = _message(ECHO)
    answer = await ask(*(whole[at : at + size] for at in range(0, len(whole), size)), b"")
    assert (answer["status"], answer["body"]) == (200, whole)
    assert answer["headers"][b"grpc-status"] == b"0"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", b"13", b"one message, this one has 0"),
        (b"\0\0\0", b"13", b"within a message"),
        (_message(ECHO)[:-1], b"13", b"within a message"),
        (_message(ECHO) * 2, b"13", b"this one has 2"),
        (_message(ECHO, 7), b"13", b"not 0 or 1"),
        (b"\0\xff\xff\xff\xff", b"8", b"at most 8388608"),
        (_message(b"xx", 1), b"12", b"grpc-encoding 'none'"),
    ],
)
async def test_what_is_no_message_ends_with_a_clear_status(
    body: bytes, status: bytes, words: bytes
) -> None:
    answer = await ask(body)
    assert (answer["status"], answer["headers"][b"grpc-status"]) == (200, status)
    assert words in answer["headers"][b"grpc-message"]


@pytest.mark.parametrize("cut", [0, 1])
async def test_gzip_is_read_and_must_be_whole(cut: int) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(ECHO) + packer.flush()
    body = _message(packed[: len(packed) - 9 * cut], 1)
    answer = await ask(body, more=[(b"grpc-encoding", b"gzip")])
    assert answer["headers"][b"grpc-status"] == (b"13" if cut else b"0")
    assert answer["body"] == (b"" if cut else _message(ECHO))


@pytest.mark.parametrize("taken", [b"identity", b"identity, deflate, gzip"])
async def test_a_large_answer_is_packed_for_who_takes_it(taken: bytes) -> None:
    large = BytesValue(value=b"x" * 100_000).SerializeToString()
    answer = await ask(_message(large), more=[(b"grpc-accept-encoding", taken)])
    body = answer["body"]
    assert body[0] == (b"gzip" in taken)
    assert (zlib.decompress(body[5:], 31) if body[0] else body[5:]) == large
    assert answer["headers"].get(b"grpc-encoding") == (b"gzip" if body[0] else None)


async def test_what_is_not_grpc_is_415() -> None:
    for headers in ([], [(b"content-type", b"application/json")]):
        assert (await ask(b"{}", headers=headers))["status"] == 415
    assert (await ask(b"", method="GET"))["status"] == 415


async def test_a_client_that_goes_in_the_middle_gets_nothing() -> None:
    assert "status" not in await ask()


@pytest.mark.parametrize("chunks", [(), (_message(ECHO)[:3],), (_message(ECHO),)])
async def test_a_request_that_does_not_end_is_given_up(
    chunks: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enforcer.transport.asgi.BODY_SECONDS", 0.05)
    answer = await asyncio.wait_for(ask(*chunks, slow=True), 20)
    assert answer["headers"][b"grpc-status"] == b"4"


async def test_texts_of_errors_are_percent_encoded() -> None:
    answer = await ask(_message(ECHO), path="/a.B/größe%")
    assert answer["headers"][b"grpc-message"] == b"no method /a.B/gr%C3%B6%C3%9Fe%25 is served here"
