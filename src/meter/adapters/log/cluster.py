"""The outbox streams in a Redis Cluster: each node is asked for those that it has, and one that is away holds up no other."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis.asyncio as aioredis
import structlog
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)

from meter.adapters.log.outbox import (
    MOST_AT_ONCE,
    OPTIONS,
    OutboxLog,
    after_id,
    as_sent,
    behind_id,
    entries_of,
)
from meter.adapters.log.shares import MEMBERS, Shares
from meter.core.cluster import clustered, node_of, nodes_of, owners
from meter.core.keys import outbox
from meter.errors import LogUnavailableError
from meter.ports.log import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meter.core.cluster import Clustered, Node
    from meter.core.sequence import Entry, Position

__all__ = ["ClusterOutboxLog", "Outboxes", "outbox_log"]

_log = structlog.get_logger(__name__)

POLL = 0.05
"""Seconds between two looks whether there is something new: one command cannot wait for streams of several slots."""
LOOK_AGAIN = 0.2
"""Seconds between two questions who has which bucket, at least."""
SECONDS = 5.0
"""A node that takes longer for records is away …"""
QUICK = 1.0
"""… or so long to say whether it has any."""
SHARE = 5
"""For how many times as long a node is left alone after it was waited for in vain: others wait with who reads."""

ELSEWHERE = (AskError, TryAgainError, ClusterDownError, ReadOnlyError)
"""How a node answers that does not have a slot, or not all of it, now. MOVED is a kind of ASK to the driver."""

NEWS = """#!lua flags=no-writes,allow-cross-slot-keys
-- Which streams have something new.
-- ARGV  streams and the ids to read after
-- Returns seconds and microseconds of the time before, then for each stream 1, 0, or why it cannot be read here.
local time = redis.call('TIME')
local found = {time[1], time[2]}
for i = 1, #ARGV, 2 do
  local reply = redis.pcall('XREAD', 'COUNT', 1, 'STREAMS', ARGV[i], ARGV[i + 1])
  found[#found + 1] = reply and (reply.err or 1) or 0
end
return found
"""


class ClusterOutboxLog:
    """Reads the outboxes of `buckets` in a cluster: all of them, or as a `member` its share. See `OutboxLog`."""

    def __init__(self, cluster: Clustered, buckets: Iterable[int], member: str = "") -> None:
        self._cluster = cluster
        self._buckets = frozenset(buckets)
        self._keys = {bucket: outbox(bucket).encode() for bucket in self._buckets}
        self._clients: dict[Node, aioredis.Redis] = {}
        self._owners: dict[int, Node] = {}
        self._members: Node | None = None
        self._looked = -LOOK_AGAIN
        self._wrong = True
        self._known: list[Node] = list(cluster.seeds)
        self._turn = 0
        self._alone: dict[Node, float] = {}
        self._owed: dict[int, Position] = {}
        """Up to where buckets are given back, while that was not done."""
        self._member = member
        self._mine: frozenset[int] | None = None

    def _client(self, node: Node) -> aioredis.Redis:
        if node not in self._clients:
            client: aioredis.Redis = aioredis.Redis.from_url(
                self._cluster.url(node), socket_timeout=SECONDS, protocol=2, **OPTIONS
            )
            client.set_response_callback("XREAD", as_sent)  # type: ignore[arg-type]  # any callable
            self._clients[node] = client
        return self._clients[node]

    # -- who has what

    async def _look(self) -> None:
        """Ask where the buckets are, if that is not known, or something was not where it was believed to be."""
        if not self._wrong or time.monotonic() - self._looked < LOOK_AGAIN:
            return
        self._looked = time.monotonic()
        self._turn += 1
        nodes = list(dict.fromkeys((*self._owners.values(), *self._known, *self._cluster.seeds)))
        first = self._turn % len(nodes)
        told = ""
        for node in nodes[first:] + nodes[:first]:
            try:
                async with asyncio.timeout(1):
                    reply: Any = await self._client(node).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError, TimeoutError) as error:
                told = f"{node[0]}:{node[1]}: {str(error) or type(error).__name__}"
                continue
            self._owners |= owners(reply, node[0], self._buckets)
            self._members = node_of(reply, node[0], MEMBERS)
            self._known = nodes_of(reply, node[0])
            self._wrong = False
            return
        raise LogUnavailableError(f"no node of the cluster answers; {told}")

    def _by_node(self, buckets: Iterable[int]) -> dict[Node, list[int]]:
        found: dict[Node, list[int]] = {}
        for bucket in buckets:
            if bucket in self._owners:
                found.setdefault(self._owners[bucket], []).append(bucket)
            else:
                self._wrong = True
        return found

    async def _ask(
        self, node: Node, commands: Sequence[Sequence[Any]], seconds: float
    ) -> list[Any]:
        """Replies of one node, errors among them. Raise `LogUnavailableError` when it is away."""
        begun = time.monotonic()
        if begun < self._alone.get(node, 0):
            self._wrong = True
            raise LogUnavailableError(f"{node[0]}:{node[1]} was away a moment ago")
        pipe = self._client(node).pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        try:
            async with asyncio.timeout(seconds):
                replies = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self._wrong = True
            now = time.monotonic()
            self._alone[node] = now + SHARE * (now - begun)
            where, why = f"{node[0]}:{node[1]}", str(error) or type(error).__name__
            raise LogUnavailableError(f"{where} is away: {why}") from error
        for reply in replies:
            if isinstance(reply, RedisError):
                self._wrong = True
                if not isinstance(reply, ELSEWHERE):
                    raise LogUnavailableError(f"{node[0]}:{node[1]}: {reply}") from reply
        return replies

    async def _ask_all(
        self, asked: Mapping[Node, Sequence[Sequence[Any]]], what: str, seconds: float = QUICK
    ) -> dict[Node, list[Any]]:
        """Replies of those nodes that answer. Raise `LogUnavailableError` when none does."""
        replies = await asyncio.gather(
            *(self._ask(node, commands, seconds) for node, commands in asked.items()),
            return_exceptions=True,
        )
        found: dict[Node, list[Any]] = {}
        failed: LogUnavailableError | None = None
        for node, reply in zip(asked, replies, strict=True):
            if isinstance(reply, LogUnavailableError):
                failed = reply
                _log.warning("a node is left out", doing=what, error=reply.message)
            elif isinstance(reply, BaseException):
                raise reply
            else:
                found[node] = reply
        if failed is not None and not found:
            raise LogUnavailableError(f"{what} failed: {failed.message}") from failed
        return found

    # -- LogSource

    async def assigned(self) -> frozenset[int]:
        if not self._member:
            return self._buckets
        try:
            async with asyncio.timeout(10):
                self._mine = await self._deal()
        except (LogUnavailableError, RedisError, OSError, TimeoutError) as error:
            # Two who relay the same cost repeats, which are dropped; that one node is away should stop nobody.
            if self._mine is None:
                raise LogUnavailableError(f"dealing the buckets failed: {error}") from error
            _log.warning("buckets are not dealt anew", error=str(error) or type(error).__name__)
        return self._mine

    async def _deal(self) -> frozenset[int]:
        self._wrong = True
        await self._look()
        if self._members is None:
            raise LogUnavailableError(f"no node of the cluster has the slot of {MEMBERS}")
        return await Shares(self._client(self._members), self._member).mine(self._buckets)

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            await self._look()
            if self._owed:
                await self._trim()
            batch = await self._read(after, limit)
            left = deadline - time.monotonic()
            if batch.entries or left <= 0:
                return batch
            await asyncio.sleep(min(POLL, left))

    async def _read(self, after: Mapping[int, Position], limit: int) -> Batch:
        nodes = self._by_node(after)
        asked: dict[Node, list[list[Any]]] = {}
        for node, buckets in nodes.items():
            words = [part for one in buckets for part in (self._keys[one], after_id(after[one]))]
            asked[node] = [["EVAL", NEWS, 0, *words]]
        fresh: dict[int, int] = {}
        at_ms: dict[int, int] = {}
        for node, (reply,) in (await self._ask_all(asked, "reading the outboxes")).items():
            if isinstance(reply, RedisError):
                continue
            now = int(reply[0]) * 1000 + int(reply[1]) // 1000
            for bucket, news in zip(nodes[node], reply[2:], strict=True):
                if news == 1:
                    at_ms[bucket] = now
                elif news == 0:
                    fresh[bucket] = now
                else:
                    self._wrong = True
        if not at_ms:
            return Batch({}, fresh)
        count = max(1, min(limit, MOST_AT_ONCE) // len(at_ms))
        entries, more = await self._fetch(after, at_ms, count)
        for bucket, found in entries.items():
            if len(found) < count:
                fresh[bucket] = at_ms[bucket]
        return Batch({one: found for one, found in entries.items() if found}, fresh, more)

    async def _fetch(
        self, after: Mapping[int, Position], buckets: Iterable[int], count: int
    ) -> tuple[dict[int, list[Entry]], bool]:
        nodes = self._by_node(buckets)
        asked = {
            node: [
                ["XREAD", "COUNT", count, "STREAMS", self._keys[one], after_id(after[one])]
                for one in theirs
            ]
            for node, theirs in nodes.items()
        }
        entries: dict[int, list[Entry]] = {}
        for node, replies in (await self._ask_all(asked, "reading the outboxes", SECONDS)).items():
            for bucket, reply in zip(nodes[node], replies, strict=True):
                if not isinstance(reply, RedisError):
                    entries[bucket] = entries_of(reply[0][1]) if reply else []
        return entries, any(len(found) == count for found in entries.values())

    async def commit(self, upto: Mapping[int, Position]) -> None:
        self._owed |= {one: place for one, place in upto.items() if place.sequence >= 0}
        await self._look()
        await self._trim()

    async def _trim(self) -> None:
        """Give back what is owed. What a node that is away keeps is given back later: it is durable downstream.

        Were that a failure, those who read would begin again, and again, on account of that node.
        """
        owed = dict(self._owed)
        nodes = self._by_node(owed)
        asked = {
            node: [["XTRIM", self._keys[one], "MINID", "=", behind_id(owed[one])] for one in theirs]
            for node, theirs in nodes.items()
        }
        with suppress(LogUnavailableError):
            for node, replies in (await self._ask_all(asked, "trimming the outboxes")).items():
                for bucket, reply in zip(nodes[node], replies, strict=True):
                    # More may be owed by now.
                    if not isinstance(reply, RedisError) and self._owed.get(bucket) == owed[bucket]:
                        del self._owed[bucket]

    async def ask(self) -> None:
        """Return when the cluster answers. Raise `LogUnavailableError`."""
        self._wrong, self._looked = True, 0.0
        await self._look()

    async def backlog(self) -> int:
        await self._look()
        nodes = self._by_node(self._buckets)
        asked = {
            node: [["XLEN", self._keys[one]] for one in buckets] for node, buckets in nodes.items()
        }
        found = await self._ask_all(asked, "measuring the outboxes")
        return sum(one for replies in found.values() for one in replies if isinstance(one, int))

    async def close(self) -> None:
        """End all connections, and membership."""
        try:
            if self._member and self._members is not None:
                async with asyncio.timeout(2):
                    await Shares(self._client(self._members), self._member).leave()
        except (RedisError, OSError, TimeoutError):
            _log.info("left without a word: the others notice within seconds")
        finally:
            for client in self._clients.values():
                await client.aclose()


Outboxes = OutboxLog | ClusterOutboxLog


def outbox_log(url: str, buckets: Iterable[int], member: str = "") -> Outboxes:
    """The log of the outboxes at `url`, whichever kind of Redis that is."""
    found = clustered(url)
    if found is None:
        return OutboxLog(url, buckets, member)
    return ClusterOutboxLog(found, buckets, member)
