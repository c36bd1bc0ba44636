"""The meter process over gRPC: chDB belongs to it alone, everybody else asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from enforcer.errors import InternalError, MetergateError, MeterUnavailableError, RelayedError
from meter.transport.credentials import channel_credentials
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from meter.tls import Certificates
    from meter.v1 import report_pb2

__all__ = ["OPTIONS", "MeterClient"]

_Answer = TypeVar("_Answer")

SECONDS = 60.0
"""A comparison waits for the rollup first."""
TLS: Final = "grpcs://"
"""Before an endpoint that speaks it."""
ASK_SECONDS = 3.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # After a loss of counters everybody waits for the meter: a restarted one is found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class MeterClient:
    """Implements `UsageReports`, `Records` and `Ledger` of `enforcer.ports` at `endpoint`.

    Calls carry the deployment's internal token. With `certificates` they travel over TLS, those after a change of the
    files by a new connection; what was asked before is answered on the old one.
    """

    def __init__(self, endpoint: str, token: str, certificates: Certificates | None = None) -> None:
        self._endpoint, self._certificates = endpoint.removeprefix(TLS), certificates
        self._token = token
        self._known = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._open()

    def _open(self) -> None:
        if self._certificates is None:
            self._channel = grpc.aio.insecure_channel(self._endpoint, options=OPTIONS)
        else:
            credentials = channel_credentials(self._certificates)
            self._channel = grpc.aio.secure_channel(self._endpoint, credentials, options=OPTIONS)
        self._reports_stub = report_pb2_grpc.ReportServiceStub(self._channel)
        self._ledger_stub = ledger_pb2_grpc.LedgerServiceStub(self._channel)

    def _renew(self) -> None:
        if self._certificates is not None and self._certificates.renewed():
            leaving = asyncio.ensure_future(self._channel.close(SECONDS))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            self._open()

    @property
    def _reports(self) -> Any:
        self._renew()
        return self._reports_stub

    @property
    def _ledger(self) -> Any:
        self._renew()
        return self._ledger_stub

    @property
    def _own(self) -> Any:
        return {"metadata": (("x-metergate-internal", self._token),), "timeout": SECONDS}

    async def close(self) -> None:
        """End the connection."""
        for leaving in tuple(self._leaving):
            leaving.cancel()
        await self._channel.close(None)

    async def ask(self) -> None:
        """Return when the meter answers this deployment's calls. Raise why not."""
        health, known = health_pb2_grpc.HealthStub(self._channel), self._known
        self._known = False
        try:
            found = await health.Check(health_pb2.HealthCheckRequest(), timeout=ASK_SECONDS)
            if found.status != health_pb2.HealthCheckResponse.SERVING:
                raise MeterUnavailableError("the meter is not ready")
            if not known:
                # Of no bucket: nothing is waited for. It knows whether the token is right.
                own = {**self._own, "timeout": ASK_SECONDS}
                await self._ledger.CatchUp(ledger_pb2.CatchUpRequest(), **own)
        except grpc.aio.AioRpcError as error:
            failed = _error(error)
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                failed = MeterUnavailableError(f"METERGATE_INTERNAL_TOKEN: {error.details()}")
                failed.refused = True
            raise failed from error
        self._known = True

    async def query(
        self, tenant: str, request: report_pb2.QueryUsageRequest
    ) -> report_pb2.QueryUsageResponse:
        return await _answered(self._reports.QueryUsage(request, **self._for(tenant)))

    async def concurrency(
        self, tenant: str, request: report_pb2.QueryConcurrencyRequest
    ) -> report_pb2.QueryConcurrencyResponse:
        return await _answered(self._reports.QueryConcurrency(request, **self._for(tenant)))

    async def denials(
        self, tenant: str, request: report_pb2.QueryDenialsRequest
    ) -> report_pb2.QueryDenialsResponse:
        return await _answered(self._reports.QueryDenials(request, **self._for(tenant)))

    async def set_aside(
        self, tenant: str, request: report_pb2.ListSetAsideRequest
    ) -> report_pb2.ListSetAsideResponse:
        return await _answered(self._reports.ListSetAside(request, **self._for(tenant)))

    def _for(self, tenant: str) -> Any:
        metadata = (("x-metergate-internal", self._token), ("x-metergate-tenant", tenant))
        return {"metadata": metadata, "timeout": SECONDS}

    async def compare(self, request: ledger_pb2.CompareRequest) -> ledger_pb2.CompareResponse:
        metadata = (("x-metergate-internal", self._token),)
        call = self._ledger.Compare(request, metadata=metadata, timeout=SECONDS)
        return await _answered(call)

    async def skip_gap(self, request: ledger_pb2.SkipGapRequest) -> ledger_pb2.SkipGapResponse:
        return await _answered(self._ledger.SkipGap(request, **self._own))

    async def catch_up(self, request: ledger_pb2.CatchUpRequest) -> ledger_pb2.CatchUpResponse:
        return await _answered(self._ledger.CatchUp(request, **self._own))

    async def sums(self, request: ledger_pb2.SumsRequest) -> ledger_pb2.SumsResponse:
        return await _answered(self._ledger.Sums(request, **self._own))

    async def recall(self, request: ledger_pb2.RecallRequest) -> ledger_pb2.RecallResponse:
        return await _answered(self._ledger.Recall(request, **self._own))

    async def find_record(
        self, request: ledger_pb2.FindRecordRequest
    ) -> ledger_pb2.FindRecordResponse:
        return await _answered(self._ledger.FindRecord(request, **self._own))

    async def find_keys(self, request: ledger_pb2.FindKeysRequest) -> ledger_pb2.FindKeysResponse:
        return await _answered(self._ledger.FindKeys(request, **self._own))

    async def find_corrections(
        self, request: ledger_pb2.FindCorrectionsRequest
    ) -> ledger_pb2.FindCorrectionsResponse:
        return await _answered(self._ledger.FindCorrections(request, **self._own))

    async def totals(self, request: ledger_pb2.TotalsRequest) -> ledger_pb2.TotalsResponse:
        return await _answered(self._ledger.Totals(request, **self._own))


async def _answered(call: Awaitable[_Answer]) -> _Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _error(error) from error


def _error(error: grpc.aio.AioRpcError) -> MetergateError:
    if error.code() in _AWAY:
        return MeterUnavailableError(f"the meter does not answer: {error.details()}")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what is read from it
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            number: int = error.code().value[0]
            return RelayedError(number, info.reason, error.details() or "", dict(info.metadata))
    return InternalError("the meter failed")
