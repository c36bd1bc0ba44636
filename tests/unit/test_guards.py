"""docs/security.md names guards and tests that exist, and each guard can be taken away as `make guards` does."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.guards.mutants import MUTANTS, ROOT, Line, Mutant, lines

if TYPE_CHECKING:
    from pathlib import Path

TABLE = lines()
WITHOUT_A_PATCH = {"T32"}
"""Its test shows by itself what it refuses."""


@cache
def _tests_of(place: Path) -> set[str]:
    """Names of the test functions in a file."""
    tree = ast.parse(place.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_the_table_is_numbered_without_gaps() -> None:
    assert [line.number for line in TABLE] == [f"T{place}" for place in range(1, len(TABLE) + 1)]
    assert len(TABLE) >= 30


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line.number)
def test_every_line_names_a_guard_and_tests_that_exist(line: Line) -> None:
    assert line.threat
    assert line.guard
    assert line.tests
    for test in line.tests:
        path, name = test.split("::")
        assert name in _tests_of(ROOT / "tests" / path), test


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.line}-{mutant.file}")
def test_every_patch_still_finds_its_guard(mutant: Mutant) -> None:
    assert (ROOT / "src" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    (line,) = (line for line in TABLE if line.number == mutant.line)
    assert mutant.test in line.tests


def test_every_line_has_a_patch() -> None:
    assert {mutant.line for mutant in MUTANTS} == {line.number for line in TABLE} - WITHOUT_A_PATCH
