"""What a process that sends keeps of its run, and how it settles what is open at the end. No I/O.

For both tools: the open loop on asyncio, and Locust's users on greenlets.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from loadtests.latencies import Latencies
from loadtests.outcome import Interval, Outcome
from loadtests.sessions import Call, Pause
from loadtests.told import Told

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AT_ONCE", "Record"]

AT_ONCE: Final = 64
"""How many calls are asked again together."""
SETTLE_SECONDS: Final = 60.0
PAUSE: Final = Pause(0.5)


class Record:
    """Latencies, answers and faults from `begin` on, a moment of `time.monotonic`, as all times here."""

    def __init__(self, interval: float) -> None:
        self.begin = 0.0
        self.told = Told()
        self.asked_again = 0
        self._interval = interval
        self._latencies = Latencies(interval)
        self._intervals: dict[int, Interval] = {}
        self._open = True

    def answered(self, call: Call, answer: Any, due: float, sent: float) -> None:
        """Note an answer that came just now to a call that was due and sent then."""
        now = time.monotonic()
        allowed, denied = self.told.answered(call, answer, sent, now)
        if self._open:
            self._latencies.record(max(due - self.begin, 0), now - due)
            at = self._at(now)
            at.answered += 1
            at.allowed += allowed
            at.denied += denied

    def failed(self, call: Call, code: str) -> None:
        """Note a fault that came just now."""
        self.told.failed(call, code, counts=self._open)
        if self._open:
            self._at(time.monotonic()).errors += 1

    def abandoned(self, call: Call) -> None:
        """Note a call that this side broke off: no fault, but it may have run."""
        self.told.failed(call, "CANCELLED", counts=False)

    def settling(self) -> Iterator[list[Call] | Pause]:
        """The load is over: what is to be sent together to know what is in doubt and give back what is held.

        Figures of the run are closed by it. Ends when nothing is open, or when it takes too long.
        """
        self._open = False
        give_up = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < give_up:
            again = self.told.take_doubtful()
            self.asked_again += len(again)
            for first in range(0, len(again), AT_ONCE):
                yield again[first : first + AT_ONCE]
            held = self.told.still_held()
            for first in range(0, len(held), AT_ONCE):
                yield held[first : first + AT_ONCE]
            if not (self.told.doubtful or self.told.still_held()):
                return
            yield PAUSE

    def outcome(self, delay: Latencies, left_out: int) -> Outcome:
        """All of it."""
        return Outcome(
            latency=self._latencies.packed(),
            latency_parts=self._latencies.packed_parts(),
            delay=delay.packed(),
            left_out=left_out,
            intervals=self._intervals,
            told=list(self.told.usage.values()),
            seats=list(self.told.seats.values()),
            codes=self.told.codes,
            asked_again=self.asked_again,
            in_doubt=len(self.told.doubtful) + len(self.told.still_held()),
        )

    def _at(self, now: float) -> Interval:
        place = max(int((now - self.begin) / self._interval), 0)
        return self._intervals.setdefault(place, Interval())
