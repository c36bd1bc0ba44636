"""Where usage records come from: one log per bucket, read in order and given back once durable.

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

__all__ = ["Batch", "LogSource"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read found.

    `at_ms` is the log's own time just before the read, in ms since 1970. Of the buckets that were
    `asked`, those of `drained` had nothing after the entries given here: all that was decided before
    `at_ms` has been read.
    """

    entries: Mapping[int, Sequence[Entry]]
    asked: frozenset[int]
    drained: frozenset[int]
    at_ms: int


class LogSource(Protocol):
    """A log of usage records, one sequence per bucket."""

    async def assigned(self) -> frozenset[int]:
        """Return the buckets that this process reads."""
        ...

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        """Read the entries that follow `after` in the buckets named there, older generations first.

        Waits up to `timeout_ms` for the first entry and never for more; about `limit` entries at
        most. Entries of one bucket come in the order of the log, which may hold repeats.
        Raise `LogUnavailableError` when the log cannot be reached; nothing is lost then.
        """
        ...

    async def commit(self, upto: Mapping[int, Position]) -> None:
        """Let the log forget each bucket's entries up to the position, included.

        Only call it when they are durable downstream. Repeating it is harmless.
        Raise `LogUnavailableError` as `read` does.
        """
        ...

    async def backlog(self) -> Mapping[int, int]:
        """Return how many entries of each bucket are not committed yet."""
        ...
