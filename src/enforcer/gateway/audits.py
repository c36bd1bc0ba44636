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
        return await self._usage.compare(question)

    async def reconcile(self, caller: Caller) -> repair_pb2.ReconcileResponse:
        """Add to each counter what the ledger has more, bucket after bucket.

        The records are right: what was granted has one, and what has one was granted. Changes are relative, so whatever
        is decided between the comparison and the repair is not touched.
        """
        response = repair_pb2.ReconcileResponse()
        body = Body(t="", a="", c="", f="", m="", by=caller.key_id, w="reconcile")
        for bucket in range(self._buckets):
            drift = list((await self._compare([bucket], rollups=False)).drift)
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
            response.left.extend(one for change, one in changes.items() if change not in done)
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

    async def watch(
        self,
        interval: float,
        note: Callable[[int, int, int], None],
        passed: Callable[[float], None],
    ) -> None:
        """Compare bucket after bucket for ever, one each `interval` seconds, or less often if it takes long.

        `note(bucket, drifting, gaps)` is told of each; `passed` about every second how long ago the bucket was compared
        that has waited longest.
        """
        last = dict.fromkeys(range(self._buckets), time.monotonic())
        while True:
            for bucket in range(self._buckets):
                began = time.monotonic()
                try:
                    # What is not of one bucket alone is compared once a round.
                    found = await self._compare([bucket], rollups=not bucket)
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
