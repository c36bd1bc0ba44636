"""Every example of docs/client.md runs as it stands, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.fixtures.stack import Stack

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    line: int
    program: str
    output: str


def blocks() -> list[tuple[int, str, str]]:
    text = PAGE.read_text()
    return [
        (text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in _BLOCK.finditer(text)
    ]


def examples() -> list[Example]:
    found = blocks()
    paired = zip(found, [*found[1:], (0, "", "")], strict=True)
    return [
        Example(line, text, output if following == "text" else "")
        for (line, language, text), (_, following, output) in paired
        if language == "python"
    ]


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Stack:
    [catalog] = [text for _, language, text in blocks() if language == "yaml"]
    stack.apply(catalog)
    return stack


def test_the_page_has_examples() -> None:
    assert len(examples()) >= 4


# In their order: later ones count on from earlier ones.
@pytest.mark.parametrize("example", examples(), ids=lambda example: f"line-{example.line}")
def test_an_example_runs_and_prints_what_the_page_says(
    example: Example,
    gateway: Stack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METERGATE_ENDPOINT", gateway.endpoint)
    monkeypatch.setenv("METERGATE_API_KEY", gateway.api_key)
    # The lines of a traceback are those of the page.
    program = "\n" * (example.line - 1) + example.program
    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})  # noqa: S102 - ours
    assert capsys.readouterr().out == example.output
