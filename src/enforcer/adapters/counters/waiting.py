"""Who waits for a decision of the store, and the batches that they travel in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enforcer.core.rules import Mode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from enforcer.core.commands import Answer, Ask, Sent

__all__ = ["Batch", "Waiting"]

READS = (Mode.CHECK_ONLY, Mode.PEEK)


@dataclass(slots=True)
class Waiting:
    """A group of checks and who waits for it. `sent`: where it went last, unless it is known not to have run there."""

    group: Sequence[Ask]
    future: asyncio.Future[list[Answer]]
    since: float
    sent: Sent | None = None

    @property
    def bucket(self) -> int:
        """Whose counters it needs."""
        return self.group[0].program.bucket

    @property
    def repeatable(self) -> bool:
        """Whether running it a second time changes nothing more."""
        return all(
            ask.idempotency or ask.journaled is not None or ask.mode in READS for ask in self.group
        )

    @property
    def hasty(self) -> bool:
        """Whether the feature's failure policy answers it when the store does not."""
        ask = self.group[0]
        return bool(
            ask.program.emergency
            and len(self.group) == 1
            and ask.journaled is None
            and not ask.reservation
            and ask.seat is None
            and ask.mode is not Mode.PEEK
        )

    @property
    def traced(self) -> bool:
        """Whether only the batch that it travels in can tell afterwards what it did."""
        return self.hasty and not self.repeatable

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class Batch:
    """What was sent in one call. `order`: places of `waiting` in the order of the replies; `slot`: where it is kept."""

    number: int
    sent: float
    waiting: list[Waiting]
    order: list[int] = field(default_factory=list)
    slot: int = 0
    withdrawn: bool = False
