"""The commands `reconcile` and `gap accept`: what an operator decides when records or counters were lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enforcer.cli.audit import drifting
from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.exits import Status
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
    TimeoutOption,
)
from enforcer.cli.output import as_json, number, print_json
from meter.v1 import repair_pb2
from meter.v1.repair_pb2_grpc import RepairServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meter.v1 import report_pb2

__all__ = ["gap_app", "reconcile"]

gap_app = typer.Typer(name="gap", help="Places that are missing in a sequence of records.")


def reconcile(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 120,
) -> None:
    """Bring counters to what their records say. Exit status 1 if a difference is left."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = RepairServiceStub(channel).Reconcile(
            repair_pb2.ReconcileRequest(dry_run=dry_run), timeout=timeout, metadata=gateway.metadata
        )
    left = response.drift if dry_run else response.left
    if json:
        print_json(as_json(response))
    else:
        _tell("would change" if dry_run else "differed", response.drift)
        if not dry_run:
            _tell("left", response.left)
        typer.echo(
            f"{number(len(response.drift))} counters differ from their records, "
            f"{number(len(response.drift) - len(left))} were brought in line"
        )
    raise typer.Exit(Status.REFUSED if left else Status.OK)


def _tell(what: str, drift: Iterable[report_pb2.Drift]) -> None:
    for one in drift:
        typer.echo(f"{what}: {drifting(one)}")


@gap_app.command("accept")
def accept(
    bucket: Annotated[int, typer.Argument(min=0)],
    generation: Annotated[int, typer.Argument(min=0)],
    first: Annotated[int, typer.Argument(min=0)],
    last: Annotated[int, typer.Argument(min=0, help="The last missing record.")],
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Go on behind a gap that holds a bucket, as `audit` names it.

    What is missing is given up for reports; records of the gap that come later go to review.
    """
    gateway = find_gateway(data_dir)
    request = repair_pb2.AcceptGapRequest(
        bucket=bucket, generation=generation, first=first, last=last + 1
    )
    with calling(gateway) as channel:
        response = RepairServiceStub(channel).AcceptGap(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
    else:
        typer.echo(
            f"bucket {bucket} goes on behind record {last} of generation {generation}; "
            f"{number(response.found)} records of the gap were stored already and count"
        )
