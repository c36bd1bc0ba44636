"""The lines of `up`."""

from __future__ import annotations

import json
import sys
from io import StringIO
from typing import TYPE_CHECKING

from enforcer.cli.terminal import Terminal

if TYPE_CHECKING:
    import pytest


def test_lines_carry_their_parts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", written := StringIO())
    terminal = Terminal()
    terminal.log("meter", "hello")
    terminal.say("ready", event="ready")
    terminal.close()
    assert written.getvalue() == "meter       | hello\nready\n"


def test_json_lines_are_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", written := StringIO())
    terminal = Terminal(as_json=True)
    terminal.log("meter", "hello")
    terminal.say("ready", event="ready", endpoint="h:1")
    terminal.close()
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert first == {"event": "log", "part": "meter", "line": "hello"}
    assert second == {"event": "ready", "text": "ready", "endpoint": "h:1"}


def test_a_closed_terminal_does_not_end_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    terminal = Terminal(colour=False)
    terminal.say("one")
    terminal.say("two")
    terminal.close()
