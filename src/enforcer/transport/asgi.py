"""The services over ASGI: gRPC by hand, for Envoy with Python inside.

Written for servers that can send trailers (`http.response.trailers`). One of them, pyvoy 1.3, tells of a client that
has gone only when it is asked again after the request's end, and then at once. So calls that take long are looked
after by a sweep, and the others pay nothing for it.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import structlog
from google.rpc import status_pb2  # type: ignore[import-untyped]

from enforcer.transport.dispatch import (
    COMPRESSED_FROM,
    LATE,
    NOBODY,
    Call,
    FailedError,
)
from enforcer.transport.edge import BODY_SECONDS
from enforcer.transport.framing import (
    CODINGS,
    INTERNAL,
    LONGEST_REQUEST,
    UNIMPLEMENTED,
    Frames,
    WireError,
    compressed,
    framed,
    seconds,
    sendable,
    single,
    status_trailers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from enforcer.transport.dispatch import Dispatch
    from enforcer.transport.services import Method

    Scope = Mapping[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Headers = list[tuple[bytes, bytes]]
    _Waiting = asyncio.Queue[list[bytes] | WireError | None]

__all__ = ["AsgiServer"]

_log = structlog.get_logger(__name__)

SWEEP_SECONDS = 0.1
"""So much later, and at its deadline, a call is looked at: whether its client has gone, whether its time is up."""
LEAST_SECONDS = 0.001
REST = 20
"""Times as long as the last sweep took is the pause before the next one, at least."""
NEVER = float("inf")
DRAIN_SECONDS = 10.0
IN_THREAD = 256 * 1024
"""Bytes of a response from which it is compressed beside the event loop."""
MOST_WAITING = 4
"""Parts of a stream, with the messages that they made whole, that its service has not begun to take."""

_KINDS = frozenset((b"application/grpc", b"application/grpc+proto"))
_PLAIN: Headers = [(b"content-type", b"application/grpc")]
"""Of the answers of nearly all calls: each header costs them a microsecond or two in Envoy."""
_HEADERS: Headers = [*_PLAIN, (b"grpc-accept-encoding", CODINGS)]
_GZIP: Headers = [*_HEADERS, (b"grpc-encoding", b"gzip")]
_QUICK = {"type": "http.response.start", "status": 200, "headers": _PLAIN, "trailers": True}
_START = _QUICK | {"headers": _HEADERS}
_OK_HEADERS: Headers = [(b"grpc-status", b"0")]
_OK = {"type": "http.response.trailers", "headers": _OK_HEADERS, "more_trailers": False}


class _GoneError(Exception):
    """The client does not wait for an answer any more."""


class _Fate(Enum):
    """Why a call is cancelled."""

    NONE = auto()
    GONE = auto()
    EXPIRED = auto()


class _Call(Call):
    """On a scope of ASGI. `receive` is set when the request has been taken: then it tells only whether the client waits."""

    __slots__ = ("_headers", "fate", "looked_at", "receive", "task", "watched")

    def __init__(self, headers: dict[bytes, bytes], task: asyncio.Task[Any] | None) -> None:
        authorization = headers.get(b"authorization")
        self.authorization = None if authorization is None else authorization.decode("latin-1")
        self.started = started = time.monotonic()
        self.looked_at = started + SWEEP_SECONDS
        self.deadline = None
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None and (left := seconds(timeout)) is not None:
            self.deadline = started + left
            if left < SWEEP_SECONDS:
                self.looked_at = self.deadline
        self.caller, self.trailing = NOBODY, ()
        self._headers = headers
        self.receive: Receive | None = None
        self.fate, self.watched = _Fate.NONE, False
        self.task = task

    @property
    def metadata(self) -> Mapping[str, str]:
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self._headers.items()
            if not name.endswith(b"-bin")
        }

    def header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    @property
    def coding(self) -> bytes | None:
        """How compressed messages of the request are compressed."""
        return self._headers.get(b"grpc-encoding")

    @property
    def takes_gzip(self) -> bool:
        """Whether the client can read an answer that is compressed."""
        return b"gzip" in self._headers.get(b"grpc-accept-encoding", b"")

    def ends_soon(self) -> None:
        """See `Call`. To watch a client is to ask for it again and again."""
        self.watched = True

    def abandon(self, fate: _Fate) -> None:
        """Cancel what answers it, unless it is answered."""
        if self.task is not None:
            self.fate = fate
            self.task.cancel()


class AsgiServer:
    """An ASGI application. Health says SERVING while `ready`."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._routes, self._answer = dispatch.routes, dispatch.unary
        self._calls: set[_Call] = set()
        self._next = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._watching: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()

    @property
    def running(self) -> int:
        """Calls that are not answered yet."""
        return len(self._calls)

    async def __call__(  # noqa: C901, PLR0912 - a function more is time for every call
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        if headers.get(b"content-type") not in _KINDS or scope["method"] != "POST":
            await _refuse(send)
            return
        call = _Call(headers, asyncio.current_task(self._loop))
        self._calls.add(call)
        if call.looked_at < self._next:
            self._sweep_at(call.looked_at, call.started)
        try:
            method = self._routes.get(scope["path"])
            if method is None:
                raise _unknown(scope["path"])
            if method.stream:
                await self._stream(method, call, receive, send)
                return
            event = await receive()
            data = None
            if event["type"] == "http.request" and not event["more_body"]:
                data = single(event["body"])
            if data is None:
                data = await _only(call, event, receive)
            call.receive = receive
            response = await self._answer(method, call, data)
            call.task = None
            if len(response) >= COMPRESSED_FROM:
                await self._large(call, response, send)
                return
            await send(_QUICK)
            body = framed(response)
            await send({"type": "http.response.body", "body": body, "more_body": False})
            await send(_trailers(call) if call.trailing else _OK)
        except FailedError as error:
            await _end(send, error.status)
        except WireError as error:
            await _end(send, status_pb2.Status(code=error.code, message=error.message))
        except asyncio.CancelledError:
            if call.fate is _Fate.NONE:
                raise
            if call.fate is _Fate.EXPIRED:
                await _end(send, LATE)
        except (_GoneError, OSError):
            pass  # OSError: what servers raise from `send` when the client has gone
        finally:
            call.task = None
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()

    async def _large(self, call: _Call, response: bytes, send: Send) -> None:
        sendable(response)
        if not call.takes_gzip:
            body = framed(response)
        elif len(response) < IN_THREAD:
            body = compressed(response)
        else:
            body = await asyncio.to_thread(compressed, response)
        await send(_START | {"headers": _GZIP} if call.takes_gzip else _START)
        await send({"type": "http.response.body", "body": body, "more_body": False})
        await send(_trailers(call) if call.trailing else _OK)

    async def _stream(self, method: Method, call: _Call, receive: Receive, send: Send) -> None:
        call.watched = True  # by the pump; and its request may last
        waiting: _Waiting = asyncio.Queue(MOST_WAITING)
        pump = asyncio.create_task(_pump(call, receive, waiting))
        began, status = False, None
        answers = self._dispatch.stream(method, call, _messages(waiting))
        try:
            async for responses in answers:
                if not began:
                    began = True
                    await send(_START)
                # What is there at once travels at once.
                body = b"".join(map(framed, responses))
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except FailedError as error:
            status = error.status
        except WireError as error:
            status = status_pb2.Status(code=error.code, message=error.message)
        except asyncio.CancelledError:
            if call.fate is not _Fate.EXPIRED:
                raise
            status = LATE
        finally:
            call.task = None
            pump.cancel()
            await answers.aclose()
        if not began:
            if status is not None:
                await _end(send, status)
                return
            await send(_START)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        if status is not None:
            await send(_OK | {"headers": status_trailers(status)})
        else:
            await send(_trailers(call) if call.trailing else _OK)

    def _sweep(self) -> None:
        """Cancel calls whose time is up; watch those that take long, as their clients may go."""
        self._next = NEVER
        if not self._calls:
            return
        now = time.monotonic()
        due = now + SWEEP_SECONDS
        for call in tuple(self._calls):
            if call.deadline is not None:
                if call.deadline <= now:
                    call.abandon(_Fate.EXPIRED)
                    continue
                due = min(due, call.deadline)
            if call.receive is None and not call.watched and call.started < now - BODY_SECONDS:
                call.abandon(_Fate.EXPIRED)
                continue
            if call.receive is not None and not call.watched and call.started < now - SWEEP_SECONDS:
                call.watched = True
                watching = asyncio.ensure_future(_watch(call, call.receive))
                self._watching.add(watching)
                watching.add_done_callback(self._watching.discard)
        after = time.monotonic()
        # With very many calls the sweeps themselves must not become what takes the time.
        self._sweep_at(max(due, after + REST * (after - now)), after)

    def _sweep_at(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._loop.call_later(max(due - now, LEAST_SECONDS), self._sweep)

    async def start(self, listen: str) -> None:
        """Whoever runs the application listens."""

    async def ready(self, *, serving: bool) -> None:
        """Tell health checks."""
        self._dispatch.health.turn(serving=serving)

    def drain(self) -> None:
        """Tell health checks, and end their streams: no more calls are wanted."""
        self._dispatch.health.end()

    async def stop(self) -> None:
        """Let running calls end; those that do not are cut off."""
        self.drain()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._calls:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.warning("calls are cut off", calls=len(self._calls))
            for call in tuple(self._calls):
                call.abandon(_Fate.GONE)


def _unknown(path: str) -> WireError:
    return WireError(UNIMPLEMENTED, f"no method {path[:200]} is served here")


async def _only(call: _Call, event: dict[str, Any], receive: Receive) -> bytes:
    """The one message of a request that came in parts, or compressed, or is wrong."""
    frames = Frames(call.coding, LONGEST_REQUEST)
    found: list[bytes] = []
    while True:
        if event["type"] != "http.request":
            raise _GoneError
        found += frames.feed(event.get("body", b""))
        if not event.get("more_body"):
            break
        event = await receive()
    frames.end()
    if len(found) != 1:
        raise WireError(INTERNAL, f"a request has one message, this one has {len(found)}")
    return found[0]


async def _pump(call: _Call, receive: Receive, waiting: _Waiting) -> None:
    """Bring the messages of a stream; then wait for its client to go."""
    frames = Frames(call.coding, LONGEST_REQUEST)
    try:
        more = True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                call.abandon(_Fate.GONE)
                return
            if messages := frames.feed(event.get("body", b"")):
                await waiting.put(messages)
            more = event.get("more_body", False)
        frames.end()
    except WireError as error:
        await waiting.put(error)
    else:
        await waiting.put(None)
    await _watch(call, receive)


async def _messages(waiting: _Waiting) -> AsyncGenerator[bytes, None]:
    while (found := await waiting.get()) is not None:
        if isinstance(found, WireError):
            raise found
        for message in found:
            yield message


async def _watch(call: _Call, receive: Receive) -> None:
    """Cancel a call when its client goes. Servers may tell at once that it has not gone, again and again."""
    while call.task is not None:
        event = await receive()
        if event["type"] != "http.request":
            call.abandon(_Fate.GONE)
            return
        await asyncio.sleep(SWEEP_SECONDS)


async def _end(send: Send, status: status_pb2.Status) -> None:
    """A status and nothing else: the answer has no messages, and its trailers are its headers."""
    headers = _HEADERS + status_trailers(status)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 415, "headers": headers})
    body = b"this port speaks gRPC: POST with content-type application/grpc\n"
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _trailers(call: Call) -> dict[str, Any]:
    headers = [(name.encode(), value.encode()) for name, value in call.trailing]
    return _OK | {"headers": [*_OK_HEADERS, *headers]}
