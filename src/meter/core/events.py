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
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from meter.core.records import ENTRY, HEADER, VERSION, Body, RecordType
from meter.core.sequence import Entry
from meter.core.traced import traceparent_of

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
    changes: msgspec.Raw
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


class _Told(msgspec.Struct, frozen=True, gc=False):
    """The event of a record, read at once."""

    id: str
    source: str
    type: Literal["io.metergate.record.v1"]
    data: _Data


EVENT = (
    b'{"specversion":"1.0","id":"%d-%d","source":"/metergate/buckets/%d",'
    b'"type":"io.metergate.record.v1","subject":%b,"time":"%b%02d.%03dZ",'
    b'"datacontenttype":"application/json","data":{"kind":"%b","now":%d,%b,"changes":[%b],"body":%b}}'
)
AMOUNTS = b'"granted":%d,"overage":%d,"reason":%d,"count":%d,"quantity":%d,"extra":%d'
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
_changes = msgspec.json.Decoder(list[_Change]).decode
_told = msgspec.json.Decoder(_Told).decode
_bytes = msgspec.json.Decoder(_Bytes)
_buckets = msgspec.json.Decoder(_Buckets)
_text = msgspec.json.Encoder().encode


# The effects of a record are cut into what repeats: `now` apart from the header, and each change.
_NOW, _FIRST, _CHANGED = struct.Struct("<d"), struct.Struct("<8d"), struct.Struct(f"<{ENTRY}d")
_WHOLE = struct.Struct(f"<{HEADER}d")
_NOW_AT, _NOW_END, _CHANGES_AT = 16, 24, HEADER * 8
REMEMBERED = 32_768
"""Pieces of events that are kept to be written again."""


@lru_cache(maxsize=1024)
def _minute(minutes: int) -> bytes:
    return f"{datetime.fromtimestamp(minutes * 60, UTC):%Y-%m-%dT%H:%M:}".encode()


def encode(bucket: int, entry: Entry) -> bytes:
    """The event of a record. Whatever its bytes are, `decode` gives them back."""
    generation, sequence, body, effects = entry
    # White space around a body would not come back.
    if body[:1] == b"{" and body[-1:] == b"}" and len(effects) >= _CHANGES_AT:
        (now,) = _NOW.unpack_from(effects, _NOW_AT)
        kind, amounts = _header(effects[:_NOW_AT] + effects[_NOW_END:_CHANGES_AT])
        changes = [
            _change(effects[at : at + 32]) for at in range(_CHANGES_AT, len(effects), ENTRY * 8)
        ]
        subject = _subject(body)
        if kind and subject and 0 <= now <= LATEST and all(changes):
            ms = int(now)
            if _NOW.pack(ms) == effects[_NOW_AT:_NOW_END]:
                minutes, rest = divmod(ms, 60_000)
                event = EVENT % (
                    generation,
                    sequence,
                    bucket,
                    subject,
                    _minute(minutes),
                    rest // 1000,
                    rest % 1000,
                    kind,
                    ms,
                    amounts,
                    b",".join(changes),
                    body,
                )
                if traceparent := traceparent_of(body):
                    # CloudEvents' extension "distributed tracing"; what is read back is the body's.
                    return b'%b,"traceparent":%b}' % (event[:-1], _text(traceparent))
                return event
    return BARE % (generation, sequence, bucket, b64encode(body), b64encode(effects))


@lru_cache(maxsize=REMEMBERED)
def _header(packed: bytes) -> tuple[bytes, bytes]:
    """Kind and amounts of a header without its `now`; both empty when they would not come back."""
    values = _integers(_FIRST, packed)
    if not values or values[0] != VERSION or values[1] not in _KINDS:
        return b"", b""
    return _KINDS[values[1]], AMOUNTS % values[2:]


@lru_cache(maxsize=REMEMBERED)
def _change(packed: bytes) -> bytes:
    """A change of a counter by name; empty when it would not come back."""
    values = _integers(_CHANGED, packed)
    return CHANGE % values if values else b""


def _subject(body: bytes) -> bytes:
    """Whose record it is, as JSON; empty when the body is none."""
    try:
        if not body.isascii():
            body.decode()
        return _text(_bodies.decode(body).c)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""


def _integers(form: struct.Struct, packed: bytes) -> tuple[int, ...]:
    """The doubles as integers that give the same bytes again; nothing if they are none, or too few."""
    try:
        values = tuple(map(int, form.unpack(packed)))
    except (struct.error, ValueError, OverflowError):  # cut off; not a number, or infinite
        return ()
    exact = max(values) <= _MOST and min(values) >= -_MOST and form.pack(*values) == packed
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
    try:
        event = _told(value)
    except msgspec.ValidationError:
        return _decode_other(value)
    data = event.data
    number = _NUMBERS.get(data.kind)
    if number is None:
        raise ValueError(f"a record of the unknown kind {data.kind!r}")
    try:
        effects = _WHOLE.pack(
            VERSION,
            number,
            data.now,
            data.granted,
            data.overage,
            data.reason,
            data.count,
            data.quantity,
            data.extra,
        ) + _packed(bytes(data.changes))
    except OverflowError as error:
        raise ValueError("a number is beyond a double") from error
    bucket, generation, sequence = _identity(event)
    return Record(bucket, Entry(generation, sequence, bytes(data.body), effects))


@lru_cache(maxsize=REMEMBERED)
def _packed(changes: bytes) -> bytes:
    """The effects that a list of changes was made of."""
    return b"".join(
        _CHANGED.pack(one.limit, one.period, one.used, one.held) for one in _changes(changes)
    )


def _decode_other(value: bytes) -> Record | Fresh:
    """Read an event that is no sound record: of another type, or none of ours."""
    event = _events.decode(value)
    if event.type == RECORD:
        _identity(event)
        _data.decode(event.data)  # raises: its data are wrong, else it had been read
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


def _identity(event: _Event | _Told) -> tuple[int, int, int]:
    """Bucket, generation and sequence."""
    generation, _, sequence = event.id.partition("-")
    bucket = _bucket(event.source)
    if bucket is None or not (generation.isdecimal() and sequence.isdecimal()):
        raise ValueError(f"the event {event.id!r} of {event.source!r} names no record")
    return bucket, int(generation), int(sequence)


@lru_cache(maxsize=4096)
def _bucket(source: str) -> int | None:
    bucket = source.removeprefix(_PLACE)
    return int(bucket) if bucket.isdecimal() else None
