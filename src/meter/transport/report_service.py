"""meter.v1.ReportService: turns protos into questions and answers into protos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.windows import Window
from meter.errors import InvalidRequestError, UnimplementedError
from meter.ports.series import SeatGroup
from meter.ports.usage import Scope
from meter.reports import UsageQuery
from meter.series import DenialQuery, SeatQuery
from meter.transport.calls import faults
from meter.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from meter.ports.series import DenialRow, SeatRow
    from meter.reports import Page, Reports, UsageLine
    from meter.series import Line, Series
    from meter.transport.calls import Caller

__all__ = ["ReportService"]

WINDOWS = {
    report_pb2.WINDOW_UNSPECIFIED: Window.WHOLE,
    report_pb2.WINDOW_QUARTER_HOUR: Window.QUARTER_HOUR,
    report_pb2.WINDOW_HOUR: Window.HOUR,
    report_pb2.WINDOW_DAY: Window.DAY,
    report_pb2.WINDOW_MONTH: Window.MONTH,
}

AGGREGATIONS = {
    report_pb2.AGGREGATION_SUM: Aggregation.SUM,
    report_pb2.AGGREGATION_COUNT: Aggregation.COUNT,
    report_pb2.AGGREGATION_MIN: Aggregation.MIN,
    report_pb2.AGGREGATION_MAX: Aggregation.MAX,
    report_pb2.AGGREGATION_LATEST: Aggregation.LATEST,
    report_pb2.AGGREGATION_UNIQUE: Aggregation.UNIQUE,
}
_WAYS = {way: number for number, way in AGGREGATIONS.items()}
GROUPS = {
    report_pb2.SEAT_GROUP_UNSPECIFIED: SeatGroup.CUSTOMER,
    report_pb2.SEAT_GROUP_ACCOUNT: SeatGroup.ACCOUNT,
    report_pb2.SEAT_GROUP_ALL: SeatGroup.ALL,
}
MAX_AGGREGATIONS = 100_000


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """Reports for the tenant in the metadata. `Audit` is UNIMPLEMENTED: the enforcer answers it."""

    def __init__(self, reports: Reports, series: Series, caller: Caller) -> None:
        self._reports, self._series, self._caller = reports, series, caller

    async def QueryUsage(  # noqa: N802
        self,
        request: report_pb2.QueryUsageRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.QueryUsageResponse:
        """See the proto. `customers` come with their descendants: the enforcer knows the trees."""
        async with faults(context):
            tenant = self._caller.tenant(context)
            question = _question(tenant, request)
            return _answer(await self._reports.query(question), question.scope.group_by)
        raise AssertionError  # the call was aborted

    async def QueryConcurrency(  # noqa: N802
        self,
        request: report_pb2.QueryConcurrencyRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.QueryConcurrencyResponse:
        """See the proto."""
        async with faults(context):
            tenant = self._caller.tenant(context)
            group = GROUPS.get(request.group_by)
            if group is None:
                raise InvalidRequestError(
                    "SEAT_GROUP_UNKNOWN", f"group_by {request.group_by} is unknown"
                )
            page = await self._series.seats(SeatQuery(*_common(tenant, request), group=group))
            return report_pb2.QueryConcurrencyResponse(
                rows=[_seats(line) for line in page.lines],
                next_page_token=page.next_page_token,
                fresh_until=_fresh(page.fresh_until_ms),
            )
        raise AssertionError  # the call was aborted

    async def QueryDenials(  # noqa: N802
        self,
        request: report_pb2.QueryDenialsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.QueryDenialsResponse:
        """See the proto. The enforcer adds the names of limits and reasons: it has the catalog."""
        async with faults(context):
            tenant = self._caller.tenant(context)
            page = await self._series.denials(DenialQuery(*_common(tenant, request)))
            return report_pb2.QueryDenialsResponse(
                rows=[_denials(line) for line in page.lines],
                next_page_token=page.next_page_token,
                fresh_until=_fresh(page.fresh_until_ms),
            )
        raise AssertionError  # the call was aborted

    async def ListSetAside(  # noqa: N802
        self,
        request: report_pb2.ListSetAsideRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.ListSetAsideResponse:
        """See the proto."""
        async with faults(context):
            tenant = self._caller.tenant(context)
            found, following = await self._reports.set_aside(
                tenant, request.page_size, request.page_token
            )
            return report_pb2.ListSetAsideResponse(
                records=[
                    report_pb2.SetAside(**{**one._asdict(), "seen": Timestamp(seconds=one.seen)})
                    for one in found
                ],
                next_page_token=following,
            )
        raise AssertionError  # the call was aborted

    async def Audit(  # noqa: N802
        self,
        request: report_pb2.AuditRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> report_pb2.AuditResponse:
        """The enforcer answers it: it has the counters, and asks LedgerService."""
        async with faults(context):
            self._caller.tenant(context)
            raise UnimplementedError("Audit is answered by the enforcer")
        raise AssertionError  # the call was aborted


def _common(
    tenant: str, request: report_pb2.QueryConcurrencyRequest | report_pb2.QueryDenialsRequest
) -> tuple[Scope, Window, str, int | None, int | None, int, str]:
    """The fields of a `Question`, in its order."""
    scope = Scope(tenant, request.feature, tuple(sorted(set(request.customers))))
    return (scope, *_range(request))


def _range(
    request: report_pb2.QueryUsageRequest
    | report_pb2.QueryConcurrencyRequest
    | report_pb2.QueryDenialsRequest,
) -> tuple[Window, str, int | None, int | None, int, str]:
    if request.include_descendants:
        raise InvalidRequestError(
            "DESCENDANTS_NOT_EXPANDED", "include_descendants is resolved before this service"
        )
    window = WINDOWS.get(request.window)
    if window is None:
        raise InvalidRequestError("WINDOW_UNKNOWN", f"window {request.window} is unknown")
    return (
        window,
        request.zone,
        _seconds("start", request.start) if request.HasField("start") else None,
        _seconds("end", request.end) if request.HasField("end") else None,
        request.page_size,
        request.page_token,
    )


def _question(tenant: str, request: report_pb2.QueryUsageRequest) -> UsageQuery:
    scope = Scope(
        tenant,
        request.meter,
        tuple(sorted(set(request.customers))),
        tuple((part.dimension, tuple(sorted(set(part.values)))) for part in request.filters),
        tuple(request.group_by),
    )
    return UsageQuery(scope, *_range(request), _aggregations(request))


def _aggregations(request: report_pb2.QueryUsageRequest) -> tuple[MeterAggregation, ...]:
    if len(request.aggregations) > MAX_AGGREGATIONS:
        raise InvalidRequestError(
            "TOO_MANY_AGGREGATIONS", f"aggregations: at most {MAX_AGGREGATIONS}"
        )
    ways = []
    for part in request.aggregations:
        way = AGGREGATIONS.get(part.aggregation)
        if way is None:
            raise InvalidRequestError(
                "AGGREGATION_INVALID",
                f"aggregations: {part.aggregation} is none of sum, count, min, max, latest, unique",
                meter=part.meter,
            )
        ways.append(MeterAggregation(part.meter, way, part.dimension))
    return tuple(sorted(ways))


def _seconds(name: str, value: Timestamp) -> int:
    if value.nanos:
        raise InvalidRequestError(
            "TIME_OFF_QUARTER_HOUR", f"{name} must be on a quarter hour", field=name
        )
    return value.seconds


def _answer(page: Page, group_by: tuple[str, ...]) -> report_pb2.QueryUsageResponse:
    return report_pb2.QueryUsageResponse(
        rows=[_row(line, group_by) for line in page.lines],
        next_page_token=page.next_page_token,
        total=page.total,
        fresh_until=_fresh(page.fresh_until_ms),
    )


def _fresh(ms: int | None) -> Timestamp | None:
    return None if ms is None else _stamp(ms)


def _stamp(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


def _seats(line: Line[SeatRow]) -> report_pb2.ConcurrencyRow:
    key = line.row.key
    return report_pb2.ConcurrencyRow(
        feature=key.meter,
        account=key.account,
        customer=key.customer,
        start=_stamp(line.start_ms),
        end=_stamp(line.end_ms),
        peak=line.row.peak,
        p95=line.row.p95,
        seat_milliseconds=line.row.seat_ms,
    )


def _denials(line: Line[DenialRow]) -> report_pb2.DenialRow:
    key = line.row.key
    return report_pb2.DenialRow(
        feature=key.meter,
        customer=key.customer,
        start=_stamp(line.start_ms),
        end=_stamp(line.end_ms),
        reason=key.reason,
        limit=key.limit,
        events=line.row.events,
        quantity=line.row.quantity,
    )


def _row(line: UsageLine, group_by: tuple[str, ...]) -> report_pb2.UsageRow:
    """A dimension that the usage did not have is there with an empty value."""
    row = line.row
    return report_pb2.UsageRow(
        meter=row.key.meter,
        customer=row.key.customer,
        start=Timestamp(seconds=line.start),
        end=Timestamp(seconds=line.end),
        quantity=row.quantity,
        events=row.events,
        overage=row.overage,
        denied_quantity=row.denied_quantity,
        denied_events=row.denied_events,
        dimensions=dict(zip(group_by, row.key.values, strict=True)),
        value=line.value,
        aggregation=_WAYS[line.aggregation],
        adjustment_quantity=row.adjustment,
        unaccounted_quantity=row.unaccounted,
    )
