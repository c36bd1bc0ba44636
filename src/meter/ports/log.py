"""Where usage records come from and go to: one log per bucket, in order, given back once durable.

Positions, and who moves them:

- *read*: the place after which the next call reads. The caller keeps it and passes it in; a source
  has no memory of it. Lost on a crash, on purpose.
- *rolled*: the last place whose effects are in the rollups. The rollup moves it, in SQL.
- *committed*: everything up to here is durable downstream and may be forgotten by the log. Moved by
  `commit`, after *rolled*, never beyond it.

So committed <= rolled <= read at all times, and reading from *rolled* again after a crash misses
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meter.core.sequence import Entry, Position

__all__ = ["Batch", "LogSource", "Publisher"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read found.

    `fresh`: buckets of which, after these entries, everything has been read that was decided before a
    time, in ms since 1970. `more`: the log is known to have more at this moment.
    """

    entries: Mapping[int, Sequence[Entry]]
    fresh: Mapping[int, int]
    more: bool = False


class LogSource(Protocol):
    """A log of usage records, one sequence per bucket."""

    async def assigned(self) -> frozenset[int]:
        """Begin to read again from what was committed; return the buckets that this process reads.

        Raise `LogUnavailableError` as `read` does.
        """
        ...

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        """Read the entries that follow `after` in the buckets named there, older generations first.

        Waits up to `timeout_ms` for the first entry and never for more; about `limit` entries at
        most. Entries of one bucket come in the order of the log, which may hold repeats.
        Raise `LogUnavailableError` when the log cannot be reached, `LogMovedError` when this process
        reads other buckets now and has to begin again; nothing is lost then.
        """
        ...

    async def commit(self, upto: Mapping[int, Position]) -> None:
        """Let the log forget each bucket's entries up to the position, included.

        Only call it when they are durable downstream. Repeating it is harmless.
        Raise `LogUnavailableError` as `read` does.
        """
        ...

    async def backlog(self) -> int:
        """Return how many entries are not committed yet."""
        ...


class Publisher(Protocol):
    """Where a relay takes records to: the log that a `LogSource` in another process reads."""

    async def publish(
        self, entries: Mapping[int, Sequence[Entry]], fresh: Mapping[int, int]
    ) -> None:
        """Write each bucket's entries in their order, then up to when, in ms, the buckets are fresh.

        All of it is durable on return. Raise `LogUnavailableError` when that is not sure: then all of
        it has to be written again, before anything that follows it.
        """
        ...
