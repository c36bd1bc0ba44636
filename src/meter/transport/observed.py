"""Tells of every finished call: which method, with which status, how long it took."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Observed"]

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class Observed(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Tells `observe(method, code, seconds)` of unary calls; health and reflection are not spoken of."""

    def __init__(self, observe: Callable[[str, str, float], None]) -> None:
        self._observe = observe

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """For gRPC, once a call."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        if handler is None or handler.unary_unary is None or method.startswith("grpc."):
            return handler  # type: ignore[no-any-return]
        answer = handler.unary_unary

        async def observed(request: Any, context: Any) -> Any:
            start, code = time.perf_counter(), "UNKNOWN"
            try:
                response = await answer(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = _NAMES.get(_number(context.code()), code)
                raise
            else:
                code = "OK"
                return response
            finally:
                self._observe(method, code, time.perf_counter() - start)

        return grpc.unary_unary_rpc_method_handler(
            observed, handler.request_deserializer, handler.response_serializer
        )


def _number(code: Any) -> int:
    """What was put in, an enum or its number, is what the context gives."""
    return int(code.value[0] if isinstance(code, grpc.StatusCode) else code)
