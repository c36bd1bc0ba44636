"""meter.v1.ReportService: turns protos into questions and answers into protos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from meter.core.aggregations import Aggregation, MeterAggregation
from meter.core.windows import Window
from meter.errors import InvalidRequestError, UnimplementedError
from meter.ports.usage import Scope
from meter.reports import UsageQuery
from meter.transport.calls import faults
from meter.v1 import report_pb2, report_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from meter.reports import Page, Reports, UsageLine
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
MAX_AGGREGATIONS = 100_000


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """`QueryUsage` for the tenant in the metadata. `Audit` is UNIMPLEMENTED: the enforcer answers it."""

    def __init__(self, reports: Reports, caller: Caller) -> None:
        self._reports, self._caller = reports, caller

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


def _question(tenant: str, request: report_pb2.QueryUsageRequest) -> UsageQuery:
    if request.include_descendants:
        raise InvalidRequestError(
            "DESCENDANTS_NOT_EXPANDED", "include_descendants is resolved before this service"
        )
    window = WINDOWS.get(request.window)
    if window is None:
        raise InvalidRequestError("WINDOW_UNKNOWN", f"window {request.window} is unknown")
    scope = Scope(
        tenant,
        request.meter,
        tuple(sorted(set(request.customers))),
        tuple((part.dimension, tuple(sorted(set(part.values)))) for part in request.filters),
        tuple(request.group_by),
    )
    return UsageQuery(
        scope,
        window,
        request.zone,
        _seconds("start", request.start) if request.HasField("start") else None,
        _seconds("end", request.end) if request.HasField("end") else None,
        request.page_size,
        request.page_token,
        _aggregations(request),
    )


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
    fresh = None
    if page.fresh_until_ms is not None:
        fresh = Timestamp()
        fresh.FromMilliseconds(page.fresh_until_ms)
    return report_pb2.QueryUsageResponse(
        rows=[_row(line, group_by) for line in page.lines],
        next_page_token=page.next_page_token,
        total=page.total,
        fresh_until=fresh,
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
    )
