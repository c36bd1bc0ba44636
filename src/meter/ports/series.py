"""Where reports read seats and denials from: changes and sums, never raw records."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meter.ports.usage import Scope

__all__ = [
    "DenialKey",
    "DenialRow",
    "SeatGroup",
    "SeatKey",
    "SeatRow",
    "SeriesReader",
]


class SeatGroup(Enum):
    """Whose seats are counted together."""

    CUSTOMER = auto()
    ACCOUNT = auto()
    ALL = auto()


class SeatKey(NamedTuple):
    """What rows are ordered by; names that the group has not are empty."""

    start: int
    meter: str
    account: str
    customer: str


class SeatRow(NamedTuple):
    """Live leases in one window.

    `p95`: the least number that was not exceeded for 95 % of the window's time, or longer. `seat_ms`:
    the sum over leases of their time in the window, in ms.
    """

    key: SeatKey
    peak: int
    p95: int
    seat_ms: int


class DenialKey(NamedTuple):
    """What rows are ordered by; `reason` is a number of enforcer.v1.Reason, `limit` 0 where none refused."""

    start: int
    customer: str
    meter: str
    reason: int
    limit: int


class DenialRow(NamedTuple):
    """What was refused in one window."""

    key: DenialKey
    events: int
    quantity: int


class SeriesReader(Protocol):
    """Reads seats and denials. Raise `WarehouseUnavailableError` when it cannot be reached.

    Both answer the first `limit` rows after the key. Windows begin at `starts`, of which the first is
    the range's start; in seconds, the range's end in ms. Of a scope the dimensions have no meaning.
    """

    async def first_seat(self, scope: Scope) -> int | None:
        """Return the first change in ms since 1970; None without any."""
        ...

    async def first_denial(self, scope: Scope) -> int | None:
        """Return the start of the first quarter hour with denials, in seconds; None without any."""
        ...

    async def seats(
        self,
        scope: Scope,
        group: SeatGroup,
        starts: Sequence[int],
        end_ms: int,
        after: SeatKey | None,
        limit: int,
    ) -> Sequence[SeatRow]:
        """Windows and groups in which a seat was held. A lease without an end is held until `end_ms`."""
        ...

    async def denials(
        self,
        scope: Scope,
        starts: Sequence[int],
        end_ms: int,
        after: DenialKey | None,
        limit: int,
    ) -> Sequence[DenialRow]:
        """Windows in which something was refused."""
        ...
