"""The services on grpc.aio: the reference transport."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from grpc_status import rpc_status

from enforcer.errors import MisconfiguredError
from enforcer.transport.callers import authorization_in
from enforcer.transport.dispatch import (
    COMPRESSED_FROM,
    Call,
    Dispatch,
    FailedError,
)
from enforcer.transport.framing import LONGEST_REQUEST, LONGEST_RESPONSE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from enforcer.metrics import Metrics
    from enforcer.transport.callers import Callers
    from enforcer.transport.services import Method

__all__ = ["GrpcServer"]

DRAIN_SECONDS = 10.0
GONE_SECONDS = 0.01


class _Call(Call):
    """On a context of grpc.aio."""

    __slots__ = ("_context",)

    def __init__(self, context: Any) -> None:
        self._context = context
        left = context.time_remaining()
        super().__init__(
            authorization_in(context.invocation_metadata()),
            None if left is None else time.monotonic() + left,
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        pairs = self._context.invocation_metadata() or ()
        return {name: value for name, value in pairs if isinstance(value, str)}


class GrpcServer:
    """Serves `methods` at `listen`. Health says SERVING while `ready`."""

    def __init__(self, methods: Sequence[Method], callers: Callers, metrics: Metrics) -> None:
        self._dispatch = Dispatch(methods, callers, metrics)
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", LONGEST_REQUEST),
                ("grpc.max_send_message_length", LONGEST_RESPONSE),
            ]
        )
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in self._dispatch.routes.values():
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
                response = await answer(method, call, data)
            except FailedError as error:
                return await _abort(context, error)
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
                async for response in answer(method, call, _whole(messages)):
                    yield response
            except FailedError as error:
                await _abort(context, error)
            if call.trailing:
                context.set_trailing_metadata(tuple(call.trailing))

        return grpc.stream_stream_rpc_method_handler(handle)

    async def start(self, listen: str) -> None:
        """Listen. Raise `MisconfiguredError` when the address cannot be had."""
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise MisconfiguredError(
                f"METERGATE_LISTEN: cannot listen on {listen}: is the port in use?"
            ) from error
        await self._server.start()

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""
        self._dispatch.health.turn(serving=serving)

    async def stop(self) -> None:
        """Refuse new calls and let running ones end."""
        self._dispatch.health.end()
        await self._server.stop(DRAIN_SECONDS)


async def _whole(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The messages of a stream. grpcio says that they end also when the client has gone, and a moment later that it has."""
    async for message in messages:
        yield message
    await asyncio.sleep(GONE_SECONDS)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: FailedError) -> NoReturn:
    aborting: Any = context  # the stubs lack abort_with_status
    await aborting.abort_with_status(rpc_status.to_status(error.status))
    raise AssertionError  # the call was aborted
