"""Every way in which an audit can fail is a finding."""

from __future__ import annotations

import pytest

from enforcer.cli.audit import findings
from meter.v1 import report_pb2


def test_agreement_is_no_finding() -> None:
    assert not list(findings(report_pb2.AuditResponse(records=9, counters=4)))


def test_records_that_came_again_and_were_counted_once_are_no_finding() -> None:
    assert not list(findings(report_pb2.AuditResponse(records=9, repeats=3)))


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            report_pb2.AuditResponse(gaps=[report_pb2.SequenceGap(bucket=1, first=5, last=9)]),
            "records 5 to 8 are missing",
        ),
        (
            report_pb2.AuditResponse(drift=[report_pb2.Drift(counter_used=5, ledger_used=4)]),
            "used 5 in the counter and 4 in the ledger",
        ),
        (report_pb2.AuditResponse(rollup_difference=2), "differ from the raw records by 2"),
    ],
)
def test_each_kind_of_finding(response: report_pb2.AuditResponse, words: str) -> None:
    (found,) = findings(response)
    assert words in found
