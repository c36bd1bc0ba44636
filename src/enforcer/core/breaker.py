"""Whether to ask a store at all: it opens by the rate of failures, and closes after probes.

Never by their number alone: what counts is how many of the calls of the last window failed, and it has to be enough of
them to mean something. While it is open nobody's call is spent on finding out: probes do that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Breaker", "BreakerOptions", "BreakerState"]

_SLICES = 10


class BreakerState(IntEnum):
    """CLOSED: calls pass. OPEN: none does. HALF_OPEN: none does yet, a probe has succeeded."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """`window` in seconds, `least` calls in it, `rate` of them from which it opens, `probes` in a row that close it."""

    window: float = 1.0
    least: int = 5
    rate: float = 0.5
    probes: int = 3


class Breaker:
    """Times are seconds of one monotonic clock. `observe(state)` is told of every transition."""

    def __init__(
        self, options: BreakerOptions, observe: Callable[[BreakerState], None] = lambda _: None
    ) -> None:
        self._options, self._observe = options, observe
        self._slice = options.window / _SLICES
        self._calls: deque[list[int]] = deque()
        self._probed = 0
        self.state = BreakerState.CLOSED
        self.closed = True
        """Whether calls pass."""

    def succeeded(self, now: float, calls: int = 1) -> None:
        """So many calls were answered in time."""
        self._current(now)[1] += calls

    def failed(self, now: float, calls: int = 1) -> None:
        """So many calls were not."""
        self._current(now)[2] += calls
        if self.state is not BreakerState.CLOSED:
            return
        good = sum(one[1] for one in self._calls)
        bad = sum(one[2] for one in self._calls)
        if good + bad >= self._options.least and bad >= self._options.rate * (good + bad):
            self._turn(BreakerState.OPEN)

    def probed(self, *, success: bool) -> None:
        """What became of a probe; only while it is not closed."""
        if not success:
            self._probed = 0
            self._turn(BreakerState.OPEN)
            return
        self._probed += 1
        if self._probed < self._options.probes:
            self._turn(BreakerState.HALF_OPEN)
        else:
            self._probed = 0
            self._calls.clear()
            self._turn(BreakerState.CLOSED)

    def _turn(self, state: BreakerState) -> None:
        if state is not self.state:
            self.state = state
            self.closed = state is BreakerState.CLOSED
            self._observe(state)

    def _current(self, now: float) -> list[int]:
        number = int(now / self._slice)
        calls = self._calls
        if not calls or calls[-1][0] != number:
            calls.append([number, 0, 0])
            while calls[0][0] <= number - _SLICES:
                calls.popleft()
        return calls[-1]
