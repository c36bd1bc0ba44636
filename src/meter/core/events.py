"""A usage record as a CloudEvent in JSON: what Kafka carries. docs/records.md is its public description.

The event is whole: the bytes of the outbox can be made again from it. Three kinds of events share a topic:

- `io.metergate.record.v1`      a record: its body as it came, its effects by name
- `io.metergate.unreadable.v1`  the place of a record whose body or effects cannot be read, and its bytes
- `io.metergate.fresh.v1`       no record: all that the named buckets had decided before a time lies before it

Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from meter.core.records import ENTRY, HEADER, VERSION, Body, RecordType
from meter.core.sequence import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONTENT_TYPE", "Fresh", "Record", "decode", "encode", "encode_fresh"]

CONTENT_TYPE = b"application/cloudevents+json; charset=UTF-8"
"""Of every message, as the Kafka binding of CloudEvents wants it."""

RECORD = "io.metergate.record.v1"
UNREADABLE = "io.metergate.unreadable.v1"
FRESH = "io.metergate.fresh.v1"
LATEST = 253_402_300_799_999
"""The last millisecond that has a date of four digits."""

_MOST = 2**53
_PLACE = "/metergate/buckets/"


class Record(NamedTuple):
    """A record and the bucket whose sequence it belongs to."""

    bucket: int
    entry: Entry


class Fresh(NamedTuple):
    """All that a bucket had decided before its time, in ms, lies before this event."""

    buckets: Mapping[int, int]


class _Change(msgspec.Struct, frozen=True, gc=False):
    limit: int
    period: int
    used: int
    held: int


class _Data(msgspec.Struct, frozen=True, gc=False):
    kind: str
    now: int
    granted: int
    overage: int
    reason: int
    count: int
    quantity: int
    extra: int
    changes: list[_Change]
    body: msgspec.Raw


class _Bytes(msgspec.Struct, frozen=True):
    body: str
    effects: str


class _Buckets(msgspec.Struct, frozen=True):
    fresh: dict[str, int]


class _Event(msgspec.Struct, frozen=True, gc=False):
    """What is read of an event; the other attributes are for other readers."""

    id: str
    source: str
    type: str
    data: msgspec.Raw


HEAD = (
    b'{"specversion":"1.0","id":"%d-%d","source":"/metergate/buckets/%d",'
    b'"type":"io.metergate.record.v1","subject":%s,"time":"%s.%03dZ",'
    b'"datacontenttype":"application/json","data":{"kind":"%s","now":%d,"granted":%d,'
    b'"overage":%d,"reason":%d,"count":%d,"quantity":%d,"extra":%d,'
)
CHANGE = b'{"limit":%d,"period":%d,"used":%d,"held":%d}'
BARE = (
    b'{"specversion":"1.0","id":"%d-%d","source":"/metergate/buckets/%d",'
    b'"type":"io.metergate.unreadable.v1","data":{"body":"%s","effects":"%s"}}'
)

_KINDS = {kind.value: kind.name.lower().encode() for kind in RecordType}
_NUMBERS = {name.decode(): number for number, name in _KINDS.items()}
_bodies = msgspec.json.Decoder(Body)
_events = msgspec.json.Decoder(_Event)
_data = msgspec.json.Decoder(_Data)
_bytes = msgspec.json.Decoder(_Bytes)
_buckets = msgspec.json.Decoder(_Buckets)
_text = msgspec.json.Encoder().encode


@lru_cache(maxsize=1024)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


@lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}".encode()


def encode(bucket: int, entry: Entry) -> bytes:
    """The event of a record. Whatever its bytes are, `decode` gives them back."""
    readable = _readable(entry)
    if readable is None:
        return BARE % (
            entry.generation,
            entry.sequence,
            bucket,
            b64encode(entry.body),
            b64encode(entry.effects),
        )
    subject, values = readable
    now = values[2]
    return _template(len(values)) % (
        entry.generation,
        entry.sequence,
        bucket,
        subject,
        _second(now // 1000),
        now % 1000,
        _KINDS[values[1]],
        *values[2:],
        entry.body,
    )


@lru_cache(maxsize=1024)
def _template(count: int) -> bytes:
    """The event of a record with that many numbers in its effects."""
    changes = b",".join([CHANGE] * ((count - HEADER) // ENTRY))
    return HEAD + b'"changes":[' + changes + b'],"body":%s}}'


def _readable(entry: Entry) -> tuple[bytes, tuple[int, ...]] | None:
    """Subject and effects of a record that can be written by name and read back, else None."""
    values = _integers(entry.effects)
    if not values or values[0] != VERSION or values[1] not in _KINDS:
        return None
    # White space around a body would not come back.
    if not 0 <= values[2] <= LATEST or entry.body[:1] != b"{" or entry.body[-1:] != b"}":
        return None
    try:
        if not entry.body.isascii():
            entry.body.decode()
        return _text(_bodies.decode(entry.body).c), values
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _integers(effects: bytes) -> tuple[int, ...]:
    """The doubles as integers that give the same bytes again; nothing if they are none, or too few."""
    count, rest = divmod(len(effects), 8)
    if rest or count < HEADER or (count - HEADER) % ENTRY:
        return ()
    doubles = _doubles(count)
    try:
        values = tuple(map(int, doubles.unpack(effects)))
    except (ValueError, OverflowError):  # not a number, or infinite
        return ()
    exact = max(values) <= _MOST and min(values) >= -_MOST and doubles.pack(*values) == effects
    return values if exact else ()


def encode_fresh(at: datetime, buckets: Mapping[int, int]) -> bytes:
    """The event that says up to when, in ms, each bucket's records lie before it."""
    return _text(
        {
            "specversion": "1.0",
            "id": f"fresh-{at.timestamp():.6f}",
            "source": "/metergate/relay",
            "type": FRESH,
            "time": at.isoformat(),
            "data": {"fresh": {str(bucket): ms for bucket, ms in buckets.items()}},
        }
    )


