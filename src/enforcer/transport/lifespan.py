"""What serves inside Envoy: one ASGI application for calls and for Envoy's questions about the process's life.

Runs in Envoy's interpreter, whose main thread is not the event loop's: no signals come here. The process that started
Envoy (`enforcer.transport.envoy`) says when to end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import structlog

from enforcer.errors import MisconfiguredError
from enforcer.transport.asgi import AsgiServer
from enforcer.transport.envoy import CONTROL, DONE, DRAIN, MISCONFIGURED, READY
from meter.core.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enforcer.transport.asgi import Receive, Scope, Send
    from enforcer.transport.dispatch import Dispatch

    Carry = Callable[[Dispatch], AsgiServer]
    Serve = Callable[[asyncio.Event, Carry], Awaitable[None]]

__all__ = ["Application"]

_log = structlog.get_logger(__name__)


class _Carried(AsgiServer):
    """Tells when it may be asked: Envoy listens when the application has started."""

    started: asyncio.Event

    async def start(self, listen: str) -> None:
        """Nothing is left to do: the address is Envoy's."""
        self.started.set()


class Application:
    """Runs `serve(stop, carry)` while Envoy lives: it makes its server by `carry`, and ends at `stop`."""

    # asgiref's hint: servers take a plain callable for ASGI 2. One more coroutine would cost time.
    _asgi_single_callable = True

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._server: AsgiServer
        self._serving: asyncio.Task[None]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, or live."""
        if scope["type"] == "lifespan":
            return self._live(receive, send)
        return self._server(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._stop, started = asyncio.Event(), asyncio.Event()
        self._control = int(os.environ[CONTROL])
        asyncio.get_running_loop().add_reader(self._control, self._told)

        def carry(dispatch: Dispatch) -> AsgiServer:
            self._server = server = _Carried(dispatch)
            server.started = started
            return server

        self._serving = asyncio.ensure_future(self._serve(self._stop, carry))
        starting = asyncio.ensure_future(started.wait())
        await asyncio.wait({self._serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if self._serving.done():
            await self._failed(send)
            return
        self._serving.add_done_callback(self._ended)
        os.write(self._control, READY)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._stop.set()
        await asyncio.wait({self._serving})
        await send({"type": "lifespan.shutdown.complete"})

    async def _failed(self, send: Send) -> None:
        """It ended before it could be asked."""
        error = self._serving.exception()
        if isinstance(error, MisconfiguredError):
            # Envoy would only tell that something failed.
            _misconfigured(error)
        if error is not None:
            _log.error("cannot start", exc_info=error)
        os.write(self._control, DONE)
        message = {"type": "lifespan.startup.failed", "message": str(error or "told to end")}
        await send(message)

    def _told(self) -> None:
        """By the process that started Envoy; it has gone when there is nothing to read."""
        word = os.read(self._control, 1)
        if word == DRAIN:
            self._server.drain()
            return
        if not word:
            asyncio.get_running_loop().remove_reader(self._control)
        self._stop.set()

    def _ended(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None:
            if isinstance(error, MisconfiguredError):
                _misconfigured(error)
            _log.error("serving failed", exc_info=error)
            os._exit(1)
        os.write(self._control, DONE)


def _misconfigured(error: MisconfiguredError) -> NoReturn:
    sys.stderr.write(f"enforcer: {redacted(error.message)}\n")
    sys.stderr.flush()
    os._exit(MISCONFIGURED)
