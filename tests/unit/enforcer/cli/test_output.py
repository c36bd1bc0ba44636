"""JSON that scripts build on, and tables that are plain without a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from enforcer.cli.output import as_json, number, print_json, print_table, seconds
from enforcer.v1 import enforcer_pb2 as pb
from meter.v1 import report_pb2

if TYPE_CHECKING:
    import pytest


def test_a_check_keeps_the_names_of_the_contract_and_numbers_are_numbers() -> None:
    response = pb.CheckResponse(
        allowed=True,
        granted=2**53 - 1,
        reason=pb.REASON_ALLOWED,
        limits=[pb.Limit(kind=pb.LIMIT_KIND_QUOTA, id="daily", limit=10, used=3)],
        record=pb.RecordId(bucket=1, generation=2, sequence=3),
        retry_after=Duration(seconds=1, nanos=500_000_000),
    )
    found = as_json(response)
    assert found["granted"] == 2**53 - 1
    assert found["reason"] == "REASON_ALLOWED"
    assert found["limits"][0]["used"] == 3
    assert found["limits"][0]["kind"] == "LIMIT_KIND_QUOTA"
    assert found["record"] == {"bucket": 1, "generation": 2, "sequence": 3}
    assert found["retry_after"] == "1.500s"


def test_fields_without_a_value_are_there() -> None:
    found = as_json(pb.CheckResponse(reason=pb.REASON_NO_SEATS))
    assert found["allowed"] is False
    assert found["granted"] == 0
    assert found["limits"] == []
    assert "record" not in found, "an absent message is absent"


def test_maps_stay_maps() -> None:
    row = report_pb2.UsageRow(meter="m", quantity=5, dimensions={"region": "eu"})
    found = as_json(row)
    assert found["dimensions"] == {"region": "eu"}
    assert found["quantity"] == 5


def test_an_audit_has_numbers_at_every_depth() -> None:
    found = as_json(
        report_pb2.AuditResponse(
            records=7, drift=[report_pb2.Drift(bucket=1, limit=2, counter_used=3)]
        )
    )
    assert found["drift"][0]["counter_used"] == 3
    assert found["gaps"] == []
    assert set(found) == {
        "records",
        "gaps",
        "accepted_gaps",
        "repeats",
        "drift",
        "counters",
        "rollup_difference",
    }


def test_one_object_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "ä\n"})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == {"a": "ä\n"}


def test_a_table_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "used"], [["[red]", "1,000"], ["b", "2"]], "used")
    assert capsys.readouterr().out == "name    used\n[red]  1,000\nb          2\n"


def test_figures_for_people() -> None:
    assert number(1234567) == "1,234,567"
    assert seconds(Duration(seconds=2, nanos=500_000_000)) == "2.5 s"
    assert seconds(Duration(seconds=41458, nanos=500_000_000)) == "11:30:59"
