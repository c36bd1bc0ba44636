"""Deals buckets among the relays that are alive. No locks: two who disagree for a moment cost repeats."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis.asyncio as aioredis

__all__ = ["MEMBERS", "Shares", "deal"]

MEMBERS = "{relays}"
"""A sorted set: members by the time, in ms of Redis, until which they count as alive."""
ALIVE_MS = 5_000


class Shares:
    """This relay's membership, under a name that no other process has."""

    def __init__(self, redis: aioredis.Redis, member: str) -> None:
        self._redis, self._member = redis, member

    async def mine(self, buckets: Iterable[int]) -> frozenset[int]:
        """Show that this relay is alive; return its buckets."""
        seconds, micros = await self._redis.time()
        now = seconds * 1000 + micros // 1000
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(MEMBERS, {self._member: now + ALIVE_MS})
        pipe.zremrangebyscore(MEMBERS, "-inf", now)
        pipe.zrange(MEMBERS, 0, -1)
        members = (await pipe.execute())[2]
        return deal(buckets, [member.decode() for member in members], self._member)

    async def leave(self) -> None:
        """Let the others take over at once."""
        await self._redis.zrem(MEMBERS, self._member)


def deal(buckets: Iterable[int], members: Iterable[str], member: str) -> frozenset[int]:
    """The buckets for which `member` has the highest hash: few move when members come and go."""
    names = [*members]
    return frozenset(
        bucket
        for bucket in buckets
        if member == max(names, key=lambda name: (_weight(name, bucket), name))
    )


def _weight(member: str, bucket: int) -> bytes:
    return blake2b(b"%d:%s" % (bucket, member.encode()), digest_size=8).digest()
