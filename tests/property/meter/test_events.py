"""A record comes out of Kafka as it went in, whatever its bytes; what is none is refused with a reason."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter.core.events import Fresh, Record, decode, encode, encode_fresh
from meter.core.records import (
    Body,
    Effect,
    Effects,
    RecordType,
    decode_body,
    decode_effects,
    encode_body,
    encode_effects,
)
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


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def plain(bucket: int, entry: Entry) -> bytes:
    """The event as its description says it, made of a dict."""
    place = {
        "specversion": "1.0",
        "id": f"{entry.generation}-{entry.sequence}",
        "source": f"/metergate/buckets/{bucket}",
    }
    try:
        effect = decode_effects(entry.effects)
        subject = decode_body(entry.body).c
        entry.body.decode()
        values = struct.unpack(f"<{len(entry.effects) // 8}d", entry.effects)
        assert encode_effects(effect) == entry.effects
        assert max(map(abs, values)) <= 2**53
        assert 0 <= effect.now <= 253_402_300_799_999
        assert entry.body == entry.body.strip()
    except (ValueError, OverflowError, AssertionError):
        data = {"body": entry.body, "effects": entry.effects}
        told = {name: b64encode(value).decode() for name, value in data.items()}
        return compact(place | {"type": "io.metergate.unreadable.v1", "data": told})
    at = datetime.fromtimestamp(effect.now // 1000, UTC)
    event = place | {
        "type": "io.metergate.record.v1",
        "subject": subject,
        "time": f"{at:%Y-%m-%dT%H:%M:%S}.{effect.now % 1000:03}Z",
        "datacontenttype": "application/json",
        "data": {
            "kind": effect.type.name.lower(),
            "now": effect.now,
            "granted": effect.granted,
            "overage": effect.overage,
            "reason": effect.reason,
            "count": effect.count,
            "quantity": effect.quantity,
            "extra": effect.extra,
            "changes": [
                {"limit": one.limit, "period": one.period, "used": one.used, "held": one.held}
                for one in effect.entries
            ],
        },
    }
    return compact(event)[:-2] + b',"body":' + entry.body + b"}}"


@given(st.integers(0, 65_535), readable | odd)
def test_an_event_is_written_as_it_is_described(bucket: int, entry: Entry) -> None:
    assert encode(bucket, entry) == plain(bucket, entry)


NUMBERS = ("now", "granted", "overage", "reason", "count", "quantity", "extra")
wrong: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "x", "usage", [], {}, [{}], 7, "io.metergate.fresh.v1"]
)


def told_by(event: dict[str, Any]) -> tuple[int, int, int, bytes]:
    """Bucket, place and effects of a record's event, read from a dict; `ValueError` if it is none."""
    data = event["data"]
    if event["type"] != "io.metergate.record.v1" or type(data) is not dict:
        raise ValueError("another type")
    changes = data["changes"]
    if type(changes) is not list or any(type(one) is not dict for one in changes):
        raise ValueError("no changes")
    numbers = tuple(data[name] for name in NUMBERS)
    entries = [[one[name] for name in ("limit", "period", "used", "held")] for one in changes]
    if {type(number) for number in chain(numbers, *entries)} != {int}:
        raise ValueError("no number")
    kind = RecordType[data["kind"].upper()]
    if data["kind"] != kind.name.lower():
        raise ValueError("no kind")
    generation, sequence = map(int, event["id"].split("-"))
    bucket = int(event["source"].removeprefix("/metergate/buckets/"))
    data["body"]
    made = Effects(
        kind, **dict(zip(NUMBERS, numbers, strict=True)), entries=tuple(Effect(*e) for e in entries)
    )
    return bucket, generation, sequence, encode_effects(made)


@given(st.integers(0, 65_535), readable, st.data())
def test_whoever_wrote_an_event_it_is_read_as_it_is_described(
    bucket: int, entry: Entry, data: st.DataObject
) -> None:
    event = json.loads(encode(bucket, entry))
    for _ in range(data.draw(st.integers(0, 2))):
        inner = event["data"] if type(event.get("data")) is dict else event
        holder = data.draw(st.sampled_from([event, inner]))
        name = data.draw(st.sampled_from(sorted(holder) or ["id"]))
        if data.draw(st.booleans()):
            holder[name] = data.draw(wrong)
        else:
            holder.pop(name, None)
    if data.draw(st.booleans()):
        event = dict(reversed(event.items()))
    text = json.dumps(event, indent=data.draw(st.sampled_from([None, 1]))).encode()
    try:
        expected = told_by(event)
    except (ValueError, KeyError, TypeError, AttributeError):
        if event.get("type") == "io.metergate.fresh.v1" and "fresh" in (event.get("data") or ()):
            return
        with pytest.raises(ValueError, match=r".+"):
            decode(text)
        return
    read = decode(text)
    assert isinstance(read, Record)
    assert (read.bucket, *read.entry[:2], read.entry.effects) == expected
    assert json.loads(read.entry.body) == event["data"]["body"]


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
