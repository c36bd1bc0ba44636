"""The commands `seats` and `denials`: how many seats were held, and what was refused by which limit."""

from __future__ import annotations

import time
from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
    TimeoutOption,
)
from enforcer.cli.output import as_json, number, print_json, print_table, short_name, when
from enforcer.cli.usage import PAGE, WINDOWS, WindowName, fresh, moment
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["GroupName", "denials", "seats"]


class GroupName(StrEnum):
    """Whose seats are counted together."""

    CUSTOMER = "customer"
    ACCOUNT = "account"
    ALL = "all"


_GROUPS: Final = {
    GroupName.CUSTOMER: report_pb2.SEAT_GROUP_UNSPECIFIED,
    GroupName.ACCOUNT: report_pb2.SEAT_GROUP_ACCOUNT,
    GroupName.ALL: report_pb2.SEAT_GROUP_ALL,
}

FeatureOption = Annotated[
    str, typer.Option("--feature", metavar="FEATURE", help="Default: all features.")
]
CustomerOption = Annotated[
    list[str] | None,
    typer.Option("--customer", "-c", metavar="CUSTOMER", help="May be repeated. Default: all."),
]
DescendantsOption = Annotated[
    bool, typer.Option("--descendants", help="Also the nodes below each customer.")
]
FromOption = Annotated[
    str,
    typer.Option(
        "--from", metavar="TIME", help="ISO 8601, on a quarter hour. Default: the first record."
    ),
]
ToOption = Annotated[str, typer.Option("--to", metavar="TIME", help="Not included. Default: now.")]
WindowOption = Annotated[WindowName, typer.Option("--window", "-w", help="Over what is told.")]
ZoneOption = Annotated[
    str, typer.Option("--zone", metavar="ZONE", help="IANA name: where days begin. Default: UTC.")
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="Wait so long until all that was decided before this command is counted in.",
    ),
]


def seats(  # noqa: PLR0913 - each is an option of the command
    *,
    feature: FeatureOption = "",
    customer: CustomerOption = None,
    descendants: DescendantsOption = False,
    from_: FromOption = "",
    to: ToOption = "",
    window: WindowOption = WindowName.TOTAL,
    zone: ZoneOption = "",
    by: Annotated[GroupName, typer.Option("--by", help="Whose seats are counted together.")] = (
        GroupName.CUSTOMER
    ),
    wait: WaitOption = 10,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """How many seats were held at once: peak, 95th percentile of the time, and seat-seconds."""
    request = report_pb2.QueryConcurrencyRequest(
        feature=feature,
        customers=customer or (),
        include_descendants=descendants,
        start=moment(from_, zone, "--from"),
        end=moment(to, zone, "--to"),
        window=WINDOWS[window],
        zone=zone,
        group_by=_GROUPS[by],
        page_size=PAGE,
    )
    found = _all_pages("QueryConcurrency", request, wait, data_dir, timeout)
    if json:
        _print_json(found)
        return
    print_table(
        ["start", "end", "feature", "account", "customer", "peak", "p95", "seat_seconds"],
        [
            [
                *(when(row.start), when(row.end), row.feature, row.account or "-"),
                *(row.customer or "-", number(row.peak), number(row.p95)),
                f"{row.seat_milliseconds / 1000:,.3f}",
            ]
            for row in found.rows
        ],
        "peak p95 seat_seconds",
    )


def denials(  # noqa: PLR0913 - each is an option of the command
    *,
    feature: FeatureOption = "",
    customer: CustomerOption = None,
    descendants: DescendantsOption = False,
    from_: FromOption = "",
    to: ToOption = "",
    window: WindowOption = WindowName.TOTAL,
    zone: ZoneOption = "",
    wait: WaitOption = 10,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """What was refused, why, and by which limit. In each window the most refused comes first."""
    request = report_pb2.QueryDenialsRequest(
        feature=feature,
        customers=customer or (),
        include_descendants=descendants,
        start=moment(from_, zone, "--from"),
        end=moment(to, zone, "--to"),
        window=WINDOWS[window],
        zone=zone,
        page_size=PAGE,
    )
    found = _all_pages("QueryDenials", request, wait, data_dir, timeout)
    if json:
        _print_json(found)
        return
    print_table(
        ["start", "end", "customer", "feature", "reason", "limit", "of", "denied", "quantity"],
        [
            [
                *(when(row.start), when(row.end), row.customer, row.feature),
                short_name(row.reason_name, "REASON_") or str(row.reason),
                row.limit_key or (f"#{row.limit}" if row.limit else "-"),
                *(row.limit_customer or "-", number(row.events), number(row.quantity)),
            ]
            for row in _most_first(found.rows)
        ],
        "denied quantity",
    )


def _most_first(rows: Sequence[report_pb2.DenialRow]) -> list[report_pb2.DenialRow]:
    windows: dict[int, list[report_pb2.DenialRow]] = defaultdict(list)
    for row in rows:
        windows[row.start.ToSeconds()].append(row)
    return [
        row
        for start in sorted(windows)
        for row in sorted(windows[start], key=lambda row: -row.events)
    ]


def _all_pages(
    method: str, request: Any, wait: float, data_dir: Path | None, timeout: float
) -> Any:
    """The answer of all pages as one."""
    asked_at = time.time()
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        call = getattr(ReportServiceStub(channel), method)

        def query() -> Any:
            return call(request, timeout=timeout, metadata=gateway.metadata)

        whole = page = fresh(query, asked_at, wait)
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = query()
            whole.rows.extend(page.rows)
    return whole


def _print_json(found: Any) -> None:
    report: dict[str, Any] = {"rows": [as_json(row) for row in found.rows]}
    if found.HasField("fresh_until"):
        report["fresh_until"] = found.fresh_until.ToJsonString()
    print_json(report)
