"""Whatever is posted as an event is read or refused with a reason: nothing breaks the reader."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from enforcer.core.events import EventMeter, Measured, Unmeasurable, measure
from enforcer.core.model import MAX_QUANTITY
from enforcer.errors import REASONS, InvalidRequestError
from enforcer.gateway.cloudevents import Event, Unread, identity, read

METERS = [
    EventMeter("tokens", "prompt", ("tokens",), (("model", ("model",)),), sums=True),
    EventMeter("deep", "prompt", ("tokens", "a"), (("model", ()),), sums=False),
]
NUMBERS = [
    "1e999999999999",
    "-1e-99",
    "1.0",
    "12.000",
    "0.1",
    "9007199254740992",
    "9" * 400,
    "-0.0",
    "1E5",
]
TYPES = [
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/json",
    "text/plain",
    "",
]
TEXT = st.text(max_size=8) | st.sampled_from(
    ["1.0", "prompt", "2026-11-24T12:00:00Z", "1e9999", "\ud800", "\0"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "data",
    "data_base64",
    "datacontenttype",
]
SOUND = {"specversion": "1.0", "id": "1", "source": "s", "type": "prompt", "subject": "acme"}


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """A sound event with some members that are not."""
    changed = draw(st.dictionaries(st.sampled_from(NAMES) | TEXT, JSON, max_size=4))
    tokens = draw(st.sampled_from(["data", "none"]))
    event: dict[str, Any] = {**SOUND, **changed}
    if tokens == "data":
        event["data"] = {"tokens": draw(JSON), "model": draw(JSON), "quantity": draw(JSON)}
    return event


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON of one event or several, perhaps damaged."""
    content = draw(events() | st.lists(events(), max_size=3) | JSON)
    raw = json.dumps(content).encode()
    if draw(st.booleans()):
        return raw
    place = draw(st.integers(0, len(raw)))
    put = draw(st.binary(max_size=4) | st.sampled_from(NUMBERS).map(str.encode))
    return raw[:place] + put + raw[place + draw(st.integers(0, 6)) :]


@given(
    kind=st.sampled_from(TYPES) | st.text(max_size=20),
    more=st.dictionaries(
        st.sampled_from([f"ce-{name}" for name in NAMES]),
        st.text(st.characters(max_codepoint=255), max_size=20) | TEXT.filter(str.isascii),
        max_size=7,
    ),
    body=bodies() | st.binary(max_size=50),
)
@example(TYPES[0], {}, b'{"a":' * 50_000)
@example(TYPES[0], {}, json.dumps({**SOUND, "data": {"tokens": "1" * 5000}}).encode())
@example(TYPES[2], {f"ce-{name}": value for name, value in SOUND.items()}, b'{"tokens": 1e400}')
def test_a_request_is_read_or_refused(kind: str, more: dict[str, str], body: bytes) -> None:
    try:
        found = read({"content-type": kind, **more}, body)
    except InvalidRequestError as error:
        named(error.reason, error.message)
        return
    for event in found:
        if isinstance(event, Unread):
            assert event.error.reason in REASONS
            event.error.message.encode()
            continue
        assert event.subject
        assert len(identity(event).encode()) <= 256
        for meters in ([], METERS):
            for one in measured(event, meters):
                assert 0 <= one.quantity <= MAX_QUANTITY
                for name, value in one.dimensions.items():
                    (name + value).encode()


def measured(event: Event, meters: list[EventMeter]) -> list[Measured]:
    try:
        return measure(event.type, event.data, meters)
    except Unmeasurable as error:
        named(error.reason, error.message)
        return []


def named(reason: str, message: str) -> None:
    """A refusal is one of those that docs/errors.md lists, in words that can be sent."""
    assert reason in REASONS
    message.encode()
