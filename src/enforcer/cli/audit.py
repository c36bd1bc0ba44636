"""The command `audit`: do counters, records and rollups agree?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import grpc
import typer

from enforcer.cli.connection import calling, find_gateway, reason_of
from enforcer.cli.exits import Status
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
    TimeoutOption,
)
from enforcer.cli.output import as_json, number, print_json
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.cli.connection import Gateway

__all__ = ["audit", "drifting", "findings"]

REBUILDING: Final = "COUNTERS_REBUILDING"
PAUSE_SECONDS: Final = 0.25


def audit(
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 120,
) -> None:
    """Hold the counters against the records and rollups. Exit status 1 on any finding.

    Findings are gaps in a sequence, counters that differ from their records, and rollups that
    differ from the raw records. Records that arrived twice are told: they were counted once.
    """
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        response = _audited(ReportServiceStub(channel), gateway, timeout)
    found = list(findings(response))
    if json:
        print_json(as_json(response))
    else:
        typer.echo(
            f"{number(response.records)} records, {number(response.counters)} counters compared: "
            f"{len(response.gaps)} gaps, {number(response.repeats)} repeats, "
            f"{len(response.drift)} drift, rollup difference {number(response.rollup_difference)}"
        )
        for finding in found:
            typer.echo(f"finding: {finding}")
        if response.repeats:
            typer.echo(f"{number(response.repeats)} records arrived again and were counted once")
        for gap in response.accepted_gaps:
            typer.echo(f"accepted before: {_gap(gap)}")
    raise typer.Exit(Status.REFUSED if found else Status.OK)


def _audited(stub: ReportServiceStub, gateway: Gateway, timeout: float) -> report_pb2.AuditResponse:
    """Waits for counters that are just being made good: an audit often follows a loss."""
    give_up = time.monotonic() + timeout
    while True:
        try:
            return stub.Audit(
                report_pb2.AuditRequest(),
                timeout=give_up - time.monotonic(),
                metadata=gateway.metadata,
            )
        except grpc.RpcError as error:
            if reason_of(error) != REBUILDING or time.monotonic() + PAUSE_SECONDS > give_up:
                raise
        time.sleep(PAUSE_SECONDS)


def drifting(drift: report_pb2.Drift) -> str:
    """A counter that differs, with both sides."""
    return (
        f"bucket {drift.bucket}, limit {drift.limit}, "
        f"period {drift.period_start}: used {number(drift.counter_used)} in the counter and "
        f"{number(drift.ledger_used)} in the ledger, held {number(drift.counter_held)} and "
        f"{number(drift.ledger_held)}"
    )


def findings(response: report_pb2.AuditResponse) -> Iterator[str]:
    """Every finding in words. Repeats are none: a relay that was not answered sends again."""
    for gap in response.gaps:
        yield f"gap in {_gap(gap)}"
    for drift in response.drift:
        yield f"drift in {drifting(drift)}"
    if response.rollup_difference:
        yield f"rollups differ from the raw records by {number(response.rollup_difference)}"


def _gap(gap: report_pb2.SequenceGap) -> str:
    return (
        f"bucket {gap.bucket}, generation {gap.generation}: "
        f"records {gap.first} to {gap.last - 1} are missing"
    )
