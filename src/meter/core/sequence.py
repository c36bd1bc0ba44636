"""A bucket's sequence: which record comes next, which is a repeat, and where something is missing.

Pure: `Sequencer` is told of entries in the order of their arrival and answers what to do with each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from meter.core.records import HEADER, RecordType, decode_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["START", "Entry", "Gap", "Position", "Range", "Sequencer", "Verdict", "opening"]


class Position(NamedTuple):
    """The place of a record: compares in the order of writing."""

    generation: int
    sequence: int


START = Position(0, -1)
"""Before the first record of a bucket that was never read."""


class Entry(NamedTuple):
    """One record as it lies in the log: its place, and the bytes of body and effects."""

    generation: int
    sequence: int
    body: bytes
    effects: bytes

    @property
    def position(self) -> Position:
        """Its place."""
        return Position(self.generation, self.sequence)


class Range(NamedTuple):
    """Places `[first, last)` of one generation of a bucket."""

    bucket: int
    generation: int
    first: int
    last: int


class Gap(NamedTuple):
    """Places `[first, last)` of a generation that are missing, and why the bucket does not go on.

    `last` equals `first` where only the reason is known, such as an opening that cannot be read.
    """

    bucket: int
    generation: int
    first: int
    last: int
    reason: str


class Verdict(Enum):
    """What becomes of an offered entry."""

    NEXT = auto()
    """Accepted: it continues the sequence."""
    REPEAT = auto()
    """Seen before: dropped and counted."""
    AHEAD = auto()
    """Kept until what is missing before it comes, or until the look ahead is exhausted."""
    LATE = auto()
    """Of a generation that is over, beyond what was known of it: for review."""


@dataclass(frozen=True, slots=True)
class _Opening:
    """What the first record of a generation says of the one before."""

    previous: int
    last: int


def opening(effects: bytes) -> _Opening | None:
    """Read the effects of a GENERATION record; None when they are not one."""
    if len(effects) < HEADER * 8:
        return None
    try:
        decoded = decode_effects(effects)
    except (ValueError, OverflowError):
        return None
    if decoded.type is not RecordType.GENERATION:
        return None
    return _Opening(decoded.extra, decoded.quantity)


class Sequencer:
    """Follows one bucket from `position`, the last place accepted.

    A record that does not follow is kept, at most `look_ahead` of them; `gap` then says what is
    missing, and `read` is the furthest place that need not be offered again. The owner stops reading a bucket whose gap has lasted, and drops the sequencer when it
    starts again from the durable mark.
    """

    def __init__(self, bucket: int, position: Position, look_ahead: int = 1_000) -> None:
        self.bucket = bucket
        self.position = position
        self.read = position
        self.gap: Gap | None = None
        self.repeats = 0
        self.exhausted = False
        """True from when something beyond a gap could not be kept: nothing more is, then."""
        self._look_ahead = look_ahead
        self._ahead: dict[Position, Entry] = {}

    def offer(self, entry: Entry) -> Verdict:
        """Say what becomes of `entry`; when NEXT, `position` is its place, and `released` follows."""
        position = entry.position
        if position <= self.position:
            if entry.generation < self.position.generation:
                return Verdict.LATE
            self.repeats += 1
            return Verdict.REPEAT
        missing = self._missing(entry)
        if missing is None:
            self.position = position
            self.read = max(self.read, position)
            return Verdict.NEXT
        if position in self._ahead:
            self.repeats += 1
            return Verdict.REPEAT
        self.exhausted = self.exhausted or len(self._ahead) >= self._look_ahead
        if not self.exhausted:
            self._ahead[position] = entry
            self.read = max(self.read, position)
        if self.gap is None or missing < self.gap:
            self.gap = missing
        return Verdict.AHEAD

    def follow(self, entries: Sequence[Entry]) -> bool:
        """Accept all of `entries` at once if they continue the sequence, as they nearly always do.

        False: nothing happened; offer them one by one.
        """
        generation, first = entries[0].generation, entries[0].sequence
        if self.gap is not None or (generation, first) != (
            self.position.generation,
            self.position.sequence + 1,
        ):
            return False
        dense = range(first, first + len(entries))
        if {entry[0] for entry in entries} != {generation} or [
            entry[1] for entry in entries
        ] != list(dense):
            return False
        self.position = entries[-1].position
        self.read = max(self.read, self.position)
        return True

    def released(self) -> list[Entry]:
        """Entries kept ahead that follow now, in order. Call after each NEXT while `gap` is set."""
        if self.gap is None:
            return []
        out: list[Entry] = []
        waiting = deque(sorted(self._ahead.values(), key=lambda entry: entry.position))
        while waiting and self._missing(waiting[0]) is None:
            entry = waiting.popleft()
            self.position = entry.position
            del self._ahead[entry.position]
            out.append(entry)
        self.gap = self._missing(waiting[0]) if waiting else None
        return out

    def _missing(self, entry: Entry) -> Gap | None:
        """What lies between `position` and `entry`; None when it is next."""
        at = self.position
        if entry.generation == at.generation:
            if entry.sequence == at.sequence + 1:
                return None
            return self._gap(at.generation, at.sequence + 1, entry.sequence, "missing")
        if entry.sequence:
            return self._gap(entry.generation, 0, entry.sequence, "missing")
        return self._missing_before(entry)

    def _missing_before(self, entry: Entry) -> Gap | None:
        """What lies between `position` and the first record of a newer generation."""
        at = self.position
        said = opening(entry.effects)
        if said is None and at == START:
            return None
        if said is None:
            return self._gap(entry.generation, 0, 0, "the opening of the generation is unreadable")
        if said.previous == at.generation and said.last > at.sequence:
            return self._gap(at.generation, at.sequence + 1, said.last + 1, "missing")
        if said.previous > at.generation and said.last >= 0:
            return self._gap(said.previous, 0, said.last + 1, "missing")
        return None

    def _gap(self, generation: int, first: int, last: int, reason: str) -> Gap:
        return Gap(self.bucket, generation, first, last, reason)
