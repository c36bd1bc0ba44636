"""What a process depends on, and what its probes say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from meter.errors import LogUnavailableError
from meter.health import Complaint, Health, Need, State, watch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as found:
        yield found


def test_it_is_ready_when_it_has_started_and_what_it_needs_is_there() -> None:
    health = Health()
    sql = health.add("sql", Need.ALWAYS, "nothing works")
    redis = health.add("redis", Need.START, "less works")
    meter = health.add("meter", Need.NEVER, "no reports")
    sql.tell(State.UP)
    assert (health.ready, health.state, health.missing) == (False, "waiting", ["redis"])
    redis.tell(State.UP)
    assert not health.ready, "it has not started"
    health.started = True
    assert (health.ready, health.state) == (True, "ready")
    meter.tell(State.AWAY, "refused")
    redis.tell(State.AWAY, "gone")
    assert (health.ready, health.state) == (True, "degraded"), "the others are no better off"
    sql.tell(State.AWAY, "gone")
    assert (health.ready, health.missing) == (False, ["sql"])
    sql.tell(State.UP)
    health.stopping = True
    assert (health.ready, health.state) == (False, "stopping")


def test_its_page_names_what_is_missing_and_why() -> None:
    health = Health()
    sql = health.add("sql", Need.ALWAYS, "nothing works")
    health.add("meter", Need.NEVER, "no reports").tell(State.UP)
    sql.failed(LogUnavailableError("a wrong\npassword for redis://:hidden@host", refused=True))
    ready, page = health.page()
    assert (ready, page["ready"], page["state"], page["missing"]) == (
        False,
        False,
        "waiting",
        ["sql"],
    )
    shown = page["dependencies"]
    assert shown["sql"].pop("since").endswith("Z")
    assert shown["sql"] == {
        "state": "refused",
        "needed": "always",
        "error": "a wrong password for redis://:[redacted]@host",
        "without": "nothing works",
    }
    assert shown["meter"].keys() == {"state", "since", "needed"}


def test_a_change_of_state_is_one_line(lines: list[Any]) -> None:
    redis = Health().add("redis", Need.ALWAYS, "nothing works")
    for why in ("refused", "refused", "no route"):
        redis.tell(State.AWAY, why)
    assert redis.why == "no route"
    redis.tell(State.UP)
    redis.tell(State.UP)
    redis.tell(State.REFUSED, "a password")
    assert [(one["event"], one["log_level"]) for one in lines] == [
        ("dependency is away", "warning"),
        ("dependency is up", "info"),
        ("dependency refuses", "error"),
    ]
    assert lines[0]["error"] == "refused"
    assert lines[1]["after_seconds"] >= 0


def test_a_complaint_is_said_once_until_it_is_another_one(lines: list[Any]) -> None:
    complaint = Complaint("it waits")
    complaint.over()
    for reason in ("a", "a", "b"):
        complaint.say(reason)
    complaint.over()
    complaint.over()
    assert [one["event"] for one in lines] == ["it waits", "it waits", "it waits: no longer"]


async def test_a_probe_tells_what_it_fails_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meter.health.ASK_SECONDS", 0.05)
    redis = Health().add("redis", Need.ALWAYS, "nothing works")
    answers: list[Exception | float] = [0, LogUnavailableError("gone"), ValueError("a bug"), 9]
    seen: list[tuple[State, str]] = []

    async def ask() -> None:
        if len(answers) < 4:
            seen.append((redis.state, redis.why))
        if not answers:
            raise asyncio.CancelledError
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        await asyncio.sleep(answer)

    with pytest.raises(asyncio.CancelledError):
        await watch(redis, ask, 0)
    assert seen == [
        (State.UP, ""),
        (State.AWAY, "gone"),
        (State.AWAY, "a bug"),
        (State.AWAY, "no answer within 0.05 s"),
    ]


def test_whether_each_is_up_is_told_at_once_and_when_it_changes() -> None:
    health = Health()
    sql = health.add("sql", Need.ALWAYS, "nothing works")
    sql.tell(State.UP)
    told: list[tuple[str, bool]] = []
    health.observe(lambda name, up: told.append((name, up)))
    redis = health.add("redis", Need.START, "less works")
    assert told == [("sql", True), ("redis", False)]
    told.clear()
    for state in (State.UP, State.UP, State.AWAY, State.REFUSED, State.WAITING, State.UP):
        redis.tell(state, "why")
    assert [up for _, up in told] == [True, False, False, False, True]
