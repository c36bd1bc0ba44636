"""Outcomes, reports and results for tests: one run in which all agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from loadtests.agreement import Counted, Reported, Sides, compare
from loadtests.latencies import Latencies, merged, percentiles_ms
from loadtests.outcome import Interval, Outcome
from loadtests.result import VERSION, Machine, Moment, Result
from loadtests.told import Usage
from loadtests.watch import Series
from meter.v1 import report_pb2

COUNTED = [
    Counted("a", "load.calls", used=7, held=0, most=1000),
    Counted("b", "load.calls", used=3, held=0, most=3),
]
REPORTED = [
    Reported("a", "load.calls", quantity=7, events=7),
    Reported("b", "load.calls", quantity=3, events=3, denied=2, denied_events=2),
]


def audit(**fields: Any) -> report_pb2.AuditResponse:
    return report_pb2.AuditResponse(records=12, counters=4, **fields)


def sides(**changed: Any) -> Sides:
    return msgspec.structs.replace(Sides(COUNTED, REPORTED, [], audit()), **changed)


def outcome(**changed: Any) -> Outcome:
    latencies = Latencies(1)
    for number in range(12):
        latencies.record(number / 6, 0.001 * (number + 1))
    whole = Outcome(
        latency=latencies.packed(),
        latency_parts=latencies.packed_parts(),
        delay=latencies.packed(),
        left_out=0,
        intervals={0: Interval(6, 5, 1, 0), 1: Interval(6, 5, 1, 0)},
        told=[
            Usage("a", "load.calls", allowed=7, allowed_events=7),
            Usage("b", "load.calls", allowed=3, allowed_events=3, denied=2, denied_events=2),
        ],
        seats=[],
        codes={},
        asked_again=0,
        in_doubt=0,
    )
    return msgspec.structs.replace(whole, **changed)


def result(**changed: Any) -> Result:
    said = outcome()
    latency = percentiles_ms(merged([said.latency]))
    whole = Result(
        version=VERSION,
        scenario="steady",
        tool="open",
        about="Checks.",
        started_at=datetime(2026, 11, 24, 12, tzinfo=UTC),
        parameters={"rate": 6, "up": ""},
        machine=Machine("Linux", 2, 16_000, "3.11.7", {"grpcio": "1.76.0"}, 0.1),
        seconds=2.0,
        calls=12,
        allowed=10,
        denied=2,
        errors={},
        latency_ms=latency,
        delay_ms=dict.fromkeys(latency, 0.1),
        latency=said.latency,
        interval=1.0,
        moments=[Moment(0.0, 6, 5, 1, 0, latency), Moment(1.0, 6, 5, 1, 0, latency)],
        processes={"enforcer-1": Series([1.0, 2.0], [0.5, 0.25], [100.0, 101.0], 0.75)},
        agreement=compare(said, sides()),
    )
    return msgspec.structs.replace(whole, **changed)
