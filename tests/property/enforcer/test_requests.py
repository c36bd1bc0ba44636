"""Whatever bytes come for a request of any method, an answer or a status that blames the request goes back: never a bug."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.fuzzed import Fuzzed, requests
from tests.property.enforcer.test_cloudevents import NAMES, TYPES, bodies
from tests.property.test_catalog_fuzz import damaged

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 8.0
"""For all examples of one test together."""


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


@st.composite
def posted(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Headers and body of one event, or of several: in the body, in the headers, or half and half."""
    named = st.sampled_from(["1.0", "prompt", "acme", "s", "2026-11-24T12:00:00Z"])
    texts = named | st.text(st.characters(max_codepoint=255), max_size=8)
    headers = draw(
        st.dictionaries(st.sampled_from([f"ce-{name}" for name in NAMES]), texts, max_size=7)
    )
    if draw(st.booleans()):
        headers |= {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "prompt"}
        headers |= {"ce-subject": "acme"}
    return {"content-type": draw(st.sampled_from(TYPES)), **headers}, draw(bodies())


def test_events_over_http_are_taken_or_refused(fuzzed: Fuzzed) -> None:
    deadline = time.monotonic() + SECONDS
    statuses: set[int] = set()

    @given(posted())
    def search(request: tuple[dict[str, str], bytes]) -> None:
        if time.monotonic() < deadline:
            statuses.add(fuzzed.post(*request))

    search()
    sound = {"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "2"}
    sound |= {"ce-source": "s", "ce-type": "prompt", "ce-subject": "acme"}
    assert fuzzed.post(sound, b'{"tokens": 3, "model": "a"}') == 204
    assert min(statuses) >= 200


def test_a_damaged_catalog_is_applied_or_refused(fuzzed: Fuzzed) -> None:
    """Also what the parser lets through has to fit into the database."""
    apply = fuzzed.dispatch.routes["/enforcer.v1.CatalogService/Apply"]
    deadline = time.monotonic() + SECONDS
    codes: set[int] = set()

    @given(damaged())
    def search(text: str) -> None:
        if time.monotonic() < deadline:
            request = apply.request(document=text.encode(errors="replace"), file_name="c.yaml")
            codes.add(fuzzed.ask(apply, request.SerializeToString()))

    search()
    assert 3 in codes
