"""One ClickHouse connection for one role, on a thread of its own.

chDB serialises the queries of a client, so that a writer and a reader each get their own. The folder
of chDB belongs to this process: another one cannot open it.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error as ClickHouseError

from meter.adapters.clickhouse.replicas import SETTINGS
from meter.errors import WarehouseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from clickhouse_connect.driver.client import Client

__all__ = ["ClickHouse"]

CHDB = "chdb:"

_UNCOMPILED: Final = {"compile_expressions": "0", "compile_aggregate_expressions": "0"}
"""For chDB, which lives as long as its process. Machine code for the few expressions of a flush takes half a second to
make, after each start, and saves no time that could be measured: not with a thousand records in a flush, nor with 30,000.
Reports and audits over small tables take a fifth of the processor without it, a sum over four million rows a tenth more."""

_CODE: Final = re.compile(r"[Cc]ode: (\d+)")
_REFUSALS: Final = (81, 192, 193, 194, 497, 516)
"""ClickHouse's codes for an unknown database or user, a wrong or missing password, missing rights."""

T = TypeVar("T")


def _connect(url: str, cluster: str) -> Client:
    if url.startswith(CHDB):
        folder = Path(url.removeprefix(CHDB))
        folder.mkdir(parents=True, exist_ok=True)
        return clickhouse_connect.get_client(
            interface="chdb", path=str(folder), settings=dict(_UNCOMPILED)
        )
    return clickhouse_connect.get_client(
        dsn=url, autogenerate_session_id=False, settings=dict(SETTINGS) if cluster else {}
    )


class ClickHouse:
    """Runs statements one after another. Every failure is a `WarehouseUnavailableError`.

    A call that is cancelled still runs to its end; the next one waits for it. `cluster` names the replicas that the server
    at `url` is one of; empty: it is alone.
    """

    def __init__(self, url: str, role: str, cluster: str = "") -> None:
        self._url = url
        self.cluster = cluster
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"clickhouse-{role}")
        self._client: Client | None = None

    async def command(
        self,
        sql: str,
        settings: Mapping[str, str | int] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Mapping[str, str]:
        """Run a statement without a result; return ClickHouse's summary of it."""

        def run(client: Client) -> Mapping[str, str]:
            done = client.command(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {})
            )
            return getattr(done, "summary", {})

        return await self._run(run)

    async def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """Run a query with `{name:Type}` parameters; return its rows."""
        return await self._run(
            lambda client: client.query(sql, parameters=dict(parameters or {})).result_rows
        )

    async def insert(self, table: str, columns: Sequence[str], row_binary: bytes) -> None:
        """Insert rows that are encoded as RowBinary already."""
        await self._run(
            lambda client: client.raw_insert(table, columns, row_binary, fmt="RowBinary")
        )

    async def ask(self) -> None:
        """Return when the server answers. Raise `WarehouseUnavailableError`."""
        await self.rows("SELECT 1")

    async def close(self) -> None:
        """Close the connection when the running statement has ended."""

        def run() -> None:
            if self._client is not None:
                self._client.close()
                self._client = None

        await asyncio.get_running_loop().run_in_executor(self._thread, run)
        self._thread.shutdown()

    async def _run(self, work: Callable[[Client], T]) -> T:
        def run() -> T:
            if self._client is None:
                self._client = _connect(self._url, self.cluster)
            return work(self._client)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except (ClickHouseError, OSError, RuntimeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            refused = any(int(code) in _REFUSALS for code in _CODE.findall(str(error)))
            raise WarehouseUnavailableError(f"ClickHouse: {lines[0]}", refused=refused) from error
