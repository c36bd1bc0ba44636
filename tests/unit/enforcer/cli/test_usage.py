"""Times as people write them, and reports that count in what was just consumed."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

from enforcer.cli import usage as module
from enforcer.cli.exits import CommandError
from enforcer.cli.usage import moment
from meter.v1 import report_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-11-01", "", "2026-11-01T00:00:00Z"),
        ("2026-11-01", "Europe/Berlin", "2026-10-31T23:00:00Z"),
        ("2026-11-01T06:15+02:00", "Europe/Berlin", "2026-11-01T04:15:00Z"),
        ("2026-11-01T06:15Z", "", "2026-11-01T06:15:00Z"),
    ],
)
def test_a_time_is_in_the_zone_unless_it_says_otherwise(
    text: str, zone: str, expected: str
) -> None:
    found = moment(text, zone, "--from")
    assert found is not None
    assert found.ToJsonString() == expected


def test_no_time_is_no_bound() -> None:
    assert moment("", "", "--from") is None


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


def pages(*fresh: int) -> Iterator[report_pb2.QueryUsageResponse]:
    for seconds in fresh:
        page = report_pb2.QueryUsageResponse(total=seconds)
        page.fresh_until.FromSeconds(seconds)
        yield page


@pytest.mark.usefixtures("no_sleep")
def test_a_report_waits_for_what_was_decided_before() -> None:
    answers = pages(98, 99, 100, 101)
    assert module.fresh(lambda: next(answers), asked_at=100, wait=1000).total == 100


@pytest.mark.usefixtures("no_sleep")
def test_a_report_that_stays_behind_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    answers = pages(*[5] * 50)
    assert module.fresh(lambda: next(answers), asked_at=100, wait=3).total == 5
    assert "decided before 1970-01-01 00:00:05Z" in capsys.readouterr().err


def test_filters_of_one_dimension_are_alternatives() -> None:
    found = module._filters(["region=eu", "model=a", "region=us"])
    assert [(one.dimension, list(one.values)) for one in found] == [
        ("region", ["eu", "us"]),
        ("model", ["a"]),
    ]


def test_a_way_of_adding_up_is_read_from_the_option() -> None:
    (way,) = module._aggregations("mau", "unique:user")
    assert way == report_pb2.MeterAggregation(
        meter="mau", aggregation=report_pb2.AGGREGATION_UNIQUE, dimension="user"
    )
    (way,) = module._aggregations("gb", "latest")
    assert (way.aggregation, way.dimension) == (report_pb2.AGGREGATION_LATEST, "")
    assert module._aggregations("gb", "") == []


@pytest.mark.parametrize(
    ("meter", "text", "says"),
    [
        ("", "max", "needs --meter"),
        ("m", "average", "one of sum, count, min, max, latest or unique:DIMENSION"),
        ("m", "unique", "unique:DIMENSION"),
        ("m", "max:user", "unique:DIMENSION"),
    ],
)
def test_a_way_that_is_none_is_refused(meter: str, text: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        module._aggregations(meter, text)


def test_the_value_stands_beside_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        report_pb2.UsageRow(quantity=9, events=2, value=7, aggregation=report_pb2.AGGREGATION_MAX),
        report_pb2.UsageRow(denied_events=1, aggregation=report_pb2.AGGREGATION_MIN),
    ]
    module._print(rows, 9)
    shown = capsys.readouterr().out
    assert " 7  max" in shown
    assert " -  min" in shown
