"""Who waits for a decision of the store, and the batches that they travel in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from enforcer.core.rules import Mode
from enforcer.errors import OutcomeUnknownError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from enforcer.core.commands import Answer, Ask, Sent
    from enforcer.errors import MetergateError

__all__ = ["Batch", "Lot", "Waiting", "settled"]

READS = (Mode.CHECK_ONLY, Mode.PEEK)


class Lot:
    """What several groups that were asked for at once are answered, in their order, and who waits for all of it."""

    __slots__ = ("answers", "future", "left")

    def __init__(self, count: int, future: asyncio.Future[list[Any]]) -> None:
        self.answers: list[Any] = [None] * count
        self.left, self.future = count, future


class Waiting:
    """A group of checks and who waits for it: for this group alone, or for a whole lot in which it has a place.

    `sent`: where it went last, unless it is known not to have run there.
    """

    __slots__ = ("_future", "_lot", "_place", "_told", "group", "sent", "since")

    def __init__(
        self,
        group: Sequence[Ask],
        future: asyncio.Future[list[Any]],
        since: float,
        lot: Lot | None = None,
        place: int = 0,
    ) -> None:
        self.group, self.since, self.sent = group, since, None
        self._future, self._lot, self._place, self._told = future, lot, place, False

    sent: Sent | None

    @property
    def done(self) -> bool:
        """Whether nobody waits any more: it was answered, or who asked has gone."""
        return self._told or self._future.done()

    def tell(self, answers: list[Answer]) -> None:
        """Answer it, unless that is done."""
        if self._told or self._future.done():
            return
        self._told = True
        if self._lot is None:
            self._future.set_result(answers)
        else:
            self._of_lot(answers)

    def fail(self, error: MetergateError) -> None:
        """The same with what went wrong."""
        if self._told or self._future.done():
            return
        self._told = True
        if self._lot is None:
            self._future.set_exception(error)
        else:
            self._of_lot(error)

    def _of_lot(self, answer: list[Answer] | MetergateError) -> None:
        lot = self._lot
        assert lot is not None
        lot.answers[self._place] = answer
        lot.left -= 1
        if not lot.left:
            lot.future.set_result(lot.answers)

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
