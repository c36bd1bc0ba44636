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
from loadtests.told import Seats
from meter.v1 import report_pb2
from meter.v1.report_pb2_grpc import ReportServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from enforcer.cli.connection import Gateway
    from loadtests.outcome import Outcome

__all__ = [
    "Agreement",
    "Counted",
    "Reported",
    "SeatSums",
    "SeatsReported",
    "Sides",
    "ask",
    "compare",
    "summary",
]

DENIALS_SECONDS: Final = 3
"""Denials are recorded when their second is over: the reports have to be as fresh as that."""
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


class SeatsReported(msgspec.Struct, frozen=True):
    """The report of concurrency of a customer and feature."""

    customer: str
    feature: str
    peak: int
    held_ms: int


class SeatSums(msgspec.Struct):
    """Of all customers. Clients know from when to when a seat was held but for the calls' own time."""

    granted: int
    surely_ms: int
    reported_ms: int
    perhaps_ms: int
    highest_peak: int


class Sides(msgspec.Struct, frozen=True):
    """What a gateway says: counters, reports, audit."""

    counted: list[Counted]
    reported: list[Reported]
    seats: list[SeatsReported]
    audit: report_pb2.AuditResponse


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
    asked_again: int
    """Calls without an answer whose answer was got after the load."""
    findings: list[str]
    findings_in_all: int = 0
    seats: SeatSums | None = None


def summary(agreement: Agreement) -> str:
    """The sums in a sentence."""
    said = (
        f"Clients were told {agreement.told:,} allowed, the counters have {agreement.counted:,}, the usage "
        f"report {agreement.reported:,}, over {agreement.customers:,} counters; {agreement.denied_told:,} "
        f"denied, in the report {agreement.denied_reported:,}"
    )
    if seats := agreement.seats:
        said += (
            f"; {seats.granted:,} seats held for {seats.surely_ms / 1000:,.2f} to "
            f"{seats.perhaps_ms / 1000:,.2f} s by the clients' clocks, {seats.reported_ms / 1000:,.2f} s "
            f"in the report, at most {seats.highest_peak:,} of a customer at once"
        )
    if agreement.asked_again:
        said += f"; {agreement.asked_again:,} calls without an answer were asked again"
    return f"{said}; the audit saw {agreement.records:,} records."


def compare(outcome: Outcome, sides: Sides) -> Agreement:
    """Hold the sides against each other."""
    counted, reported, audit = sides.counted, sides.reported, sides.audit
    found = list(_disagreements(outcome, counted, reported))
    overuse = 0
    for counter in counted:
        if counter.most is not None and counter.used > counter.most:
            overuse += counter.used - counter.most
            found.append(f"{counter.customer}: used {counter.used} of a hard limit {counter.most}")
    found += _seats_disagree(outcome, sides)
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
        asked_again=outcome.asked_again,
        findings=found[:MOST_FINDINGS],
        findings_in_all=len(found),
        seats=_seat_sums(outcome, sides) if outcome.seats or sides.seats else None,
    )


def _seat_sums(outcome: Outcome, sides: Sides) -> SeatSums:
    return SeatSums(
        sum(one.granted for one in outcome.seats),
        sum(one.surely_ms for one in outcome.seats),
        sum(one.held_ms for one in sides.seats),
        sum(one.perhaps_ms for one in outcome.seats),
        max((one.peak for one in sides.seats), default=0),
    )


def _seats_disagree(outcome: Outcome, sides: Sides) -> Iterator[str]:
    told = {(one.customer, one.feature): one for one in outcome.seats}
    reports = {(one.customer, one.feature): one for one in sides.seats}
    most = {(one.customer, one.feature): one.most for one in sides.counted}
    for key in sorted(told.keys() | reports.keys()):
        name = " ".join(key)
        said = told.get(key, Seats(*key))
        report = reports.get(key, SeatsReported(*key, peak=0, held_ms=0))
        # Both ends of a lease are whole milliseconds of the server.
        if not said.surely_ms - said.granted <= report.held_ms <= said.perhaps_ms + said.granted:
            yield (
                f"{name}: {said.granted} leases were held for {said.surely_ms} to {said.perhaps_ms} ms, "
                f"the report has {report.held_ms}"
            )
        if (seats := most.get(key)) is not None and report.peak > seats:
            yield f"{name}: {report.peak} seats held at once of {seats}"


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


def ask(gateway: Gateway, pairs: Sequence[tuple[str, str]]) -> Sides:
    """Counters and reports of pairs of customer and feature, with all until now, and the audit."""
    asked_at = time.time() + DENIALS_SECONDS
    with calling(gateway) as channel:
        enforcer = EnforcerServiceStub(channel)
        counted = [_counted(enforcer, gateway, *pair) for pair in pairs]
        reports = ReportServiceStub(channel)
        reported: list[Reported] = []
        seats: list[SeatsReported] = []
        for feature in sorted({feature for _, feature in pairs}):
            customers = [customer for customer, its in pairs if its == feature]
            for first in range(0, len(customers), CUSTOMERS_AT_ONCE):
                some = customers[first : first + CUSTOMERS_AT_ONCE]
                reported += _reported(reports, gateway, feature, some, asked_at)
                seats += _seats(reports, gateway, feature, some, asked_at)
        audit = reports.Audit(
            report_pb2.AuditRequest(), metadata=gateway.metadata, timeout=FRESH_SECONDS
        )
    return Sides(counted, reported, seats, audit)


def _counted(
    enforcer: EnforcerServiceStub, gateway: Gateway, customer: str, feature: str
) -> Counted:
    answer = enforcer.GetBalance(
        pb.GetBalanceRequest(customer=customer, feature=feature),
        metadata=gateway.metadata,
        timeout=CALL_SECONDS,
    )
    supplies = [one for one in answer.limits if one.kind in SUPPLIES]
    bounds = [one for one in answer.limits if one.kind in SUPPLIES | {pb.LIMIT_KIND_SEATS}]
    hard = [one.limit for one in bounds if not one.unlimited]
    return Counted(
        customer,
        feature,
        used=sum(one.used for one in supplies),
        held=sum(one.held for one in answer.limits),
        most=sum(hard) if bounds and len(hard) == len(bounds) else None,
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


def _seats(
    reports: ReportServiceStub,
    gateway: Gateway,
    feature: str,
    customers: Sequence[str],
    asked_at: float,
) -> Iterator[SeatsReported]:
    request = report_pb2.QueryConcurrencyRequest(
        feature=feature, customers=customers, page_size=PAGE
    )

    def query() -> report_pb2.QueryConcurrencyResponse:
        return reports.QueryConcurrency(request, metadata=gateway.metadata, timeout=CALL_SECONDS)

    for row in fresh(query, asked_at, FRESH_SECONDS).rows:
        yield SeatsReported(row.customer, feature, row.peak, row.seat_milliseconds)
