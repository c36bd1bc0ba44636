"""The HTTP port towards strangers: headers, certificates, and clients that hold connections for nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from enforcer.metrics import Metrics
from enforcer.transport import connections
from enforcer.transport.edge import LARGEST_HEADERS, Edge
from enforcer.transport.headers import HEADERS
from enforcer.transport.http import HttpServer
from meter.health import Health
from meter.tls import TlsFiles
from tests.fixtures.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.requests import Request

SOON = 0.2
LONG = 20.0
"""No test waits for it."""
ASK = b"GET %b HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST /v1/events HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n"


@asynccontextmanager
async def served(edge: Edge = Edge()) -> AsyncIterator[HttpServer]:  # noqa: B008 - a value
    health = Health()
    health.started = True
    server = HttpServer("127.0.0.1:0", Metrics(), health, edge)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(LONG):
            await until(lambda: server._server.started)
        yield server
    finally:
        server.stop()
        async with asyncio.timeout(LONG):
            await serving


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - servers tell nobody
        await asyncio.sleep(0.005)


async def sent(server: HttpServer, *parts: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """What comes back until the server ends the connection, or a whole answer without a body has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls)
    try:
        async with asyncio.timeout(LONG):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def asked(server: HttpServer, path: str, tls: ssl.SSLContext | None = None) -> list[str]:
    """The lines of an answer's head."""
    request = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % path.encode()
    return (await sent(server, request, tls=tls)).partition(b"\r\n\r\n")[0].decode().splitlines()


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/v1/events", "/nowhere"])
async def test_every_answer_has_the_headers_and_no_name_of_a_server(path: str) -> None:
    async with served() as server:
        head = await asked(server, path)
    assert head[0].startswith("HTTP/1.1 ")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    assert {name.decode(): value.decode() for name, value in HEADERS}.items() <= found.items()
    assert "server" not in found
    assert "strict-transport-security" not in found, "in plain text it says nothing"


async def test_a_browser_is_told_to_stay_with_tls(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "own")
    async with served(Edge(TlsFiles(certificate, key))) as server:
        head = await asked(server, "/healthz", trusting(authority))
        assert await sent(server, ASK % b"/healthz") == b"", "no plain text"
    assert "strict-transport-security: max-age=31536000" in head


def trusting(authority: Authority, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if own is not None:
        context.load_cert_chain(*own)
    return context


async def test_without_a_certificate_only_probes_are_answered(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority()
    files = TlsFiles(*authority.issue(tmp_path, "own"), authority.write(tmp_path / "clients.pem"))
    own, none = trusting(authority, authority.issue(tmp_path, "client")), trusting(authority)
    wrong = trusting(authority, stranger.issue(tmp_path, "stranger"))
    async with served(Edge(files)) as server:
        for path in ("/healthz", "/readyz"):
            assert (await asked(server, path, none))[0] == "HTTP/1.1 200 OK"
        for path in ("/metrics", "/v1/events", "/nowhere"):
            assert (await asked(server, path, none))[0] == "HTTP/1.1 403 Forbidden"
        assert (await asked(server, "/metrics", own))[0] == "HTTP/1.1 200 OK"
        try:
            assert not await asked(server, "/healthz", wrong)
        except ssl.SSLError as error:
            assert "UNKNOWN_CA" in str(error)  # noqa: PT017 - told in the handshake or after it


async def test_a_new_connection_sees_the_new_certificate_and_an_old_one_goes_on(
    tmp_path: Path,
) -> None:
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "own")
    trust = trusting(authority)
    async with served(Edge(TlsFiles(certificate, key))) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
        before = serial(writer)
        authority.issue(tmp_path, "own")
        _, other = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
        issued = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        assert serial(other) == issued != before
        writer.write(ASK % b"/healthz")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        for one in (writer, other):
            one.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_of_before_does_not_spare_a_client_its_certificate(
    version: ssl.TLSVersion, tmp_path: Path
) -> None:
    authority = Authority()
    own, ca = authority.issue(tmp_path, "own"), authority.write(tmp_path / "clients.pem")
    context = trusting(authority, authority.issue(tmp_path, "client"))
    context.minimum_version = context.maximum_version = version

    def resumed(port: int) -> bool:
        """Whether a second connection goes on with the session of the first."""
        session, reused = None, None
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), LONG) as plain,
                context.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
            ):
                secure.sendall(ASK % b"/metrics")
                assert secure.recv(12) == b"HTTP/1.1 200"
                session, reused = secure.session, secure.session_reused
        return bool(reused)

    async with served(Edge(TlsFiles(*own, ca))) as server:
        if version is ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(resumed, server.port)
        else:
            assert not await asyncio.to_thread(resumed, server.port)


