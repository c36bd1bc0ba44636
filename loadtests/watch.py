"""Processor time and memory of processes while a load runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Series", "Watch"]

MEGABYTE: Final = 1_000_000
LOOKS_OF_A_FAMILY: Final = 10


class Series(msgspec.Struct):
    """One process and what it started. Moments are seconds since the beginning of the load."""

    at: list[float] = []
    cores: list[float] = []
    """Processor seconds per second since the moment before."""
    megabytes: list[float] = []
    """Resident, shared pages included."""
    seconds: float = 0.0
    """Processor seconds from the first look to the last."""


class Watch:
    """Looks at the processes that `pids` names, from `begin` on, again and again in a thread, while it is entered.

    A process that is gone ends its series; one that takes its name goes on with it.
    """

    def __init__(self, pids: Callable[[], dict[str, int]], interval: float, begin: float) -> None:
        self.series: dict[str, Series] = {}
        self._pids, self._interval, self._begin = pids, interval, begin
        self._before: dict[str, tuple[int, float, float]] = {}
        self._below: dict[int, list[psutil.Process]] = {}
        self._looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take one look at all of them."""
        # Who is below whom costs a walk over all processes of the machine.
        if self._looks % LOOKS_OF_A_FAMILY == 0:
            self._below.clear()
        self._looks += 1
        for name, pid in self._pids().items():
            with suppress(psutil.Error):
                self._note(name, pid, *self._used(pid))

    def _run(self) -> None:
        # The first looks fall on whole intervals after the beginning.
        due = self._begin
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            self.look()
            due = max(due + self._interval, time.monotonic())

    def _note(self, name: str, pid: int, used: float, resident: int) -> None:
        now = time.monotonic()
        before = self._before.get(name)
        self._before[name] = (pid, now, used)
        if before is None or before[0] != pid or now <= before[1] or not resident:
            return  # seen for the first time, or it has ended and nobody has waited for it yet
        # Threads and children that ended take their time with them.
        spent = max(used - before[2], 0.0)
        series = self.series.setdefault(name, Series())
        series.seconds = round(series.seconds + spent, 3)
        if now - before[1] < self._interval / 4:
            return  # the last look: too short a time for a rate
        series.at.append(round(now - self._begin, 2))
        series.cores.append(round(spent / (now - before[1]), 3))
        series.megabytes.append(round(resident / MEGABYTE, 1))

    def _used(self, pid: int) -> tuple[float, int]:
        """Processor seconds and resident bytes of a process and all below it."""
        if pid not in self._below:
            process = psutil.Process(pid)
            self._below[pid] = [process, *process.children(recursive=True)]
        seconds, resident = 0.0, 0
        for one in self._below[pid]:
            with suppress(psutil.NoSuchProcess), one.oneshot():
                times = one.cpu_times()
                seconds += times.user + times.system
                resident += one.memory_info().rss
        return seconds, resident
