"""What the gateway asks the meter: usage that was rolled up, and the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meter.v1 import ledger_pb2, report_pb2

__all__ = ["Records", "UsageReports"]


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

    async def set_aside(
        self, tenant: str, request: report_pb2.ListSetAsideRequest
    ) -> report_pb2.ListSetAsideResponse:
        """Records that the rollup has put aside."""
        ...

    async def skip_gap(self, request: ledger_pb2.SkipGapRequest) -> ledger_pb2.SkipGapResponse:
        """Go on behind a gap."""
        ...

    async def compare(self, request: ledger_pb2.CompareRequest) -> ledger_pb2.CompareResponse:
        """Hold counters against the ledger."""
        ...


class Records(Protocol):
    """What corrections ask the meter. Raises as `UsageReports` does."""

    async def find_record(
        self, request: ledger_pb2.FindRecordRequest
    ) -> ledger_pb2.FindRecordResponse:
        """A record by its place."""
        ...

    async def find_keys(self, request: ledger_pb2.FindKeysRequest) -> ledger_pb2.FindKeysResponse:
        """Usage by idempotency key."""
        ...

    async def find_corrections(
        self, request: ledger_pb2.FindCorrectionsRequest
    ) -> ledger_pb2.FindCorrectionsResponse:
        """Records of a bucket's corrections."""
        ...

    async def totals(self, request: ledger_pb2.TotalsRequest) -> ledger_pb2.TotalsResponse:
        """Sums of effects by counter."""
        ...
