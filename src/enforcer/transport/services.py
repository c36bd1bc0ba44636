"""Every method that the gateway serves: name, messages, who may call it, and what answers. Knows no transport.

One more service is one more function that returns `Method`s, beside `methods` and `correction_methods`, and its sum with
theirs in `app.py`. Health and reflection name it then, metrics count it, and every transport carries it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from enforcer.catalog.parse import parse
from enforcer.catalog.read import Issue, refuse
from enforcer.errors import InvalidRequestError
from enforcer.gateway.audits import Audits
from enforcer.v1 import catalog_pb2, enforcer_pb2
from meter.v1 import ledger_pb2, repair_pb2, report_pb2, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from enforcer.gateway import Gateway
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.definitions import Caller, Definitions, LimitName
    from enforcer.ports.usage import UsageReports

__all__ = ["Method", "by_caller", "by_tenant", "methods"]

LONGEST_DOCUMENT = 1024 * 1024
_ACTIONS = {
    "created": catalog_pb2.Change.ACTION_CREATED,
    "updated": catalog_pb2.Change.ACTION_UPDATED,
    "removed": catalog_pb2.Change.ACTION_REMOVED,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One method, whatever carries it. `answer` gets the `Call` and what was asked; it raises `MetergateError`.

    An answer is a message, or its bytes; of a stream a message, or a list of several's bytes. A unary one gets the
    request, and answers once. A stream gets the requests as they come, and yields responses: with one request or one
    response in practice, where the proto says so, as both look alike on the wire. `as_bytes`: it reads requests itself.
    `role` names who may call; "" = everybody, without an API key.
    """

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    role: str
    answer: Callable[[Any, Any], Any]
    stream: bool = False
    as_bytes: bool = False
    path: str = field(init=False)
    """As it stands in a request."""
    label: str = field(init=False)
    """As it stands in metrics."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", f"{self.service}/{self.name}")
        object.__setattr__(self, "path", f"/{self.label}")


def by_caller(answer: Callable[[Caller, Any], Awaitable[Message | bytes]]) -> Callable[..., Any]:
    """For what needs to know of a call only who calls."""
    return lambda call, request: answer(call.caller, request)


def by_tenant(answer: Callable[[str, Any], Awaitable[Message | bytes]]) -> Callable[..., Any]:
    """For what needs to know of a call only whose it is."""
    return lambda call, request: answer(call.caller.tenant, request)


class _Catalog:
    """`enforcer.v1.CatalogService`."""

    def __init__(
        self, definitions: Definitions, counters: CounterStore, steps: Callable[[str], None]
    ) -> None:
        self._definitions, self._counters, self._steps = definitions, counters, steps

    async def apply(self, caller: Caller, request: catalog_pb2.ApplyRequest) -> Message:
        """Answers when the next check on every enforcer is decided by the change."""
        if len(request.document.encode()) > LONGEST_DOCUMENT:
            raise InvalidRequestError(
                "DOCUMENT_TOO_LARGE",
                "a catalog has at most 1 MiB: declare accounts in several files",
            )
        name = request.file_name or "catalog"
        # In a thread: a large file takes seconds, and checks go on meanwhile.
        catalog = await asyncio.to_thread(parse, request.document, name)
        if catalog.tenant and catalog.tenant != caller.tenant:
            raise refuse(
                [
                    Issue(
                        name,
                        1,
                        "tenant",
                        f"is {catalog.tenant!r}, your API key is of {caller.tenant!r}",
                    )
                ]
            )
        applied = await self._definitions.apply(
            catalog.of_tenant(caller.tenant), actor=caller.key_id, dry_run=request.dry_run
        )
        if not request.dry_run:
            for account_id, bucket, epoch in applied.touched:
                self._steps("project")
                await self._counters.project(bucket, account_id, epoch)
            self._steps("projected")
            await self._definitions.projected(applied.touched)
        return catalog_pb2.ApplyResponse(
            changes=[
                catalog_pb2.Change(action=_ACTIONS[action], kind=kind, key=key)
                for action, kind, key in applied.changes
            ]
        )


class _Reports:
    """`meter.v1.ReportService`, in front of the meter: who asks, whose trees, and the counters for the audit."""

    def __init__(
        self,
        definitions: Definitions,
        usage: UsageReports,
        audits: Audits,
    ) -> None:
        self._definitions, self._usage, self._audits = definitions, usage, audits

    async def query(self, caller: Caller, request: report_pb2.QueryUsageRequest) -> Message:
        """Forwards to the meter, for the caller's tenant alone."""
        await self._descend(caller.tenant, request)
        await self._aggregate(caller.tenant, request)
        return await self._usage.query(caller.tenant, request)

    async def concurrency(
        self, caller: Caller, request: report_pb2.QueryConcurrencyRequest
    ) -> Message:
        """Forwards to the meter, for the caller's tenant alone."""
        await self._descend(caller.tenant, request)
        return await self._usage.concurrency(caller.tenant, request)

    async def denials(self, caller: Caller, request: report_pb2.QueryDenialsRequest) -> Message:
        """Forwards to the meter, for the caller's tenant alone, and names limits and reasons."""
        await self._descend(caller.tenant, request)
        answer = await self._usage.denials(caller.tenant, request)
        ids = {row.limit for row in answer.rows} - {0}
        names: dict[int, LimitName] = {}
        if ids:
            features = {row.feature for row in answer.rows if row.limit}
            names = await self._definitions.limits(caller.tenant, ids, features)
        for row in answer.rows:
            if row.reason in enforcer_pb2.Reason.values():
                row.reason_name = enforcer_pb2.Reason.Name(row.reason)  # type: ignore[arg-type]
            if row.limit in names:
                row.limit_customer, row.limit_key = names[row.limit]
        return answer

    async def set_aside(self, caller: Caller, request: report_pb2.ListSetAsideRequest) -> Message:
        """Forwards to the meter, for the caller's tenant alone."""
        return await self._usage.set_aside(caller.tenant, request)

    async def _descend(
        self,
        tenant: str,
        request: report_pb2.QueryUsageRequest
        | report_pb2.QueryConcurrencyRequest
        | report_pb2.QueryDenialsRequest,
    ) -> None:
        """Put the nodes below in, where the caller wants them: the meter knows no trees."""
        if not request.include_descendants:
            return
        keys = await self._definitions.descendants(tenant, list(request.customers))
        request.include_descendants = False
        unknown = set(request.customers) - set(keys)
        del request.customers[:]
        request.customers.extend(sorted(unknown | set(keys)))

    async def _aggregate(self, tenant: str, request: report_pb2.QueryUsageRequest) -> None:
        """Say how meters add up: as the caller wants, else as the catalog has it."""
        wanted = [part for part in request.aggregations if part.aggregation]
        named = {part.meter for part in wanted}
        known = await self._definitions.aggregations(tenant, request.meter)
        del request.aggregations[:]
        request.aggregations.extend(wanted)
        for meter, (way, dimension) in known.items():
            if meter not in named:
                number = report_pb2.Aggregation.Value(f"AGGREGATION_{way.upper()}")
                request.aggregations.add(meter=meter, aggregation=number, dimension=dimension)

    async def audit(self, _: Caller, __: report_pb2.AuditRequest) -> Message:
        """Every counter with the record it contains last, held against the ledger by the meter."""
        return await self._audits.audit()


