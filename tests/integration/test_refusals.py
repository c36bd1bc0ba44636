"""A server that is there and lets nobody in is told from one that is away."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest
import redis

from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.adapters.meter import MeterClient
from enforcer.errors import DefinitionsUnavailableError, MeterUnavailableError
from enforcer.errors import MisconfiguredError as EnforcerMisconfiguredError
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.log.outbox import OutboxLog
from meter.adapters.sql.marks import SqlMarks
from meter.errors import (
    LogUnavailableError,
    MarksUnavailableError,
    MisconfiguredError,
    WarehouseUnavailableError,
)
from meter.health import State
from meter.transport.server import Server
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A server with a password that nobody here has."""
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    with redis.Redis(port=server.port) as client:
        client.config_set("requirepass", "another one")
    yield server
    server.kill()


async def test_redis(locked: ValkeyProcess, tmp_path: Path) -> None:
    away = f"redis://127.0.0.1:{free_port()}"
    wrong = f"redis://:a-wrong-word@127.0.0.1:{locked.port}/0"
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}", 1)
    await definitions.migrate()
    for url, refused in ((away, False), (locked.url, True), (wrong, True)):
        outbox = OutboxLog(url, [0])
        with pytest.raises(LogUnavailableError) as caught:
            await outbox.ask()
        await outbox.close()
        assert caught.value.refused is refused
        counters = RedisCounters(RedisOptions(url, 1), definitions)
        assert counters.standing()[0] is State.UNKNOWN
        counters.start()
        async with asyncio.timeout(20):
            while counters.standing()[0] is State.UNKNOWN:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        state, why = counters.standing()
        await counters.close()
        assert state is (State.REFUSED if refused else State.AWAY), why
        assert "a-wrong-word" not in f"{why} {caught.value}"
    await definitions.close()


async def test_postgresql(postgres_url: str) -> None:
    strange = postgres_url.replace("metergate@", "nobody_here@")
    missing = "/no_such_database?".join(
        (postgres_url.rpartition("/test_")[0], postgres_url.partition("?")[2])
    )
    away = f"postgresql+asyncpg://metergate@127.0.0.1:{free_port()}/metergate"
    for url, refused in ((strange, True), (missing, True), (away, False)):
        definitions, marks = SqlDefinitions(url, 1), SqlMarks(url)
        with pytest.raises(DefinitionsUnavailableError) as one:
            await definitions.ask()
        with pytest.raises(MarksUnavailableError) as other:
            await marks.ask()
        await definitions.close()
        await marks.close()
        assert (one.value.refused, other.value.refused) == (refused, refused), one.value


async def test_an_option_that_the_driver_does_not_know_is_a_wrong_setting() -> None:
    url = f"postgresql+asyncpg://metergate@127.0.0.1:{free_port()}/metergate?sslmode=require"
    definitions, marks = SqlDefinitions(url, 1), SqlMarks(url)
    with pytest.raises(EnforcerMisconfiguredError, match="METERGATE_DATABASE_URL: 'sslmode'"):
        await definitions.ask()
    with pytest.raises(MisconfiguredError, match="METERGATE_METER_DATABASE_URL: 'sslmode'"):
        await marks.ask()
    await definitions.close()
    await marks.close()


class _Refuses(BaseHTTPRequestHandler):
    """As ClickHouse answers a wrong password."""

    def do_POST(self) -> None:
        text = b"Code: 516. DB::Exception: default: Authentication failed. (AUTHENTICATION_FAILED)"
        self.send_response(403)
        self.send_header("X-ClickHouse-Exception-Code", "516")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST  # noqa: N815 - the base class's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def test_clickhouse() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for port, refused in ((server.server_address[1], True), (free_port(), False)):
            clickhouse = ClickHouse(f"http://127.0.0.1:{port}/default", "probe")
            with pytest.raises(WarehouseUnavailableError) as caught:
                await clickhouse.ask()
            await clickhouse.close()
            assert caught.value.refused is refused, caught.value
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_meter_that_is_away() -> None:
    server = Server("127.0.0.1:0")
    await server.start()
    for port, why in ((server.port, "not ready"), (free_port(), "does not answer")):
        client = MeterClient(f"127.0.0.1:{port}", "a token of the tests")
        with pytest.raises(MeterUnavailableError, match=why) as caught:
            await client.ask()
        assert not caught.value.refused
        await client.close()
    await server.stop(0)
