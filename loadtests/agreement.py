"""The final check: what clients were told, what the counters say, and what reports say are the same.

`compare` is pure; `ask` gets the three sides from a gateway.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from enforcer.cli.audit import findings
from enforcer.cli.connection import calling
from enforcer.cli.usage import PAGE, fresh
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from enforcer.cli.connection import Gateway
    from loadtests.outcome import Outcome

__all__ = ["Agreement", "Counted", "Reported", "ask", "compare"]

FRESH_SECONDS: Final = 120.0
CALL_SECONDS: Final = 60.0
CUSTOMERS_AT_ONCE: Final = 200
MOST_FINDINGS: Final = 50
SUPPLIES: Final = frozenset(
    {
        pb.LIMIT_KIND_QUOTA,
        pb.LIMIT_KIND_OVERAGE,
        pb.LIMIT_KIND_CREDITS,
        pb.LIMIT_KIND_PAYG,
    }
)


class Counted(msgspec.Struct, frozen=True):
    """The counters of a customer and feature, by `GetBalance`."""

    customer: str
    feature: str
    used: int
    held: int
    most: int | None
    """What a hard limit allows; nothing where there is none."""


class Reported(msgspec.Struct, frozen=True):
    """The usage report of a customer and feature."""

    customer: str
    feature: str
    quantity: int = 0
    events: int = 0
    denied: int = 0
    denied_events: int = 0


class Agreement(msgspec.Struct):
    """Sums of the three sides, and whatever differs. All is well when `findings` is empty."""

    customers: int
    told: int
    counted: int
    reported: int
    denied_told: int
    denied_reported: int
    overuse: int
    """Units past a hard limit."""
    records: int
    """In the sequences, as the audit found them."""
    repeats: int
    findings: list[str]
    findings_in_all: int = 0


def compare(
    outcome: Outcome,
    counted: Sequence[Counted],
    reported: Sequence[Reported],
    audit: report_pb2.AuditResponse,
) -> Agreement:
    """Hold the sides against each other."""
    found = list(_disagreements(outcome, counted, reported))
    overuse = 0
    for counter in counted:
        if counter.most is not None and counter.used > counter.most:
            overuse += counter.used - counter.most
            found.append(f"{counter.customer}: used {counter.used} of a hard limit {counter.most}")
    if outcome.in_doubt:
        found.append(f"{outcome.in_doubt} calls got no answer, also when asked again")
    found += [f"audit: {one}" for one in findings(audit)]
    return Agreement(
        customers=len(counted),
        told=sum(one.allowed for one in outcome.told),
        counted=sum(one.used for one in counted),
        reported=sum(one.quantity for one in reported),
        denied_told=sum(one.denied_events for one in outcome.told),
        denied_reported=sum(one.denied_events for one in reported),
        overuse=overuse,
        records=audit.records,
        repeats=audit.repeats,
        findings=found[:MOST_FINDINGS],
        findings_in_all=len(found),
    )


def _disagreements(
    outcome: Outcome, counted: Sequence[Counted], reported: Sequence[Reported]
) -> Iterator[str]:
    told = {(one.customer, one.feature): one for one in outcome.told}
    reports = {(one.customer, one.feature): one for one in reported}
    counters = {(one.customer, one.feature): one for one in counted}
    for key in sorted(told.keys() | reports.keys() | counters.keys()):
        name = " ".join(key)
        said, counter = told.get(key), counters.get(key)
        report = reports.get(key, Reported(*key))
        allowed = said.allowed if said else 0
        if counter is None:
            yield f"{name}: has no counter"
        elif not allowed == counter.used == report.quantity:
            yield (
                f"{name}: clients were told {allowed}, the counter has {counter.used}, "
                f"the report {report.quantity}"
            )
        if counter is not None and counter.held:
            yield f"{name}: {counter.held} still held"
        events = said.allowed_events if said else 0
        if events != report.events:
            yield f"{name}: {events} allowed calls, {report.events} events in the report"
        denied = said.denied_events if said else 0
        # A denial whose answer was lost is decided and recorded again.
        if not denied <= report.denied_events <= denied + outcome.asked_again:
            yield f"{name}: {denied} denied calls, {report.denied_events} in the report"


def ask(
    gateway: Gateway, pairs: Sequence[tuple[str, str]]
) -> tuple[list[Counted], list[Reported], report_pb2.AuditResponse]:
    """Counters and reports of pairs of customer and feature, with all until now, and the audit."""
    asked_at = time.time()
    with calling(gateway) as channel:
        enforcer = EnforcerServiceStub(channel)
        counted = [_counted(enforcer, gateway, *pair) for pair in pairs]
        reports = ReportServiceStub(channel)
        reported: list[Reported] = []
        for feature in sorted({feature for _, feature in pairs}):
            customers = [customer for customer, its in pairs if its == feature]
            for first in range(0, len(customers), CUSTOMERS_AT_ONCE):
                some = customers[first : first + CUSTOMERS_AT_ONCE]
                reported += _reported(reports, gateway, feature, some, asked_at)
        audit = reports.Audit(
            report_pb2.AuditRequest(), metadata=gateway.metadata, timeout=FRESH_SECONDS
        )
    return counted, reported, audit


def _counted(
    enforcer: EnforcerServiceStub, gateway: Gateway, customer: str, feature: str
) -> Counted:
    answer = enforcer.GetBalance(
        pb.GetBalanceRequest(customer=customer, feature=feature),
        metadata=gateway.metadata,
        timeout=CALL_SECONDS,
    )
    supplies = [one for one in answer.limits if one.kind in SUPPLIES]
    hard = [one.limit for one in supplies if not one.unlimited]
    return Counted(
        customer,
        feature,
        used=sum(one.used for one in supplies),
        held=sum(one.held for one in answer.limits),
        most=sum(hard) if supplies and len(hard) == len(supplies) else None,
    )


def _reported(
    reports: ReportServiceStub,
    gateway: Gateway,
    feature: str,
    customers: Sequence[str],
    asked_at: float,
) -> Iterator[Reported]:
    request = report_pb2.QueryUsageRequest(meter=feature, customers=customers, page_size=PAGE)

    def query() -> report_pb2.QueryUsageResponse:
        return reports.QueryUsage(request, metadata=gateway.metadata, timeout=CALL_SECONDS)

    for row in fresh(query, asked_at, FRESH_SECONDS).rows:
        yield Reported(
            row.customer,
            feature,
            row.quantity,
            row.events,
            row.denied_quantity,
            row.denied_events,
        )
