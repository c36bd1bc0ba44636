"""The trace context: read as W3C wants it, and found in a record's body."""

from __future__ import annotations

import struct

import msgspec
import pytest

from meter.core.events import Record, decode, encode
from meter.core.records import Body, Effects, RecordType, decode_body, encode_body, encode_effects
from meter.core.sequence import Entry
from meter.core.traced import read_traceparent, traceparent_of, written

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_w3c_gives_as_an_example_is_read() -> None:
    found = read_traceparent(TRACEPARENT)
    assert found == (0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, True)
    assert written(found.trace_id, found.span_id) == TRACEPARENT


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("fe", False)]
)
def test_the_first_flag_alone_says_whether_the_trace_is_wanted(flags: str, sampled: bool) -> None:
    found = read_traceparent(TRACEPARENT[:-2] + flags)
    assert found is not None
    assert found.sampled is sampled


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "ff" + TRACEPARENT[2:],
        TRACEPARENT + "-more",
        TRACEPARENT.upper(),
        TRACEPARENT.replace("-", "_"),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        TRACEPARENT + "\n",
        "\N{ARABIC-INDIC DIGIT ZERO}" + TRACEPARENT[1:],
    ],
)
def test_what_is_no_traceparent_counts_as_not_sent(wrong: str) -> None:
    assert read_traceparent(wrong) is None


def test_a_later_version_may_say_more() -> None:
    assert read_traceparent("01" + TRACEPARENT[2:] + "-more") is not None


FULL = Body(
    *("t", "a", "c", "f", "m"), 1, "k", {"d": "x"}, 5, "i", "h", 1, (1, 2), 1, "b", "w", "p", "j", 1
)


@pytest.mark.parametrize("body", [Body("t", "a", "c", "f", "m", 1), FULL])
def test_a_body_tells_its_call_whatever_else_it_has(body: Body) -> None:
    traced = encode_body(msgspec.structs.replace(body, tp=TRACEPARENT))
    assert traceparent_of(traced) == TRACEPARENT
    assert decode_body(traced).tp == TRACEPARENT
    assert traceparent_of(encode_body(body)) == ""


@pytest.mark.parametrize(
    "body",
    [
        Body("t", "a", "c", "f", "m", k=f'","tp":"{TRACEPARENT}'),
        Body("t", "a", "c", "f", "m", d={"x": "y", "tp": TRACEPARENT}),
        Body("t", "a", "c", "f", "m", w=f',"tp":"{TRACEPARENT}'),
    ],
)
def test_a_client_cannot_write_one_into_the_body(body: Body) -> None:
    assert traceparent_of(encode_body(body)) == ""


@pytest.mark.parametrize("body", [b"", b"{}", b'{"tp":"x"}', b"\xff" * 80])
def test_what_is_no_body_has_none(body: bytes) -> None:
    assert traceparent_of(body) == ""


def test_the_event_of_a_traced_record_has_the_extension_of_cloudevents() -> None:
    body = encode_body(msgspec.structs.replace(FULL, tp=TRACEPARENT))
    entry = Entry(3, 17, body, encode_effects(Effects(RecordType.USAGE, 1_790_000_100_123)))
    value = encode(5, entry)
    assert msgspec.json.decode(value)["traceparent"] == TRACEPARENT
    assert decode(value) == Record(5, entry), "not a byte of the record is changed"


def test_the_event_of_an_untraced_one_has_not() -> None:
    entry = Entry(3, 17, encode_body(FULL), struct.pack("<9d", 1, 1, 5, 0, 0, 0, 1, 0, 0))
    assert "traceparent" not in msgspec.json.decode(encode(5, entry))
