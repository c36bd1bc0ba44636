"""The level that a deployment logs at for a time: keys in Redis, which every process looks at.

Of all stores Redis is the one that every process knows, and a key that expires is a level that nobody has to set back. A
process that cannot reach Redis keeps the level that it has read until its time is over, and then returns to its own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisError

from meter.adapters.log.outbox import clients
from meter.core.cluster import clustered
from meter.errors import LogUnavailableError
from meter.logs import LEVELS, present_level, set_level, tell_repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ALL", "PARTS", "LevelWatch", "Levels", "SetLevel"]

_log = structlog.get_logger(__name__)

ALL: Final = ""
PARTS: Final = (ALL, "enforcer", "relay", "rollup")
LOOK_SECONDS: Final = 1.0
PATIENCE: Final = 5.0


class SetLevel(NamedTuple):
    """What is set for a part, and for how many seconds from now on."""

    part: str
    level: str
    left: float


def _key(part: str) -> str:
    """One hash tag: they are read together, also from a cluster."""
    return f"{{log-level}}{part}"


class Levels:
    """What is set in the Redis at `url`. Raises `LogUnavailableError` when it cannot be reached."""

    def __init__(self, url: str) -> None:
        found: tuple[Any, list[Any]] = _of_cluster(url) or clients(url)
        self._redis, self._sentinels = found

    async def read(self, parts: Sequence[str] = PARTS) -> list[SetLevel]:
        """What is set for these parts, in their order."""
        pipe = self._redis.pipeline(transaction=False)
        for part in parts:
            pipe.get(_key(part))
            pipe.pttl(_key(part))
        found = await self._done(pipe.execute())
        told = []
        for part, value, left in zip(parts, found[::2], found[1::2], strict=True):
            level = (value or b"").decode(errors="replace")
            if level in LEVELS and left > 0:
                told.append(SetLevel(part, level, left / 1000))
        return told

    async def set(self, part: str, level: str, seconds: float) -> None:
        """Set it for so long; an empty level: not any more."""
        key = _key(part)
        if level:
            await self._done(self._redis.set(key, level, px=int(seconds * 1000)))
        else:
            await self._done(self._redis.delete(key))

    @staticmethod
    async def _done(work: Any) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return await work
        except (RedisError, OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise LogUnavailableError(f"Redis: the log level is out of reach: {why}") from error

    async def close(self) -> None:
        """End all connections."""
        for client in (self._redis, *self._sentinels):
            await client.aclose()


def _of_cluster(url: str) -> tuple[Any, list[Any]] | None:
    """What follows a key to the node that has it; None where `url` names no cluster."""
    found = clustered(url)
    if found is None:
        return None
    client = RedisCluster(
        startup_nodes=[ClusterNode(*node) for node in found.seeds],
        username=found.user or None,
        password=found.password or None,
        ssl=found.scheme == "rediss",
        socket_connect_timeout=PATIENCE,
    )
    return client, []


class LevelWatch:
    """Keeps a process at the level that is set for one of its `parts`, or for all; else at `default`."""

    def __init__(
        self,
        levels: Levels,
        parts: Sequence[str],
        default: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._levels, self._parts, self._default = levels, (*parts, ALL), default
        self._clock = clock
        self._until: float | None = None
        self._away = False
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Look every second, and tell what was left out of the log, until `stop`."""
        while not self._stopping.is_set():
            await self.look()
            tell_repeats()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stopping.wait()

    async def look(self) -> None:
        """Take what is set; go back when nothing is, or its time is over."""
        try:
            found = await self._levels.read(self._parts)
        except LogUnavailableError as error:
            if not self._away:
                _log.info("the log level cannot be looked at", error=error.message)
            self._away = True
            if self._until is not None and self._clock() >= self._until:
                self._turn(None)
            return
        self._away = False
        self._turn(found[0] if found else None)

    def _turn(self, wanted: SetLevel | None) -> None:
        level = self._default if wanted is None else wanted.level
        self._until = None if wanted is None else self._clock() + wanted.left
        before = present_level()
        if level == before:
            return
        left = None if wanted is None else round(wanted.left)
        # Told where it is sure to be seen: at the more talkative of the two.
        set_level(min(level, before, key=LEVELS.index))
        _log.warning("log level", level_is=level, level_was=before, for_seconds=left)
        set_level(level)
