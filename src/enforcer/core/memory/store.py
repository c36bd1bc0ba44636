"""The operations of the counter store in memory, each one step on one bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enforcer.core.commands import TooMuch
from enforcer.core.corrections import Levels
from enforcer.core.memory.bucket import Bucket, Step
from enforcer.core.memory.correct import correct
from enforcer.core.memory.decide import decide
from enforcer.core.memory.hold import leases, reap, release_lease, renew, settle
from enforcer.core.memory.repair import adjust_seats, counters, repair
from meter.core.records import Body, Effects, RecordType, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.core.commands import (
        Answer,
        Ask,
        BucketState,
        Counter,
        EpochStale,
        HoldGone,
        KeyReused,
        LeaseInfo,
        Settled,
    )
    from enforcer.core.corrections import Correction, Outcome
    from enforcer.core.memory.bucket import Record

__all__ = ["MemoryCounters"]


class MemoryCounters:
    """Counters of any number of buckets. `clock` gives ms; `window_ms` is how long answers are remembered at least."""

    def __init__(self, clock: Callable[[], int], window_ms: int = 86_400_000) -> None:
        self._clock, self._window_ms = clock, window_ms
        self._buckets: dict[int, Bucket] = {}

    def open(self, bucket: int, generation: int) -> None:
        """Begin a generation; the first one creates the bucket."""
        old = self._buckets.get(bucket)
        if old is None:
            self._buckets[bucket] = Bucket(generation)
            previous, last = 0, -1
        else:
            previous, last = old.generation, old.sequence - 1
            old.generation, old.sequence = generation, 0
        step = self._step(bucket)
        body = encode_body(Body(t="", a="", c="", f="", m=""))
        step.append(body, Effects(RecordType.GENERATION, step.now, quantity=last, extra=previous))

    def records(self, bucket: int) -> list[Record]:
        return list(self._buckets[bucket].outbox)

    def _step(self, number: int, *, read: bool = False) -> Step:
        bucket = self._buckets[number]
        now = max(bucket.last_now, self._clock())
        if not read:
            bucket.last_now = now
        return Step(bucket, number, now, self._window_ms)

    def project(self, bucket: int, account_id: int, epoch: int) -> int:
        epochs = self._step(bucket).bucket.epochs
        epochs[account_id] = max(epoch, epochs.get(account_id, 0))
        return epochs[account_id]

    def decide(self, group: Sequence[Ask]) -> list[Answer]:
        return decide(self._step(group[0].program.bucket), group)

    def commit(
        self, bucket: int, reservation: str, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return settle(self._step(bucket), reservation, RecordType.COMMIT, quantity)

    def release(self, bucket: int, reservation: str) -> Settled | HoldGone | KeyReused:
        settled = settle(self._step(bucket), reservation, RecordType.RELEASE, 0)
        assert not isinstance(settled, TooMuch)
        return settled

    def give_back(
        self, bucket: int, allowance: str, used: int
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return settle(self._step(bucket), allowance, RecordType.ALLOWANCE_USE, used)

    def renew(
        self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int
    ) -> LeaseInfo | EpochStale | None:
        return renew(self._step(bucket), lease, ttl_ms, account_id, epoch)

    def release_lease(self, bucket: int, lease: str, *, unbind: bool) -> tuple[int, int] | None:
        return release_lease(self._step(bucket), lease, unbind=unbind)

    def leases(
        self, bucket: int, suffix: str, after: tuple[int, str], most: int
    ) -> list[LeaseInfo]:
        return leases(self._step(bucket, read=True), suffix, after, most)

    def tick(self, bucket: int) -> int:
        step = self._step(bucket)
        return step.flush_denials() + reap(step)

    def slots(self, bucket: int, suffixes: Sequence[str]) -> Levels:
        step = self._step(bucket, read=True)
        found = step.bucket
        states = [found.states.get(suffix) for suffix in suffixes]
        return Levels(
            found.generation,
            found.sequence - 1,
            step.now,
            tuple(
                {} if one is None else {code: list(slot) for code, slot in one.slots.items()}
                for one in states
            ),
        )

    def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> list[Outcome]:
        return correct(self._step(bucket), acknowledged, corrections, certain=certain)

    def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
        return repair(self._step(bucket), body, changes)

    def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> bool:
        return adjust_seats(self._step(bucket), compared, body, changes)

    def counters(self, bucket: int) -> BucketState:
        return counters(bucket, self._buckets[bucket])
