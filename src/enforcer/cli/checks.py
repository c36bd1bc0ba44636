"""Commands that decide: `check`, `balance`, `reserve`, `commit`, `release`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.exits import Status
from enforcer.cli.options import (
    CustomerArgument,
    DataDirOption,
    DimensionOption,
    FeatureArgument,
    JsonOption,
    KeyOption,
    ModeName,
    ModeOption,
    QuantityOption,
    TimeoutOption,
    TtlOption,
    VersionOption,
    dimensions,
    duration,
    mode,
)
from enforcer.cli.output import (
    as_json,
    number,
    print_json,
    print_table,
    seconds,
    short_name,
    when,
)
from enforcer.core.model import MAX_QUANTITY
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["balance", "check", "commit", "describe", "print_limits", "release", "reserve"]


def check(  # noqa: PLR0913 - each is an option of the command
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    quantity: QuantityOption = None,
    mode_name: ModeOption = ModeName.ENFORCE,
    key: KeyOption = "",
    dimension: DimensionOption = None,
    product_version: VersionOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Decide and consume in one step. Exit status 0: allowed, 1: denied."""
    request = pb.CheckRequest(
        customer=customer,
        feature=feature,
        quantity=quantity,
        idempotency_key=key,
        dimensions=dimensions(dimension),
        mode=mode(mode_name),
        product_version=product_version,
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).Check(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
    else:
        typer.echo(describe(response))
        print_limits(response.limits)
    raise typer.Exit(Status.OK if response.allowed else Status.REFUSED)


def balance(
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    product_version: VersionOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Every limit of a customer and feature as it stands. Consumes and records nothing."""
    request = pb.GetBalanceRequest(
        customer=customer, feature=feature, product_version=product_version
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).GetBalance(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
        return
    verdict = "a check of 1 would be allowed"
    if not response.allowed:
        verdict = f"a check of 1 would be denied: {_reason(response.reason)}"
    typer.echo(verdict + (", in the grace time" if response.grace else ""))
    if response.config_value:
        typer.echo(f"value: {response.config_value}")
    print_limits(response.limits, drawn=False)


def reserve(  # noqa: PLR0913 - each is an option of the command
    customer: CustomerArgument,
    feature: FeatureArgument,
    *,
    quantity: QuantityOption = None,
    mode_name: ModeOption = ModeName.ENFORCE,
    key: KeyOption = "",
    dimension: DimensionOption = None,
    product_version: VersionOption = "",
    ttl: TtlOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Hold an amount until it is committed or released. Exit status 0: held, 1: denied."""
    request = pb.ReserveRequest(
        customer=customer,
        feature=feature,
        quantity=quantity,
        idempotency_key=key,
        dimensions=dimensions(dimension),
        mode=mode(mode_name),
        product_version=product_version,
        ttl=duration(ttl),
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).Reserve(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
    elif response.check.allowed:
        typer.echo(f"holds {number(response.check.granted)} until {when(response.expires_at)}")
        typer.echo(f"reservation {response.reservation}")
    else:
        typer.echo(describe(response.check))
        print_limits(response.check.limits)
    raise typer.Exit(Status.OK if response.check.allowed else Status.REFUSED)


ReservationArgument = Annotated[
    str, typer.Argument(metavar="RESERVATION", help="As printed by `metergate reserve`.")
]


def commit(
    reservation: ReservationArgument,
    *,
    quantity: Annotated[
        int | None,
        typer.Option(
            "--quantity",
            "-n",
            min=0,
            max=MAX_QUANTITY,
            metavar="NUMBER",
            help="What was really used. Default: all that is held.",
        ),
    ] = None,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Turn a reservation into usage; the rest goes back."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).Commit(
            pb.CommitRequest(reservation=reservation, quantity=quantity),
            timeout=timeout,
            metadata=gateway.metadata,
        )
    if json:
        print_json(as_json(response))
        return
    again = " (answered from an earlier call)" if response.replayed else ""
    typer.echo(f"used {number(response.committed)}, gave back {number(response.released)}{again}")


def release(
    reservation: ReservationArgument,
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Give a reservation back whole."""
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = EnforcerServiceStub(channel).Release(
            pb.ReleaseRequest(reservation=reservation), timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(response))
        return
    again = " (answered from an earlier call)" if response.replayed else ""
    typer.echo(f"gave back {number(response.released)}{again}")


def describe(response: pb.CheckResponse) -> str:
    """The verdict in one line."""
    if response.allowed:
        parts = [f"allowed: {number(response.granted)}"]
        if response.overage:
            parts.append(f"{number(response.overage)} of it past what is included")
        if response.tier:
            parts.append(f"tier {response.tier}")
        if response.config_value:
            parts.append(f"value {response.config_value}")
    else:
        parts = [f"denied: {_reason(response.reason)}"]
        if response.HasField("retry_after"):
            parts.append(f"try again in {seconds(response.retry_after)}")
    flags = {
        "in the grace time": response.grace,
        "a limit in shadow mode would have denied": response.shadow,
        "notification asked for": response.notify,
        "decided without counters": response.degraded,
        "answered from an earlier call": response.replayed,
    }
    return ", ".join(parts + [text for text, raised in flags.items() if raised])


def print_limits(limits: Sequence[pb.Limit], *, drawn: bool = True) -> None:
    """A table of limits, if there are any."""
    if not limits:
        return
    columns = ["limit", "kind", "customer", "of", "used", "held", "remaining"]
    columns += ["drawn"] if drawn else []
    rows = []
    for limit in limits:
        row = [
            limit.id,
            short_name(pb.LimitKind.Name(limit.kind), "LIMIT_KIND_"),
            limit.customer,
            "unlimited" if limit.unlimited else number(limit.limit),
            number(limit.used),
            number(limit.held),
            "" if limit.unlimited else number(limit.remaining),
        ]
        row += [number(limit.drawn)] if drawn else []
        row.append(when(limit.resets_at) if limit.HasField("resets_at") else "")
        notes = ["denied"] if limit.denied else []
        notes += ["shadow"] if limit.shadow else []
        rows.append([*row, " ".join(notes)])
    print_table([*columns, "resets", "note"], rows, "of used held remaining drawn")


def _reason(reason: pb.Reason.ValueType) -> str:
    return short_name(pb.Reason.Name(reason), "REASON_")
