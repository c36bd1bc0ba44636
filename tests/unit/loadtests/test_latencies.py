"""Histograms of latencies."""

from __future__ import annotations

import random

import pytest

from loadtests.latencies import MOST_US, Latencies, merged, percentiles_ms


def test_percentiles_are_those_of_the_values_to_three_digits() -> None:
    dice = random.Random(5)
    seconds = [dice.lognormvariate(-6, 1) for _ in range(5000)]
    latencies = Latencies(1)
    for one in seconds:
        latencies.record(0, one)
    found = percentiles_ms(merged([latencies.packed()]))
    for name, place in (("p50", 2499), ("p90", 4499), ("p99", 4949), ("p999", 4994), ("max", 4999)):
        assert found[name] == pytest.approx(sorted(seconds)[place] * 1000, rel=0.002)


def test_several_processes_merge_to_the_histogram_of_all() -> None:
    whole, parts = Latencies(1), [Latencies(1) for _ in range(3)]
    dice = random.Random(6)
    for number in range(3000):
        at, seconds = number / 500, dice.expovariate(100)
        whole.record(at, seconds)
        parts[number % 3].record(at, seconds)
    together = merged([part.packed() for part in parts])
    assert together.get_total_count() == 3000
    assert percentiles_ms(together) == percentiles_ms(merged([whole.packed()]))
    for place, packed in whole.packed_parts().items():
        some = merged([part.packed_parts()[place] for part in parts])
        assert some.get_total_count() == 500
        assert percentiles_ms(some) == percentiles_ms(merged([packed]))


def test_a_call_belongs_to_the_interval_in_which_it_was_due() -> None:
    latencies = Latencies(2)
    latencies.record(1.9, 5)  # answered in a later one
    latencies.record(4.0, 0.001)
    parts = latencies.packed_parts()
    assert list(parts) == [0, 2]
    assert percentiles_ms(merged([parts[0]]))["max"] == pytest.approx(5000, rel=0.01)


def test_what_takes_longer_than_the_scale_is_counted_at_its_end() -> None:
    latencies = Latencies(1)
    latencies.record(0, 3600)
    found = merged([latencies.packed()])
    assert found.get_total_count() == 1
    assert percentiles_ms(found)["max"] == pytest.approx(MOST_US / 1000, rel=0.001)


def test_nothing_recorded_has_no_percentiles() -> None:
    assert percentiles_ms(merged([])) == {}
    assert percentiles_ms(merged([Latencies(1).packed()])) == {}
