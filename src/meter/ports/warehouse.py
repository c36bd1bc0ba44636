"""Where records and their sums are kept: raw records, the usage rollup, the ledger."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date

    from meter.core.records import RecordType
    from meter.core.sequence import Entry, Position, Range
    from meter.ports.marks import Manifest

__all__ = [
    "Choice",
    "Counter",
    "LedgerReader",
    "RecordReader",
    "RowCount",
    "Warehouse",
    "WindowKey",
]


class WindowKey(NamedTuple):
    """A quarter hour of an account's meter; `start` in seconds since 1970."""

    tenant: str
    account: str
    meter: str
    start: int


class Warehouse(Protocol):
    """The writing side. Raise `WarehouseUnavailableError` when it cannot be reached.

    Each method is durable when it returns and may be repeated after any failure.
    """

    async def store(self, records: Sequence[tuple[int, Entry]]) -> None:
        """Add records, each with its bucket, to raw."""
        ...

    async def stored_beyond(self, marks: Mapping[int, Position]) -> set[tuple[int, int, int]]:
        """Return (bucket, generation, sequence) of what raw holds beyond the marks.

        Left by a crash between storing and claiming: these are not stored again.
        """
        ...

    async def review(self, manifest: Manifest) -> int:
        """Copy the slice's undecodable records to the review table; return how many there were."""
        ...

    async def review_late(self, records: Sequence[tuple[int, Entry]]) -> None:
        """Put records of generations that are over into the review table."""
        ...

    async def add_usage(self, manifest: Manifest) -> None:
        """Add the slice to the usage rollup, unless it was added before."""
        ...

    async def add_ledger(self, manifest: Manifest) -> None:
        """Add the slice to the ledger, unless it was added before."""
        ...

    async def kinds(self, manifest: Manifest) -> frozenset[RecordType]:
        """Return the types of the slice's sound records: what has none of a kind need not be added."""
        ...

    async def add_aggregates(self, manifest: Manifest) -> None:
        """Add the slice's least, greatest, latest and distinct values, unless it was added before."""
        ...

    async def add_seats(self, manifest: Manifest) -> None:
        """Add the slice's starts and ends of leases, unless it was added before."""
        ...

    async def add_denials(self, manifest: Manifest) -> None:
        """Add the slice's denials by limit, unless it was added before."""
        ...

    async def corrected(self, manifest: Manifest) -> Sequence[WindowKey]:
        """Return the windows that have corrections in the slice; not the sealed ones."""
        ...

    async def old_days(self, days: int) -> Sequence[date]:
        """Return the days of storing that raw has and that are more than `days` days before today."""
        ...

    async def places(self, day: date) -> Mapping[int, Position]:
        """Return the last place of each bucket among the records stored on that day."""
        ...

    async def keep_sums(self, day: date) -> None:
        """Note what audits need of the day's records: from then on raw's records of it count no more.

        Call it for the oldest day first, and only when all its records are rolled up.
        """
        ...

    async def drop_day(self, day: date) -> None:
        """Drop the records stored on that day. Call it after `keep_sums`."""
        ...

    async def retained_since(self) -> int:
        """Return the first moment, in seconds, from which raw has every record of a window."""
        ...

    async def recompute(self, manifest: Manifest, windows: Sequence[WindowKey]) -> None:
        """Work the windows' least, greatest, latest and distinct values out anew, from raw; and their hours', days' and months'.

        Of each record the newest version counts, and none that is void; records up to the end of the
        slice, in its buckets. The result replaces what was there at one instant; running it again
        under the same manifest changes nothing. Call it after `add_aggregates`, before another slice
        of the bucket. Raise `RawExpiredError`, and change nothing, when a window is older than
        `retained_since`.
        """
        ...

    async def drop_replaced(self) -> None:
        """Remove what `recompute` has replaced: it counts nowhere."""
        ...


class Counter(NamedTuple):
    """The key of a counter in the ledger: the limit's id and the start of its period."""

    limit: int
    period: int


class RowCount(NamedTuple):
    """What raw holds of one generation of a bucket: rows stored, distinct places, the last place."""

    bucket: int
    generation: int
    rows: int
    places: int
    last: int


class Choice(Enum):
    """Which records are recalled."""

    ALL = auto()
    OPEN = auto()
    """Starts of leases and reservations whose end is not among the records."""
    KEYED = auto()
    """Those with an idempotency key, and settlements of reservations."""
    BOUND = auto()
    """Of each holder of seats the last start of a lease, and the last end that unbound a device."""
    JOURNALED = auto()
    """The last of each journal of uses that were allowed while the counters were away."""


class LedgerReader(Protocol):
    """The reading side for audits. Raise `WarehouseUnavailableError` when it cannot be reached."""

    async def ledger(
        self, bucket: int, counters: Sequence[Counter]
    ) -> Mapping[Counter, tuple[int, int]]:
        """Return (used, held) of those counters that the ledger has, over all rolled up records."""
        ...

    async def effects_between(
        self, bucket: int, after: Position, upto: Position
    ) -> Mapping[Counter, tuple[int, int]]:
        """Return (used, held) by counter over the bucket's raw records in (after, upto]."""
        ...

    async def sums(
        self, bucket: int, limits: Sequence[int], periods: int
    ) -> Sequence[tuple[Counter, tuple[int, int]]]:
        """Return (used, held) of these limits by counter: the newest `periods`, and what has none."""
        ...

    async def recall(
        self, bucket: int, after: Position, choice: Choice, since_ms: int, most: int
    ) -> Sequence[Entry]:
        """Return the first `most` chosen records behind a place that were decided since a time, in order."""
        ...

    async def counts(self, upto: Mapping[int, Position]) -> Sequence[RowCount]:
        """Return what raw holds of each bucket up to its place, by generation."""
        ...

    async def told(self, buckets: Iterable[int]) -> Mapping[tuple[int, int], int]:
        """Return by bucket and generation the last place that existed, as records of later ones tell it."""
        ...

    async def gaps(self, bucket: int, generation: int, last: int) -> Sequence[Range]:
        """Return the places of [0, last) that raw does not have."""
        ...

    async def rollup_difference(self, marks: Mapping[int, Position]) -> int:
        """Return the sum over meters of |granted in raw up to the marks - quantity in usage|.

        And how far hours, days and months are from their quarter hours, in usage and in the aggregates.
        """
        ...


class RecordReader(Protocol):
    """What corrections need of raw. Raise `WarehouseUnavailableError` when it cannot be reached."""

    async def find(self, bucket: int, place: Position) -> tuple[str, Entry] | None:
        """Return the sound record of a place and its tenant; None when raw has none."""
        ...

    async def is_dropped(self, bucket: int, place: Position) -> bool:
        """Return whether raw had the place, and has dropped it when it had been kept long enough."""
        ...

    async def retained_since(self) -> int:
        """As `Warehouse` has it."""
        ...

    async def keyed(
        self, tenant: str, bucket: int, keys: Sequence[str], stored: tuple[int, int]
    ) -> Sequence[Entry]:
        """Return usage with one of the idempotency keys that was stored in [from, to) ms; no effects."""
        ...

    async def corrections(self, bucket: int, after: int, stored_from: int) -> Sequence[Entry]:
        """Return records of corrections with numbers beyond `after`, stored at or after a time in ms, by number."""
        ...

    async def ledger(
        self, bucket: int, counters: Sequence[Counter]
    ) -> Mapping[Counter, tuple[int, int]]:
        """As `LedgerReader` has it."""
        ...
