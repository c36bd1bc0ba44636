"""What the enforcer asks when Redis may have lost data: how far the records go, and what they say.

All answers are of what is rolled up. `catch_up` comes first: after it, nothing of what the log has is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meter.core.sequence import START
from meter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Protocol

    from meter.core.sequence import Entry, Position
    from meter.ports.marks import Standing
    from meter.ports.warehouse import Choice, Counter, LedgerReader

    class Rolled(Protocol):
        """What is needed to know of the rollup's progress."""

        async def standing(self, buckets: Collection[int] | None = None) -> Standing:
            """How far the buckets are."""
            ...

        async def caught_up(self, buckets: Collection[int], at_ms: int, seconds: float) -> None:
            """Wait until all that was decided before `at_ms` is rolled up, or the bucket is held."""
            ...


__all__ = ["Reached", "Recall"]

MOST = 10_000
PERIODS = 32
"""Of a limit: a rolling quota has 25 slots."""


class Reached(NamedTuple):
    """How far a bucket is rolled up; whether it is held at a gap, and the furthest place seen behind that."""

    bucket: int
    mark: Position
    held: bool
    seen: Position


class Recall:
    """Waits at most `wait` seconds for the rollup."""

    def __init__(self, rolled: Rolled, reader: LedgerReader, wait: float) -> None:
        self._rolled, self._reader, self._wait = rolled, reader, wait

    async def catch_up(self, buckets: Sequence[int], at_ms: int) -> list[Reached]:
        """Raise `RollupBehindError` when the rollup does not get there in time."""
        await self._rolled.caught_up(buckets, at_ms, self._wait)
        now = await self._rolled.standing(buckets)
        found = []
        for bucket in buckets:
            mark = now.marks.get(bucket, START)
            seen = max(mark, now.seen.get(bucket, START))
            found.append(Reached(bucket, mark, bucket in now.held, seen))
        return found

    async def sums(
        self, bucket: int, limits: Sequence[int]
    ) -> Sequence[tuple[Counter, tuple[int, int]]]:
        """What counters of these limits must show."""
        if len(limits) > MOST:
            raise InvalidRequestError("TOO_MANY", f"{len(limits)} limits, at most {MOST}")
        return await self._reader.sums(bucket, limits, PERIODS)

    async def records(
        self, bucket: int, after: Position, choice: Choice, since_ms: int, most: int
    ) -> Sequence[Entry]:
        """Records in the order of writing."""
        if not 0 < most <= MOST:
            raise InvalidRequestError("TOO_MANY", f"{most} records, 1 to {MOST} are possible")
        return await self._reader.recall(bucket, after, choice, since_ms, most)
