"""A record comes out of Kafka as it went in, whatever its bytes; what is none is refused with a reason."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.core.events import Fresh, Record, decode, encode, encode_fresh
from meter.core.records import Body, Effect, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry

quantities = st.integers(-(2**53), 2**53)
texts = st.text(max_size=20)
bodies = st.builds(
    Body,
    *[texts] * 5,
    q=quantities,
    k=texts,
    d=st.dictionaries(texts, texts, max_size=3),
    at=st.integers(0, 2**53),
    id=texts,
    h=texts,
)
effects = st.builds(
    Effects,
    st.sampled_from(RecordType),
    st.integers(0, 253_402_300_799_999),
    quantities,
    quantities,
    st.integers(0, 99),
    quantities,
    quantities,
    quantities,
    st.lists(st.builds(Effect, *[quantities] * 4), max_size=3).map(tuple),
)
places = st.tuples(st.integers(1, 2**63), st.integers(0, 2**63))
readable = st.builds(
    lambda place, body, effect: Entry(
        place[0], place[1], encode_body(body), encode_effects(effect)
    ),
    places,
    bodies,
    effects,
)
doubles = st.lists(st.floats(), max_size=20).map(
    lambda values: struct.pack(f"<{len(values)}d", *values)
)
odd = st.builds(
    lambda place, body, effect: Entry(place[0], place[1], body, effect),
    places,
    st.binary(max_size=40) | bodies.map(encode_body) | st.just(b' {"t":"x"} ') | st.just(b"{}"),
    st.binary(max_size=90) | doubles | effects.map(encode_effects),
)


@given(st.integers(0, 65_535), readable)
def test_a_record_is_readable_by_anybody_and_comes_back_whole(bucket: int, entry: Entry) -> None:
    event = encode(bucket, entry)
    assert decode(event) == Record(bucket, entry)
    told = json.loads(event)
    assert told["type"] == "io.metergate.record.v1"
    assert told["specversion"] == "1.0"
    assert told["data"]["body"] == json.loads(entry.body)
    assert told["subject"] == json.loads(entry.body)["c"]
    now = datetime.fromisoformat(told["time"])
    assert abs(now.timestamp() * 1000 - told["data"]["now"]) < 1


@given(st.integers(0, 65_535), odd)
def test_bytes_that_are_no_record_keep_their_place_and_come_back_whole(
    bucket: int, entry: Entry
) -> None:
    event = encode(bucket, entry)
    json.loads(event)
    assert decode(event) == Record(bucket, entry)


@given(st.dictionaries(st.integers(0, 65_535), st.integers(0, 2**53)))
def test_freshness_comes_back(buckets: dict[int, int]) -> None:
    assert decode(encode_fresh(datetime(2026, 11, 1, tzinfo=UTC), buckets)) == Fresh(buckets)


@given(st.binary(max_size=200) | readable.map(lambda entry: encode(1, entry)[:-3]))
def test_what_is_no_event_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(value)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "com.example.other"},
        {"id": "3"},
        {"id": "-1-2"},
        {"source": "/metergate/buckets/x"},
        {"source": "/elsewhere/1"},
    ],
)
def test_an_event_that_names_no_record_is_refused(change: dict[str, str]) -> None:
    entry = Entry(
        3,
        4,
        encode_body(Body("t", "a", "c", "f", "m")),
        encode_effects(Effects(RecordType.USAGE, 5)),
    )
    event = json.loads(encode(1, entry)) | change
    with pytest.raises(ValueError, match=r"names no record|unknown type"):
        decode(json.dumps(event).encode())
