"""What the gateway asks the meter: usage that was rolled up, and the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meter.v1 import ledger_pb2, report_pb2

__all__ = ["UsageReports"]


class UsageReports(Protocol):
    """Raise `MeterUnavailableError`, or a `MetergateError` that repeats what the meter says is wrong."""

    async def query(
        self, tenant: str, request: report_pb2.QueryUsageRequest
    ) -> report_pb2.QueryUsageResponse:
        """Usage of one tenant."""
        ...

    async def concurrency(
        self, tenant: str, request: report_pb2.QueryConcurrencyRequest
    ) -> report_pb2.QueryConcurrencyResponse:
        """Seats of one tenant over time."""
        ...

    async def denials(
        self, tenant: str, request: report_pb2.QueryDenialsRequest
    ) -> report_pb2.QueryDenialsResponse:
        """What was refused to one tenant's customers over time."""
        ...

    async def compare(self, request: ledger_pb2.CompareRequest) -> ledger_pb2.CompareResponse:
        """Hold counters against the ledger."""
        ...
