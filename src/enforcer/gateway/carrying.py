"""Carries listed corrections out in the counter store, in the order of their numbers, each once.

Whoever finds a correction in the list may do this: its caller, a retry, the next correction of the bucket, or the
background of any enforcer. A crash between the list and the store, or between the store and the list, costs nothing: the
store knows the last number that it has carried out, and keeps the outcome until the list has it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from enforcer.core.commands import EpochStale
from enforcer.core.corrections import OVERFLOW, Corrected, Correction, Refused, Uncertain
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.parcels import closed, draw, give_back, parcel, quantity_of
from enforcer.errors import (
    InternalError,
    InvalidRequestError,
    MetergateError,
    NotFoundError,
    NotPossibleError,
)
from enforcer.gateway.asked import Name
from enforcer.ports.corrections import Place, Settlement, State
from meter.core.records import Body, RecordType, decode_body, decode_effects, encode_body
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.core.corrections import Outcome
    from enforcer.core.parcels import Parcel
    from enforcer.core.program import Program
    from enforcer.core.rules import Slots
    from enforcer.gateway.programs import Programs
    from enforcer.ports.corrections import Corrections, Listed
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.usage import Records

__all__ = ["Carrier", "refusal"]

AT_ONCE = 100
CLOCKS_APART = 3_600_000
TRIES = 20
"""Plans of one correction that the counters overtake; after that it draws as planned, past a limit if need be."""


def refusal(why: str) -> MetergateError:
    """What a correction that was refused for `why` is answered with."""
    if why == OVERFLOW:
        return InvalidRequestError(OVERFLOW, "a count would pass 2^53 - 1")
    return NotPossibleError(
        "CORRECTION_REFUSED", f"the correction was not carried out: {why}", because=why
    )


class Carrier:
    """One for each process: inside it, a bucket's corrections are carried out by one task at a time.

    `steps` is called with the name of each step before it begins.
    """

    def __init__(
        self,
        corrections: Corrections,
        counters: CounterStore,
        programs: Programs,
        records: Records,
        steps: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._list, self._counters, self._steps = corrections, counters, steps
        self._programs, self._records = programs, records
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def finish_all(self) -> int:
        """Carry out whatever is listed, in all buckets; return in how many of them something was.

        Raise why it could not be done in one of them; the others do not wait for it.
        """
        buckets = await self._list.unfinished()
        failed: MetergateError | None = None
        for bucket in buckets:
            try:
                await self.finish(bucket)
            except MetergateError as error:
                failed = error
        if failed is not None:
            raise failed
        return len(buckets)

    async def finish(self, bucket: int) -> None:
        """Carry out all that is listed of the bucket."""
        async with self._locks[bucket]:
            fruitless, certain = 0, False
            while True:
                acknowledged, listed = await self._list.pending(bucket, AT_ONCE)
                if not listed:
                    return
                plans = await self._plan(bucket, listed, force=fruitless >= TRIES)
                self._steps("correct")
                outcomes = await self._counters.correct(
                    bucket, acknowledged, plans, certain=certain
                )
                if isinstance(outcomes[-1], Uncertain):
                    certain = not await self._recall(bucket, acknowledged, listed)
                    continue
                self._steps("corrected")
                settled = [
                    settlement
                    for one, outcome in zip(listed, outcomes, strict=False)
                    if (settlement := _settlement(one, outcome)) is not None
                ]
                if settled:
                    await self._list.settle(bucket, settled)
                fruitless = 0 if settled else fruitless + 1
                if fruitless > 2 * TRIES:
                    raise InternalError(f"corrections of bucket {bucket} do not get on")
                if isinstance(outcomes[-1], EpochStale):
                    stale = listed[len(outcomes) - 1]
                    await self._programs.reconcile(_name(stale), outcomes[-1])

    async def _recall(self, bucket: int, acknowledged: int, listed: Sequence[Listed]) -> bool:
        """Settle what the records say was carried out, though the counters do not know. Whether there was any."""
        last = await self._counters.slots(bucket, [])
        found = await self._records.find_corrections(
            ledger_pb2.FindCorrectionsRequest(
                bucket=bucket,
                after_number=acknowledged,
                stored_from_ms=max(0, listed[0].listed_ms - CLOCKS_APART),
                generation=last.generation,
                last_sequence=last.last,
            )
        )
        by_number = {one.number: one for one in listed}
        settled = []
        for record in found.records:
            number, effects = decode_body(record.body).n, decode_effects(record.effects)
            if number in by_number:
                outcome = Corrected(
                    number,
                    record.generation,
                    record.sequence,
                    effects.now,
                    effects.granted,
                    effects.overage,
                    tuple((one.limit, one.period, one.used) for one in effects.entries),
                )
                settlement = _settlement(by_number[number], outcome)
                assert settlement is not None, "it was carried out"
                settled.append(settlement)
        if settled:
            await self._list.settle(bucket, settled)
        return bool(settled)

    async def _plan(
        self, bucket: int, listed: Sequence[Listed], *, force: bool
    ) -> list[Correction]:
        """Plan them all on one view of the counters. Those that it does not suit any more come back as Moved."""
        programs = [await self._program(one) for one in listed]
        names = list(
            dict.fromkeys(
                level.suffix for program in programs if program for level in program.levels
            )
        )
        shown = await self._counters.slots(bucket, names)
        slots = dict(zip(names, shown.slots, strict=True))
        past = await self._past(bucket, listed, programs, slots)
        return [
            _planned(one, program, slots, past, shown.now, force=force)
            for one, program in zip(listed, programs, strict=True)
        ]

    async def _program(self, one: Listed) -> Program | None:
        try:
            return await self._programs.at(_name(one), one.intent.at_ms)
        except NotFoundError:
            return None  # the customer or the feature is gone

    async def _past(
        self,
        bucket: int,
        listed: Sequence[Listed],
        programs: Sequence[Program | None],
        slots: dict[str, Slots],
    ) -> dict[tuple[int, int], int]:
        """What was used in periods that are over, which the counters do not show any more."""
        wanted: dict[tuple[int, int], None] = {}
        for one, program in zip(listed, programs, strict=True):
            if program is not None and _more(one) > 0:
                levels = [slots[level.suffix] for level in program.levels]
                wanted.update(dict.fromkeys(closed(program, levels)))
        if not wanted:
            return {}
        found = await self._records.totals(
            ledger_pb2.TotalsRequest(
                bucket=bucket,
                counters=[
                    ledger_pb2.Counter(limit=limit, period_start=period) for limit, period in wanted
                ],
            )
        )
        totals = {(one.limit, one.period_start): one.used for one in found.counters}
        return {counter: max(0, totals.get(counter, 0)) for counter in wanted}


def _name(one: Listed) -> Name:
    return Name(one.intent.tenant, one.intent.customer, one.intent.feature)


def _more(one: Listed) -> int:
    """How many units more than before; less when negative."""
    return one.intent.quantity - quantity_of(one.intent.parcels)


def _planned(
    one: Listed,
    program: Program | None,
    slots: dict[str, Slots],
    past: dict[tuple[int, int], int],
    now: int,
    *,
    force: bool,
) -> Correction:
    intent, more = one.intent, _more(one)
    count = (intent.kind is not RecordType.VOID) - intent.counts
    body = Body(
        t=intent.tenant,
        a=intent.account,
        c=intent.customer,
        f=intent.feature,
        m=intent.meter,
        q=intent.quantity,
        k=intent.key if intent.kind is RecordType.BACKFILL else "",
        d=dict(intent.dimensions),
        at=intent.at_ms,
        n=one.number,
        of=tuple(intent.target or ()),
        v=intent.version,
        by=intent.actor,
        w=intent.reason,
    )
    plan = Correction(
        one.number,
        intent.kind,
        encode_body(body),
        granted=more,
        count=count,
        quantity=intent.quantity,
        adjusts=one.sealed,
    )
    if more <= 0:
        back = give_back(intent.parcels, -more, program)
        return replace(plan, overage=-back.overage, changes=back.changes)
    if program is None:
        return replace(plan, refused="UNKNOWN_CUSTOMER")
    levels = [slots[level.suffix] for level in program.levels]
    drawn = draw(program, levels, more, intent.at_ms, now, past)
    if drawn.denied is not None:
        return replace(plan, refused=drawn.denied.name)
    changes = drawn.changes
    if force:
        changes = tuple(replace(change, most=MAX_QUANTITY) for change in changes)
    return replace(
        plan,
        overage=drawn.overage,
        changes=changes,
        account_id=program.account_id,
        epoch=program.epoch,
    )


def _settlement(one: Listed, outcome: Outcome) -> Settlement | None:
    match outcome:
        case Corrected():
            place = Place(outcome.generation, outcome.sequence)
            after = _after(one, outcome)
            return Settlement(one.number, State.APPLIED, place, outcome.overage, after)
        case Refused(_, why):
            return Settlement(one.number, State.REFUSED, refused=why)
        case _:
            return None


def _after(one: Listed, outcome: Corrected) -> tuple[Parcel, ...]:
    """What the target counts from now on. What was drawn is what the store says, whoever had planned it."""
    before, more = one.intent.parcels, _more(one)
    if more <= 0:
        return give_back(before, -more, None).left
    return (*before, parcel(more, outcome.overage, outcome.changes))
