"""Commands about seats: `lease acquire`, `renew`, `release`, `list`, and `hold`, which sits there."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Annotated, Final

import grpc
import typer

from enforcer.cli.checks import describe, print_limits
from enforcer.cli.connection import calling, failure, find_gateway, reason_of
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.options import (
    CustomerArgument,
    DataDirOption,
    DimensionOption,
    FeatureArgument,
    JsonOption,
    KeyOption,
    TimeoutOption,
    TtlOption,
    VersionOption,
    dimensions,
    duration,
)
from enforcer.cli.output import as_json, print_json, print_table, when
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub

if TYPE_CHECKING:
    from types import FrameType

    from google.protobuf.duration_pb2 import Duration

    from enforcer.cli.connection import Gateway

__all__ = ["app"]

app = typer.Typer(help="Seats of `concurrent` features.", rich_markup_mode=None)

HolderOption = Annotated[
    str,
    typer.Option(
        "--holder",
        metavar="NAME",
        help="The user for named-user seats, the device's fingerprint for node-locked seats.",
    ),
]
TokenArgument = Annotated[
    str, typer.Argument(metavar="TOKEN", help="As printed by `metergate lease acquire`.")
]

BEATS_PER_TTL: Final = 3
"""Two heartbeats may be lost before the seat is."""
RETRY_SECONDS: Final = 1.0
PAGE: Final = 1000


@app.command()
def acquire(  # noqa: PLR0913 - each is an option of the command
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    holder: HolderOption = "",
    ttl: TtlOption = "",
    key: KeyOption = "",
    dimension: DimensionOption = None,
    product_version: VersionOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Take a seat for a time. Exit status 0: taken, 1: no seat is free."""
    request = pb.AcquireLeaseRequest(
        customer=customer,
        feature=feature,
        holder=holder,
        ttl=duration(ttl),
        idempotency_key=key,
        dimensions=dimensions(dimension),
        product_version=product_version,
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).AcquireLease(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
    else:
        _print_acquired(response)
    raise typer.Exit(Status.OK if response.check.allowed else Status.REFUSED)


@app.command()
def renew(
    token: TokenArgument,
    *,
    ttl: TtlOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """The heartbeat: prolong a live lease."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).RenewLease(
            pb.RenewLeaseRequest(token=token, ttl=duration(ttl)),
            timeout=timeout,
            metadata=gateway.metadata,
        )
    if json:
        print_json(as_json(response))
    else:
        typer.echo(f"lease {response.lease.id} until {when(response.lease.expires_at)}")


@app.command()
def release(
    token: TokenArgument,
    *,
    unbind: Annotated[
        bool, typer.Option("--unbind", help="Node-locked seats: also free the device's binding.")
    ] = False,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Give a seat back. Succeeds, too, when the lease has ended before."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).ReleaseLease(
            pb.ReleaseLeaseRequest(token=token, unbind=unbind),
            timeout=timeout,
            metadata=gateway.metadata,
        )
    if json:
        print_json(as_json(response))
    else:
        typer.echo("released" if response.released else "the lease had ended before")


@app.command("list")
def list_(
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """The live leases of a customer and of the nodes below, oldest expiry first."""
    gateway = find_gateway(data_dir)
    request = pb.ListLeasesRequest(customer=customer, feature=feature, page_size=PAGE)
    leases: list[pb.Lease] = []
    with calling(gateway) as channel:
        stub = EnforcerServiceStub(channel)
        while True:
            page = stub.ListLeases(request, timeout=timeout, metadata=gateway.metadata)
            leases += page.leases
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    if json:
        print_json({"leases": [as_json(lease) for lease in leases]})
        return
    rows = [
        [lease.id, lease.customer, lease.holder, when(lease.started_at), when(lease.expires_at)]
        for lease in leases
    ]
    if rows:
        print_table(["lease", "customer", "holder", "since", "expires"], rows)
    else:
        typer.echo("no live leases")


@app.command()
def hold(  # noqa: PLR0913 - each is an option of the command
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    holder: HolderOption = "",
    ttl: TtlOption = "",
    product_version: VersionOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Take a seat, renew it until Ctrl-C, then give it back.

    When this process is killed without a chance to give the seat back, the seat is free again after
    the lease's time to live. Exit status 0: held and given back, 1: no seat free, or lost.
    """
    request = pb.AcquireLeaseRequest(
        customer=customer,
        feature=feature,
        holder=holder,
        ttl=duration(ttl),
        product_version=product_version,
    )
    gateway = find_gateway(data_dir)
    # A plain `kill` is as polite as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    with calling(gateway) as channel:
        stub = EnforcerServiceStub(channel)
        acquired = stub.AcquireLease(request, timeout=timeout, metadata=gateway.metadata)
        if json:
            print_json({**as_json(acquired), "pid": os.getpid()})
        else:
            _print_acquired(acquired)
        if not acquired.check.allowed:
            raise typer.Exit(Status.REFUSED)
        if not json:
            typer.echo(f"renewing it as process {os.getpid()}; Ctrl-C gives it back")
        try:
            _renew_for_ever(stub, gateway, acquired.lease, duration(ttl))
        except KeyboardInterrupt:
            released = stub.ReleaseLease(
                pb.ReleaseLeaseRequest(token=acquired.lease.token),
                timeout=timeout,
                metadata=gateway.metadata,
            )
            if json:
                print_json(as_json(released))
            else:
                typer.echo("released" if released.released else "the lease had ended before")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _renew_for_ever(
    stub: EnforcerServiceStub, gateway: Gateway, lease: pb.Lease, ttl: Duration | None
) -> None:
    """Renew until interrupted. An outage is waited out: the lease itself says when it was too long."""
    length = (lease.expires_at.ToNanoseconds() - lease.started_at.ToNanoseconds()) / 1e9
    pause = beat = max(length / BEATS_PER_TTL, 0.1)
    while True:
        time.sleep(pause)
        try:
            stub.RenewLease(
                pb.RenewLeaseRequest(token=lease.token, ttl=ttl),
                timeout=beat,
                metadata=gateway.metadata,
            )
            pause = beat
        except grpc.RpcError as error:
            if reason_of(error) == "LEASE_EXPIRED":
                raise CommandError(
                    f"lease {lease.id} has expired before it could be renewed; acquire a new one",
                    Status.REFUSED,
                ) from error
            fault = failure(error, gateway)
            if fault.status not in {Status.UNAVAILABLE, Status.INTERNAL}:
                raise fault from error
            typer.echo(f"metergate: not renewed, trying again: {fault.message}", err=True)
            pause = min(beat, RETRY_SECONDS)


def _print_acquired(response: pb.AcquireLeaseResponse) -> None:
    if not response.check.allowed:
        typer.echo(describe(response.check))
        print_limits(response.check.limits)
        return
    lease = response.lease
    holder = f" by {lease.holder}" if lease.holder else ""
    overage = " (past the included seats)" if response.check.overage else ""
    typer.echo(
        f"lease {lease.id}: a seat of {lease.feature} for {lease.customer}{holder} "
        f"until {when(lease.expires_at)}{overage}"
    )
    typer.echo(f"token {lease.token}")