def serial(writer: asyncio.StreamWriter) -> int:
    return int(writer.get_extra_info("peercert")["serialNumber"], 16)


SLOW = {
    "says nothing": (b"",),
    "headers that do not end": (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "a body that does not come": (POST, b"{"),
    "a body after its answer": (POST.replace(b"/v1/events", b"/healthz"), b"{"),
}


@pytest.mark.parametrize("kind", SLOW)
async def test_who_is_slow_is_cut_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(connections, name, SOON)

    async def patient(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async with served() as server:
        server.events = patient
        await sent(server, *SLOW[kind])  # ends: else it takes too long


async def test_who_begins_a_second_request_has_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", SOON)
    async with served() as server, asyncio.timeout(LONG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(ASK % b"/healthz")
        await reader.readuntil(b"ok\n")
        writer.write(b"GET / HT")
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()


async def test_who_trickles_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not count as progress."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", SOON)
    async with served() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(LONG):
            while not ended.done():
                writer.write(b"G")
                await asyncio.wait([ended], timeout=SOON / 10)
        writer.transport.abort()
        await asyncio.gather(ended, return_exceptions=True)


async def _chunks() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0)
        yield b"x" * 100_000


@pytest.mark.parametrize("parts", [False, True])
async def test_who_does_not_read_is_cut_off(parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is done and one that is not."""
    monkeypatch.setattr(connections, "UNREAD_SECONDS", SOON)

    async def endless(request: Request) -> Response:
        await request.body()
        return StreamingResponse(_chunks()) if parts else PlainTextResponse(b"x" * 50_000_000)

    async with served() as server:
        server.events = endless
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(POST.replace(b"100", b"2") + b"{}")
        async with asyncio.timeout(LONG):
            await until(lambda: server.connections > 0)
            await until(lambda: server.connections == 0)
        writer.transport.abort()


async def test_headers_have_a_bound() -> None:
    async with served() as server:
        fine = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nA: %b\r\n\r\n")
        assert b"200 OK" in await sent(server, fine % (b"/healthz", b"x" * (LARGEST_HEADERS // 2)))
        answer = await sent(server, fine % (b"/healthz", b"x" * (2 * LARGEST_HEADERS)))
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_there_are_only_so_many_connections() -> None:
    async with served(Edge(most_connections=2)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await until(lambda: server.connections == 2)
        assert await sent(server, ASK % b"/healthz") == b""
        held[0][1].transport.abort()
        async with asyncio.timeout(LONG):
            await until(lambda: server.connections == 1)
        assert await asked(server, "/healthz")
        held[1][1].transport.abort()


def test_one_address_has_only_its_share_of_connections() -> None:
    among = connections.Connections(3, 2)
    assert [among.enter("a") for _ in range(3)] == [True, True, False]
    assert among.enter("b")
    assert not among.enter("c"), "there are three"
    among.leave("a")
    assert among.enter("a")


def test_its_loggers_have_no_way_out_of_their_own() -> None:
    server = HttpServer("127.0.0.1:0", Metrics(), Health())
    try:
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
            logger = logging.getLogger(name)
            assert not logger.handlers
            assert logger.propagate or name == "uvicorn.access"
    finally:
        server._socket.close()
