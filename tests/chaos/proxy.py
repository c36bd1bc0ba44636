"""A TCP proxy that a test makes slow, deaf or hostile, or points at another server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Proxy", "to_port", "to_socket"]

CHUNK = 65_536
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def to_port(port: int) -> Callable[[], Awaitable[Streams]]:
    """Opens connections to a port of this machine."""
    return lambda: asyncio.open_connection("127.0.0.1", port)


def to_socket(path: str) -> Callable[[], Awaitable[Streams]]:
    """Opens connections to a socket file."""
    return lambda: asyncio.open_unix_connection(path)


class Proxy:
    """Forwards at once to what `upstream` opens, unless it is told otherwise.

    `delay`: seconds that each chunk waits, both ways. `deaf`: accepts and reads, and forwards nothing.
    `refusing`: ends every connection with a reset, new ones at once.
    """

    def __init__(self, upstream: Callable[[], Awaitable[Streams]]) -> None:
        self.upstream = upstream
        self.delay = 0.0
        self.deaf = self.refusing = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            above_reader, above_writer = await self.upstream()
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(above_writer)
        ways = [
            asyncio.create_task(self._forward(reader, above_writer)),
            asyncio.create_task(self._forward(above_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, above_writer):
                self._writers.discard(end)
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if not self.deaf:
                    writer.write(chunk)
                    await writer.drain()
