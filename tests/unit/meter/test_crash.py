"""The crash points of tests: off unless asked for, at the passing that was asked for, and none without a name."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from meter.crash import POINTS, SETTING, crash_points
from meter.errors import MisconfiguredError

SOURCES = Path(__file__).parents[3] / "src"
STEP = re.compile(r'(?:steps|_stage)\(\s*"(\w+)"')
PARTS = {"meter/rollup.py": "rollup", "meter/relay.py": "relay"}


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that this process would have sent itself."""
    signals: list[int] = []

    def note(pid: int, number: int) -> None:
        assert pid == os.getpid()
        signals.append(number)

    monkeypatch.setattr(os, "kill", note)
    return signals


def test_a_process_crashes_at_the_passing_that_was_asked_for_and_at_no_other(
    monkeypatch: pytest.MonkeyPatch, killed: list[int]
) -> None:
    monkeypatch.setenv(SETTING, "rollup.claim:2:kill,rollup.store:1:stop,relay.trim:1:kill")
    steps = crash_points("rollup")
    for step, expected in (
        ("claim", []),
        ("trim", []),
        ("claim", [signal.SIGKILL]),
        ("claim", [signal.SIGKILL]),
        ("store", [signal.SIGKILL, signal.SIGSTOP]),
    ):
        steps(step)
        assert killed == expected


def test_nothing_crashes_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, killed: list[int]
) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    steps = crash_points("rollup")
    for point in POINTS:
        steps(point.partition(".")[2])
    assert killed == []


@pytest.mark.parametrize(
    "text",
    ["rollup.claim", "rollup.claim:0:kill", "rollup.claim:1:burn", "nowhere:1:kill", "x:y:z"],
)
def test_a_plan_that_names_no_step_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(SETTING, text)
    with pytest.raises(MisconfiguredError, match=SETTING):
        crash_points("rollup")


def test_every_step_of_the_code_has_a_name_here_and_every_name_a_step() -> None:
    found = {
        f"{PARTS.get(str(path.relative_to(SOURCES)), 'enforcer')}.{step}"
        for path in SOURCES.rglob("*.py")
        for step in STEP.findall(path.read_text())
    }
    assert found == set(POINTS)
