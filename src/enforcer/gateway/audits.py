"""Counters held against their records: when asked, all the time at a low cost, and brought in line."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from enforcer.core.commands import Counter
from enforcer.errors import MetergateError
from meter.core.records import Body, encode_body
from meter.v1 import ledger_pb2, repair_pb2, report_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enforcer.ports.counters import CounterStore
    from enforcer.ports.definitions import Caller, Definitions
    from enforcer.ports.usage import UsageReports

__all__ = ["Audits"]

_log = structlog.get_logger(__name__)
SHARE = 20
"""The rest between two comparisons is at least so many times as long as the last one took."""


class Audits:
    """Over all buckets of the deployment."""

    def __init__(
        self, counters: CounterStore, usage: UsageReports, definitions: Definitions, buckets: int
    ) -> None:
        self._counters, self._usage = counters, usage
        self._definitions, self._buckets = definitions, buckets

    async def audit(self) -> report_pb2.AuditResponse:
        """Everything, once."""
        found = await self._compare(range(self._buckets))
        return report_pb2.AuditResponse(
            records=found.records,
            gaps=found.gaps,
            repeats=found.repeats,
            drift=found.drift,
            counters=found.counters,
            rollup_difference=found.rollup_difference,
            accepted_gaps=found.accepted_gaps,
        )

    async def _compare(
        self, buckets: Iterable[int], *, rollups: bool = True
    ) -> ledger_pb2.CompareResponse:
        return await self._usage.compare(await self._question(buckets, rollups=rollups))

    async def _question(
        self, buckets: Iterable[int], *, rollups: bool
    ) -> ledger_pb2.CompareRequest:
        """The counters as they are."""
        question = ledger_pb2.CompareRequest(without_rollups=not rollups)
        for bucket in buckets:
            state = await self._counters.counters(bucket)
            question.buckets.add(
                bucket=bucket,
                generation=state.generation,
                last_sequence=state.last,
                counters=[
                    ledger_pb2.Counter(
                        limit=one.limit, period_start=one.period, used=one.used, held=one.held
                    )
                    for one in state.counters
                ],
            )
        return question

    async def reconcile(self, caller: Caller) -> repair_pb2.ReconcileResponse:
        """Add to each counter what the ledger has more, bucket after bucket.

        The records are right: what was granted has one, and what has one was granted. Changes are relative, so whatever
        is decided between the comparison and the repair is not touched.
        """
        response = repair_pb2.ReconcileResponse()
        body = Body(t="", a="", c="", f="", m="", by=caller.key_id, w="reconcile")
        for bucket in range(self._buckets):
            compared, found = await self._one(bucket, rollups=False)
            drift = list(found.drift)
            changes = {
                Counter(
                    one.limit,
                    one.period_start,
                    one.ledger_used - one.counter_used,
                    one.ledger_held - one.counter_held,
                ): one
                for one in drift
            }
            response.drift.extend(drift)
            if not drift:
                continue
            done = await self._counters.repair(bucket, encode_body(body), list(changes))
            left = [one for change, one in changes.items() if change not in done]
            settled = await self._settle_seats(bucket, compared, left, caller)
            response.left.extend(one for one in left if one not in settled)
            for change in done:
                await self._definitions.note(
                    caller.tenant,
                    caller.key_id,
                    "reconciled",
                    "counter",
                    f"{bucket}/{change.limit}/{change.period}: used {change.used:+d}, "
                    f"held {change.held:+d}",
                )
        return response

    async def _one(
        self, bucket: int, *, rollups: bool
    ) -> tuple[tuple[int, int], ledger_pb2.CompareResponse]:
        """Of one bucket, and the place as of which it was compared."""
        question = await self._question([bucket], rollups=rollups)
        (state,) = question.buckets
        return (state.generation, state.last_sequence), await self._usage.compare(question)

    async def _settle_seats(
        self,
        bucket: int,
        compared: tuple[int, int],
        drift: Iterable[report_pb2.Drift],
        caller: Caller | None,
    ) -> list[report_pb2.Drift]:
        """Bring the ledger to the leases where these differ; return what was settled.

        The leases are right: they are what is refused and granted by, and no record of an end brings one back.
        Without a caller it is the audit's own doing, noted with the tenant whose seats they are.
        """
        seats = {one.limit: one for one in drift if not one.period_start}
        whose = await self._definitions.seat_limits(seats) if seats else {}
        changes = {
            Counter(limit, 0, 0, one.counter_held - one.ledger_held): one
            for limit, one in seats.items()
            if limit in whose
        }
        actor = caller.key_id if caller else "audit"
        body = encode_body(Body(t="", a="", c="", f="", m="", by=actor, w="seats"))
        if not changes or not await self._counters.adjust_seats(
            bucket, compared, body, list(changes)
        ):
            return []
        for change in changes:
            await self._definitions.note(
                caller.tenant if caller else whose[change.limit],
                actor,
                "reconciled",
                "seats",
                f"{bucket}/{change.limit}: held {change.held:+d} in the ledger",
            )
        return list(changes.values())

    async def watch(
        self,
        interval: float,
        note: Callable[[int, int, int], None],
        passed: Callable[[float], None],
    ) -> None:
        """Compare bucket after bucket for ever, one each `interval` seconds, or less often if it takes long.

        Seats that differ are settled. `note(bucket, drifting, gaps)` is told of each; `passed` about every second how
        long ago the bucket was compared that has waited longest.
        """
        last = dict.fromkeys(range(self._buckets), time.monotonic())
        while True:
            for bucket in range(self._buckets):
                began = time.monotonic()
                try:
                    # What is not of one bucket alone is compared once a round.
                    compared, found = await self._one(bucket, rollups=not bucket)
                    await self._settle_seats(bucket, compared, found.drift, None)
                except MetergateError as error:
                    _log.warning("not audited", bucket=bucket, reason=error.reason)
                else:
                    last[bucket] = time.monotonic()
                    note(bucket, len(found.drift), len(found.gaps))
                    _tell(bucket, found)
                rest = max(interval, SHARE * (time.monotonic() - began))
                until = time.monotonic() + rest
                while (left := until - time.monotonic()) > 0:
                    passed(time.monotonic() - min(last.values()))
                    await asyncio.sleep(min(left, 1.0))


def _tell(bucket: int, found: ledger_pb2.CompareResponse) -> None:
    """Of what an audit finds, once in each round."""
    if found.drift or found.gaps or found.rollup_difference:
        _log.error(
            "the audit finds a difference",
            bucket=bucket,
            drift=[f"{one.limit}/{one.period_start}" for one in found.drift[:10]],
            drifting=len(found.drift),
            gaps=[f"{one.generation} {one.first} {one.last}" for one in found.gaps[:10]],
            rollup_difference=found.rollup_difference,
        )
