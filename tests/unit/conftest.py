"""Unit tests cannot reach the network.

Every connect, datagram and name look-up of Python's socket module is refused by an audit hook, and
remembered: the test fails at its end even when the code under test swallowed the refusal. Sockets
that need no peer stay usable, such as the socket pair inside every asyncio loop. Two libraries open
sockets without Python's knowledge; of those, uvloop's loops and gRPC's channels are refused too.
A child process is not watched: start none in a unit test.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import grpc._channel
import grpc.aio._channel
import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED_EVENTS = frozenset(
    {
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendmsg",
        "socket.sendto",
    }
)


class NetworkRefusedError(BaseException):
    """A unit test tried to reach the network.

    Not an `Exception`, so that the retry loop of a client does not take it for an outage.
    """


class NetworkGuard:
    """Refuses and remembers what would leave the process, while it is `watching`."""

    def __init__(self) -> None:
        self.watching = False
        self.attempts: list[str] = []

    def refuse(self, attempt: str) -> NoReturn:
        """Remember the attempt and raise."""
        self.attempts.append(attempt)
        raise NetworkRefusedError(f"unit tests cannot reach the network: {attempt}")

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """Hear of every audit event of the process; must be cheap."""
        if self.watching and event in REFUSED_EVENTS:
            # The first argument of connect and send is the socket itself; the rest is the target.
            self.refuse(f"{event}{arguments[1:] if event != 'socket.getaddrinfo' else arguments}")


GUARD = NetworkGuard()
sys.addaudithook(GUARD.audit)  # For the life of the process: an audit hook cannot be removed.

# The classes that public functions create, so that `from grpc import ...` does not slip through.
NATIVE_CLASSES = (
    (uvloop, "Loop"),
    (grpc._channel, "Channel"),
    (grpc.aio._channel, "Channel"),
)


@pytest.fixture(autouse=True)
def network_guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[NetworkGuard]:
    """Guard one test; fail it at its end when it tried to reach the network."""
    for module, name in NATIVE_CLASSES:
        attempt = f"{module.__name__}.{name}"
        monkeypatch.setattr(module, name, lambda *_, _as=attempt, **__: GUARD.refuse(_as))
    GUARD.attempts.clear()
    GUARD.watching = True
    yield GUARD
    GUARD.watching = False
    if GUARD.attempts:
        pytest.fail("tried to reach the network: " + "; ".join(GUARD.attempts), pytrace=False)
