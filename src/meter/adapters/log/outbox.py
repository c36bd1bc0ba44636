"""The outbox streams in Redis, read directly: by the rollup of the embedded profile, and by relays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import redis.asyncio as aioredis
import structlog
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from meter.adapters.log.shares import Shares
from meter.core.keys import outbox
from meter.core.sentinel import watched
from meter.core.sequence import Entry, Position
from meter.errors import LogUnavailableError
from meter.ports.log import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "MOST_AT_ONCE",
    "OPTIONS",
    "OutboxLog",
    "after_id",
    "as_sent",
    "behind_id",
    "clients",
    "entries_of",
]

_log = structlog.get_logger(__name__)

MOST_AT_ONCE = 8_000
"""Of one command: Redis answers no check meanwhile."""
OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": 5,
    "health_check_interval": 0,
    # A connection that has died is replaced once; whoever reads decides how long to wait then.
    "retry": Retry(NoBackoff(), 1),
}
"""Of the driver."""
FIELDS = 4
"""Of a stream entry as Redis sends it: names and values of `b` and `e`."""


def _unavailable(doing: str, error: Exception) -> LogUnavailableError:
    """A server that answers with an error lets nobody in, or not this one; but while it loads its data it is away."""
    refused = isinstance(error, (AuthenticationError, NoPermissionError, ResponseError))
    refused = refused and not str(error).startswith(("LOADING", "MASTERDOWN"))
    return LogUnavailableError(f"{doing} failed: {error}", refused=refused)


def as_sent(reply: Any, **_: Any) -> Any:
    """Keep the driver from building a dict for each entry."""
    return reply


def clients(url: str) -> tuple[aioredis.Redis, list[aioredis.Redis]]:
    """One for what is at `url`, and those that it asks where that is."""
    found = watched(url)
    if found is None:
        return aioredis.Redis.from_url(url, **OPTIONS), []
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # of the driver
        list(found.sentinels), sentinel_kwargs={"socket_timeout": 1}, **OPTIONS
    )
    primary: aioredis.Redis = sentinel.master_for(
        found.name,
        db=found.database,
        username=found.user or None,
        password=found.password or None,
    )
    return primary, list(sentinel.sentinels)


class OutboxLog:
    """Reads the outboxes of `buckets` at `url`: all of them, or as a `member` its share.

    Trims by id, exactly, and never by length: a length cannot know what is durable downstream.
    """

    def __init__(self, url: str, buckets: Iterable[int], member: str = "") -> None:
        self._buckets = frozenset(buckets)
        self._keys = {bucket: outbox(bucket).encode() for bucket in self._buckets}
        self._redis, self._sentinels = clients(url)
        self._redis.set_response_callback("XREAD", as_sent)  # type: ignore[arg-type]  # any callable

        self._shares = Shares(self._redis, member) if member else None

    async def assigned(self) -> frozenset[int]:
        if self._shares is None:
            return self._buckets
        try:
            async with asyncio.timeout(10):
                return await self._shares.mine(self._buckets)
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable("dealing the buckets", error) from error

    async def read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        try:
            async with asyncio.timeout(timeout_ms / 1000 + 10):
                return await self._read(after, limit, timeout_ms)
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable("reading the outbox", error) from error

    async def _read(self, after: Mapping[int, Position], limit: int, timeout_ms: int) -> Batch:
        seconds, micros = await self._redis.time()
        places = dict(after)
        entries: dict[int, list[Entry]] = {}
        at_ms = seconds * 1000 + micros // 1000
        fresh: dict[int, int] = {}
        wait: int | None = timeout_ms
        while places and limit > 0:
            count = max(1, min(limit, MOST_AT_ONCE) // len(places))
            found = await self._xread(places, count, wait)
            wait = None
            for bucket in list(places):
                new = found.get(bucket, [])
                limit -= len(new)
                if new:
                    entries.setdefault(bucket, []).extend(new)
                    places[bucket] = new[-1].position
                if len(new) < count:
                    fresh[bucket] = at_ms
                    del places[bucket]
        return Batch(entries, fresh, more=bool(places))

    async def _xread(
        self, places: Mapping[int, Position], count: int, wait: int | None
    ) -> dict[int, list[Entry]]:
        block = () if not wait else ("BLOCK", wait)
        names = {self._keys[bucket]: bucket for bucket in places}
        ids = [after_id(places[bucket]) for bucket in places]
        reply = await self._redis.execute_command(  # type: ignore[no-untyped-call]
            "XREAD", "COUNT", count, *block, "STREAMS", *names, *ids
        )
        if not reply:
            return {}
        pairs = reply.items() if isinstance(reply, dict) else reply
        return {names[name]: entries_of(stream) for name, stream in pairs}

    async def commit(self, upto: Mapping[int, Position]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for bucket, position in upto.items():
            if position.sequence >= 0:
                pipe.execute_command("XTRIM", self._keys[bucket], "MINID", "=", behind_id(position))
        try:
            async with asyncio.timeout(10):
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable("trimming the outbox", error) from error

    async def ask(self) -> None:
        """Return when the server answers. Raise `LogUnavailableError`."""
        try:
            async with asyncio.timeout(10):
                await self._redis.execute_command("PING")  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable("asking Redis", error) from error

    async def backlog(self) -> int:
        pipe = self._redis.pipeline(transaction=False)
        for key in self._keys.values():
            pipe.xlen(key)
        try:
            async with asyncio.timeout(10):
                lengths = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable("measuring the outbox", error) from error
        return sum(lengths)

    async def close(self) -> None:
        """End all connections, and membership."""
        try:
            if self._shares is not None:
                async with asyncio.timeout(2):
                    await self._shares.leave()
        except (RedisError, OSError, TimeoutError):
            _log.info("left without a word: the others notice within seconds")
        finally:
            for client in (self._redis, *self._sentinels):
                await client.aclose()


def after_id(position: Position) -> str:
    """The id to read after. Ids are never negative: (g, -1) follows the end of generation g - 1."""
    if position.sequence >= 0:
        return f"{position.generation}-{position.sequence}"
    if position.generation <= 0:
        return "0-0"
    return f"{position.generation - 1}-18446744073709551615"


def behind_id(position: Position) -> str:
    """The id of the first entry that is kept when all up to the position are given back."""
    return f"{position.generation}-{position.sequence + 1}"


def entries_of(stream: list[tuple[bytes, list[bytes]]]) -> list[Entry]:
    """A stream's records. Nearly always they are of one generation."""
    if not stream:
        return []
    prefix = stream[0][0].partition(b"-")[0] + b"-"
    generation, size = int(prefix[:-1]), len(prefix)
    return [
        Entry(generation, int(identifier[size:]), fields[1], fields[3])
        if identifier.startswith(prefix)
        and len(fields) == FIELDS
        and fields[0] == b"b"
        and fields[2] == b"e"
        else _entry(identifier, fields)
        for identifier, fields in stream
    ]


def _entry(identifier: bytes, fields: list[bytes]) -> Entry:
    """A record as it lies in the stream; fields that are not b and e leave both empty: poison."""
    generation, _, sequence = identifier.partition(b"-")
    if len(fields) == FIELDS and fields[0] == b"b" and fields[2] == b"e":
        return Entry(int(generation), int(sequence), fields[1], fields[3])
    return Entry(int(generation), int(sequence), b"".join(fields), b"")