def decode(value: bytes) -> Record | Fresh:
    """Read an event. Raise `ValueError` saying why it is none of ours."""
    event = _events.decode(value)
    if event.type == RECORD:
        bucket, generation, sequence = _identity(event)
        data = _data.decode(event.data)
        number = _NUMBERS.get(data.kind)
        if number is None:
            raise ValueError(f"a record of the unknown kind {data.kind!r}")
        values = [VERSION, number, data.now, data.granted, data.overage, data.reason]
        values += (data.count, data.quantity, data.extra)
        for change in data.changes:
            values += (change.limit, change.period, change.used, change.held)
        try:
            effects = _doubles(len(values)).pack(*values)
        except OverflowError as error:
            raise ValueError("a number is beyond a double") from error
        return Record(bucket, Entry(generation, sequence, bytes(data.body), effects))
    if event.type == UNREADABLE:
        bucket, generation, sequence = _identity(event)
        raw = _bytes.decode(event.data)
        body = b64decode(raw.body, validate=True)
        return Record(
            bucket, Entry(generation, sequence, body, b64decode(raw.effects, validate=True))
        )
    if event.type == FRESH:
        fresh = _buckets.decode(event.data).fresh
        return Fresh({int(bucket): ms for bucket, ms in fresh.items()})
    raise ValueError(f"an event of the unknown type {event.type!r}")


def _identity(event: _Event) -> tuple[int, int, int]:
    """Bucket, generation and sequence."""
    generation, _, sequence = event.id.partition("-")
    bucket = event.source.removeprefix(_PLACE)
    if not (generation.isdecimal() and sequence.isdecimal() and bucket.isdecimal()):
        raise ValueError(f"the event {event.id!r} of {event.source!r} names no record")
    return int(bucket), int(generation), int(sequence)
