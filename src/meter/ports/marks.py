"""The rollup's durable memory: how far each bucket is rolled up, and which slice was the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meter.core.sequence import Gap, Position, Range

__all__ = ["Manifest", "Marks", "Standing"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One slice of records, claimed to be added to the rollups once.

    `number` grows with each manifest; `token` names it to ClickHouse; `ranges` is what it covers.
    """

    number: int
    token: str
    ranges: tuple[Range, ...]


class Standing(NamedTuple):
    """How far buckets are rolled up, as of one moment.

    `marks`: all up to them is in the rollups. `held`: the gaps that buckets wait at. `seen`: the furthest place that was
    read, where it is beyond the mark. `fresh_ms`: all that was decided before that time is in the rollups.
    """

    marks: Mapping[int, Position]
    held: Mapping[int, Gap]
    seen: Mapping[int, Position]
    fresh_ms: Mapping[int, int]


class Marks(Protocol):
    """Marks and manifests. Raise `MarksUnavailableError` when they cannot be reached."""

    async def load(self, buckets: Iterable[int]) -> Mapping[int, Position]:
        """Return each bucket's mark; START where there is none yet."""
        ...

    async def claim(
        self,
        moves: Mapping[int, tuple[Position, Position]],
        ranges: Sequence[Range],
        repeats: Mapping[int, int],
    ) -> Manifest:
        """Move each bucket's mark from its old to its new place and store the manifest, or nothing.

        All in one transaction, durable on return. `repeats` adds to the buckets' counts of repeats.
        Raise `FencedError` when a mark is not at its old place: another process has gone on. Waits while the
        deployment is kept still.
        """
        ...

    async def accept(
        self, gap: Gap, old: Position | None, ranges: Sequence[Range], actor: str
    ) -> None:
        """Move a bucket's mark from `old` behind the gap, unless None, note who decided so, and claim the ranges.

        All in one transaction. Raise `FencedError` as `claim` does. Does not wait: call it in stillness.
        """
        ...

    async def accepted(self, buckets: Iterable[int]) -> Sequence[Gap]:
        """Return the gaps of the buckets that were accepted, in order."""
        ...

    async def applied(self, manifest: Manifest) -> None:
        """Note that the manifest is in the rollups."""
        ...

    async def unapplied(self, buckets: Iterable[int] | None = None) -> Sequence[Manifest]:
        """Return the manifests claimed but not noted as applied, oldest first: of all buckets, or any of these."""
        ...

    async def repeats(self, buckets: Iterable[int]) -> int:
        """Return how many repeats were dropped in the buckets."""
        ...

    async def report(self, member: str, standing: Standing) -> None:
        """Let all processes know how far the buckets of this one are, in place of what it said before."""
        ...

    async def standing(self, buckets: Iterable[int] | None = None) -> Standing:
        """Return how far the buckets are, whichever process has them: as their marks and all reports say.

        A bucket that is claimed and not noted as applied stands before that slice. What is told of as fresh is
        in the marks of the same answer.
        """
        ...

    async def keep_still(self, holder: str, seconds: float) -> bool:
        """Refuse every claim of every process for so long; False: somebody else does, or did a moment ago."""
        ...

    async def keep_on(self, holder: str, seconds: float) -> bool:
        """Do so for so long from now; False: it was over already."""
        ...

    async def let_go(self, holder: str, rest: float) -> None:
        """End the stillness, and allow no other for `rest` seconds."""
        ...
