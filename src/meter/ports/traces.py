"""Spans of what a process does with records: of each batch with traced ones, and of each of those in its own trace."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from meter.core.sequence import Entry

__all__ = ["Traces", "Untraced"]


class Traces(Protocol):
    """Tells somebody who watches."""

    def batch(
        self, name: str, records: Iterable[tuple[int, Entry]]
    ) -> AbstractContextManager[object]:
        """While the context lasts, `name` is done with these records, each with its bucket."""
        ...

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A part of a batch, if one is traced at the moment."""
        ...


_NOTHING: AbstractContextManager[None] = nullcontext()


class Untraced:
    """Nobody watches."""

    def batch(
        self, name: str, records: Iterable[tuple[int, Entry]]
    ) -> AbstractContextManager[object]:
        """See `Traces`."""
        return _NOTHING

    def stage(self, name: str) -> AbstractContextManager[object]:
        """See `Traces`."""
        return _NOTHING
