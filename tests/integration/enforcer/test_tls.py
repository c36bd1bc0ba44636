"""The client, the command line, and the enforcer as a client of its meter, over mutual TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from enforcer.adapters.meter import MeterClient
from enforcer.client import Client, ConfigurationError, UnavailableError, credentials_from
from enforcer.client.tls import CA, CERTIFICATE, KEY
from enforcer.errors import MeterUnavailableError, RelayedError
from enforcer.gateway import Gateway
from enforcer.gateway.programs import Programs
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.edge import Edge
from enforcer.transport.envoy import obstacle
from enforcer.transport.grpcio import GrpcServer
from enforcer.transport.services import methods
from meter.errors import GapUnknownError
from meter.tls import Certificates, TlsFiles
from meter.transport.ledger_service import LedgerService
from meter.transport.server import Server
from meter.v1 import ledger_pb2
from tests.fixtures.certificates import Authority
from tests.fixtures.enforcer_process import EnforcerProcess
from tests.fixtures.gateway import BUCKETS
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.fixtures.gateway import Service

CATALOG = """
version: 1
features: [{key: calls}]
accounts: [{key: acme, entitlements: [{feature: calls, model: payg, per: month}]}]
"""


class Files(NamedTuple):
    """On disk: the authority, a server's and a client's certificate with their keys."""

    authority: Authority
    folder: Path
    ca: Path
    own: tuple[Path, Path]
    client: tuple[Path, Path]

    @property
    def server(self) -> TlsFiles:
        return TlsFiles(*self.own, self.ca)

    @property
    def environment(self) -> dict[str, str]:
        named = {CA: self.ca, CERTIFICATE: self.client[0], KEY: self.client[1]}
        return {name: str(place) for name, place in named.items()}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority()
    ca = authority.write(tmp_path / "ca.pem")
    own, client = authority.issue(tmp_path, "own"), authority.issue(tmp_path, "client")
    return Files(authority, tmp_path, ca, own, client)


@asynccontextmanager
async def gateway(service: Service, files: Files) -> AsyncIterator[str]:
    """A gateway that speaks mutual TLS; its endpoint."""
    await service.apply(CATALOG)
    programs = Programs(service.definitions, service.store, now_ms=service.clock)
    made = Gateway(service.store, programs, await service.definitions.lease_secret())
    served = methods(made, service.definitions, service.store, service.usage, BUCKETS)
    dispatch = Dispatch(served, Callers(service.definitions), Metrics())
    server = GrpcServer(dispatch, drain=0, edge=Edge(files.server))
    await server.start("127.0.0.1:0")
    await server.ready(serving=True)
    yield f"grpcs://127.0.0.1:{server.port}"
    await server.stop()


@pytest.mark.parametrize("service", ["memory"], indirect=True)
async def test_the_client_and_the_command_line_ask_over_mutual_tls(
    service: Service, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = service.keys["check"]
    async with gateway(service, files) as endpoint:
        async with Client(
            endpoint, key, credentials=credentials_from(files.ca, *files.client)
        ) as client:
            assert await client.check("acme", "calls")
        async with Client(endpoint, key, credentials=credentials_from(files.ca)) as client:
            with pytest.raises(UnavailableError):
                await client.check("acme", "calls", timeout=1)
        assert await command(endpoint, key, files.environment) == 0
        assert await command(endpoint, key, {CA: str(files.ca)}) == 3, "no certificate"
        for name, value in files.environment.items():
            monkeypatch.setenv(name, value)
        async with Client(endpoint, key) as client:
            assert await client.check("acme", "calls")
        monkeypatch.setenv(KEY, str(files.own[1]))
        with pytest.raises(ConfigurationError, match="is not the key of"):
            Client(endpoint, key)


async def command(endpoint: str, key: str, environment: dict[str, str]) -> int:
    """The exit status of a check."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("METERGATE_")}
    own = {"METERGATE_ENDPOINT": endpoint, "METERGATE_API_KEY": key}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from enforcer.cli import main; main()"),
        *("check", "acme", "calls", "--timeout", "2"),
        env=kept | own | environment,
        stdout=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()


