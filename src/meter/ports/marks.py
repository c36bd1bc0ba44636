"""The rollup's durable memory: how far each bucket is rolled up, and which slice was the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meter.core.sequence import Gap, Position, Range

__all__ = ["Manifest", "Marks"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One slice of records, claimed to be added to the rollups once.

    `number` grows with each manifest; `token` names it to ClickHouse; `ranges` is what it covers.
    """

    number: int
    token: str
    ranges: tuple[Range, ...]


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
        Raise `FencedError` when a mark is not at its old place: another process has gone on.
        """
        ...

    async def accept(self, gap: Gap, old: Position, ranges: Sequence[Range], actor: str) -> None:
        """Move a bucket's mark from `old` behind the gap, note who decided so, and claim the ranges.

        All in one transaction. Raise `FencedError` as `claim` does.
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
