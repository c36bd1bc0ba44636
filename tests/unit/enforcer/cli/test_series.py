"""What the commands about seats and denials show."""

from __future__ import annotations

from enforcer.cli.series import _most_first
from meter.v1 import report_pb2


def test_in_each_window_the_most_refused_comes_first() -> None:
    rows = [
        report_pb2.DenialRow(customer=name, events=events)
        for name, events in [("a", 1), ("b", 5), ("c", 3)]
    ]
    rows[2].start.FromSeconds(900)
    assert [row.customer for row in _most_first(rows)] == ["b", "a", "c"]
