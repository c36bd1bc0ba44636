"""The gRPC server of the meter: services, health, reflection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from meter.errors import MisconfiguredError
from meter.transport.ledger_service import LedgerService
from meter.transport.observed import Observed
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter.transport.report_service import ReportService

__all__ = ["Server"]

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes: a bucket's counters come in one message."""


class Server:
    """Serves at `listen` (`host:port`, or `unix:/path`). Health says SERVING while `ready`.

    `observe(method, code, seconds)` is told of every finished call of `services`.
    """

    def __init__(
        self,
        listen: str,
        *services: ReportService | LedgerService,
        observe: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self._listen = listen
        self._server = grpc.aio.server(
            interceptors=[Observed(observe)] if observe else [],
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
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self.port = 0

    async def start(self) -> None:
        """Listen. Raise `MisconfiguredError` when the address cannot be had."""
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise MisconfiguredError(
                f"METERGATE_METER_LISTEN: cannot listen on {self._listen}: is the port in use?"
            ) from error
        await self._server.start()

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""
        state = health_pb2.HealthCheckResponse
        for name in ("", *self._names):
            await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let running ones end within `grace` seconds."""
        await self.ready(serving=False)
        await self._server.stop(grace)
