"""What a deployment does before its processes: schemas, a first key, and asking whether one serves."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.cli import main
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from enforcer.ports.definitions import Caller


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    urls = {
        "METERGATE_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}",
        "METERGATE_METER_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'meter.db'}",
        "METERGATE_CLICKHOUSE_URL": f"chdb:{tmp_path / 'clickhouse'}",
    }
    for name, url in urls.items():
        monkeypatch.setenv(name, url)
    return urls


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_schemas_are_made_once_and_a_key_is_known_then(
    stores: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("key", "create", "demo", "--role", "admin", "--new-tenant") == 3  # no tables yet
    assert "has no schema yet" in capsys.readouterr().err
    for _ in range(2):
        assert run("migrate", "--wait", "0") == 0
        assert capsys.readouterr().out == "".join(f"{name}: up to date\n" for name in stores)
    assert run("key", "create", "demo", "--role", "check") == 2
    assert "there is no tenant 'demo'" in capsys.readouterr().err
    assert run("key", "create", "demo", "--role", "check", "--new-tenant") == 0
    key = capsys.readouterr().out.strip()
    assert run("key", "create", "demo", "--role", "check") == 0
    assert capsys.readouterr().out.strip() != key

    async def caller() -> Caller | None:
        definitions = SqlDefinitions(stores["METERGATE_DATABASE_URL"], 1)
        try:
            return await definitions.caller(key)
        finally:
            await definitions.close()

    found = asyncio.run(caller())
    assert found is not None
    assert (found.tenant, found.role) == ("demo", "check")


def test_a_database_that_is_away_is_told_after_the_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f"postgresql+asyncpg://metergate:hidden@127.0.0.1:{free_port()}/metergate"
    monkeypatch.setenv("METERGATE_DATABASE_URL", away)
    assert run("migrate", "--wait", "0.6") == 3
    said = capsys.readouterr().err
    assert "does not answer" in said
    assert "hidden" not in said
    monkeypatch.setenv("METERGATE_CLICKHOUSE_URL", "clickhouse://x")
    assert run("migrate") == 2
    assert "METERGATE_CLICKHOUSE_URL: must be chdb:FOLDER or http(s)" in capsys.readouterr().err


class Process(BaseHTTPRequestHandler):
    """What answers `/readyz`."""

    fine = True

    def do_GET(self) -> None:
        self.send_response(200 if self.fine and self.path == "/readyz" else 503)
        self.end_headers()
        self.wfile.write(b"opening\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Secured(HTTPServer):
    """Who does not speak TLS is sent away; that is no error here."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def process() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Process)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_health_is_what_the_process_says(
    process: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METERGATE_HTTP_LISTEN", f"0.0.0.0:{process}")
    monkeypatch.setenv("METERGATE_METER_METRICS_LISTEN", f"127.0.0.1:{process}")
    for asked in (["health"], ["health", "meter"]):
        assert run(*asked) == 0
        assert capsys.readouterr().out == "serving\n"
    monkeypatch.setattr(Process, "fine", False)
    assert run("health") == 1
    assert capsys.readouterr().out == "not serving: opening\n"
    monkeypatch.setenv("METERGATE_HTTP_LISTEN", f"127.0.0.1:{free_port()}")
    assert run("health") == 3
    assert "refused" in capsys.readouterr().err


def test_health_asks_a_port_that_speaks_tls_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    made = tmp_path / "made.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=elsewhere"
    )
    subprocess.run([*command.split(), "-keyout", made, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", made)
    server = Secured(("127.0.0.1", 0), Process)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("METERGATE_HTTP_LISTEN", f"127.0.0.1:{server.server_address[1]}")
        assert run("health") == 0
        assert capsys.readouterr().out == "serving\n"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
