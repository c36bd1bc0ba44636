"""A unit test that reaches for the network fails, whatever the code under test does about it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import grpc
import grpc.aio
import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

CONFTEST = Path(__file__).with_name("conftest.py")
DISCARD: Final = ("127.0.0.1", 9)


class Guard(Protocol):
    attempts: list[str]


def through_socket(
    use: Callable[[socket.socket], object],
    family: socket.AddressFamily = socket.AF_INET,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> Callable[[], None]:
    def attempt() -> None:
        with socket.socket(family, kind) as opened:
            use(opened)

    return attempt


ATTEMPTS: dict[str, Callable[[], object]] = {
    "connect": through_socket(lambda opened: opened.connect(DISCARD)),
    "connect_ex": through_socket(lambda opened: opened.connect_ex(DISCARD)),
    "create_connection": lambda: socket.create_connection(DISCARD),
    "datagram": through_socket(lambda opened: opened.sendto(b"x", DISCARD), kind=socket.SOCK_DGRAM),
    "look-up": lambda: socket.getaddrinfo("localhost", 80),
    "old look-up": lambda: socket.gethostbyname("localhost"),
    "unix": through_socket(lambda opened: opened.connect("/nowhere"), socket.AF_UNIX),
    "uvloop": uvloop.new_event_loop,
    "grpc": lambda: grpc.insecure_channel("localhost:1"),
    "grpc.aio": lambda: grpc.aio.insecure_channel("localhost:1"),
}


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini("[pytest]\nasyncio_mode = auto\n")
    return pytester


@pytest.mark.parametrize("way", ATTEMPTS)
def test_every_way_out_is_refused_and_remembered(way: str, network_guard: Guard) -> None:
    with pytest.raises(BaseException, match="unit tests cannot reach the network"):
        ATTEMPTS[way]()
    assert network_guard.attempts
    network_guard.attempts.clear()


async def test_asyncio_connections_are_refused(network_guard: Guard) -> None:
    with pytest.raises(BaseException, match="unit tests cannot reach the network"):
        await asyncio.open_connection(*DISCARD)
    assert network_guard.attempts
    network_guard.attempts.clear()


async def test_the_event_loop_and_socket_pairs_still_work() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x")
        assert right.recv(1) == b"x"
    await asyncio.sleep(0)


def test_a_swallowed_refusal_still_fails_the_test(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import contextlib, socket

        def test_swallows():
            with contextlib.suppress(BaseException):
                socket.create_connection(("127.0.0.1", 9))
        """
    )
    result = inner.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*tried to reach the network*127.0.0.1*"])


def test_an_innocent_test_passes(inner: pytest.Pytester) -> None:
    inner.makepyfile("async def test_innocent(): pass")
    inner.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
