"""The three modes of CloudEvents over HTTP, and what each refuses."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pytest

from enforcer.errors import InvalidRequestError
from enforcer.gateway.cloudevents import Event, Unread, identity, read

STRUCTURED = {"content-type": "application/cloudevents+json; charset=UTF-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "gateway",
    "type": "prompt",
    "subject": "acme",
    "time": "2026-11-24T12:00:00.5+01:00",
    "data": {"tokens": 12, "part": 0.5},
}
READ = Event(
    "1", "gateway", "prompt", "acme", 1_795_518_000_500, {"tokens": 12, "part": Decimal("0.5")}
)


def body(event: Any) -> bytes:
    return json.dumps(event).encode()


def refused(headers: dict[str, str], content: bytes) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        read(headers, content)
    return caught.value.reason, caught.value.message


def test_structured() -> None:
    assert read(STRUCTURED, body(EVENT)) == [READ]
    assert read({"content-type": "application/json"}, body(EVENT)) == [READ]


def test_data_in_base64() -> None:
    event = {name: value for name, value in EVENT.items() if name != "data"}
    event["data_base64"] = base64.b64encode(body(EVENT["data"])).decode()
    assert read(STRUCTURED, body(event)) == [READ]
    assert refused(STRUCTURED, body({**event, "data": 1}))[0] == "BAD_EVENT"
    for wrong in ("%", 5, None, ["a"], "ü"):
        assert refused(STRUCTURED, body({**event, "data_base64": wrong}))[0] == "BAD_EVENT"


def test_binary() -> None:
    headers = {f"ce-{name}": value for name, value in EVENT.items() if name != "data"}
    headers["content-type"] = "application/json"
    assert read(headers, body(EVENT["data"])) == [READ]
    assert read({**headers, "content-type": "text/plain"}, b"")[0] == Event(
        "1", "gateway", "prompt", "acme", READ.at_ms, None
    )
    assert refused({**headers, "content-type": "text/plain"}, b"12")[0] == "BAD_CONTENT_TYPE"


def test_header_values_are_percent_encoded() -> None:
    headers = {f"ce-{name}": value for name, value in EVENT.items() if name != "data"}
    found = read({**headers, "ce-subject": "M%C3%BCller%20%22x%22"}, b"")[0]
    assert isinstance(found, Event)
    assert found.subject == 'Müller "x"'
    quoted = read({**headers, "ce-subject": '"a\\"b"'}, b"")[0]
    assert isinstance(quoted, Event)
    assert quoted.subject == 'a"b'
    assert refused({**headers, "ce-subject": "%ff"}, b"")[0] == "BAD_EVENT"


def test_a_batch_reads_what_is_sound_and_names_what_is_not() -> None:
    good, bad, worse = read(BATCH, body([EVENT, {**EVENT, "id": "2", "type": ""}, 5]))
    assert good == READ
    assert isinstance(bad, Unread)
    assert (bad.id, bad.source, bad.error.reason) == ("2", "gateway", "BAD_EVENT")
    assert "type" in bad.error.message
    assert isinstance(worse, Unread)
    assert worse.id == ""
    assert read(BATCH, b"[]") == []
    assert read({"content-type": "application/json"}, body([EVENT])) == [READ]
    assert refused(BATCH, body(EVENT))[0] == "BAD_JSON"
    assert refused(BATCH, body([EVENT] * 1001))[0] == "BAD_BATCH"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "subject"])
def test_what_is_required_is_named_when_it_is_missing(name: str) -> None:
    wrongs: list[Any] = [None, "", 5, {}]
    for wrong in wrongs:
        reason, message = refused(STRUCTURED, body({**EVENT, name: wrong}))
        assert (reason, message.split(" ")[0]) == ("BAD_EVENT", name)


def test_another_version_is_refused() -> None:
    assert refused(STRUCTURED, body({**EVENT, "specversion": "0.3"}))[0] == "BAD_EVENT"


@pytest.mark.parametrize(
    "moment",
    ["2026-11-24", "2026-11-24T12:00:00", "2026-11-24 12:00:00Z", "2026-13-24T12:00:00Z",
     "2026-11-24T12:00:61Z", "0001-01-01T00:00:00+14:00", "1969-01-01T00:00:00Z", 5, "now", ""],
)  # fmt: skip
def test_a_time_names_its_zone(moment: Any) -> None:
    assert refused(STRUCTURED, body({**EVENT, "time": moment}))[0] == "BAD_TIME"


def test_an_event_may_name_no_time() -> None:
    found = read(STRUCTURED, body({**EVENT, "time": None}))[0]
    assert isinstance(found, Event)
    assert found.at_ms == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000, b'{"a": 1e99999999999999999999}',
     b'{"a": ' + b"9" * 5000 + b"}", b'{"id": "\\ud800"}', b'{"\\udfff": 1}', b"1 2"],
)  # fmt: skip
def test_what_is_no_json_is_refused(content: bytes) -> None:
    assert refused(STRUCTURED, content)[0] == "BAD_JSON"


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/cloudevents+avro", "application/cloudevents+json; charset=latin-1",
     "multipart/form-data"],
)  # fmt: skip
def test_other_content_types_are_refused(kind: str) -> None:
    assert refused({"content-type": kind}, body(EVENT))[0] == "BAD_CONTENT_TYPE"


def test_no_two_names_of_events_give_one_key() -> None:
    def key(source: str, number: str) -> str:
        return identity(Event(number, source, "t", "s", 0, None))

    assert key("a:b", "c") != key("a", "b:c")
    long = key("s" * 300, "1")
    assert len(long) <= 256
    assert long != key("s" * 300, "2")
    assert key("s" * 300, "1") == long
