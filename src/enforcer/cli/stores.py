"""The commands `migrate` and `key create`: what a deployment's databases need before its processes.

They reach the databases themselves, as METERGATE_… say. `metergate up` does the same for its data folder.
"""

from __future__ import annotations

import asyncio
import os
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.cli.config import faults_of, given
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.options import JsonOption  # noqa: TC001 - typer reads annotations at run time
from enforcer.cli.output import print_json
from enforcer.errors import DefinitionsUnavailableError, MetergateError
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.clickhouse.migrate import migrate as migrate_clickhouse
from meter.adapters.sql.marks import SqlMarks
from meter.errors import MeterError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["key_app", "migrate"]

T = TypeVar("T")

PAUSE: Final = 0.5
DEFINITIONS, MARKS, CLICKHOUSE, CLUSTER = (
    "METERGATE_DATABASE_URL",
    "METERGATE_METER_DATABASE_URL",
    "METERGATE_CLICKHOUSE_URL",
    "METERGATE_CLICKHOUSE_CLUSTER",
)

key_app = typer.Typer(name="key", help="API keys.")


class Role(StrEnum):
    """What a key may do."""

    CHECK = "check"
    ADMIN = "admin"


def migrate(
    *,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, metavar="SECONDS", help="So long a database may be away."),
    ] = 60.0,
    json: JsonOption = False,
) -> None:
    """Bring the schemas up to date: of the definitions, of the marks, and of ClickHouse.

    Those of METERGATE_DATABASE_URL, METERGATE_METER_DATABASE_URL and METERGATE_CLICKHOUSE_URL that are set. Safe to run
    at any time and by several at once: what has run does not run again. Before a new version's processes start.
    """
    urls = _urls(DEFINITIONS, MARKS, CLICKHOUSE)
    if not urls:
        raise CommandError(f"nothing to migrate: set {DEFINITIONS}, {MARKS} or {CLICKHOUSE}")
    done = _run(_migrate(urls, time.monotonic() + wait))
    if json:
        print_json({"migrated": done})
        return
    for name in done:
        typer.echo(f"{name}: up to date")


async def _migrate(urls: Mapping[str, str], until: float) -> list[str]:
    if DEFINITIONS in urls:
        definitions = SqlDefinitions(urls[DEFINITIONS], 1)
        try:
            await _patiently(definitions.migrate, until)
        finally:
            await definitions.close()
    if MARKS in urls:
        marks = SqlMarks(urls[MARKS])
        try:
            await _patiently(marks.migrate, until)
        finally:
            await marks.close()
    if CLICKHOUSE in urls:
        clickhouse = ClickHouse(urls[CLICKHOUSE], "writer", given().values.get(CLUSTER, ""))
        try:
            await _patiently(lambda: migrate_clickhouse(clickhouse), until)
        finally:
            await clickhouse.close()
    return list(urls)


async def _patiently(work: Callable[[], Awaitable[T]], until: float) -> T:
    """Do it again while its database is away, until then."""
    while True:
        try:
            return await work()
        except (DefinitionsUnavailableError, UnavailableError):
            if time.monotonic() + PAUSE > until:
                raise
            await asyncio.sleep(PAUSE)


def _urls(*names: str) -> dict[str, str]:
    """Those that are set. Raise `CommandError` for one that is none."""
    values = given().values
    wrong = [fault for fault in faults_of(values, ["enforcer", "meter"]) if fault.name in values]
    for fault in wrong:
        if fault.name in {*names, CLUSTER}:
            raise CommandError(str(fault))
    return {name: values[name] for name in names if values.get(name)}


def _run(work: Awaitable[T]) -> T:
    """Run it; the packages' errors become the command's."""

    async def run() -> T:
        return await work

    try:
        return asyncio.run(run())
    except (DefinitionsUnavailableError, UnavailableError) as error:
        raise CommandError(error.message, Status.UNAVAILABLE) from error
    except (MetergateError, MeterError) as error:
        raise CommandError(error.message) from error


@key_app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose key.")],
    *,
    role: Annotated[Role, typer.Option("--role", help="check: decide and report; admin: all.")],
    new_tenant: Annotated[
        bool, typer.Option("--new-tenant", help="Make the tenant unless it is there.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make an API key in METERGATE_DATABASE_URL and print it, this once: only its digest is kept.

    For the first key of a deployment. The audit log has it as made by the operator at the database.
    """
    urls = _urls(DEFINITIONS)
    if not urls:
        raise CommandError(f"{DEFINITIONS} is not set: keys are made in the definitions' database")

    async def make() -> str:
        definitions = SqlDefinitions(urls[DEFINITIONS], 1)
        try:
            if new_tenant:
                await definitions.ensure_tenant(tenant)
            return await definitions.create_api_key(tenant, role, f"operator:{_who()}")
        finally:
            await definitions.close()

    key = _run(make())
    if json:
        print_json({"tenant": tenant, "role": role, "api_key": key})
    else:
        typer.echo(key)


def _who() -> str:
    return os.environ.get("USER", "") or str(os.getuid())
