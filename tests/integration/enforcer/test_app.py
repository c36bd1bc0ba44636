"""What the composition root makes of the settings that bound a tenant."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.app import serve
from enforcer.errors import Code
from enforcer.settings import load
from enforcer.transport.dispatch import Call, Dispatch, FailedError
from tests.fixtures.gateway import BUCKETS
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path


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


async def _code(dispatch: Dispatch, method: Any, key: str) -> int:
    call = Call(f"Bearer {key}", time.monotonic(), None)
    with pytest.raises(FailedError) as failed:
        await dispatch.unary(method, call, b"")
    return int(failed.value.status.code)
