"""When a part that died is started again."""

from __future__ import annotations

import os
from signal import SIGKILL, SIGSEGV

from enforcer.cli.supervisor import FIRST_DELAY, LONGEST_DELAY, QUICK_SECONDS, Restarts


def test_the_third_quick_death_in_a_row_is_the_last() -> None:
    restarts = Restarts()
    assert restarts.after_death(0.1, 1) is not None
    assert restarts.after_death(0.1, -SIGSEGV) is not None
    assert restarts.after_death(0.1, 1) is None


def test_a_part_that_has_worked_is_given_new_chances() -> None:
    restarts = Restarts()
    for _ in range(5):
        assert restarts.after_death(0.1, 1) is not None
        assert restarts.after_death(0.1, 1) is not None
        assert restarts.after_death(QUICK_SECONDS, 1) == FIRST_DELAY


def test_a_kill_from_outside_says_nothing_about_the_part() -> None:
    restarts = Restarts()
    assert all(restarts.after_death(0.1, -SIGKILL) is not None for _ in range(50))


def test_waits_grow_up_to_a_bound() -> None:
    restarts = Restarts()
    waits = [restarts.after_death(0.1, -SIGKILL) or 0 for _ in range(10)]
    assert waits[0] == FIRST_DELAY
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY


def test_wrong_settings_are_never_tried_again() -> None:
    """However long it took to find them."""
    assert Restarts().after_death(QUICK_SECONDS * 3, os.EX_CONFIG) is None
