"""How far the rollups are: of the buckets of one process, and of all buckets of the deployment."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from meter.core.sequence import START, Gap, Position
from meter.errors import RollupBehindError
from meter.ports.marks import Standing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping

    from meter.ports.marks import Marks

__all__ = ["FIRST_PAUSE", "Progress", "SharedProgress"]

FIRST_PAUSE = 0.1
"""After a failure; the next ones are longer."""
STILL_SECONDS = 10.0
"""How long claims are refused when whoever wanted it so has died."""
LOOK_EVERY = 0.05
CACHED = 0.25


class Progress:
    """How far the rollups of this process are. Others wait for a place here, or read while nothing is added."""

    def __init__(self) -> None:
        self.marks: dict[int, Position] = {}
        self.held: dict[int, Gap] = {}
        self.fresh_ms: dict[int, int] = {}
        self.seen: dict[int, Position] = {}
        self.wanted = asyncio.Event()
        self._waiting = 0
        self._changed = asyncio.Condition()
        self._adding = asyncio.Lock()

    @property
    def fresh_until_ms(self) -> int | None:
        """All records decided before this time are in the rollups; None until every bucket is read."""
        if not self.fresh_ms or self.fresh_ms.keys() != self.marks.keys():
            return None
        return min(self.fresh_ms.values())

    def standing_now(self) -> Standing:
        """A copy of what is known."""
        return Standing(dict(self.marks), dict(self.held), dict(self.seen), dict(self.fresh_ms))

    async def standing(self, buckets: Collection[int] | None = None) -> Standing:
        """How far the buckets are."""
        del buckets  # all are known
        return self.standing_now()

    async def fresh_until(self) -> int | None:
        """As `fresh_until_ms`."""
        return self.fresh_until_ms

    @asynccontextmanager
    async def still(self, buckets: Collection[int] | None = None) -> AsyncIterator[Standing]:
        """Keep the rollups as they are while the caller reads them; gives how far they are."""
        del buckets  # one at a time
        async with self._adding:
            yield self.standing_now()

    async def reached(self, wanted: Mapping[int, Position], seconds: float) -> None:
        """Wait until every bucket is at its place, or is held at a gap before it.

        Raise `RollupBehindError` naming the lag after `seconds`.
        """

        def behind() -> dict[int, Position]:
            return _behind(self.marks, self.held, wanted)

        with self.waited_for():
            try:
                async with asyncio.timeout(seconds), self._changed:
                    await self._changed.wait_for(lambda: not behind())
            except TimeoutError:
                raise _lagging(self.marks, behind()) from None

    def begin(self, marks: Mapping[int, Position]) -> None:
        """Follow these buckets, and no others any more, from their marks."""
        self.marks = dict(marks)
        self.held.clear()
        self.seen = {b: place for b, place in self.seen.items() if b in marks}
        self.fresh_ms = {b: ms for b, ms in self.fresh_ms.items() if b in marks}

    async def caught_up(self, buckets: Collection[int], at_ms: int, seconds: float) -> None:
        """Wait until all that was decided in the buckets before `at_ms` is rolled up, or they are held.

        The rollup makes no pause after failures meanwhile. Raise `RollupBehindError` after `seconds`.
        """

        def behind() -> list[int]:
            return _stale(self.held, self.fresh_ms, buckets, at_ms)

        with self.waited_for():
            try:
                async with asyncio.timeout(seconds), self._changed:
                    await self._changed.wait_for(lambda: not behind())
            except TimeoutError:
                raise _not_read(behind()) from None

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Let the rollup make no pauses: somebody waits for how far it is."""
        self._waiting += 1
        self.wanted.set()
        try:
            yield
        finally:
            self._waiting -= 1

    async def pause(self, seconds: float, least: float = FIRST_PAUSE) -> None:
        """Wait, but only the least once anybody waits for how far the rollup is."""
        least = min(seconds, least)
        if not self._waiting:
            self.wanted.clear()
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self.wanted.wait()

    async def moved(self) -> None:
        """Wake who waits for a place."""
        async with self._changed:
            self._changed.notify_all()


