"""The services on grpc.aio: the reference transport."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.errors import MisconfiguredError
from enforcer.transport.callers import authorization_in
from enforcer.transport.dispatch import (
    COMPRESSED_FROM,
    LATE,
    Call,
    FailedError,
)
from enforcer.transport.edge import (
    HANDSHAKE_SECONDS,
    LARGEST_HEADERS,
    Edge,
    certificates_of,
)
from enforcer.transport.framing import LONGEST_REQUEST, LONGEST_RESPONSE, WireError, sendable
from meter.transport.credentials import server_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from enforcer.transport.dispatch import Dispatch
    from enforcer.transport.services import Method

__all__ = ["GrpcServer", "end_for_sure"]

AGE_SECONDS = 5.0
"""So old a connection gets (a tenth more or less) until its client is told to make another."""
LEAVE_SECONDS = 0.5
"""So long a client takes to make it."""
DRAIN_SECONDS = 8.0
STOP_SECONDS = 5.0
GONE_SECONDS = 0.01
END_SECONDS = 5.0
SHORTEST_PROBE_MS = 500
FOREVER_MS = 2**31 - 1
_OWN_FILES = "/proc/self/fd"
_PLAIN = Edge()


class _Call(Call):
    """On a context of grpc.aio."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context
        left, now = context.time_remaining(), time.monotonic()
        super().__init__(
            authorization_in(context.invocation_metadata()),
            now,
            None if left is None else now + left,
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        pairs = self._context.invocation_metadata() or ()
        return {name: value for name, value in pairs if isinstance(value, str)}


class GrpcServer:
    """Serves at `listen`. Health says SERVING while `ready`. `drain`: seconds that clients have for leaving at the end."""

    def __init__(
        self,
        dispatch: Dispatch,
        age: float = AGE_SECONDS,
        drain: float = DRAIN_SECONDS,
        edge: Edge = _PLAIN,
    ) -> None:
        self._dispatch, self._drain, self._edge = dispatch, drain, edge
        self._oldest = age * 1.1 + LEAVE_SECONDS
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_connection_age_ms", int(age * 1000)),
                ("grpc.max_connection_age_grace_ms", FOREVER_MS),  # for the calls it has
                # Clients may probe whether a silent connection lives; gRPC takes more than one
                # probe in five minutes for an attack, and breaks the connection off.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", SHORTEST_PROBE_MS),
                ("grpc.max_concurrent_streams", edge.most_streams),
                ("grpc.max_metadata_size", LARGEST_HEADERS),
                # Of TLS and of HTTP/2's first frames; two minutes, if nothing is said.
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
                ("grpc.max_receive_message_length", LONGEST_REQUEST),
                ("grpc.max_send_message_length", LONGEST_RESPONSE),
            ]
        )
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in dispatch.routes.values():
            handler = self._stream(method) if method.stream else self._unary(method)
            by_service.setdefault(method.service, {})[method.name] = handler
        for service, handlers in by_service.items():
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        self.port = 0

    def _unary(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        answer = self._dispatch.unary

        # grpcio's own conversions are left out: messages pass as bytes, as on every transport.
        async def handle(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            call = _Call(context)
            try:
                async with asyncio.timeout(call.time_left()):
                    response = await answer(method, call, data)
                # grpcio's own refusal of it may be lost when the connection has its age.
                sendable(response)
            except FailedError as error:
                return await _abort(context, error)
            except WireError as error:
                status = status_pb2.Status(code=error.code, message=error.message)
                return await _abort(context, FailedError(status))
            except TimeoutError:
                return await _abort(context, FailedError(LATE))
            if call.trailing:
                context.set_trailing_metadata(tuple(call.trailing))
            if len(response) >= COMPRESSED_FROM:
                context.set_compression(grpc.Compression.Gzip)
            return response

        return grpc.unary_unary_rpc_method_handler(handle)

    def _stream(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        answer = self._dispatch.stream

        async def handle(
            messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[bytes]:
            call = _Call(context)
            try:
                async with asyncio.timeout(call.time_left()):
                    async for responses in answer(method, call, _whole(messages)):
                        for response in responses:
                            yield response
            except FailedError as error:
                await _abort(context, error)
            except TimeoutError:
                await _abort(context, FailedError(LATE))
            if call.trailing:
                context.set_trailing_metadata(tuple(call.trailing))

        return grpc.stream_stream_rpc_method_handler(handle)

    async def start(self, listen: str) -> None:
        """Listen. Raise `MisconfiguredError` when the address cannot be had."""
        try:
            if self._edge.tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                credentials = server_credentials(certificates_of(self._edge.tls))
                self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise MisconfiguredError(
                f"METERGATE_LISTEN: cannot listen on {listen}: is the port in use?"
            ) from error
        await self._server.start()

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""
        self._dispatch.health.turn(serving=serving)

    async def stop(self) -> None:
        """Let clients go elsewhere and running calls end.

        grpcio's own stop cuts off calls that have come and that it has not begun. So first nobody can connect any more,
        and who is connected is told to leave by the age of the connection, which loses no call. Who watches the health,
        as the Python client does, would hold its calls back until then: it is told when it must have left.
        """
        self._dispatch.health.leave()
        _stop_listening(self.port)
        begun = time.monotonic()
        for until in sorted({min(self._oldest, self._drain), self._drain}):
            while _connected(self.port) and time.monotonic() < begun + until:  # noqa: ASYNC110 - grpcio does not tell
                await asyncio.sleep(0.05)
            self._dispatch.health.end()
        await self._server.stop(STOP_SECONDS)


def end_for_sure(seconds: float = END_SECONDS) -> None:
    """Let this process, which has nothing left to do, be over at the latest in so long.

    grpc.aio 1.76 may wait for ever for its own polling thread when its loop is closed: seen once, after a thousand
    connections, with the server stopped and all calls answered.
    """
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


async def _whole(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The messages of a stream. grpcio says that they end also when the client has gone, and a moment later that it has."""
    async for message in messages:
        yield message
    await asyncio.sleep(GONE_SECONDS)


def _stop_listening(port: int) -> None:
    """Refuse new connections; grpcio itself can do so only together with all else."""
    for found in _sockets():
        with suppress(OSError):  # gRPC's own threads may close it at any moment
            if _port(found) == port and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.shutdown(socket.SHUT_RDWR)


def _connected(port: int) -> bool:
    """Whether there are clients."""
    found = False
    for one in _sockets():
        if _port(one) == port:
            with suppress(OSError):  # closed already, or one that listened
                one.getpeername()
                found = True
    return found


def _sockets() -> Iterator[socket.socket]:
    """This process's own. None where the system does not tell (not Linux)."""
    for place in os.listdir(_OWN_FILES) if os.path.exists(_OWN_FILES) else ():  # noqa: PTH110, PTH208
        try:
            found = socket.socket(fileno=int(place))
        except OSError:
            continue  # another file, or closed meanwhile
        try:
            yield found
        finally:
            found.detach()


def _port(found: socket.socket) -> int:
    """At which it listens or is connected here."""
    with suppress(OSError):
        if found.family in {socket.AF_INET, socket.AF_INET6}:
            return int(found.getsockname()[1])
    return 0


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: FailedError) -> NoReturn:
    aborting: Any = context  # the stubs lack abort_with_status
    await aborting.abort_with_status(rpc_status.to_status(error.status))
    raise AssertionError  # the call was aborted
