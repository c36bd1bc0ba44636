"""Whatever bytes come for a request of any method, an answer or a status that blames the request goes back: never a bug."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.fuzzed import Fuzzed, requests

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 15.0
"""For all examples together."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    made = Fuzzed(tmp_path_factory.mktemp("fuzzed"))
    yield made
    made.close()


def test_every_method_answers_any_bytes(fuzzed: Fuzzed) -> None:
    deadline = time.monotonic() + SECONDS
    codes: set[int] = set()

    @given(st.data())
    def search(data: st.DataObject) -> None:
        if time.monotonic() > deadline:
            return
        method = data.draw(st.sampled_from(fuzzed.methods), label="method")
        several = 3 if method.stream else 1
        messages = [data.draw(requests(method)) for _ in range(several)]
        codes.add(fuzzed.ask(method, *messages))

    search()
    assert {0, 3} <= codes, "some were answered, and some refused"


def test_every_method_answers_nothing_and_garbage(fuzzed: Fuzzed) -> None:
    """Each once, whatever chance leaves out."""
    deep = b"\x0a\x02" * 10_000
    for method in fuzzed.methods:
        for raw in (b"", b"\0", b"\xff" * 50, bytes(range(256)), deep, b"\x0a\xff\xff\xff\xff\x0f"):
            fuzzed.ask(method, raw)