class SharedProgress:
    """How far all buckets of the deployment are: what every process has told, through the marks' database.

    `local` is this process's own; `buckets` is how many there are.
    """

    def __init__(self, local: Progress, marks: Marks, buckets: int) -> None:
        self._local, self._marks, self._buckets = local, marks, buckets
        self._fresh: tuple[float, int | None] = (-CACHED, None)

    async def standing(self, buckets: Collection[int] | None = None) -> Standing:
        """How far the buckets are."""
        own = self._local.standing_now()
        # After what is known here, so that the marks include it.
        found = await self._marks.standing(buckets)
        chosen = None if buckets is None else set(buckets)
        fresh, held, seen = dict(found.fresh_ms), dict(found.held), dict(found.seen)
        for bucket, mark in own.marks.items():
            if chosen is not None and bucket not in chosen:
                continue
            if bucket in own.fresh_ms:
                fresh[bucket] = max(own.fresh_ms[bucket], fresh.get(bucket, 0))
            if bucket in own.held and mark == found.marks.get(bucket, START):
                held[bucket] = own.held[bucket]
            if bucket in own.seen:
                seen[bucket] = max(own.seen[bucket], seen.get(bucket, START))
        return Standing(found.marks, held, seen, fresh)

    async def fresh_until(self) -> int | None:
        """The least over all buckets; None until every bucket was read. As of a quarter second ago at most."""
        at, known = self._fresh
        if time.monotonic() - at < CACHED:
            return known
        at = time.monotonic()
        fresh = (await self.standing()).fresh_ms
        known = min(fresh.values()) if len(fresh) >= self._buckets else None
        self._fresh = at, known
        return known

    async def reached(self, wanted: Mapping[int, Position], seconds: float) -> None:
        """As `Progress.reached`, in whichever process."""
        if not _behind(self._local.marks, {}, wanted):
            return

        def behind(now: Standing) -> dict[int, Position]:
            return _behind(now.marks, now.held, wanted)

        with self._local.waited_for():
            last = await self._wait(wanted, lambda now: not behind(now), seconds)
        if late := behind(last):
            raise _lagging(last.marks, late)

    async def caught_up(self, buckets: Collection[int], at_ms: int, seconds: float) -> None:
        """As `Progress.caught_up`; a pause of another process goes on."""

        def behind(now: Standing) -> list[int]:
            return _stale(now.held, now.fresh_ms, buckets, at_ms)

        with self._local.waited_for():
            last = await self._wait(buckets, lambda now: not behind(now), seconds)
        if late := behind(last):
            raise _not_read(late)

    async def _wait(
        self, buckets: Collection[int], done: Callable[[Standing], bool], seconds: float
    ) -> Standing:
        """Look until it is so or the time is over; return what was seen last."""
        until = time.monotonic() + seconds
        while True:
            found = await self.standing(buckets)
            if done(found) or time.monotonic() > until:
                return found
            await asyncio.sleep(LOOK_EVERY)

    @asynccontextmanager
    async def still(self, buckets: Collection[int] | None = None) -> AsyncIterator[Standing]:
        """Keep all rollups as they are, in every process: claims are refused, and those made are waited for.

        Between two of them lies a rest as long as the first was, so that rollups go on however many want it.
        Raise `RollupBehindError` when what was claimed in these buckets is not applied in time.
        """
        holder, began = uuid.uuid4().hex, time.monotonic()
        while not await self._marks.keep_still(holder, STILL_SECONDS):
            if time.monotonic() - began > 3 * STILL_SECONDS:
                raise RollupBehindError("others keep the rollups still all the time: try again")
            await asyncio.sleep(LOOK_EVERY)
        began = time.monotonic()
        keeping = asyncio.create_task(self._keep(holder))
        try:
            while left := await self._marks.unapplied(buckets):
                if time.monotonic() - began > STILL_SECONDS:
                    which = sorted({part.bucket for one in left for part in one.ranges})
                    raise RollupBehindError(
                        "slices are claimed and not rolled up, and no process does it: "
                        f"buckets {', '.join(map(str, which[:20]))}"
                    )
                await asyncio.sleep(LOOK_EVERY)
            yield await self.standing(buckets)
            if not await self._marks.keep_on(holder, STILL_SECONDS):
                raise RollupBehindError("the rollups went on in the middle: try again")
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            if not keeping.cancelled():
                keeping.exception()  # seen: whoever keeps on at the end notices
            await self._marks.let_go(holder, time.monotonic() - began)

    async def _keep(self, holder: str) -> None:
        """Go on keeping still; ends when that is over."""
        while True:
            await asyncio.sleep(STILL_SECONDS / 4)
            if not await self._marks.keep_on(holder, STILL_SECONDS):
                return


def _behind(
    marks: Mapping[int, Position], held: Mapping[int, Gap], wanted: Mapping[int, Position]
) -> dict[int, Position]:
    return {
        bucket: place
        for bucket, place in wanted.items()
        if marks.get(bucket, START) < place and bucket not in held
    }


def _stale(
    held: Mapping[int, Gap], fresh_ms: Mapping[int, int], buckets: Collection[int], at_ms: int
) -> list[int]:
    return [one for one in buckets if one not in held and fresh_ms.get(one, -1) < at_ms]


def _lagging(marks: Mapping[int, Position], late: Mapping[int, Position]) -> RollupBehindError:
    lag = ", ".join(
        f"bucket {bucket} is at {_place(marks.get(bucket))} of {_place(place)}"
        for bucket, place in sorted(late.items())
    )
    return RollupBehindError(f"the rollup is behind: {lag}", lag=lag)


def _not_read(buckets: Collection[int]) -> RollupBehindError:
    late = ", ".join(map(str, buckets))
    return RollupBehindError(
        f"the log was not read to its end in time: buckets {late}", buckets=late
    )


def _place(position: Position | None) -> str:
    return "the start" if position is None else f"{position.generation}-{position.sequence}"
