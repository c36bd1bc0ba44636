"""Latencies in HdrHistograms: one of the whole run, and one of each interval.

The whole keeps three digits, an interval two: what a plot shows. All in whole microseconds.
"""

from __future__ import annotations

from typing import Final

from hdrh.histogram import HdrHistogram

__all__ = ["MOST_US", "PERCENTILES", "SHOWN", "Latencies", "merged", "percentiles_ms", "text"]

MOST_US: Final = 600_000_000
"""Ten minutes; what took longer is counted as that long."""
PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
SHOWN: Final = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "greatest"}
"""Their names for people."""
_DIGITS: Final = 3
_DIGITS_OF_INTERVAL: Final = 2


class Latencies:
    """Records latencies as they come, in any order."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._whole = HdrHistogram(1, MOST_US, _DIGITS)
        self._parts: dict[int, HdrHistogram] = {}

    def record(self, at: float, seconds: float) -> None:
        """A call that was due `at` seconds after the beginning took so long."""
        micros = min(max(int(seconds * 1e6), 1), MOST_US)
        self._whole.record_value(micros)
        place = int(at / self._interval)
        part = self._parts.get(place)
        if part is None:
            part = self._parts[place] = HdrHistogram(1, MOST_US, _DIGITS_OF_INTERVAL)
        part.record_value(micros)

    def packed(self) -> str:
        """The whole as HdrHistogram's own text, for `merged`."""
        return text(self._whole)

    def packed_parts(self) -> dict[int, str]:
        """Each interval that has any, by its number."""
        return {place: text(part) for place, part in sorted(self._parts.items())}


def text(histogram: HdrHistogram) -> str:
    """A histogram as HdrHistogram's own text."""
    return bytes(histogram.encode()).decode()


def merged(packed: list[str]) -> HdrHistogram:
    """Several of the same kind as one; an empty one for none."""
    if not packed:
        return HdrHistogram(1, MOST_US, _DIGITS)
    whole, *others = packed
    found = HdrHistogram.decode(whole)
    for other in others:
        found.decode_and_add(other)
    return found


def percentiles_ms(histogram: HdrHistogram) -> dict[str, float]:
    """In milliseconds, by the names of `PERCENTILES`; nothing of an empty one."""
    if not histogram.get_total_count():
        return {}
    found = {
        name: histogram.get_value_at_percentile(percentile) / 1000
        for name, percentile in PERCENTILES.items()
    }
    return found | {"mean": round(histogram.get_mean_value() / 1000, 3)}
