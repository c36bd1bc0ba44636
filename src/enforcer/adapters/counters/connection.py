"""One connection to Redis for the hot path: commands out, replies back in order, nothing else.

`redis.asyncio` spends most of a call in pools, locks and layers; here a command costs its packing and its parsing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from meter.core.sentinel import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter.core.sentinel import Watched

__all__ = ["Connection", "ConnectionLostError", "connect"]

Reply = Any
"""What hiredis makes of a reply: bytes, int, None, list, or `hiredis.ReplyError` as a value."""


class ConnectionLostError(Exception):
    """The connection ended before the reply came: the command may have run or not."""


class Connection(asyncio.Protocol):
    """Replies are handed to callbacks in the order of the commands.

    A callback gets the reply, or a `ConnectionLostError` when the connection ended first; it must not raise.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[Callable[[Reply], None]] = deque()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._heard = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        self._heard = time.monotonic()
        while (reply := reader.gets()) is not False:
            waiting.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        lost = ConnectionLostError(str(exc or "closed"))
        waiting, self._waiting = self._waiting, deque()
        self._on_lost()
        for on_reply in waiting:
            on_reply(lost)

    def send(self, on_reply: Callable[[Reply], None], *command: Any) -> None:
        """Write a command of str, bytes and int. On a closed connection the callback gets the loss at once."""
        if self._transport is None:
            on_reply(ConnectionLostError("closed"))
            return
        if not self._waiting:
            self._heard = time.monotonic()
        self._waiting.append(on_reply)
        self._transport.write(hiredis.pack_command(command))

    async def call(self, *command: Any) -> Reply:
        """Write a command and wait for its reply; raise what it is if it is an error."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        self.send(answered, *command)
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        return reply

    def silence(self, now: float) -> float:
        """For how long replies have been waited for in vain, in seconds."""
        return now - self._heard if self._waiting else 0.0

    def close(self) -> None:
        """End it at once: whoever waits is told that it is lost."""
        if self._transport is not None:
            self._transport.abort()


async def connect(url: str, on_lost: Callable[[], None], timeout: float) -> Connection:  # noqa: ASYNC109
    """Open a connection to `redis://`, `rediss://`, `unix://` or `redis+sentinel://`, authenticated and on its database.

    Raise OSError, `TimeoutError`, `ConnectionLostError` or `hiredis.ReplyError`.
    """
    under_watch = watched(url)
    if under_watch is not None:
        return await _connect_to_primary(under_watch, on_lost, timeout)
    options: dict[str, Any] = dict(parse_url(url))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        if "path" in options:
            _, connection = await loop.create_unix_connection(
                lambda: Connection(on_lost), options["path"]
            )
        else:
            secure = ssl.create_default_context() if url.startswith("rediss") else None
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            _, connection = await loop.create_connection(
                lambda: Connection(on_lost), host, port, ssl=secure
            )
        try:
            await _log_in(
                connection,
                options.get("username") or "",
                options.get("password") or "",
                options.get("db") or 0,
            )
        except BaseException:
            connection.close()
            raise
    return connection


async def _log_in(connection: Connection, user: str, password: str, database: int) -> None:
    if password:
        await connection.call("AUTH", *((user,) if user else ()), password)
    if database:
        await connection.call("SELECT", database)


async def _connect_to_primary(
    under_watch: Watched,
    on_lost: Callable[[], None],
    timeout: float,  # noqa: ASYNC109
) -> Connection:
    """To the server that a Sentinel names, if it is the primary itself: one that was replaced may not know yet."""
    host, port = await _primary(under_watch, timeout)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        _, connection = await loop.create_connection(lambda: Connection(on_lost), host, port)
        try:
            await _log_in(connection, under_watch.user, under_watch.password, under_watch.database)
            role = (await connection.call("ROLE"))[0]
        except BaseException:
            connection.close()
            raise
    if role != b"master":
        connection.close()
        message = f"{host}:{port}, which the Sentinels name, is no primary: {role.decode()}"
        raise ConnectionLostError(message)
    return connection


async def _primary(under_watch: Watched, timeout: float) -> tuple[str, int]:  # noqa: ASYNC109
    """What the first Sentinel that answers says."""
    loop = asyncio.get_running_loop()
    told = "none"
    for host, port in under_watch.sentinels:
        try:
            async with asyncio.timeout(timeout / 2):
                _, connection = await loop.create_connection(
                    lambda: Connection(lambda: None), host, port
                )
                try:
                    found = await connection.call(
                        "SENTINEL", "GET-MASTER-ADDR-BY-NAME", under_watch.name
                    )
                finally:
                    connection.close()
        except (OSError, TimeoutError, ConnectionLostError, hiredis.ReplyError) as error:
            told = f"{host}:{port}: {str(error) or type(error).__name__}"
            continue
        if found is not None:
            return found[0].decode(), int(found[1])
        told = f"{host}:{port} knows no {under_watch.name!r}"
    raise ConnectionLostError(f"no Sentinel names a primary; {told}")
