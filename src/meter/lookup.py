"""Finds records for those who correct them: by place, by idempotency key, and sums of their effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.errors import InvalidRequestError, NotFoundError, RawExpiredError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from meter.core.sequence import Entry, Position
    from meter.ports.warehouse import Counter, RecordReader

    class Rolled(Protocol):
        """What a lookup needs to know of the rollup's progress."""

        async def reached(self, wanted: Mapping[int, Position], seconds: float) -> None:
            """Wait until the marks are there."""
            ...


__all__ = ["MOST_KEYS", "Lookup"]

MOST_KEYS = 1_000


class Lookup:
    """Reads raw and ledger; waits at most `wait` seconds for the rollup to reach what it is asked about."""

    def __init__(self, rolled: Rolled, reader: RecordReader, wait: float) -> None:
        self._rolled, self._reader, self._wait = rolled, reader, wait

    async def record(self, tenant: str, bucket: int, place: Position) -> Entry:
        """The record of a place.

        Raise `NotFoundError` for a place without a record of this tenant, `RawExpiredError` for one whose record was
        dropped, `RollupBehindError` when it is not rolled up in time.
        """
        await self._rolled.reached({bucket: place}, self._wait)
        found = await self._reader.find(bucket, place)
        name = f"record {place.generation}-{place.sequence} of bucket {bucket}"
        if found is None and await self._reader.is_dropped(bucket, place):
            raise RawExpiredError(
                f"{name} was dropped: raw records are kept for METERGATE_METER_RAW_DAYS days. "
                "What it was is not known any more, so it cannot be corrected"
            )
        if found is None or found[0] != tenant:
            raise NotFoundError(f"there is no {name}")
        return found[1]

    async def retained_since(self) -> int:
        """From when on windows have all their raw records, in seconds."""
        return await self._reader.retained_since()

    async def keyed(
        self,
        tenant: str,
        bucket: int,
        keys: Sequence[str],
        stored: tuple[int, int],
        upto: Position,
    ) -> Sequence[Entry]:
        """The tenant's usage in a bucket that has one of the keys, once the rollup has reached `upto`."""
        if len(keys) > MOST_KEYS:
            raise InvalidRequestError("TOO_MANY_KEYS", f"at most {MOST_KEYS} keys")
        await self._rolled.reached({bucket: upto}, self._wait)
        return await self._reader.keyed(tenant, bucket, keys, stored)

    async def corrections(
        self, bucket: int, after: int, stored_from: int, upto: Position
    ) -> Sequence[Entry]:
        """Records of the bucket's corrections with numbers beyond `after`, once the rollup has reached `upto`."""
        await self._rolled.reached({bucket: upto}, self._wait)
        return await self._reader.corrections(bucket, after, stored_from)

    async def totals(
        self, bucket: int, counters: Sequence[Counter]
    ) -> Mapping[Counter, tuple[int, int]]:
        """(used, held) of those counters that the ledger has."""
        return await self._reader.ledger(bucket, counters)
