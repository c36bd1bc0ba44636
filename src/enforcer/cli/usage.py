"""The command `usage`: what was used, summed over windows."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.exits import CommandError
from enforcer.cli.options import DataDirOption, JsonOption, TimeoutOption, dimensions
from enforcer.cli.output import as_json, number, print_json, print_table, when
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PAGE", "WINDOWS", "WindowName", "fresh", "moment", "usage"]

P = TypeVar(
    "P",
    report_pb2.QueryUsageResponse,
    report_pb2.QueryConcurrencyResponse,
    report_pb2.QueryDenialsResponse,
)

WAYS: Final = {
    name.removeprefix("AGGREGATION_").lower(): number
    for name, number in report_pb2.Aggregation.items()
    if number
}
_NAMES: Final = {number: name for name, number in WAYS.items()}
PAGE: Final = 10_000
POLL_SECONDS: Final = 0.2


class WindowName(StrEnum):
    """Over what usage is summed."""

    TOTAL = "total"
    QUARTER_HOUR = "quarter_hour"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


WINDOWS: Final = {
    WindowName.TOTAL: report_pb2.WINDOW_UNSPECIFIED,
    WindowName.QUARTER_HOUR: report_pb2.WINDOW_QUARTER_HOUR,
    WindowName.HOUR: report_pb2.WINDOW_HOUR,
    WindowName.DAY: report_pb2.WINDOW_DAY,
    WindowName.MONTH: report_pb2.WINDOW_MONTH,
}


def usage(  # noqa: PLR0913 - each is an option of the command
    *,
    meter: Annotated[
        str, typer.Option("--meter", "-m", metavar="METER", help="Default: all meters.")
    ] = "",
    customer: Annotated[
        list[str] | None,
        typer.Option("--customer", "-c", metavar="CUSTOMER", help="May be repeated. Default: all."),
    ] = None,
    descendants: Annotated[
        bool, typer.Option("--descendants", help="Also the nodes below each customer.")
    ] = False,
    from_: Annotated[
        str,
        typer.Option(
            "--from", metavar="TIME", help="ISO 8601, on a quarter hour. Default: the first record."
        ),
    ] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="TIME", help="Not included. Default: now.")
    ] = "",
    window: Annotated[
        WindowName, typer.Option("--window", "-w", help="Over what is summed.")
    ] = WindowName.TOTAL,
    zone: Annotated[
        str,
        typer.Option("--zone", metavar="ZONE", help="IANA name: where days begin. Default: UTC."),
    ] = "",
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", "-g", metavar="DIMENSION", help="May be repeated, up to 4."),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            metavar="DIMENSION=VALUE",
            help="Only usage with this value; the same dimension again adds a value.",
        ),
    ] = None,
    aggregate: Annotated[
        str,
        typer.Option(
            "--aggregate",
            metavar="WAY",
            help="sum, count, min, max, latest or unique:DIMENSION instead of the catalog's; needs --meter.",
        ),
    ] = "",
    wait: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            help="Wait so long until all that was decided before this command is counted in.",
        ),
    ] = 10,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """What was used. All rows are fetched, also beyond the first page."""
    asked_at = time.time()
    request = report_pb2.QueryUsageRequest(
        meter=meter,
        customers=customer or (),
        include_descendants=descendants,
        start=moment(from_, zone, "--from"),
        end=moment(to, zone, "--to"),
        window=WINDOWS[window],
        zone=zone,
        group_by=group_by or (),
        filters=_filters(filter_ or []),
        page_size=PAGE,
        aggregations=_aggregations(meter, aggregate),
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        stub = ReportServiceStub(channel)

        def query() -> report_pb2.QueryUsageResponse:
            return stub.QueryUsage(request, timeout=timeout, metadata=gateway.metadata)

        page = fresh(query, asked_at, wait)
        rows = list(page.rows)
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = query()
            rows += page.rows
    if json:
        listed = [as_json(row) for row in rows]
        report: dict[str, Any] = {"rows": listed, "total": page.total}
        if page.HasField("fresh_until"):
            report["fresh_until"] = page.fresh_until.ToJsonString()
        print_json(report)
    else:
        _print(rows, page.total)


def fresh(query: Callable[[], P], asked_at: float, wait: float) -> P:
    """The first page, asked for again until it counts in all that was decided before `asked_at`.

    Rollups run a moment behind the decisions; who has just consumed wants to see it.
    """
    give_up = time.monotonic() + wait
    while True:
        page = query()
        if not page.HasField("fresh_until"):
            return page
        if page.fresh_until.ToNanoseconds() / 1e9 >= asked_at:
            return page
        if time.monotonic() >= give_up:
            typer.echo(
                f"metergate: counted in is what was decided before {when(page.fresh_until)}",
                err=True,
            )
            return page
        time.sleep(min(POLL_SECONDS, max(give_up - time.monotonic(), 0)))


def moment(text: str, zone: str, option: str) -> Timestamp | None:
    """An ISO 8601 date or time, in `zone` unless it names an offset; None for the empty text."""
    try:
        place = ZoneInfo(zone) if zone else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise CommandError(
            f"--zone {zone!r} is unknown; an IANA name is expected, such as Europe/Berlin"
        ) from error
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{option} {text!r}: a date or time as in ISO 8601 is expected, "
            "such as 2026-11-01 or 2026-11-01T06:15Z"
        ) from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=place)
    stamp = Timestamp()
    stamp.FromDatetime(found.astimezone(UTC))
    return stamp


def _aggregations(meter: str, text: str) -> list[report_pb2.MeterAggregation]:
    """The way that is wanted instead of the catalog's."""
    if not text:
        return []
    if not meter:
        raise CommandError("--aggregate needs --meter: it is about one meter")
    way, _, dimension = text.partition(":")
    if way not in WAYS or (way == "unique") != bool(dimension):
        raise CommandError(
            f"--aggregate {text!r}: one of sum, count, min, max, latest or unique:DIMENSION is expected"
        )
    return [report_pb2.MeterAggregation(meter=meter, aggregation=WAYS[way], dimension=dimension)]


def _filters(pairs: list[str]) -> list[report_pb2.Filter]:
    """One filter per dimension, with every value named for it."""
    values: dict[str, list[str]] = {}
    for pair in pairs:
        for name, value in dimensions([pair], "--filter").items():
            values.setdefault(name, []).append(value)
    return [report_pb2.Filter(dimension=name, values=found) for name, found in values.items()]


def _print(rows: list[report_pb2.UsageRow], total: int) -> None:
    if rows:
        names = sorted({name for row in rows for name in row.dimensions})
        lost = ["unaccounted"] if any(row.unaccounted_quantity for row in rows) else []
        print_table(
            [
                *("start", "end", "customer", "meter", *names),
                *("value", "of", "quantity", "events", "overage", "denied", "denied_events"),
                *lost,
            ],
            [
                [
                    *(when(row.start), when(row.end), row.customer, row.meter),
                    *(row.dimensions.get(name, "") for name in names),
                    number(row.value) if row.HasField("value") else "-",
                    _NAMES.get(row.aggregation, "?"),
                    *(
                        number(value)
                        for value in (
                            row.quantity,
                            row.events,
                            row.overage,
                            row.denied_quantity,
                            row.denied_events,
                        )
                    ),
                    *(number(row.unaccounted_quantity) for _ in lost),
                ]
                for row in rows
            ],
            "value quantity events overage denied denied_events unaccounted",
        )
    typer.echo(f"total {number(total)}")
