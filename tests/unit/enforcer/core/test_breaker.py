"""The breaker opens by the rate of failures among enough calls, and closes after probes."""

from __future__ import annotations

from enforcer.core.breaker import Breaker, BreakerOptions, BreakerState

OPTIONS = BreakerOptions(window=1.0, least=10, rate=0.5, probes=2)


def test_many_failures_among_more_successes_leave_it_closed() -> None:
    breaker = Breaker(OPTIONS)
    for number in range(1_000):
        breaker.succeeded(number / 1_000, 3)
        breaker.failed(number / 1_000)
    assert breaker.closed


def test_few_calls_do_not_open_it_whatever_their_rate() -> None:
    breaker = Breaker(OPTIONS)
    for _ in range(9):
        breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(0.0)
    assert breaker.state is BreakerState.OPEN


def test_what_has_left_the_window_does_not_count() -> None:
    breaker = Breaker(OPTIONS)
    breaker.succeeded(0.0, 1_000)
    for _ in range(10):
        breaker.failed(0.95)
    assert breaker.closed
    breaker.failed(1.05)
    assert not breaker.closed


def test_failures_spread_over_a_long_time_never_open_it() -> None:
    breaker = Breaker(OPTIONS)
    for second in range(100):
        breaker.failed(second * 0.2)
    assert breaker.closed


def test_probes_in_a_row_close_it_and_one_that_fails_begins_again() -> None:
    turns: list[BreakerState] = []
    breaker = Breaker(OPTIONS, turns.append)
    breaker.failed(0.0, 10)
    breaker.probed(success=True)
    breaker.probed(success=False)
    breaker.probed(success=True)
    assert not breaker.closed
    breaker.probed(success=True)
    opened, half, closed = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED
    assert turns == [opened, half, opened, half, closed]


def test_what_failed_before_it_closed_does_not_open_it_again() -> None:
    breaker = Breaker(OPTIONS)
    breaker.failed(0.0, 10)
    breaker.probed(success=True)
    breaker.probed(success=True)
    breaker.failed(0.1)
    assert breaker.closed
