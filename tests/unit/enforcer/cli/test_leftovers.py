"""Only a process that is proven to be ours is ended."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from enforcer.cli.leftovers import end_leftovers, identity, leftovers, note

if TYPE_CHECKING:
    from pathlib import Path


def test_a_process_has_an_identity_while_it_lives() -> None:
    assert identity(os.getpid()) == identity(os.getpid())
    assert identity(os.getpid())
    assert not identity(2**22 + 1)


def test_a_noted_process_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "children.json"
    note(file, {"self": os.getpid()})
    assert list(leftovers(file)) == [("self", os.getpid())]


def test_another_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "children.json"
    file.write_text(
        json.dumps([{"name": "self", "pid": os.getpid(), "identity": "another boot 1"}])
    )
    assert end_leftovers(file) == []


def test_a_damaged_or_missing_note_ends_nothing(tmp_path: Path) -> None:
    file = tmp_path / "children.json"
    assert end_leftovers(file) == []
    for text in ("", "{", "[1]", '[{"name": "x"}]', '[{"name": "x", "pid": 1, "identity": ""}]'):
        file.write_text(text)
        assert end_leftovers(file) == []
