"""The table of two results."""

from __future__ import annotations

import msgspec

from loadtests.agreement import compare
from loadtests.compare import differences, table
from loadtests.result import Machine
from loadtests.watch import Series
from tests.unit.loadtests.made import outcome, result, sides


def cells(text: str, name: str) -> list[str]:
    (line,) = [one for one in text.splitlines() if one.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("| ").split("|")][1:]


def test_figures_stand_beside_each_other_with_their_ratio() -> None:
    faster = result(
        calls=24,
        latency_ms={**result().latency_ms, "p99": result().latency_ms["p99"] / 2},
        processes={"enforcer-1": Series([1.0], [0.5], [150.0], 0.75), "relay": Series()},
    )
    text = table(result(), faster)
    assert cells(text, "calls/s") == ["6", "12", "2.00"]
    assert cells(text, "p99 ms")[2] == "0.50"
    assert cells(text, "enforcer-1 processor µs/call") == ["62,500", "31,250", "0.50"]
    assert cells(text, "enforcer-1 most MB") == ["101", "150", "1.49"]
    assert cells(text, "relay most MB") == ["-", "-", "-"]
    assert cells(text, "errors") == ["0", "0", "-"]
    assert "differs" not in text


def test_what_keeps_figures_from_being_compared_is_told() -> None:
    other = result(
        scenario="spike",
        parameters={"rate": 12, "up": "", "factor": 5},
        machine=Machine("Linux", 8, 16_000, "3.11.7", {"grpcio": "1.80.0"}, 6.0),
    )
    assert differences(result(), other) == [
        "scenario: steady and spike",
        "cores: 2 and 8",
        "factor: None and 5",
        "rate: 6 and 12",
        "grpcio: 1.76.0 and 1.80.0",
        "something else ran: load before 0.1 and 6",
    ]
    assert differences(result(), result()) == []


def test_a_result_whose_sums_did_not_agree_is_named() -> None:
    bad = msgspec.structs.replace(result(), agreement=compare(outcome(in_doubt=1), sides()))
    assert differences(result(), bad) == ["the sums of B did not agree"]


def test_the_table_is_markdown_of_equal_columns() -> None:
    lines = [one for one in table(result(), result()).splitlines() if one.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert {line.count("|") for line in lines} == {5}
