"""The rollup: brings records from the log into raw, usage and ledger, each exactly once.

One flush, in this order, and why the order matters:

1. `store`    the records' bytes to raw, durable.
2. `claim`    the slice: the marks move by compare-and-set and the manifest is stored, in one SQL
              transaction. Not before 1, else a crash leaves a slice without its records. A process that was
              paused and replaced fails here and changes nothing.
3. `review`, `usage`, `ledger`, `aggregates`, `seats`, `denials`   the slice from raw to the rollups,
              once per manifest; `recompute` what it corrects, after `aggregates`.
4. `applied`  noted. Until then whoever starts runs the manifest again, which changes nothing if it is in.
5. `commit`   the log forgets the records. Last: until here they can be read again.

After any failure the rollup begins again from the durable marks, as after a crash: there is one way
back, and it is tested with a kill between every two steps.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from typing import TYPE_CHECKING

import structlog

from meter.core.records import RecordType
from meter.core.sequence import START, Entry, Gap, Position, Range, Sequencer, Verdict
from meter.errors import FencedError, GapUnknownError, UnavailableError
from meter.health import Complaint
from meter.ports.traces import Untraced
from meter.progress import FIRST_PAUSE, Progress, SharedProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from meter.metrics import Metrics
    from meter.ports.log import Batch, LogSource
    from meter.ports.marks import Manifest, Marks
    from meter.ports.traces import Traces
    from meter.ports.warehouse import Warehouse

__all__ = ["Options", "Rollup"]

_log = structlog.get_logger(__name__)

VALUES = frozenset(
    {RecordType.USAGE, RecordType.COMMIT, RecordType.BACKFILL, RecordType.ALLOWANCE_USE}
)
CORRECTIONS = frozenset({RecordType.VOID, RecordType.AMEND})
LEASES = frozenset({RecordType.LEASE_START, RecordType.LEASE_END, RecordType.LEASE_EXPIRED})
LONGEST_PAUSE = 5.0
BACKLOG_EVERY = 2.0
GAP_PATIENCE = 2.0
LONGEST_REST = 0.3
EXPIRE_EVERY = 3600.0
TELL_EVERY = 0.5
_UNTRACED = Untraced()


@dataclass(frozen=True, slots=True)
class Options:
    """How the rollup works: intervals in seconds, sizes in records. `raw_days`: see the setting."""

    flush_interval: float = 0.2
    flush_records: int = 100_000
    look_ahead: int = 1_000
    idle_wait: float = 0.25
    raw_days: int = 90
    shared: int = 0
    """How many buckets the deployment has, when other processes may have some of them; 0: this one has all."""


@dataclass(slots=True)
class _Slice:
    """What one flush will claim."""

    records: list[tuple[int, Entry]] = field(default_factory=list)
    moves: dict[int, tuple[Position, Position]] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)
    late: list[tuple[int, Entry]] = field(default_factory=list)

    def take(self, bucket: int, start: Position, entries: Sequence[Entry]) -> None:
        """Add what follows `start`, in order: one range for each generation met."""
        if not entries:
            return
        self.records += zip(repeat(bucket), entries)
        first, last = entries[0], entries[-1]
        self.moves[bucket] = (start, last.position)
        if first.generation != last.generation:
            for before, entry in pairwise(entries):
                if entry[0] != before[0]:
                    self.ranges.append(
                        Range(bucket, first.generation, first.sequence, before[1] + 1)
                    )
                    first = entry
        self.ranges.append(Range(bucket, first.generation, first.sequence, last.sequence + 1))


class Rollup:
    """Rolls up the buckets of `source`. Run it with `run`; ask it to end with `stop`.

    `steps` is called with the name of each step before it begins and may raise: that is how tests
    crash it at every point.
    """

    def __init__(
        self,
        source: LogSource,
        marks: Marks,
        warehouse: Warehouse,
        metrics: Metrics,
        options: Options | None = None,
        steps: Callable[[str], None] = lambda _: None,
        traces: Traces = _UNTRACED,
    ) -> None:
        self._source, self._marks, self._warehouse = source, marks, warehouse
        self._metrics, self._traces = metrics, traces
        self._options = options or Options()
        self._steps = steps
        self._complaint = Complaint("rollup starts again")
        self._stopping, self._again = asyncio.Event(), asyncio.Event()
        self._sequencers: dict[int, Sequencer] = {}
        self._stored: set[tuple[int, int, int]] = set()
        self._gap_since: dict[int, float] = {}
        self._backlog_at = self._worked = 0.0
        self._expired_at = -EXPIRE_EVERY
        self._repeats: Counter[int] = Counter()
        self._ahead: asyncio.Task[Batch] | None = None
        self._member, self._told_at = uuid.uuid4().hex, 0.0
        self.progress = Progress()
        """Of the buckets of this process."""
        self.whole: Progress | SharedProgress = self.progress
        """Of all buckets of the deployment."""
        if self._options.shared:
            self.whole = SharedProgress(self.progress, marks, self._options.shared)

    def stop(self) -> None:
        """End `run` when the present flush is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Recover, then flush after flush until `stop`. Failures are logged, counted and retried."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                await self.recover()
                while not self._stopping.is_set() and not self._again.is_set():
                    began = time.monotonic()
                    await self.flush(self._options.idle_wait)
                    pause = FIRST_PAUSE
                    self._complaint.over()
                    if self._ahead is None:
                        await self._rest(time.monotonic() - began)
            except (UnavailableError, FencedError) as error:
                self._metrics.failures.labels(error.reason).inc()
                await self._forget()
                if isinstance(error, FencedError):
                    _log.warning("rollup starts again", reason=error.reason, error=error.message)
                else:
                    self._complaint.say(error.reason, error=error.message)
                await self._pause(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        await self._forget()

    async def recover(self) -> None:
        """Finish manifests in doubt, forget what was only in memory, go back to the marks.

        Whoever claimed them may be dead, or may be a live process that had some of these buckets a moment ago:
        running a manifest beside it changes nothing. Manifests of other buckets are left to those who have these.
        """
        self._again.clear()
        await self._forget()
        buckets = await self._source.assigned()
        async with self.progress.still():
            # First the marks, then what was claimed before them: a bucket goes on from a mark only when all up to
            # it is applied. What another process claims in between runs here, too, and the claim from the older mark fails.
            marks = await self._marks.load(buckets)
            for manifest in await self._marks.unapplied(buckets):
                _log.info("manifest in doubt runs again", manifest=manifest.token)
                await self._apply(manifest)
            for bucket in self.progress.held:
                self._metrics.held.labels(str(bucket)).set(0)
            self._stored = await self._warehouse.stored_beyond(marks)
            marks = dict(marks)
            await self._finish_flush(marks)
            self.progress.begin(marks)
        self._sequencers = {
            bucket: Sequencer(bucket, mark, self._options.look_ahead)
            for bucket, mark in marks.items()
        }
        self._gap_since.clear()
        await self.progress.moved()
        await self._tell()
        with self._stage("commit"):
            await self._source.commit(marks)

    async def flush(self, wait: float) -> int:
        """Do one flush; wait up to `wait` seconds for the first record. Return how many were rolled."""
        with self._stage("read"):
            ahead, self._ahead = self._ahead, None
            batch = await (ahead or self._read(wait))
        began = time.monotonic()
        part = self._accept(batch)
        if batch.more:
            # The log has more: read it while this is written.
            self._ahead = asyncio.create_task(self._read(0.001))
        if part.moves or part.late:
            with self._traces.batch("rollup", part.records):
                await self._write(part)
        self._note_freshness(batch)
        self._hold()
        self.progress.seen = {b: one.read for b, one in self._sequencers.items()}
        await self.progress.moved()
        if time.monotonic() - self._told_at > TELL_EVERY:
            await self._tell()
        await self._measure()
        await self._expire()
        self._worked = time.monotonic() - began if part.records else 0.0
        return len(part.records)

    async def _read(self, wait: float) -> Batch:
        """Read on from what was read, in the buckets that are not held."""
        after = {
            bucket: sequencer.read
            for bucket, sequencer in self._sequencers.items()
            if bucket not in self.progress.held
        }
        return await self._source.read(after, self._options.flush_records, max(1, int(wait * 1000)))

    async def _forget(self) -> None:
        """Drop what was read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait({ahead})
            if not ahead.cancelled():
                ahead.exception()  # seen: the read is done again

    def _accept(self, batch: Batch) -> _Slice:
        part = _Slice()
        for bucket, entries in batch.entries.items():
            sequencer = self._sequencers[bucket]
            start, before = sequencer.position, sequencer.repeats
            self._metrics.read.inc(len(entries))
            part.take(bucket, start, self._sequence(sequencer, entries, part))
            if repeats := sequencer.repeats - before:
                self._repeats[bucket] += repeats
                self._metrics.repeats.inc(repeats)
        return part

    @staticmethod
    def _sequence(sequencer: Sequencer, entries: Sequence[Entry], part: _Slice) -> Sequence[Entry]:
        """Return the entries that follow; put late ones aside."""
        if entries and sequencer.follow(entries):
            return entries
        out: list[Entry] = []
        for entry in entries:
            verdict = sequencer.offer(entry)
            if verdict is Verdict.NEXT:
                out.append(entry)
                out += sequencer.released()
            elif verdict is Verdict.LATE:
                part.late.append((sequencer.bucket, entry))
        return out

    async def _write(self, part: _Slice) -> None:
        with self._stage("store"):
            new = part.records
            if self._stored:
                new = [
                    (bucket, entry)
                    for bucket, entry in new
                    if (bucket, entry.generation, entry.sequence) not in self._stored
                ]
                self._stored -= {(bucket, e.generation, e.sequence) for bucket, e in part.records}
                self._adopt_orphans(part)
            await self._warehouse.store(new)
            await self._warehouse.review_late(part.late)
            self._metrics.review.inc(len(part.late))
        if not part.moves:
            return
        with self._stage("claim"):
            # Repeats are noted with the next claim of their bucket.
            repeats = {bucket: self._repeats[bucket] for bucket in part.moves}
            manifest = await self._marks.claim(part.moves, part.ranges, repeats)
            self._repeats -= Counter(repeats)
        async with self.progress.still():
            await self._apply(manifest)
            self.progress.marks.update({b: new for b, (_, new) in part.moves.items()})
        self._metrics.rolled.inc(len(part.records))
        with self._stage("commit"):
            await self._source.commit({b: new for b, (_, new) in part.moves.items()})

    def _adopt_orphans(self, part: _Slice) -> None:
        """Claim with this slice what raw has of generations that it ends, and the log has lost.

        A crash between storing and claiming left them. They were decided, so they count.
        """
        over = {bucket: new.generation for bucket, (_, new) in part.moves.items()}
        orphans = {key for key in self._stored if key[1] < over.get(key[0], 0)}
        if orphans:
            self._stored -= orphans
            part.ranges += ranges_of(orphans)
            _log.warning("records that the log has lost count all the same", count=len(orphans))

    async def _finish_flush(self, marks: dict[int, Position]) -> None:
        """Claim what raw has right behind the marks: a crash came between storing and claiming."""
        ranges = []
        for part in ranges_of(self._stored):
            mark = marks[part.bucket]
            if (part.generation, part.first) == (mark.generation, mark.sequence + 1):
                ranges.append(part)
        if not ranges:
            return
        moves = {
            part.bucket: (marks[part.bucket], Position(part.generation, part.last - 1))
            for part in ranges
        }
        manifest = await self._marks.claim(moves, ranges, {})
        await self._apply(manifest)
        marks.update({bucket: new for bucket, (_, new) in moves.items()})
        for bucket, generation, first, last in ranges:
            self._stored -= {(bucket, generation, place) for place in range(first, last)}
        _log.info("a flush that was cut short is finished", ranges=ranges)

    async def accept(self, gap: Gap, actor: str, seconds: float) -> int:
        """Go on behind a gap that holds its bucket; return how many of its records raw has and count now.

        Raise `GapUnknownError` unless the bucket is held at exactly this gap.
        """
        async with self.whole.still([gap.bucket]) as now:
            held = now.held.get(gap.bucket)
            if held is None or held[:4] != gap[:4]:
                where = (
                    "nowhere" if held is None else f"at {held.generation} {held.first} {held.last}"
                )
                raise GapUnknownError(
                    f"bucket {gap.bucket} is held {where}, not at {gap.generation} {gap.first} {gap.last}"
                )
            mark = now.marks.get(gap.bucket, START)
            stored = await self._warehouse.stored_beyond({gap.bucket: mark})
            inside = {
                key for key in stored if key[:2] == gap[:2] and gap.first <= key[2] < gap.last
            }
            await self._marks.accept(gap, mark, ranges_of(inside), actor)
            if gap.bucket in self.progress.held:
                # From now on whoever waits for the bucket waits until it has gone on.
                self._again.set()
                del self.progress.held[gap.bucket]
                self._metrics.held.labels(str(gap.bucket)).set(0)
        _log.warning("gap accepted", actor=actor, **gap._asdict())
        self.progress.wanted.set()
        await self.whole.reached({gap.bucket: Position(gap.generation, gap.last - 1)}, seconds)
        return len(inside)

    async def _apply(self, manifest: Manifest) -> None:
        """Add a claimed manifest to the rollups. Running it again changes nothing."""
        with self._stage("review"):
            flawed = await self._warehouse.review(manifest)
        if flawed:
            self._metrics.review.inc(flawed)
            _log.error("records cannot be decoded: see the review table", count=flawed)
        with self._stage("usage"):
            await self._warehouse.add_usage(manifest)
        with self._stage("ledger"):
            await self._warehouse.add_ledger(manifest)
        kinds = await self._warehouse.kinds(manifest)
        if kinds & VALUES:
            with self._stage("aggregates"):
                await self._warehouse.add_aggregates(manifest)
        if kinds & CORRECTIONS:
            with self._stage("recompute"):
                await self._recompute(manifest)
        if kinds & LEASES:
            with self._stage("seats"):
                await self._warehouse.add_seats(manifest)
        if RecordType.DENIAL in kinds:
            with self._stage("denials"):
                await self._warehouse.add_denials(manifest)
        with self._stage("applied"):
            await self._marks.applied(manifest)

    async def _recompute(self, manifest: Manifest) -> None:
        """Work corrected windows out anew. Those that raw does not fully have any more stay as they are."""
        windows = await self._warehouse.corrected(manifest)
        since = await self._warehouse.retained_since()
        if expired := [window for window in windows if window.start < since]:
            self._metrics.expired_windows.inc(len(expired))
            _log.error("windows are older than raw: not recomputed", windows=expired[:10])
        await self._warehouse.recompute(manifest, [w for w in windows if w.start >= since])

    def _note_freshness(self, batch: Batch) -> None:
        """What was read is rolled up: the buckets are fresh, unless they wait at a gap."""
        for bucket, ms in batch.fresh.items():
            if self._sequencers[bucket].gap is None:
                self.progress.fresh_ms[bucket] = max(ms, self.progress.fresh_ms.get(bucket, 0))
        if (fresh := self.progress.fresh_until_ms) is not None:
            self._metrics.fresh.set(fresh / 1000)

    def _hold(self) -> None:
        """Stop reading buckets whose gap has outlasted the look ahead or the patience."""
        if self._again.is_set():
            return  # the marks were moved: what is known here is out of date
        now = time.monotonic()
        for bucket, sequencer in self._sequencers.items():
            if sequencer.gap is None:
                self._gap_since.pop(bucket, None)
                continue
            since = self._gap_since.setdefault(bucket, now)
            if bucket in self.progress.held:
                continue
            if sequencer.exhausted or now - since > GAP_PATIENCE:
                gap = sequencer.gap
                self.progress.held[bucket] = gap
                self._told_at = 0.0
                self._metrics.held.labels(str(bucket)).set(1)
                _log.error(
                    "bucket is held at a gap",
                    bucket=bucket,
                    generation=gap.generation,
                    first=gap.first,
                    last=gap.last,
                    reason=gap.reason,
                )

    async def _tell(self) -> None:
        """Tell the other processes how far this one is; see whether one of them has accepted a gap here."""
        if not self._options.shared:
            return
        await self._marks.report(self._member, self.progress.standing_now())
        self._told_at = time.monotonic()
        if self.progress.held:
            marks = await self._marks.load(self.progress.held)
            if any(marks[bucket] != self.progress.marks[bucket] for bucket in marks):
                self._again.set()

    async def _measure(self) -> None:
        if time.monotonic() - self._backlog_at > BACKLOG_EVERY:
            self._metrics.lag.set(await self._source.backlog())
            self._backlog_at = time.monotonic()

    async def _expire(self) -> None:
        """Drop what corrections have replaced, and days of raw that were kept long enough.

        The oldest days first, and never what is not rolled up.
        """
        if time.monotonic() - self._expired_at < EXPIRE_EVERY:
            return
        self._expired_at = time.monotonic()
        if min(self._sequencers, default=1) != 0:
            return  # one of several processes does it: the one that has the first bucket
        await self._warehouse.drop_replaced()
        for day in await self._warehouse.old_days(self._options.raw_days):
            places = await self._warehouse.places(day)
            marks = await self._marks.load(places)
            waiting = {bucket for bucket, place in places.items() if place > marks[bucket]}
            for manifest in await self._marks.unapplied(places):
                waiting.update(part.bucket for part in manifest.ranges)
            if waiting:
                _log.warning("raw is kept: not rolled up yet", day=str(day), buckets=waiting)
                return
            async with self.whole.still():
                self._steps("expire")
                await self._warehouse.keep_sums(day)
                self._steps("drop")
                await self._warehouse.drop_day(day)
            self._metrics.days_dropped.inc()
            _log.info("a day of raw records was dropped", day=str(day))

    def _stage(self, name: str) -> _Timed:
        self._steps(name)
        return _Timed(self._metrics, name, self._traces.stage(name))

    async def _pause(self, seconds: float, least: float = FIRST_PAUSE) -> None:
        """Unless it is stopped. Not longer than `least` when somebody waits."""
        tasks = {
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self.progress.pause(seconds, least)),
        }
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _rest(self, took: float) -> None:
        """Between flushes of all there is: as long as the last one worked, up to a bound, unless somebody waits.

        A flush costs the same for one record as for a thousand: else a trickle would take a whole processor.
        Not where there are several processes: who waits in another one cannot say so here.
        """
        least = self._options.flush_interval - took
        rest = 0.0 if self._options.shared else min(self._worked, LONGEST_REST)
        longest = max(least, rest)
        if longest > 0:
            await self._pause(longest, max(least, 0.0))


def ranges_of(places: Iterable[tuple[int, int, int]]) -> list[Range]:
    """Places (bucket, generation, number) as ranges."""
    found: list[Range] = []
    for bucket, generation, place in sorted(places):
        if found and found[-1][:2] == (bucket, generation) and found[-1].last == place:
            found[-1] = found[-1]._replace(last=place + 1)
        else:
            found.append(Range(bucket, generation, place, place + 1))
    return found


class _Timed:
    """Observes the duration of a stage."""

    def __init__(self, metrics: Metrics, stage: str, span: AbstractContextManager[object]) -> None:
        self._metrics, self._name, self._began, self._span = metrics, stage, 0.0, span

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        self._span.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._span.__exit__(kind, error, traceback)
        self._metrics.stage.labels(self._name).observe(time.perf_counter() - self._began)
