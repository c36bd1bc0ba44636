"""The command `apply`: declare features, plans, accounts and entitlements."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated, Final

import typer

from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.exits import CommandError
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
    TimeoutOption,
)
from enforcer.cli.output import print_json, print_table, short_name
from enforcer.v1 import catalog_pb2
from enforcer.v1.catalog_pb2_grpc import CatalogServiceStub

__all__ = ["apply"]

MOST_BYTES: Final = 4 * 1024 * 1024


def apply(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="A catalog; - reads standard input.")
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and tell what would change.")
    ] = False,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Declare definitions from a catalog file: all of it counts from the next check, or none.

    Applying the same file twice changes nothing.
    """
    gateway = find_gateway(data_dir)
    request = catalog_pb2.ApplyRequest(document=_read(file), file_name=str(file), dry_run=dry_run)
    with calling(gateway) as channel:
        response = CatalogServiceStub(channel).Apply(
            request, timeout=timeout, metadata=gateway.metadata
        )
    changes = [
        (
            short_name(catalog_pb2.Change.Action.Name(change.action), "ACTION_"),
            change.kind,
            change.key,
        )
        for change in response.changes
    ]
    if json:
        names = ("action", "kind", "key")
        listed = [dict(zip(names, change, strict=True)) for change in changes]
        print_json({"changes": listed, "dry_run": dry_run})
        return
    if changes:
        print_table(["change", "kind", "key"], changes)
    what = "would change" if dry_run else "changed"
    typer.echo(f"{len(changes) or 'nothing'} {what}")


def _read(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise CommandError(f"{file} has {len(data)} bytes; a catalog has at most {MOST_BYTES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{file}:{line}: not UTF-8 text; a catalog is YAML in UTF-8") from error
