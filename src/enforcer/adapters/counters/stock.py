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
from meter.core.cluster import clustered, owners
from meter.core.keys import bucket_tag, outbox
from meter.core.records import decode_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.adapters.counters.connection import Connection, Reply

__all__ = ["RedisStock"]

AT_ONCE = 64
"""Buckets that are asked for at once: four commands of constant cost each."""


class RedisStock:
    """Looks at `buckets` buckets at `url`. It keeps its connections; after a failure the next look makes new ones."""

    def __init__(self, url: str, buckets: int, patience: float) -> None:
        self._url, self._buckets, self._patience = url, range(buckets), patience
        self._cluster = clustered(url)
        self._links: dict[str, Connection] = {}

    async def look(self) -> Stock:
        """Raise `StoreUnavailableError` when Redis does not answer."""
        try:
            async with asyncio.timeout(self._patience):
                found = [
                    await self._some(await self._linked(url), buckets[at : at + AT_ONCE])
                    for url, buckets in (await self._places()).items()
                    for at in range(0, len(buckets), AT_ONCE)
                ]
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

    async def _places(self) -> dict[str, Sequence[int]]:
        """The buckets by the address of their server. In a cluster the first node that answers tells."""
        if self._cluster is None:
            return {self._url: self._buckets}
        failure: Exception = OSError("the cluster has no nodes")
        for seed in self._cluster.seeds:
            try:
                link = await self._linked(self._cluster.url(seed))
                told = owners(await link.call("CLUSTER", "SLOTS"), seed[0], self._buckets)
            except (OSError, ConnectionLostError, hiredis.ReplyError) as error:
                failure = error
                continue
            found: dict[str, list[int]] = {}
            for bucket, node in told.items():
                found.setdefault(self._cluster.url(node), []).append(bucket)
            return dict(found)
        raise failure

    async def _linked(self, url: str) -> Connection:
        if url not in self._links:

            def lost() -> None:
                self._links.pop(url, None)

            self._links[url] = await connect(url, lost, self._patience)
        return self._links[url]

    @staticmethod
    async def _some(link: Connection, buckets: Sequence[int]) -> Stock:
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

    def close(self) -> None:
        """End the connections."""
        links, self._links = self._links, {}
        for link in links.values():
            link.close()


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
