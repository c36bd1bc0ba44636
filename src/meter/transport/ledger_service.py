"""meter.v1.LedgerService: the enforcer brings its counters, the meter holds them against the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meter.audit import BucketCounters
from meter.core.sequence import START, Position
from meter.ports.warehouse import Counter
from meter.transport.calls import faults
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2

if TYPE_CHECKING:
    import grpc.aio

    from meter.audit import Audit, Comparison
    from meter.transport.calls import Caller

__all__ = ["LedgerService"]


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """`Compare`, over all tenants: for the deployment's own processes."""

    def __init__(self, audit: Audit, caller: Caller) -> None:
        self._audit, self._caller = audit, caller

    async def Compare(  # noqa: N802
        self,
        request: ledger_pb2.CompareRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.CompareResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            return _answer(await self._audit.compare([_state(part) for part in request.buckets]))
        raise AssertionError  # the call was aborted


def _state(part: ledger_pb2.BucketCounters) -> BucketCounters:
    place = Position(part.generation, part.last_sequence) if part.generation else START
    counters = {
        Counter(counter.limit, counter.period_start): (counter.used, counter.held)
        for counter in part.counters
    }
    return BucketCounters(part.bucket, place, counters)


def _answer(found: Comparison) -> ledger_pb2.CompareResponse:
    return ledger_pb2.CompareResponse(
        records=found.records,
        gaps=[
            report_pb2.SequenceGap(
                bucket=gap.bucket, generation=gap.generation, first=gap.first, last=gap.last
            )
            for gap in found.gaps
        ],
        repeats=found.repeats,
        drift=[
            report_pb2.Drift(
                bucket=part.bucket,
                limit=part.counter.limit,
                period_start=part.counter.period,
                counter_used=part.shown[0],
                ledger_used=part.ledger[0],
                counter_held=part.shown[1],
                ledger_held=part.ledger[1],
            )
            for part in found.drift
        ],
        counters=found.counters,
        rollup_difference=found.rollup_difference,
    )
