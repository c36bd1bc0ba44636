"""The services on grpc.aio: the reference transport."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from enforcer.errors import InternalError, MetergateError, MisconfiguredError
from enforcer.transport.callers import needs
from enforcer.transport.errors import status_of

if TYPE_CHECKING:
    from enforcer.metrics import Metrics
    from enforcer.transport.callers import Callers
    from enforcer.transport.services import Method

__all__ = ["GrpcServer"]

_log = structlog.get_logger(__name__)

LONGEST_REQUEST = 8 * 1024 * 1024
LONGEST_RESPONSE = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0


class GrpcServer:
    """Serves `methods` at `listen`. Health says SERVING while `ready`."""

    def __init__(self, methods: list[Method], callers: Callers, metrics: Metrics) -> None:
        self._callers, self._metrics = callers, metrics
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", LONGEST_REQUEST),
                ("grpc.max_send_message_length", LONGEST_RESPONSE),
            ]
        )
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in methods:
            by_service.setdefault(method.service, {})[method.name] = self._handler(method)
        for service, handlers in by_service.items():
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        self._names = ["", *by_service]
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*by_service, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self.port = 0

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        callers, answer, role, finished = (
            self._callers.of,
            method.answer,
            method.role,
            self._metrics.call,
        )
        name = f"{method.service}/{method.name}"
        everybody = role == "check"

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            start = time.perf_counter()
            try:
                caller = await callers(context.invocation_metadata())
                if not everybody:
                    needs(caller, role)
                response = await answer(caller, request)
            except MetergateError as error:
                failed = error
            except Exception:  # noqa: BLE001 - logged here, answered without its text
                _log.exception("call failed", method=name)
                failed = InternalError("internal error; the server's log tells more")
            else:
                finished(name, "OK", time.perf_counter() - start)
                return response
            finished(name, failed.code.name, time.perf_counter() - start)
            aborting: Any = context  # the stubs lack abort_with_status
            await aborting.abort_with_status(rpc_status.to_status(status_of(failed)))
            raise AssertionError  # the call was aborted

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )

    async def start(self, listen: str) -> None:
        """Listen. Raise `MisconfiguredError` when the address cannot be had."""
        try:
            self.port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise MisconfiguredError(
                f"METERGATE_LISTEN: cannot listen on {listen}: is the port in use?"
            ) from error
        await self.ready(serving=False)
        await self._server.start()

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""
        state = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)

    async def stop(self) -> None:
        """Refuse new calls and let running ones end."""
        await self.ready(serving=False)
        await self._server.stop(DRAIN_SECONDS)
