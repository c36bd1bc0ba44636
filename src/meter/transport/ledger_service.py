"""meter.v1.LedgerService: the enforcer brings its counters, the meter holds them against the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from meter.audit import BucketCounters
from meter.core.sequence import START, Gap, Position
from meter.errors import GapUnknownError, InvalidRequestError
from meter.ports.warehouse import Choice, Counter
from meter.transport.calls import faults
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2

if TYPE_CHECKING:
    import grpc.aio

    from meter.audit import Audit, Comparison
    from meter.core.sequence import Entry
    from meter.lookup import Lookup
    from meter.recall import Recall
    from meter.transport.calls import Caller

    class Gaps(Protocol):
        """What goes on behind a gap: the rollup."""

        async def accept(self, gap: Gap, actor: str, seconds: float) -> int:
            """Go on; return how many of the gap's records were there all the same."""
            ...


__all__ = ["LedgerService"]

SKIP_SECONDS = 20.0


class LedgerService(ledger_pb2_grpc.LedgerServiceServicer):
    """Over all tenants: for the deployment's own processes."""

    def __init__(
        self, audit: Audit, recall: Recall, lookup: Lookup, gaps: Gaps, caller: Caller
    ) -> None:
        self._audit, self._recall, self._lookup = audit, recall, lookup
        self._gaps, self._caller = gaps, caller

    async def Compare(  # noqa: N802
        self,
        request: ledger_pb2.CompareRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.CompareResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            states = [_state(part) for part in request.buckets]
            return _answer(await self._audit.compare(states, rollups=not request.without_rollups))
        raise AssertionError  # the call was aborted

    async def CatchUp(  # noqa: N802
        self,
        request: ledger_pb2.CatchUpRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.CatchUpResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            found = await self._recall.catch_up(request.buckets, request.decided_before_ms)
            return ledger_pb2.CatchUpResponse(
                reached=[
                    ledger_pb2.Reached(
                        bucket=one.bucket,
                        generation=one.mark.generation,
                        sequence=one.mark.sequence,
                        held=one.held,
                        seen_generation=one.seen.generation,
                        seen_sequence=one.seen.sequence,
                    )
                    for one in found
                ]
            )
        raise AssertionError  # the call was aborted

    async def Sums(  # noqa: N802
        self, request: ledger_pb2.SumsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.SumsResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            found = await self._recall.sums(request.bucket, request.limits)
            return ledger_pb2.SumsResponse(
                counters=[
                    ledger_pb2.Counter(
                        limit=counter.limit, period_start=counter.period, used=used, held=held
                    )
                    for counter, (used, held) in found
                ]
            )
        raise AssertionError  # the call was aborted

    async def SkipGap(  # noqa: N802
        self, request: ledger_pb2.SkipGapRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.SkipGapResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            gap = Gap(request.bucket, request.generation, request.first, request.last, "accepted")
            try:
                found = await self._gaps.accept(gap, request.actor, SKIP_SECONDS)
            except GapUnknownError as error:
                found = 0
                try:
                    await self._audit.accept(gap, request.actor)
                except GapUnknownError:
                    raise error from None
            return ledger_pb2.SkipGapResponse(found=found)
        raise AssertionError  # the call was aborted

    async def Recall(  # noqa: N802
        self, request: ledger_pb2.RecallRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.RecallResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            choice = _CHOICES.get(request.choice)
            if choice is None:
                raise InvalidRequestError("UNKNOWN_CHOICE", f"no choice {request.choice}")
            after = Position(request.after_generation, request.after_sequence)
            found = await self._recall.records(
                request.bucket, after, choice, request.since_ms, request.most
            )
            return ledger_pb2.RecallResponse(records=[_record(one) for one in found])
        raise AssertionError  # the call was aborted

    async def FindRecord(  # noqa: N802
        self,
        request: ledger_pb2.FindRecordRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.FindRecordResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            place = Position(request.generation, request.sequence)
            found = await self._lookup.record(request.tenant, request.bucket, place)
            return ledger_pb2.FindRecordResponse(
                body=found.body,
                effects=found.effects,
                retained_since=await self._lookup.retained_since(),
            )
        raise AssertionError  # the call was aborted

    async def FindKeys(  # noqa: N802
        self,
        request: ledger_pb2.FindKeysRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.FindKeysResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            found = await self._lookup.keyed(
                request.tenant,
                request.bucket,
                request.keys,
                (request.stored_from_ms, request.stored_to_ms),
                Position(request.generation, request.last_sequence),
            )
            return ledger_pb2.FindKeysResponse(
                records=[
                    ledger_pb2.KeyedRecord(
                        generation=one.generation, sequence=one.sequence, body=one.body
                    )
                    for one in found
                ]
            )
        raise AssertionError  # the call was aborted

    async def FindCorrections(  # noqa: N802
        self,
        request: ledger_pb2.FindCorrectionsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.FindCorrectionsResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            found = await self._lookup.corrections(
                request.bucket,
                request.after_number,
                request.stored_from_ms,
                Position(request.generation, request.last_sequence),
            )
            return ledger_pb2.FindCorrectionsResponse(records=[_record(one) for one in found])
        raise AssertionError  # the call was aborted

    async def Totals(  # noqa: N802
        self,
        request: ledger_pb2.TotalsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ledger_pb2.TotalsResponse:
        """See the proto."""
        async with faults(context):
            self._caller.check(context)
            counters = [Counter(one.limit, one.period_start) for one in request.counters]
            found = await self._lookup.totals(request.bucket, counters)
            return ledger_pb2.TotalsResponse(
                counters=[
                    ledger_pb2.Counter(
                        limit=one.limit, period_start=one.period, used=used, held=held
                    )
                    for one, (used, held) in found.items()
                ]
            )
        raise AssertionError  # the call was aborted


_CHOICES = {
    ledger_pb2.CHOICE_ALL: Choice.ALL,
    ledger_pb2.CHOICE_OPEN: Choice.OPEN,
    ledger_pb2.CHOICE_KEYED: Choice.KEYED,
    ledger_pb2.CHOICE_BOUND: Choice.BOUND,
    ledger_pb2.CHOICE_JOURNALED: Choice.JOURNALED,
}


def _record(entry: Entry) -> ledger_pb2.Record:
    return ledger_pb2.Record(
        generation=entry.generation,
        sequence=entry.sequence,
        body=entry.body,
        effects=entry.effects,
    )


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
        accepted_gaps=[
            report_pb2.SequenceGap(
                bucket=gap.bucket, generation=gap.generation, first=gap.first, last=gap.last
            )
            for gap in found.accepted
        ],
    )
