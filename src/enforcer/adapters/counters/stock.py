"""What lies in Redis at the moment, for operators: read beside the hot path, on a connection of its own.

An enforcer looks, and not who takes the records away: when that one is down its own figures are missing, just then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import hiredis

from enforcer.adapters.counters.connection import ConnectionLostError, connect
from enforcer.core.commands import Stock
from enforcer.errors import StoreUnavailableError
from meter.core.keys import bucket_tag, outbox
from meter.core.records import decode_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.adapters.counters.connection import Connection, Reply

__all__ = ["RedisStock"]

AT_ONCE = 64
"""Buckets that are asked for at once: four commands of constant cost each."""


class RedisStock:
    """Looks at `buckets` buckets at `url`. It keeps its connection; after a failure the next look makes a new one."""

    def __init__(self, url: str, buckets: int, patience: float) -> None:
        self._url, self._buckets, self._patience = url, buckets, patience
        self._link: Connection | None = None

    async def look(self) -> Stock:
        """Raise `StoreUnavailableError` when Redis does not answer."""
        try:
            async with asyncio.timeout(self._patience):
                link = self._link = self._link or await connect(
                    self._url, self._lost, self._patience
                )
                found = [await self._some(link, at) for at in range(0, self._buckets, AT_ONCE)]
        except (OSError, TimeoutError, ConnectionLostError, hiredis.ReplyError) as error:
            self.close()
            raise StoreUnavailableError(str(error) or "no reply") from error
        oldest = [one.oldest_ms for one in found if one.oldest_ms is not None]
        return Stock(
            sum(one.outbox for one in found),
            min(oldest, default=None),
            sum(one.leases for one in found),
            sum(one.reservations for one in found),
        )

    async def _some(self, link: Connection, first: int) -> Stock:
        buckets = range(first, min(first + AT_ONCE, self._buckets))
        replies = await asyncio.gather(
            *(link.call("XLEN", outbox(one)) for one in buckets),
            *(link.call("XRANGE", outbox(one), "-", "+", "COUNT", 1) for one in buckets),
            *(link.call("HLEN", f"{bucket_tag(one)}l") for one in buckets),
            *(link.call("HLEN", f"{bucket_tag(one)}v") for one in buckets),
        )
        lengths, streams, leases, held = (
            replies[at : at + len(buckets)] for at in range(0, len(replies), len(buckets))
        )
        times = [time for stream in streams for time in _times(stream)]
        return Stock(sum(lengths), min(times, default=None), sum(leases), sum(held))

    def _lost(self) -> None:
        self._link = None

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link.close()
        self._link = None


def _times(stream: Sequence[Reply]) -> list[int]:
    """When the records were decided. What is no record has no time: the rollup sets it aside."""
    times = []
    for _, fields in stream:
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        try:
            times.append(decode_effects(found[b"e"]).now)
        except (KeyError, ValueError):
            continue
    return times
