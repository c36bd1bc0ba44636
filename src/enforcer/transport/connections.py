"""HTTP/1.1 connections that nobody can hold for nothing: each has to ask, to send and to read in time.

uvicorn bounds the silence after an answer and the size of headers; the rest is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from enforcer.transport.edge import BODY_SECONDS, HEADER_SECONDS, UNREAD_SECONDS

if TYPE_CHECKING:
    import asyncio

__all__ = ["CERTIFIED", "MOST_PER_ADDRESS", "Connections", "protocol"]

CERTIFIED: Final = "certified"
"""In the state of a request: whether its client has shown a certificate of the authority."""
MOST_PER_ADDRESS: Final = 1_000
"""Connections from one address at a time: behind one may be a whole network, or a balancer."""


class Connections:
    """How many there are, of all clients and of each address."""

    def __init__(self, most: int, most_per_address: int = MOST_PER_ADDRESS) -> None:
        self._most, self._most_per_address = most, most_per_address
        self.open = 0
        self._addresses: dict[str, int] = {}

    def enter(self, address: str) -> bool:
        """Whether one more may stay; `leave` is owed then."""
        of_it = self._addresses.get(address, 0)
        if self.open >= self._most or of_it >= self._most_per_address:
            return False
        self.open += 1
        self._addresses[address] = of_it + 1
        return True

    def leave(self, address: str) -> None:
        """One has ended."""
        self.open -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


class _Protocol(H11Protocol):
    """One timer for a connection: what its client owes next, and until when."""

    among: Connections
    _due: asyncio.TimerHandle | None = None
    _address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) and peer else "-"
        if not self.among.enter(address):
            transport.abort()
            return
        self._address = address
        certified = bool(transport.get_extra_info("peercert"))
        self.app_state = {**self.app_state, CERTIFIED: certified}
        super().connection_made(transport)
        self._owe(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._address:
            return  # it was never let in
        self.among.leave(self._address)
        self._owe(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._address:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._owe(BODY_SECONDS)  # its headers have come
        elif self._due is None and self.conn.their_state is h11.IDLE:
            self._owe(HEADER_SECONDS)  # those of a further request begin
        if self.conn.their_state is not h11.SEND_BODY and self.conn.their_state is not h11.IDLE:
            self._owe(None)  # all of it has come

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            self._owe(UNREAD_SECONDS)  # it is closed when all has been read
        elif not self.flow.write_paused:
            # Who was answered early may still send. Else uvicorn's own bound for silence is next.
            self._owe(BODY_SECONDS if self.conn.their_state is h11.SEND_BODY else None)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._owe(UNREAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._owe(UNREAD_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._owe(None)

    def _owe(self, seconds: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = None if seconds is None else self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        self._due = None
        self.transport.abort()


def protocol(among: Connections) -> type[Any]:
    """The protocol of a server whose connections are counted there."""
    return type("Bounded", (_Protocol,), {"among": among})
