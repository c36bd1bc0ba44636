"""How a meter's events add up to one value over a window. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

__all__ = ["Aggregation", "MeterAggregation"]


class Aggregation(StrEnum):
    """The ways. An event's value is what was granted; of a corrected one, what is right now."""

    SUM = "sum"
    COUNT = "count"
    """Of events, whatever their values."""
    MIN = "min"
    MAX = "max"
    LATEST = "latest"
    """The value of the event that happened last; of several at one instant, the last recorded."""
    UNIQUE = "unique"
    """Distinct values of a dimension, exactly; events without the dimension do not count."""


class MeterAggregation(NamedTuple):
    """The way of one meter; `dimension` is what UNIQUE counts, else empty."""

    meter: str
    aggregation: Aggregation
    dimension: str = ""