class _Any:
    """Answers whoever is let in."""

    def check(self, _: Any) -> dict[str, str]:
        return {}


class _Audit:
    async def compare(self, *_: Any, **__: Any) -> Any:
        raise GapUnknownError("reached")


async def test_the_meter_is_asked_over_mutual_tls_and_both_sides_may_change_their_files(
    files: Files,
) -> None:
    audit: Any = _Audit()
    nobody: Any = None
    allowed: Any = _Any()
    service = LedgerService(audit, nobody, nobody, nobody, allowed)
    server = Server("127.0.0.1:0", service, tls=files.server)
    await server.start()
    endpoint = f"grpcs://127.0.0.1:{server.port}"
    names = ("CERT", "KEY", "CA")
    own = TlsFiles(*files.client, files.ca, names)
    clients = [
        MeterClient(endpoint, "token", Certificates(found))
        for found in (own, own._replace(certificate=None, key=None))
    ]
    plain = MeterClient(endpoint.removeprefix("grpcs://"), "token")
    known, unknown = clients
    question = ledger_pb2.CompareRequest()
    try:
        with pytest.raises(RelayedError, match="reached"):
            await known.compare(question)
        for other in (unknown, plain):
            with pytest.raises(MeterUnavailableError):
                await other.compare(question)
        # Another authority on both sides: what the client had is worth nothing any more.
        renewed = Authority()
        renewed.issue(files.folder, "own")
        renewed.issue(files.folder, "client")
        renewed.write(files.ca)
        with pytest.raises(RelayedError, match="reached"):
            await known.compare(question)
    finally:
        for client in (*clients, plain):
            await client.close()
        await server.stop(0)


@pytest.fixture(params=["grpcio", "envoy"])
def process(
    request: pytest.FixtureRequest, files: Files, migrated: Path, tmp_path: Path
) -> Iterator[EnforcerProcess]:
    """Without Redis: it serves nobody, but it listens."""
    if request.param == "envoy" and (missing := obstacle()):
        pytest.skip(missing)
    certificate, key = files.own
    made = EnforcerProcess(
        tmp_path / "log",
        METERGATE_TRANSPORT=request.param,
        METERGATE_HTTP_LISTEN=f"127.0.0.1:{free_port()}",
        METERGATE_DATABASE_URL=f"sqlite+aiosqlite:///{migrated}",
        METERGATE_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0",
        METERGATE_INTERNAL_TOKEN="x" * 16,
        METERGATE_BUCKETS=str(BUCKETS),
        METERGATE_TLS_CERT_FILE=str(certificate),
        METERGATE_TLS_KEY_FILE=str(key),
    )
    yield made
    made.kill()


async def test_a_process_speaks_tls_at_both_ports_as_its_settings_say(
    process: EnforcerProcess, files: Files
) -> None:
    process.start(METERGATE_TLS_KEY_FILE=str(files.client[1]))
    assert process.process is not None
    assert await asyncio.to_thread(process.process.wait, 60) == 78
    assert f"METERGATE_TLS_KEY_FILE: {files.client[1]} is not the key of" in process.log
    process.start()
    own = ssl.PEM_cert_to_DER_cert(files.own[0].read_text())
    for listen in (process.listen, process.environment["METERGATE_HTTP_LISTEN"]):
        seen = await _certificate(listen, files, process)
        assert seen == own


async def _certificate(listen: str, files: Files, process: EnforcerProcess) -> bytes | None:
    """What a client sees there, as soon as somebody listens."""
    context = ssl.create_default_context(cadata=files.authority.pem.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = listen.partition(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        except ConnectionError:
            assert process.process is not None
            assert process.process.poll() is None, process.log
            await asyncio.sleep(0.05)
            continue
        found: ssl.SSLObject = writer.get_extra_info("ssl_object")
        writer.transport.abort()
        return found.getpeercert(binary_form=True)
