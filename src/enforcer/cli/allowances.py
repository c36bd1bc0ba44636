"""Commands about blocks of supply: `allowance take` and `allowance return`."""

from __future__ import annotations

from typing import Annotated

import typer

from enforcer.cli.checks import describe, print_limits
from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.exits import Status
from enforcer.cli.options import (
    CustomerArgument,
    DataDirOption,
    DimensionOption,
    FeatureArgument,
    JsonOption,
    KeyOption,
    TimeoutOption,
    VersionOption,
    dimensions,
    duration,
)
from enforcer.cli.output import as_json, number, print_json, when
from enforcer.core.model import MAX_QUANTITY
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub

__all__ = ["app"]

app = typer.Typer(help="Blocks of supply to decide from without asking.", rich_markup_mode=None)


@app.command()
def take(  # noqa: PLR0913 - each is an option of the command
    customer: CustomerArgument,
    feature: FeatureArgument,
    quantity: Annotated[
        int,
        typer.Argument(metavar="QUANTITY", min=1, max=MAX_QUANTITY, help="What is wanted at most."),
    ],
    *,
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="TIME", help="From 1s to 1h. Default: 60s.")
    ] = "",
    key: KeyOption = "",
    dimension: DimensionOption = None,
    product_version: VersionOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Take a block, at most an eighth of what is left. Exit status 0: taken, 1: denied."""
    request = pb.TakeAllowanceRequest(
        customer=customer,
        feature=feature,
        quantity=quantity,
        idempotency_key=key,
        dimensions=dimensions(dimension),
        product_version=product_version,
        ttl=duration(ttl),
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).TakeAllowance(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
    elif response.check.allowed:
        typer.echo(f"took {number(response.check.granted)} until {when(response.expires_at)}")
        typer.echo(f"allowance {response.allowance}")
    else:
        typer.echo(describe(response.check))
        print_limits(response.check.limits)
    raise typer.Exit(Status.OK if response.check.allowed else Status.REFUSED)


@app.command(name="return")
def give_back(
    allowance: Annotated[
        str, typer.Argument(metavar="ALLOWANCE", help="As printed by `metergate allowance take`.")
    ],
    used: Annotated[
        int, typer.Argument(metavar="USED", min=0, max=MAX_QUANTITY, help="What was used of it.")
    ],
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Tell what was used of a block; the rest goes back."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).ReturnAllowance(
            pb.ReturnAllowanceRequest(allowance=allowance, used=used),
            timeout=timeout,
            metadata=gateway.metadata,
        )
    if json:
        print_json(as_json(response))
        return
    again = " (answered from an earlier call)" if response.replayed else ""
    typer.echo(f"used {number(response.used)}, gave back {number(response.returned)}{again}")
