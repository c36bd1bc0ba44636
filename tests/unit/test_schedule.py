"""The order of the tests with servers names files that are there, each once, and keeps together what shares one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.schedule import ORDER, in_order, piece_of

TESTS = Path(__file__).parents[1]


def test_each_file_that_is_named_is_there_and_is_named_once() -> None:
    named = [file for files in ORDER for file in files]
    assert len(named) == len(set(named))
    assert [file for file in named if not (TESTS / file).is_file()] == []


def test_what_shares_a_server_is_one_piece_of_work_and_the_longest_comes_first() -> None:
    shared, alone = ORDER[0], ORDER[2][0]
    names = ["tests/conformance/test_calls.py::test_b", f"tests/{alone}::test_c[1]"]
    names += [f"tests/{file}::test_{letter}" for file in reversed(shared) for letter in "da"]
    items: Any = [SimpleNamespace(nodeid=name) for name in names]
    in_order(items)
    found = [item.nodeid for item in items]
    assert found == [
        *(f"tests/{file}::test_{letter}" for file in shared for letter in "da"),
        f"tests/{alone}::test_c[1]",
        "tests/conformance/test_calls.py::test_b",
    ]
    assert len({piece_of(name) for name in found}) == 3


def test_whoever_wants_a_dear_server_is_where_it_is() -> None:
    """Else another process of the tests would start one more."""
    wanted = {
        r"\bkafka: KafkaOptions|\bkafka_broker: str": ORDER[0],
        r"(def test_\w+|def gateway)\((\w+: [^()]*, )?stack: Stack": ORDER[1],
        r"\bclickhouse_server\b": next(
            one for one in ORDER if "contract/meter/test_stores.py" in one
        ),
    }
    for pattern, together in wanted.items():
        files = {
            str(file.relative_to(TESTS))
            for file in TESTS.rglob("test_*.py")
            if file != Path(__file__) and re.search(pattern, file.read_text().replace("\n    ", ""))
        }
        assert len(files) > 1
        assert files <= set(together), pattern
