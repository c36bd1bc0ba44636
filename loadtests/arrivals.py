"""When calls are due. Pure: a plan of rates and a seed give the same moments each time.

A plan does not know how the gateway answers: that is what makes the loop open. Who sends when the last
answer is there sends less the slower the gateway gets, and leaves out of its figures the time that the
others would have waited (coordinated omission).
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Spacing", "Stretch", "arrivals", "dealt", "length", "spike", "steady"]


class Spacing(StrEnum):
    """How the moments lie in a second."""

    POISSON = "poisson"
    """As of many callers that do not know of each other."""
    EVEN = "even"


@dataclass(frozen=True, slots=True)
class Stretch:
    """So many arrivals a second, for so many seconds."""

    rate: float
    seconds: float


def steady(rate: float, seconds: float) -> tuple[Stretch, ...]:
    """One rate all the time."""
    return (Stretch(rate, seconds),)


def spike(rate: float, seconds: float, factor: float) -> tuple[Stretch, ...]:
    """`factor` times the rate in the third of five equal parts."""
    fifth = seconds / 5
    return (Stretch(rate, 2 * fifth), Stretch(rate * factor, fifth), Stretch(rate, 2 * fifth))


def length(plan: Sequence[Stretch]) -> float:
    """Seconds in all."""
    return sum(part.seconds for part in plan)


def arrivals(plan: Sequence[Stretch], spacing: Spacing, seed: int) -> Iterator[float]:
    """Seconds since the beginning, ascending, all within the plan's length."""
    dice = random.Random(seed)
    begin = 0.0
    for part in plan:
        if part.rate <= 0 or not math.isfinite(part.rate):
            raise ValueError(f"a rate of {part.rate}: more than 0 a second is expected")
        end = begin + part.seconds
        if spacing is Spacing.EVEN:
            for number in range(round(part.rate * part.seconds)):
                yield begin + number / part.rate
        else:
            at = begin + dice.expovariate(part.rate)
            while at < end:
                yield at
                at += dice.expovariate(part.rate)
        begin = end


def dealt(moments: Iterator[float], share: int, shares: int) -> Iterator[tuple[int, float]]:
    """Every `shares`-th moment from the `share`-th on, with its number among all."""
    return itertools.islice(enumerate(moments), share, None, shares)
