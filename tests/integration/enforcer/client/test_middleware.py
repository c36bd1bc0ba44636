"""Routes and methods that are metered: who is let through, and what the others are told."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.client import ConfigurationError, NotFoundError, Reason, Verdict
from enforcer.client.asgi import VERDICT, MeteringMiddleware, Route, header
from enforcer.client.interceptor import MeteringInterceptor, Rpc, metadata
from enforcer.v1 import enforcer_pb2 as pb
from tests.fixtures.fake_gateway import Arrived, FakeGateway, RefusalError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from enforcer.client import Client

ROUTES = [
    Route("GET", "/v1/exports/{id}", "export.pdf"),
    Route("POST", "/v1/exports", "export.pdf", quantity=lambda scope: len(scope["path"])),
    Route("*", "/files/{rest:path}", "files", dimensions={"by": "route"}),
    Route("WEBSOCKET", "/live", "live"),
]


def denial(reason: pb.Reason.ValueType, wait_ms: int = 0) -> Callable[..., pb.CheckResponse]:
    def answer(_: pb.CheckRequest) -> pb.CheckResponse:
        found = pb.CheckResponse(reason=reason)
        if wait_ms:
            found.retry_after.FromMilliseconds(wait_ms)
        return found

    return answer


class Web:
    """An application behind the middleware, asked as a server asks it."""

    def __init__(self, client: Client, customer: Any = None) -> None:
        self.served: list[dict[str, Any]] = []
        self.app = MeteringMiddleware(
            self.serve, client=client, routes=ROUTES, customer=customer or header("X-Customer")
        )

    async def serve(self, scope: Any, _: Any, send: Any) -> None:
        self.served.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(
        self, method: str, path: str, *headers: tuple[bytes, bytes], **scope: Any
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and JSON."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        given = headers or ((b"x-customer", b"acme"),)
        asked = {"type": "http", "method": method, "path": path, "headers": given, **scope}
        await self.app(asked, receive, send)
        self.sent = sent
        if sent[0]["type"] == "websocket.close":
            return sent[0]["code"], {}, {}
        told = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return sent[0]["status"], told, json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("method", "path", "used"),
    [
        ("GET", "/v1/exports/7", ("export.pdf", 1)),
        ("HEAD", "/v1/exports/7", ("export.pdf", 1)),
        ("GET", "/v1/exports/7/", ("export.pdf", 1)),
        ("POST", "/v1/exports", ("export.pdf", 11)),
        ("DELETE", "/files/a/b.txt", ("files", 1)),
        ("GET", "/v1/exports/7/pages", None),
        ("PUT", "/v1/exports/7", None),
        ("GET", "/v1/exportsX", None),
    ],
)
async def test_a_request_uses_the_feature_of_the_first_route_that_matches(
    fake: FakeGateway, method: str, path: str, used: tuple[str, int] | None
) -> None:
    async with fake.client() as client:
        web = Web(client)
        status, _, _ = await web.ask(method, path)
    assert status == 200
    expected = {("acme", used[0]): used[1]} if used else {}
    assert fake.used == expected
    [scope] = web.served
    assert (VERDICT in scope) is bool(used)
    if used:
        assert scope[VERDICT] == Verdict(allowed=True, granted=used[1])


@pytest.mark.parametrize(
    ("reason", "wait_ms", "status", "retry_after"),
    [
        (pb.REASON_RATE_LIMITED, 1200, 429, "2"),
        (pb.REASON_RATE_LIMITED, 1, 429, "1"),
        (pb.REASON_QUOTA_EXCEEDED, 0, 429, None),
        (pb.REASON_NO_SEATS, 0, 429, None),
        (pb.REASON_NOT_ENTITLED, 0, 403, None),
        (pb.REASON_SUSPENDED, 0, 403, None),
    ],
)
async def test_a_denied_request_is_told_why_and_never_reaches_the_application(
    fake: FakeGateway,
    reason: pb.Reason.ValueType,
    wait_ms: int,
    status: int,
    retry_after: str | None,
) -> None:
    fake.answer = denial(reason, wait_ms)
    async with fake.client() as client:
        web = Web(client)
        answered, headers, problem = await web.ask("GET", "/v1/exports/7")
    assert answered == problem["status"] == status
    assert not web.served
    assert headers["content-type"] == "application/problem+json"
    assert headers.get("retry-after") == retry_after
    assert problem["reason"] == pb.Reason.Name(reason).removeprefix("REASON_").lower()


async def test_a_request_that_names_no_customer_or_two_is_refused(fake: FakeGateway) -> None:
    async with fake.client() as client:
        web = Web(client)
        for headers in (
            [(b"x-other", b"acme")],
            [(b"x-customer", b"")],
            [(b"x-customer", b"acme"), (b"X-Customer", b"bob")],
        ):
            status, _, problem = await web.ask("GET", "/v1/exports/7", *headers)
            assert (status, problem["reason"]) == (400, "customer_required")
    assert not web.served
    assert not fake.calls


async def test_the_customer_may_come_from_what_has_authenticated_the_caller(
    fake: FakeGateway,
) -> None:
    async def customer(scope: Any) -> str | None:
        return str(scope["user"])

    async with fake.client() as client:
        await Web(client, customer).ask("GET", "/v1/exports/7", user="bob")
    assert fake.used == {("bob", "export.pdf"): 1}


async def test_a_gateway_that_is_away_lets_nobody_through_unmarked(fake: FakeGateway) -> None:
    async def away(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    fake.before = away
    async with fake.client(timeout=0.2) as client:
        web = Web(client)
        status, _, problem = await web.ask("GET", "/v1/exports/7")
    assert (status, problem["reason"]) == (503, "gateway_unavailable")
    assert not web.served


async def test_an_unknown_customer_is_forbidden_and_an_unknown_feature_is_the_service_s_fault(
    fake: FakeGateway,
) -> None:
    reason = "UNKNOWN_CUSTOMER"

    async def unknown(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.NOT_FOUND, reason)

    fake.before = unknown
    async with fake.client() as client:
        web = Web(client)
        status, _, problem = await web.ask("GET", "/v1/exports/7")
        assert (status, problem["reason"]) == (403, "unknown_customer")
        reason = "UNKNOWN_FEATURE"
        with pytest.raises(NotFoundError):
            await web.ask("GET", "/v1/exports/7")
    assert not web.served


async def test_a_socket_is_refused_before_it_is_accepted(fake: FakeGateway) -> None:
    fake.answer = denial(pb.REASON_NO_SEATS)
    async with fake.client() as client:
        web = Web(client)
        code, _, _ = await web.ask("GET", "/live", type="websocket")
        assert code == 1008
        status, _, problem = await web.ask(
            "GET", "/live", type="websocket", extensions={"websocket.http.response": {}}
        )
        assert (status, problem["reason"]) == (429, "no_seats")
        assert web.sent[0]["type"] == "websocket.http.response.start"
    assert not web.served


@pytest.mark.parametrize("path", ["v1", "/v1/{id", "/v1/{id:int}"])
async def test_a_path_that_is_not_understood_is_refused_at_once(
    fake: FakeGateway, path: str
) -> None:
    with pytest.raises(ConfigurationError, match="path"):
        MeteringMiddleware(
            lambda *_: contextlib.nullcontext(),  # type: ignore[arg-type]
            client=fake.client(),
            routes=[Route("GET", path, "f")],
            customer=header("x"),
        )


# -- gRPC

SERVICE = "shop.Orders"


def encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()  # grpc.aio encodes some of it itself


class Orders:
    """A service of all four kinds over text, with the interceptor before it."""

    def __init__(self, interceptor: MeteringInterceptor) -> None:
        self.ran: list[str] = []
        self.server = grpc.aio.server(interceptors=[interceptor])
        coded: dict[str, Any] = {
            "request_deserializer": bytes.decode,
            "response_serializer": encoded,
        }

        async def place(request: str, _: Any) -> str:
            self.ran.append(request)
            return request.upper()

        async def watch(request: str, _: Any) -> AsyncIterator[str]:
            for one in request:
                self.ran.append(one)
                yield one

        async def tell(request: str, context: Any) -> None:
            self.ran.append(request)
            await context.write("told")

        async def gather(requests: AsyncIterator[str], _: Any) -> str:
            return "".join([one async for one in requests])

        async def talk(requests: AsyncIterator[str], _: Any) -> AsyncIterator[str]:
            async for one in requests:
                yield one

        handlers: dict[str, Any] = {
            "Place": grpc.unary_unary_rpc_method_handler(place, **coded),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, **coded),
            "Tell": grpc.unary_stream_rpc_method_handler(tell, **coded),
            "Gather": grpc.stream_unary_rpc_method_handler(gather, **coded),
            "Talk": grpc.stream_stream_rpc_method_handler(talk, **coded),
        }
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self.channel: Any = None

    async def __aenter__(self) -> Self:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)

    def method(self, kind: str, name: str) -> Any:
        return getattr(self.channel, kind)(
            f"/{SERVICE}/{name}", request_serializer=encoded, response_deserializer=bytes.decode
        )


ACME = (("x-customer", "acme"),)
RPCS = [Rpc(f"/{SERVICE}/*", "orders"), Rpc(f"/{SERVICE}/Place", "place", quantity=len)]


async def test_every_kind_of_method_is_metered_by_its_rule(fake: FakeGateway) -> None:
    async with fake.client(timeout=60, attempt_timeout=60) as client:
        meter = MeteringInterceptor(client, rpcs=RPCS, customer=metadata("X-Customer"))
        async with Orders(meter) as orders:
            place = orders.method("unary_unary", "Place")
            # The gateway sees what is left of the caller's deadline.
            assert await place("abc", metadata=ACME, timeout=20) == "ABC"
            [call] = fake.calls
            assert call.remaining is not None
            assert call.remaining < 20.1
            for name, answers in (("Watch", ["a", "b"]), ("Tell", ["told"])):
                told = orders.method("unary_stream", name)("ab", metadata=ACME, timeout=30)
                assert [one async for one in told] == answers
            gather = orders.method("stream_unary", "Gather")
            assert await gather(iter("xy"), metadata=ACME, timeout=30) == "xy"
            talk = orders.method("stream_stream", "Talk")(iter("xy"), metadata=ACME, timeout=30)
            assert [one async for one in talk] == ["x", "y"]
    assert fake.used == {("acme", "place"): 3, ("acme", "orders"): 4}


@pytest.mark.parametrize(
    ("reason", "wait_ms", "code"),
    [
        (pb.REASON_RATE_LIMITED, 1200, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (pb.REASON_CREDITS_EXHAUSTED, 0, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (pb.REASON_EXPIRED, 0, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_a_denied_call_ends_with_its_reason_and_never_reaches_the_handler(
    fake: FakeGateway, reason: pb.Reason.ValueType, wait_ms: int, code: grpc.StatusCode
) -> None:
    fake.answer = denial(reason, wait_ms)
    async with fake.client() as client:
        meter = MeteringInterceptor(client, rpcs=RPCS, customer=metadata("x-customer"))
        async with Orders(meter) as orders:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await orders.method("unary_unary", "Place")("abc", metadata=ACME, timeout=30)
            watch = orders.method("unary_stream", "Watch")("ab", metadata=ACME, timeout=30)
            with pytest.raises(grpc.aio.AioRpcError):
                assert [one async for one in watch]
            assert not orders.ran
    failed: Any = caught.value
    assert failed.code() is code
    status = rpc_status.from_call(failed)
    assert status is not None
    info, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (
        pb.Reason.Name(reason).removeprefix("REASON_"),
        "metergate",
    )
    assert info.metadata["feature"] == "place"
    assert len(status.details) == (2 if wait_ms else 1)
    if wait_ms:
        assert status.details[1].Unpack(wait)
        assert wait.retry_delay.seconds == 2
        assert ("retry-after", "2") in tuple(failed.trailing_metadata())


async def test_a_call_without_a_customer_is_refused_and_other_services_are_left_alone(
    fake: FakeGateway,
) -> None:
    async with fake.client() as client:
        meter = MeteringInterceptor(
            client, rpcs=[Rpc(f"/{SERVICE}/Place", "place")], customer=metadata("x-customer")
        )
        async with Orders(meter) as orders:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await orders.method("unary_unary", "Place")("abc", timeout=30)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            watch = orders.method("unary_stream", "Watch")("ab", timeout=30)
            assert [one async for one in watch] == ["a", "b"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await orders.method("unary_unary", "Nothing")("abc", timeout=30)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not fake.calls


@pytest.mark.parametrize("method", ["Place", "/Place", "/a/b/c", "/a/", "//a"])
def test_what_is_no_method_is_refused_at_once(method: str) -> None:
    with pytest.raises(ConfigurationError, match="no method"):
        Rpc(method, "f")


def test_every_reason_to_deny_has_a_status() -> None:
    from enforcer.client.refusals import by_verdict  # noqa: PLC0415 - only here

    statuses = {
        reason: by_verdict("f", Verdict(allowed=False, reason=reason)).http for reason in Reason
    }
    assert {reason for reason, status in statuses.items() if status == 403} == {
        reason for reason in Reason if reason.of_terms
    }
    assert [reason for reason, status in statuses.items() if status == 503] == [
        Reason.GATEWAY_UNAVAILABLE
    ]
