"""The gRPC server of the meter: services, health, reflection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health as health_service
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from meter.errors import MisconfiguredError, UnavailableError
from meter.tls import CertificateError, Certificates
from meter.transport.calls import faults
from meter.transport.credentials import server_credentials
from meter.transport.ledger_service import LedgerService
from meter.transport.observed import Observed
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meter.health import Health
    from meter.tls import TlsFiles
    from meter.transport.report_service import ReportService

    # Generic in its stubs alone.
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

__all__ = ["Server"]

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes: a bucket's counters come in one message."""


class _Gate(_Interceptor):
    """Until the process has started, calls of its services are told what it waits for."""

    def __init__(self, health: Health | None) -> None:
        self._health = health
        self.closed_to: set[str] = set()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        health, service = self._health, handler_call_details.method.split("/")[1]
        if health is None or health.started or service not in self.closed_to:
            return await continuation(handler_call_details)
        missing = ", ".join(health.missing) or "its start"

        async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            async with faults(context):
                raise UnavailableError(f"the meter waits for {missing}")

        return grpc.unary_unary_rpc_method_handler(refuse)


class Server:
    """Serves at `listen` (`host:port`, or `unix:/path`). Health says SERVING while `ready`. Without `tls`: plain text.

    `health` says whether the process has started, before which no call is let through; without it all are.

    `observe(method, code, seconds)` is told of every finished call of `services`.
    """

    def __init__(
        self,
        listen: str,
        *services: ReportService | LedgerService,
        tls: TlsFiles | None = None,
        health: Health | None = None,
        observe: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self._listen, self._tls = listen, tls
        gate = _Gate(health)
        self._server = grpc.aio.server(
            interceptors=[*([Observed(observe)] if observe else []), gate],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._names: list[str] = []
        for service in services:
            if isinstance(service, LedgerService):
                ledger_pb2_grpc.add_LedgerServiceServicer_to_server(service, self._server)
                described = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"]
            else:
                report_pb2_grpc.add_ReportServiceServicer_to_server(service, self._server)
                described = report_pb2.DESCRIPTOR.services_by_name["ReportService"]
            self._names.append(described.full_name)
        gate.closed_to.update(self._names)
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names, health_service.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self.port = 0

    async def start(self) -> None:
        """Listen. Raise `MisconfiguredError` when the address cannot be had, or certificates cannot be used."""
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(self._listen)
            else:
                credentials = server_credentials(Certificates(self._tls))
                self.port = self._server.add_secure_port(self._listen, credentials)
        except CertificateError as error:
            raise MisconfiguredError(error.message) from error
        except RuntimeError as error:
            raise MisconfiguredError(
                f"METERGATE_METER_LISTEN: cannot listen on {self._listen}: is the port in use?"
            ) from error
        await self._server.start()
        await self.ready(serving=False)

    async def ready(self, *, serving: bool, answering: bool | None = None) -> None:
        """Tell health checks: whether the process does all it is for, and whether its services answer, if not alike."""
        state = health_pb2.HealthCheckResponse
        answering = serving if answering is None else answering
        for name in ("", *self._names):
            fine = answering if name else serving
            await self._health.set(name, state.SERVING if fine else state.NOT_SERVING)

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let running ones end within `grace` seconds."""
        await self.ready(serving=False)
        await self._server.stop(grace)
