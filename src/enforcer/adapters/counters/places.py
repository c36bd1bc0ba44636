"""The furthest places of records that were acknowledged here, and telling buckets of those in earlier generations.

Should Redis and the records both lack one, that is a loss to be named, whoever has opened the next generation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from meter.core.sequence import START, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from enforcer.adapters.counters.connection import Connection

__all__ = ["Places"]

_log = structlog.get_logger(__name__)


class Places:
    """Of all buckets. `most` ends of earlier generations are remembered; `turned` is called when one is new."""

    def __init__(self, most: int, turned: Callable[[], None]) -> None:
        self._most, self._turned = most, turned
        self._known: dict[int, Position] = {}
        self._ends: dict[tuple[int, int], int] = {}
        self._told: set[tuple[int, int]] = set()

    def furthest(self, bucket: int) -> Position:
        """The furthest that was acknowledged here."""
        return self._known.get(bucket, START)

    def note(self, bucket: int, generation: int, sequence: int) -> None:
        """A place that has been acknowledged."""
        place, known = Position(generation, sequence), self._known.get(bucket, START)
        if place <= known:
            return
        if generation > known.generation:
            self.ask_about(bucket)
            self._turned()
        self._known[bucket] = place

    def ask_about(self, bucket: int) -> None:
        """Whether the outbox tells of the furthest place that was acknowledged here: another has opened the next one."""
        known = self._known.get(bucket, START)
        if known.generation:
            self._ends[bucket, known.generation] = known.sequence
            if len(self._ends) > self._most:
                self._ends.pop(next(iter(self._ends)))

    def untell(self, bucket: int) -> None:
        """What the bucket was told may be lost: tell it again."""
        self._told = {place for place in self._told if place[0] != bucket}

    def tell(
        self,
        link: Connection,
        buckets: Container[int],
        closed: Container[int],
        command: Callable[..., Any],
    ) -> None:
        """Tell what is not told yet of the connection's buckets; what is not answered is told on the next one.

        `command` makes the call of a bucket, generation and sequence.
        """
        for (bucket, generation), sequence in self._ends.items():
            told = (bucket, generation) in self._told
            if told or bucket in closed or bucket not in buckets:
                continue

            def answered(reply: Any, key: tuple[int, int] = (bucket, generation)) -> None:
                if isinstance(reply, list) and reply[0] in (b"known", b"told"):
                    self._told.add(key)
                    if reply[0] == b"told":
                        _log.error("records are lost that were acknowledged here", places=key)

            link.send(answered, *command(bucket, generation, sequence))
