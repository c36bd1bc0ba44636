"""Processor time and memory of processes: of this one, and of one that does not exist."""

from __future__ import annotations

import os
import time

from loadtests.watch import Watch

LEAST, SECONDS = 0.1, 20


def test_a_process_that_works_and_one_that_is_gone_are_told_apart() -> None:
    pids = {"me": os.getpid(), "gone": 2**22 + 1}
    began = time.monotonic()
    with Watch(lambda: pids, 0.05, began) as watch:
        # The first look walks over all processes of the machine, which may take a while.
        while "me" not in watch.series or watch.series["me"].seconds < LEAST:
            sum(range(1000))
            assert time.monotonic() < began + SECONDS
    assert list(watch.series) == ["me"]
    mine = watch.series["me"]
    assert LEAST <= mine.seconds <= time.process_time()
    assert len(mine.at) == len(mine.cores) == len(mine.megabytes) > 0
    assert mine.at == sorted(mine.at)
    assert min(mine.megabytes) > 10


def test_a_name_that_another_process_takes_over_goes_on_without_the_first_ones_time() -> None:
    watch = Watch(lambda: {"part": os.getpid()}, 1.0, time.monotonic())
    watch._note("part", 1, 50.0, 10**6)
    watch._note("part", 2, 0.5, 10**6)
    assert watch.series == {}
    watch._note("part", 2, 0.75, 10**6)
    assert watch.series["part"].seconds == 0.25
