"""What a generator process says at its end; several are added up to one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from loadtests.latencies import merged, text
from loadtests.told import Seats, Usage, added, seats_added

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Interval", "Outcome", "summed"]


class Interval(msgspec.Struct):
    """What was answered in it. `allowed` and `denied` count decisions, `answered` and `errors` calls."""

    answered: int = 0
    allowed: int = 0
    denied: int = 0
    errors: int = 0


class Outcome(msgspec.Struct):
    """Histograms as HdrHistogram's text, by when a call was due; intervals by when it was answered."""

    latency: str
    latency_parts: dict[int, str]
    delay: str
    """From when a call was due to when it was sent: the generator's own share of the latency."""
    left_out: int
    """Calls that were not sent since too many were unanswered."""
    intervals: dict[int, Interval]
    told: list[Usage]
    seats: list[Seats]
    codes: dict[str, int]
    asked_again: int
    in_doubt: int


def summed(outcomes: Sequence[Outcome]) -> Outcome:
    """Those of several generators as one: they had the same scenario and the same beginning."""
    intervals: dict[int, Interval] = {}
    for outcome in outcomes:
        for place, one in outcome.intervals.items():
            into = intervals.setdefault(place, Interval())
            into.answered += one.answered
            into.allowed += one.allowed
            into.denied += one.denied
            into.errors += one.errors
    parts: dict[int, list[str]] = {}
    for outcome in outcomes:
        for place, packed in outcome.latency_parts.items():
            parts.setdefault(place, []).append(packed)
    return Outcome(
        latency=text(merged([one.latency for one in outcomes])),
        latency_parts={place: text(merged(some)) for place, some in sorted(parts.items())},
        delay=text(merged([one.delay for one in outcomes])),
        left_out=sum(one.left_out for one in outcomes),
        intervals=dict(sorted(intervals.items())),
        told=added(one.told for one in outcomes),
        seats=seats_added(one.seats for one in outcomes),
        codes=dict(sum((Counter(one.codes) for one in outcomes), Counter())),
        asked_again=sum(one.asked_again for one in outcomes),
        in_doubt=sum(one.in_doubt for one in outcomes),
    )
