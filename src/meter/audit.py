"""Holds the counters against the ledger, and the sequences and rollups against raw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meter.core.sequence import START, Gap, Position
from meter.errors import GapUnknownError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Protocol

    from meter.ports.marks import Marks, Standing
    from meter.ports.warehouse import Counter, LedgerReader

    class Rolled(Protocol):
        """What the audit needs to know of the rollup's progress."""

        async def reached(self, wanted: Mapping[int, Position], seconds: float) -> None:
            """Wait until the marks are there."""
            ...

        def still(
            self, buckets: Collection[int] | None = None
        ) -> AbstractAsyncContextManager[Standing]:
            """Keep the rollups as they are; None: of all buckets."""
            ...


__all__ = ["Audit", "BucketCounters", "Comparison", "Difference"]


@dataclass(frozen=True, slots=True)
class BucketCounters:
    """The counters of a bucket as (used, held), and the last record in them, read in one step."""

    bucket: int
    position: Position
    counters: Mapping[Counter, tuple[int, int]]


class Difference(NamedTuple):
    """A counter that is not the sum of its records' effects; each side is (used, held)."""

    bucket: int
    counter: Counter
    shown: tuple[int, int]
    ledger: tuple[int, int]


@dataclass(slots=True)
class Comparison:
    """What was found. All but `records`, `counters` and `accepted` should be empty or 0."""

    records: int = 0
    counters: int = 0
    gaps: list[Gap] = field(default_factory=list)
    repeats: int = 0
    drift: list[Difference] = field(default_factory=list)
    rollup_difference: int = 0
    accepted: list[Gap] = field(default_factory=list)


class Audit:
    """Compares; waits at most `wait` seconds for the rollup to reach what it is asked about."""

    def __init__(self, rolled: Rolled, reader: LedgerReader, marks: Marks, wait: float) -> None:
        self._rolled, self._reader, self._marks, self._wait = rolled, reader, marks, wait

    async def compare(
        self, states: Sequence[BucketCounters], *, rollups: bool = True
    ) -> Comparison:
        """Compare the counters with the ledger as of exactly their last record.

        `rollups`: also all of usage with all of raw, of whichever bucket.

        Raise `RollupBehindError` when the rollup does not get there in time,
        `WarehouseUnavailableError` or `MarksUnavailableError` when a store is away.
        """
        wanted = {state.bucket: state.position for state in states if state.position.generation}
        if len({state.bucket for state in states}) != len(states):
            raise InvalidRequestError("BUCKET_REPEATED", "a bucket is named twice")
        await self._rolled.reached(wanted, self._wait)
        out = Comparison()
        async with self._rolled.still(None if rollups else wanted) as now:
            await self._sequences(wanted, now.held, out)
            for state in states:
                await self._counters(state, now.marks.get(state.bucket, START), out)
            if rollups:
                out.rollup_difference = await self._reader.rollup_difference(now.marks)
        out.accepted += await self._marks.accepted(wanted)
        out.gaps = [part for gap in out.gaps for part in _without(gap, out.accepted)]
        out.repeats += await self._marks.repeats(wanted)
        return out

    async def accept(self, gap: Gap, actor: str) -> None:
        """Note that a gap is accepted which holds nothing: its bucket has gone on to a later generation.

        Raise `GapUnknownError` unless an audit names exactly this gap.
        """
        out = Comparison()
        async with self._rolled.still([gap.bucket]) as now:
            mark = now.marks.get(gap.bucket, START)
            if gap.generation < mark.generation:
                await self._sequences({gap.bucket: mark}, {}, out)
        accepted = await self._marks.accepted([gap.bucket])
        named = {part[:4] for one in out.gaps for part in _without(one, accepted)}
        if gap[:4] not in named:
            raise GapUnknownError(f"bucket {gap.bucket} has no gap {gap[1:4]}")
        await self._marks.accept(gap, None, (), actor)

    async def _sequences(
        self, wanted: Mapping[int, Position], held: Mapping[int, Gap], out: Comparison
    ) -> None:
        """Count records and repeats, find gaps: those in raw, and those where a bucket is held."""
        told = await self._reader.told(wanted)
        seen: set[tuple[int, int]] = set()
        for count in await self._reader.counts(wanted):
            seen.add((count.bucket, count.generation))
            out.records += count.places
            out.repeats += count.rows - count.places
            place = wanted[count.bucket]
            last = max(count.last, told.get((count.bucket, count.generation), -1))
            last = place.sequence if count.generation == place.generation else last
            if count.places != last + 1:
                missing = await self._reader.gaps(count.bucket, count.generation, last + 1)
                out.gaps += [Gap(*part, "missing") for part in missing]
        for bucket, place in wanted.items():
            if (bucket, place.generation) not in seen and place.sequence >= 0:
                out.gaps.append(Gap(bucket, place.generation, 0, place.sequence + 1, "missing"))
        for (bucket, generation), last in told.items():
            if (bucket, generation) not in seen and generation < wanted[bucket].generation:
                out.gaps.append(Gap(bucket, generation, 0, last + 1, "missing"))
        found = set(out.gaps)
        for gap in held.values():
            if gap.bucket in wanted and gap not in found:
                out.gaps.append(gap)

    async def _counters(self, state: BucketCounters, mark: Position, out: Comparison) -> None:
        """Take what was rolled up beyond the counters' place off the ledger, then compare."""
        out.counters += len(state.counters)
        if not state.counters:
            return
        totals = await self._reader.ledger(state.bucket, list(state.counters))
        later: Mapping[Counter, tuple[int, int]] = {}
        if mark > state.position:
            later = await self._reader.effects_between(state.bucket, state.position, mark)
        for counter, shown in state.counters.items():
            used, held = totals.get(counter, (0, 0))
            used_later, held_later = later.get(counter, (0, 0))
            ledger = (used - used_later, held - held_later)
            if ledger != shown:
                out.drift.append(Difference(state.bucket, counter, shown, ledger))


def _without(gap: Gap, accepted: Sequence[Gap]) -> list[Gap]:
    """What is left of a gap. One that has a reason only is accepted whole."""
    same = [one for one in accepted if one[:2] == gap[:2]]
    if gap.first == gap.last:
        return [] if any(one.first <= gap.first <= one.last for one in same) else [gap]
    parts = [gap]
    for one in same:
        parts = [
            part._replace(first=first, last=last)
            for part in parts
            for first, last in (
                (part.first, min(part.last, one.first)),
                (max(part.first, one.last), part.last),
            )
            if first < last
        ]
    return parts