class _Repairs:
    """`meter.v1.RepairService`: what an operator decides. The audit log has who and what."""

    def __init__(self, definitions: Definitions, usage: UsageReports, audits: Audits) -> None:
        self._definitions, self._usage, self._audits = definitions, usage, audits

    async def accept_gap(self, caller: Caller, request: repair_pb2.AcceptGapRequest) -> Message:
        """Goes on behind a gap."""
        found = await self._usage.skip_gap(
            ledger_pb2.SkipGapRequest(
                bucket=request.bucket,
                generation=request.generation,
                first=request.first,
                last=request.last,
                actor=caller.key_id,
            )
        )
        await self._definitions.note(
            caller.tenant,
            caller.key_id,
            "accepted",
            "gap",
            f"{request.bucket}/{request.generation}/{request.first}-{request.last}",
        )
        return repair_pb2.AcceptGapResponse(found=found.found)

    async def reconcile(self, caller: Caller, request: repair_pb2.ReconcileRequest) -> Message:
        """Brings counters to their records."""
        if request.dry_run:
            return repair_pb2.ReconcileResponse(drift=(await self._audits.audit()).drift)
        return await self._audits.reconcile(caller)


def methods(
    gateway: Gateway,
    definitions: Definitions,
    counters: CounterStore,
    usage: UsageReports,
    buckets: int,
    steps: Callable[[str], None] = lambda _: None,
) -> list[Method]:
    """All of them. `steps` is called with the name of each step of a change before it begins."""
    catalog = _Catalog(definitions, counters, steps)
    audits = Audits(counters, usage, definitions, buckets)
    reports = _Reports(definitions, usage, audits)
    repairs = _Repairs(definitions, usage, audits)

    enforcer, found = enforcer_pb2, []
    service = "enforcer.v1.EnforcerService"
    for name, request, response, answer in (
        ("Check", enforcer.CheckRequest, enforcer.CheckResponse, gateway.check),
        (
            "CheckBatch",
            enforcer.CheckBatchRequest,
            enforcer.CheckBatchResponse,
            gateway.check_batch,
        ),
        (
            "Reserve",
            enforcer.ReserveRequest,
            enforcer.ReserveResponse,
            gateway.reservations.reserve,
        ),
        ("Commit", enforcer.CommitRequest, enforcer.CommitResponse, gateway.reservations.commit),
        (
            "Release",
            enforcer.ReleaseRequest,
            enforcer.ReleaseResponse,
            gateway.reservations.release,
        ),
        (
            "TakeAllowance",
            enforcer.TakeAllowanceRequest,
            enforcer.TakeAllowanceResponse,
            gateway.allowances.take,
        ),
        (
            "ReturnAllowance",
            enforcer.ReturnAllowanceRequest,
            enforcer.ReturnAllowanceResponse,
            gateway.allowances.give_back,
        ),
        (
            "AcquireLease",
            enforcer.AcquireLeaseRequest,
            enforcer.AcquireLeaseResponse,
            gateway.leases.acquire,
        ),
        (
            "RenewLease",
            enforcer.RenewLeaseRequest,
            enforcer.RenewLeaseResponse,
            gateway.leases.renew,
        ),
        (
            "ReleaseLease",
            enforcer.ReleaseLeaseRequest,
            enforcer.ReleaseLeaseResponse,
            gateway.leases.release,
        ),
        (
            "ListLeases",
            enforcer.ListLeasesRequest,
            enforcer.ListLeasesResponse,
            gateway.leases.list_live,
        ),
        (
            "GetBalance",
            enforcer.GetBalanceRequest,
            enforcer.GetBalanceResponse,
            gateway.get_balance,
        ),
    ):
        found.append(
            Method(
                service,
                name,
                request,
                response,
                "check",
                by_tenant(answer),
                as_bytes=name in {"Check", "CheckBatch"},
            )
        )
    found += [
        Method(
            "enforcer.v1.CatalogService",
            "Apply",
            catalog_pb2.ApplyRequest,
            catalog_pb2.ApplyResponse,
            "admin",
            by_caller(catalog.apply),
        ),
        Method(
            "meter.v1.UsageService",
            "Report",
            usage_pb2.ReportRequest,
            usage_pb2.ReportResponse,
            "check",
            by_tenant(gateway.report),
        ),
        Method(
            "meter.v1.ReportService",
            "QueryUsage",
            report_pb2.QueryUsageRequest,
            report_pb2.QueryUsageResponse,
            "check",
            by_caller(reports.query),
        ),
        Method(
            "meter.v1.ReportService",
            "QueryConcurrency",
            report_pb2.QueryConcurrencyRequest,
            report_pb2.QueryConcurrencyResponse,
            "check",
            by_caller(reports.concurrency),
        ),
        Method(
            "meter.v1.ReportService",
            "QueryDenials",
            report_pb2.QueryDenialsRequest,
            report_pb2.QueryDenialsResponse,
            "check",
            by_caller(reports.denials),
        ),
        Method(
            "meter.v1.ReportService",
            "ListSetAside",
            report_pb2.ListSetAsideRequest,
            report_pb2.ListSetAsideResponse,
            "check",
            by_caller(reports.set_aside),
        ),
        Method(
            "meter.v1.ReportService",
            "Audit",
            report_pb2.AuditRequest,
            report_pb2.AuditResponse,
            "admin",
            by_caller(reports.audit),
        ),
        Method(
            "meter.v1.RepairService",
            "AcceptGap",
            repair_pb2.AcceptGapRequest,
            repair_pb2.AcceptGapResponse,
            "admin",
            by_caller(repairs.accept_gap),
        ),
        Method(
            "meter.v1.RepairService",
            "Reconcile",
            repair_pb2.ReconcileRequest,
            repair_pb2.ReconcileResponse,
            "admin",
            by_caller(repairs.reconcile),
        ),
    ]
    return found
