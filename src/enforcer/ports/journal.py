"""The journal of emergency uses: durable before they are answered, counted once when the counters are back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from enforcer.core.emergency import Use

__all__ = ["Journal", "Sealed"]


class Sealed(Protocol):
    """A part of a journal that nothing is added to any more. Whoever has it is the only one to count it.

    `journal` names enforcer and boot and is never used again; its uses are numbered for each bucket, dense from 1,
    over all of its parts. `own`: its uses weigh on this enforcer's shares.
    """

    journal: str
    own: bool

    def batches(self, most: int) -> AsyncGenerator[Sequence[Use], None]:
        """Its uses in their order, at most so many at a time."""
        ...

    async def discard(self) -> None:
        """Every use is counted: forget them."""
        ...


class Journal(Protocol):
    """The journal of one enforcer, and access to those of enforcers that are gone."""

    async def append(self, use: Use) -> None:
        """Add a use, which gets its number; it is durable on return.

        Raise `JournalUnavailableError` when that cannot be; it says whether the use may be there all the same.
        """
        ...

    async def left_over(self) -> Sequence[Use]:
        """The uses that this enforcer's earlier lives left uncounted: they weigh on its shares."""
        ...

    def seal(self) -> AsyncGenerator[Sealed, None]:
        """End the part that is being written, if it has uses, and give out what is to be counted.

        One by one, each journal's in order: this enforcer's parts, and those of enforcers that are gone.
        """
        ...

    async def close(self) -> None:
        """After the last use."""
        ...
