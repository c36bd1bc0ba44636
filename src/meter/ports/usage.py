"""Where reports read usage from: sums by quarter hour, hour, day and month, never raw records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Key", "Row", "Scope", "SetAside", "UsageReader", "Values"]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which usage: of one tenant, always; empty `meter` or `customers` = all.

    `filters` are dimensions with the values allowed; `group_by` dimensions to split rows by.
    """

    tenant: str
    meter: str = ""
    customers: tuple[str, ...] = ()
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()
    group_by: tuple[str, ...] = ()


class Key(NamedTuple):
    """What rows are ordered by: start in seconds since 1970, then names and dimension values."""

    start: int
    customer: str
    meter: str
    values: tuple[str, ...]


class Row(NamedTuple):
    """The sums of one window, customer, meter and combination of dimension values."""

    key: Key
    quantity: int
    events: int
    overage: int
    denied_quantity: int
    denied_events: int
    adjustment: int
    unaccounted: int = 0


class Values(NamedTuple):
    """The other aggregates of a row that has events."""

    least: int
    greatest: int
    latest: int
    unique: int


class SetAside(NamedTuple):
    """A record in the review table; `seen` in seconds. Names are empty where it does not tell whose it is."""

    bucket: int
    generation: int
    sequence: int
    why: str
    seen: int
    customer: str
    feature: str
    granted: int


class UsageReader(Protocol):
    """Reads the usage rollup. Raise `WarehouseUnavailableError` when it cannot be reached."""

    async def first(self, scope: Scope) -> int | None:
        """Return the start of the first quarter hour with usage, in seconds; None without any."""
        ...

    async def rows(  # one query
        self,
        scope: Scope,
        start: int,
        end: int,
        starts: Sequence[int] | None,
        after: Key | None,
        limit: int,
    ) -> tuple[Sequence[Row], int]:
        """Return the first `limit` rows after the key, and the quantity over all rows of the query.

        Windows begin at `starts`, of which the first is `start`; None: every quarter hour. Both
        answers come from one moment. Without rows the total is 0.
        """
        ...

    async def values(  # one query
        self,
        scope: Scope,
        start: int,
        end: int,
        starts: Sequence[int] | None,
        between: tuple[Key, Key],
        distinct: Mapping[str, str],
    ) -> Mapping[Key, Values]:
        """Return the values of the rows from one key to another, both included.

        `distinct` names the dimension whose values are counted, by meter. Rows without events have none.
        """
        ...

    async def set_aside(
        self, tenant: str, after: tuple[int, int, int], limit: int
    ) -> Sequence[SetAside]:
        """Return what was put aside behind a place, of this tenant or of nobody known: all of the last place."""
        ...
