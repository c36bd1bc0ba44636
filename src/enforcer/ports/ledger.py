"""What the counter store asks the meter when Redis may have lost data: the records' side of the counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meter.v1 import ledger_pb2

__all__ = ["Ledger"]


class Ledger(Protocol):
    """See meter/v1/ledger.proto. All raise `MeterUnavailableError` or a `MetergateError` with the meter's own words."""

    async def catch_up(self, request: ledger_pb2.CatchUpRequest) -> ledger_pb2.CatchUpResponse:
        """Roll up all that the log has; say how far that is."""
        ...

    async def sums(self, request: ledger_pb2.SumsRequest) -> ledger_pb2.SumsResponse:
        """What counters must show."""
        ...

    async def recall(self, request: ledger_pb2.RecallRequest) -> ledger_pb2.RecallResponse:
        """Records as they were written."""
        ...
