"""What the composition root makes of settings."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from enforcer import app
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.app import serve
from enforcer.errors import Code
from enforcer.metrics import Metrics
from enforcer.settings import load
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Call, Dispatch, FailedError
from tests.fixtures.gateway import BUCKETS
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from enforcer.app import Server
    from enforcer.settings import Settings


async def test_a_tenant_has_the_share_that_the_settings_say(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Redis is needed: a call is refused before anything is asked."""
    place = tmp_path / "definitions.db"
    shutil.copyfile(migrated, place)
    url = f"sqlite+aiosqlite:///{place}"
    definitions = SqlDefinitions(url, BUCKETS)
    await definitions.ensure_tenant("demo")
    key = await definitions.create_api_key("demo", "admin")
    await definitions.close()
    for name, value in {
        "DATABASE_URL": url,
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "INTERNAL_TOKEN": "x" * 16,
        "BUCKETS": str(BUCKETS),
        "HTTP_LISTEN": "",
        "TENANT_MOST_CALLS": "6",
        "TENANT_CALLS_PER_SECOND": "1",
    }.items():
        monkeypatch.setenv(f"METERGATE_{name}", value)
    stop = asyncio.Event()
    carried: list[Dispatch] = []
    started = asyncio.Event()

    class Carried:
        """A server that nobody reaches."""

        def __init__(self, dispatch: Dispatch) -> None:
            carried.append(dispatch)

        async def start(self, _: str) -> None:
            started.set()

        async def ready(self, *, serving: bool) -> None: ...

        async def stop(self) -> None: ...

    serving = asyncio.create_task(serve(load(), stop, Carried))
    async with asyncio.timeout(60):
        await started.wait()
        (dispatch,) = carried
        method = dispatch.routes["/enforcer.v1.CatalogService/Apply"]
        codes = [await _code(dispatch, method, key) for _ in range(3)]
        stop.set()
        await serving
    assert codes == [Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED]
    assert dispatch.tenants._most == 6


async def test_a_connection_of_grpcio_has_the_age_that_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nothing calls on it, it hears of it at once when its age has come."""
    listen = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("METERGATE_CONNECTION_AGE_SECONDS", "1")
    monkeypatch.setenv("METERGATE_LISTEN", listen)
    monkeypatch.setenv("METERGATE_INTERNAL_TOKEN", "x" * 16)
    monkeypatch.setenv("METERGATE_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/none.db")
    seen: list[tuple[float, grpc.ChannelConnectivity]] = []

    async def served(settings: Settings, _: asyncio.Event, carry: Callable[..., Server]) -> None:
        server = carry(Dispatch([], Callers(SqlDefinitions(settings.database_url, 1)), Metrics()))
        await server.start(settings.listen)
        async with grpc.aio.insecure_channel(listen) as channel, asyncio.timeout(60):
            state = channel.get_state(try_to_connect=True)
            while not (seen and state is grpc.ChannelConnectivity.IDLE):
                await channel.wait_for_state_change(state)
                state = channel.get_state()
                if state is grpc.ChannelConnectivity.READY:
                    seen.append((time.monotonic(), state))
            seen.append((time.monotonic(), state))
        await server.stop()

    monkeypatch.setattr(app, "serve", served)
    monkeypatch.setattr(app, "end_for_sure", lambda: None)
    await app._run(load())
    (connected, _), *_, (left, _) = seen
    assert left - connected < 4.5  # what it is at least, if nothing is said


async def _code(dispatch: Dispatch, method: Any, key: str) -> int:
    call = Call(f"Bearer {key}", time.monotonic(), None)
    with pytest.raises(FailedError) as failed:
        await dispatch.unary(method, call, b"")
    return int(failed.value.status.code)
