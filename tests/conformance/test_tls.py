"""TLS on both transports: who is served, what a new connection sees after the files have changed, what goes on."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from cryptography import x509
from google.protobuf.wrappers_pb2 import StringValue

from tests.conformance.conftest import KEY, Process, _needs, method, until
from tests.conformance.served import MOST_STREAMS, TLS_FOLDER
from tests.fixtures.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class Guarded:
    """A process with mutual TLS, and what its clients have."""

    def __init__(self, transport: str, folder: Path) -> None:
        self.folder, self.authority = folder, Authority()
        self.authority.issue(folder, "own")
        self.authority.write(folder / "clients.pem")
        self.client = self.authority.issue(folder, "client")
        self._context = ssl.create_default_context(cadata=self.authority.pem.decode())
        self._context.load_cert_chain(*self.client)
        self._context.set_alpn_protocols(["h2"])
        self.process = Process(
            transport,
            folder / "log",
            environment={TLS_FOLDER: str(folder)},
            credentials=self.credentials,
        )

    def credentials(self) -> grpc.ChannelCredentials:
        certificate, key = self.client
        return grpc.ssl_channel_credentials(
            self.authority.pem, key.read_bytes(), certificate.read_bytes()
        )

    def serial(self) -> int:
        """Of the certificate that a new connection sees."""
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        seen = ssl.get_server_certificate(("127.0.0.1", self.process.port), timeout=10)
        return x509.load_pem_x509_certificate(seen.encode()).serial_number

    def spoken(self, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
        """Begin to speak HTTP/2; None: the server refused. `session`: go on with an earlier one."""
        place = "127.0.0.1", self.process.port
        try:
            with (
                socket.create_connection(place, timeout=10) as plain,
                self._context.wrap_socket(
                    plain, server_hostname="localhost", session=session
                ) as secure,
            ):
                secure.sendall(HELLO)
                return secure.session if secure.recv(9) else None
        except (ssl.SSLError, ConnectionError):
            return None

    def issued(self) -> int:
        """Of the one in the file."""
        return x509.load_pem_x509_certificate((self.folder / "own.pem").read_bytes()).serial_number

    async def answers(self, credentials: grpc.ChannelCredentials | None) -> bool:
        """Whether who has these is served."""
        target, options = self.process.target, [("grpc.use_local_subchannel_pool", 1)]
        channel = (
            grpc.aio.insecure_channel(target, options=options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=options)
        )
        async with channel:
            try:
                await method(channel, "Whom")(StringValue(), metadata=KEY, timeout=10)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
                return False
        return True


@pytest.fixture(params=["grpcio", "envoy"])
async def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guarded]:
    _needs(request.param)
    opened = Guarded(request.param, tmp_path)
    try:
        await opened.process.serving()
        yield opened
    finally:
        await asyncio.to_thread(opened.process.end)


async def test_only_who_has_a_certificate_of_the_authority_is_served_and_both_are_renewed(
    guarded: Guarded, tmp_path: Path
) -> None:
    """One process for all of it: it takes seconds to start."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    stranger = Authority("authority")
    certificate, key = stranger.issue(strangers, "client")
    own = guarded.authority.pem
    refused = {
        "plain text": None,
        "no certificate": grpc.ssl_channel_credentials(own),
        "of another authority": grpc.ssl_channel_credentials(
            own, key.read_bytes(), certificate.read_bytes()
        ),
        "does not trust the server": grpc.ssl_channel_credentials(
            stranger.pem, guarded.client[1].read_bytes(), guarded.client[0].read_bytes()
        ),
    }
    assert await guarded.answers(guarded.credentials())
    served = {name for name, credentials in refused.items() if await guarded.answers(credentials)}
    assert not served

    async with guarded.process.channel() as channel:
        waiting = asyncio.ensure_future(
            method(channel, "Wait")(StringValue(value="6"), metadata=KEY, timeout=30)
        )
        await until(channel, "begun")
        assert await asyncio.to_thread(guarded.serial) == guarded.issued()
        await _renewed(guarded)
        await _taken_in_place_when_whole(guarded)
        assert (await waiting).value == "6"
        assert await guarded.answers(guarded.credentials())

        session = await asyncio.to_thread(guarded.spoken)
        assert session is not None

        # The authority of clients changes, too: then the new one's are served, and the old one's not.
        guarded.folder.joinpath("clients.pem").write_bytes(stranger.pem)
        give_up = time.monotonic() + 20
        while not await guarded.answers(refused["of another authority"]):
            assert time.monotonic() < give_up, guarded.process.log.read_text()
        assert not await guarded.answers(guarded.credentials())
        assert await asyncio.to_thread(guarded.spoken, session) is None, (
            "nor by a session of before"
        )


async def _renewed(guarded: Guarded) -> None:
    """Files that are moved into the old ones' place."""
    guarded.authority.issue(guarded.folder, "own")
    await _seen(guarded)


async def _taken_in_place_when_whole(guarded: Guarded) -> None:
    """Files that are written over: between certificate and key nothing changes, and nobody is refused."""
    before = guarded.issued()
    certificate, key = guarded.authority.issue(guarded.folder, "next")
    guarded.folder.joinpath("own.pem").write_bytes(certificate.read_bytes())
    for _ in range(5):
        assert await asyncio.to_thread(guarded.serial) == before
    guarded.folder.joinpath("own.key").write_bytes(key.read_bytes())
    await _seen(guarded)


async def _seen(guarded: Guarded) -> None:
    give_up = time.monotonic() + 20
    while await asyncio.to_thread(guarded.serial) != guarded.issued():
        assert time.monotonic() < give_up, guarded.process.log.read_text()
        await asyncio.sleep(0.05)


async def test_a_connection_has_only_so_many_calls_at_once(guarded: Guarded) -> None:
    async with guarded.process.channel() as channel:
        wait = method(channel, "Wait")

        async def patient() -> None:
            """On Envoy a client keeps its call back by itself; grpcio may refuse one that comes as another ends."""
            while True:
                try:
                    await wait(StringValue(value="0.5"), metadata=KEY, timeout=30)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
                else:
                    return

        calls = asyncio.gather(*(patient() for _ in range(2 * MOST_STREAMS)))
        most = 0
        # Asked on a connection of its own, which has a stream free.
        async with guarded.process.channel() as other:
            while not calls.done():
                seen = await method(other, "Seen")(StringValue(), metadata=KEY, timeout=10)
                words = seen.value.split(",")
                most = max(most, words.count("begun") - words.count("done"))
        await calls
        assert most == MOST_STREAMS
