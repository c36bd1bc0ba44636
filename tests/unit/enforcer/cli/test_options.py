"""Values that options take."""

from __future__ import annotations

import pytest

from enforcer.cli.exits import CommandError
from enforcer.cli.options import ModeName, dimensions, duration, mode
from enforcer.v1 import enforcer_pb2 as pb


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("10s", 10), ("1.5 m", 90), ("2h", 7200), ("1d", 86400), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    found = duration(text)
    assert found is not None
    assert found.ToTimedelta().total_seconds() == seconds


@pytest.mark.parametrize("text", ["-1s", "x", "1 week", "9" * 40])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--ttl"):
        duration(text)


def test_a_value_may_contain_an_equals_sign() -> None:
    assert dimensions(["q=a=b", "empty="]) == {"q": "a=b", "empty": ""}


def test_every_mode_of_the_command_line_is_one_of_the_contract() -> None:
    assert mode(ModeName.CHECK_ONLY) == pb.MODE_CHECK_ONLY
    assert {mode(name) for name in ModeName} == set(pb.Mode.values()) - {pb.MODE_UNSPECIFIED}
