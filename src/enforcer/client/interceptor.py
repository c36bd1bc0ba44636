"""A gRPC server interceptor (grpc.aio): checks by method before the handler runs.

A denial ends the call with PERMISSION_DENIED where the customer's terms do not cover it,
RESOURCE_EXHAUSTED where something is used up, UNAVAILABLE where nobody could decide, INVALID_ARGUMENT
where the call names no customer; with `google.rpc.ErrorInfo` (domain "metergate") and, where waiting
helps, `RetryInfo` and the trailing metadata `retry-after` in seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs

from enforcer.client.errors import DETAILS, ClientError, ConfigurationError
from enforcer.client.refusals import CUSTOMER_REQUIRED, Refusal, by_error, by_verdict

if TYPE_CHECKING:
    from enforcer.client.client import Client

__all__ = ["MeteringInterceptor", "Rpc", "metadata"]

DOMAIN: Final = "metergate"
Context = Any
"""grpc.aio.ServicerContext."""
CustomerOf = Callable[[Context], "str | Awaitable[str | None] | None"]


@dataclass(frozen=True, slots=True)
class Rpc:
    """Which methods use which feature.

    `method` is `/package.Service/Method`, or `/package.Service/*` for all of a service. `quantity` in
    the feature's own unit may be a function of the request; where the client streams there is no
    request yet, and it gets None.
    """

    method: str
    feature: str
    quantity: int | Callable[[Any], int] = 1
    dimensions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        service, _, name = self.method[1:].partition("/")
        if not (self.method.startswith("/") and service and name) or "/" in name:
            raise ConfigurationError(
                f"{self.method!r} is no method: /package.Service/Method or /package.Service/* is expected"
            )


def metadata(name: str) -> Callable[[Context], str | None]:
    """The customer is in this metadata. Only where something before sets it: callers can send what they like.

    A call that has it twice, with different values, names no customer.
    """
    wanted = name.lower()

    def customer(context: Context) -> str | None:
        found = {value for key, value in context.invocation_metadata() or () if key == wanted}
        value = found.pop() if len(found) == 1 else None
        return value.strip() if isinstance(value, str) else None

    return customer


class MeteringInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # stubs only
    """For `grpc.aio.server(interceptors=[…])`. The rule of a method counts before that of its service.

    `customer` gets the call's context and may be a coroutine function. The client has to be open
    while calls come. Handlers have to be coroutine functions or asynchronous generators.
    """

    def __init__(
        self,
        client: Client | Callable[[], Client],
        *,
        rpcs: Sequence[Rpc],
        customer: CustomerOf,
    ) -> None:
        self._client, self._customer = client, customer
        self._rpcs = {rpc.method: rpc for rpc in rpcs}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the check before the handler."""
        handler = await continuation(handler_call_details)
        name: Any = handler_call_details.method
        rpc = self._rpcs.get(name) or self._rpcs.get(f"{name.rpartition('/')[0]}/*")
        if rpc is None or handler is None:
            return handler
        return self._metered(rpc, handler)

    def _metered(self, rpc: Rpc, handler: Any) -> Any:
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
        inner = getattr(handler, kind)
        generator = inspect.isasyncgenfunction(inner)
        if not generator and not inspect.iscoroutinefunction(inner):
            raise ConfigurationError(f"the handler of {rpc.method} is not asynchronous")

        async def run(request: Any, context: Context) -> Any:
            await self._enforce(rpc, None if streams_in else request, context)
            return await inner(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._enforce(rpc, None if streams_in else request, context)
            async for answer in inner(request, context):
                yield answer

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            stream if generator else run,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _enforce(self, rpc: Rpc, request: Any, context: Context) -> None:
        refusal = await self._refused(rpc, request, context)
        if refusal is not None:
            await context.abort(refusal.code, refusal.message, _trailing(refusal, rpc.feature))

    async def _refused(self, rpc: Rpc, request: Any, context: Context) -> Refusal | None:
        named = self._customer(context)
        customer = await named if inspect.isawaitable(named) else named
        if not customer:
            return CUSTOMER_REQUIRED
        client = self._client() if callable(self._client) else self._client
        quantity = rpc.quantity(request) if callable(rpc.quantity) else rpc.quantity
        left = context.time_remaining()
        # Whoever asks does not wait longer than that.
        timeout = None if left is None else min(left, client.options.timeout)
        try:
            verdict = await client.check(
                customer, rpc.feature, quantity, dimensions=rpc.dimensions, timeout=timeout
            )
        except ClientError as error:
            return by_error(rpc.feature, error)
        return None if verdict.allowed else by_verdict(rpc.feature, verdict)


def _trailing(refusal: Refusal, feature: str) -> tuple[tuple[str, str | bytes], ...]:
    told = {"feature": feature} | ({"degraded": "true"} if refusal.degraded else {})
    info = error_details_pb2.ErrorInfo(reason=refusal.reason.upper(), domain=DOMAIN, metadata=told)
    details: list[Any] = [info]
    trailing: list[tuple[str, str | bytes]] = []
    if refusal.retry_after:
        wait = error_details_pb2.RetryInfo()
        wait.retry_delay.seconds = refusal.retry_after
        details.append(wait)
        trailing.append(("retry-after", str(refusal.retry_after)))
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    for one in details:
        packed = any_pb2.Any()
        packed.Pack(one)
        status.details.append(packed)
    trailing.append((DETAILS, status.SerializeToString()))
    return tuple(trailing)
