"""Who waits for a decision of the store, and the batches that they travel in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enforcer.core.rules import Mode
from enforcer.errors import OutcomeUnknownError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from enforcer.core.commands import Answer, Ask, Sent

__all__ = ["Batch", "Waiting", "settled"]

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


def settled(doubt: Sequence[Batch], ran: Mapping[int, float]) -> tuple[list[Batch], list[Waiting]]:
    """Settle batches of which nobody knows whether they ran; return those still in doubt, and what is asked again.

    `ran`: the number of the last batch that ran on each bucket that could be asked.
    """
    again: list[Waiting] = []
    for batch in doubt:
        for waiting in batch.waiting:
            last = ran.get(waiting.bucket)
            if last is None:
                continue
            if last < batch.number:
                waiting.sent = None
                again.append(waiting)
            elif waiting.repeatable:
                again.append(waiting)
            else:
                waiting.fail(OutcomeUnknownError(waiting.sent))
        batch.waiting = [one for one in batch.waiting if one.bucket not in ran]
    return [batch for batch in doubt if batch.waiting], again
