"""CloudEvents 1.0 over HTTP, read: structured, binary and batched JSON. Whatever is sent is read or refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from enforcer.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_EVENTS", "Event", "Unread", "identity", "read"]

MOST_EVENTS = 1_000
LONGEST_KEY = 256
"""Bytes of an idempotency key."""
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_JSON = re.compile(r"application/json|[a-z0-9.+-]+/[a-z0-9.-]+\+json|text/json")
_TIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.IGNORECASE | re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype")
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `at_ms` is 0 when it names no time; numbers in `data` with a point or exponent are `Decimal`."""

    id: str
    source: str
    type: str
    subject: str
    at_ms: int
    data: Any


@dataclass(frozen=True, slots=True)
class Unread:
    """An event of a batch that is none, with as much of its name as could be read."""

    id: str
    source: str
    error: InvalidRequestError


def read(headers: Mapping[str, str], body: bytes) -> list[Event | Unread]:
    """The events of a request, in their order. `headers` have lower-case names.

    Raise `InvalidRequestError` when the request as a whole is wrong, which a single event also is.
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise _type_refused(f"charset {charset[1][:40]!r} is not supported, only UTF-8")
    if "ce-specversion" in headers and kind not in (_STRUCTURED, _BATCH):
        return [_binary(headers, kind, body)]
    if kind not in (_STRUCTURED, _BATCH, "application/json"):
        raise _type_refused(
            f"content-type {kind[:100]!r} is not supported: send {_STRUCTURED}, {_BATCH}, "
            "application/json, or ce-* headers with JSON"
        )
    content = _json(body)
    if kind == _BATCH or (kind == "application/json" and isinstance(content, list)):
        if not isinstance(content, list):
            raise InvalidRequestError("BAD_JSON", "a batch is a JSON array of events")
        if len(content) > MOST_EVENTS:
            raise InvalidRequestError(
                "BAD_BATCH", f"a batch has at most {MOST_EVENTS} events, not {len(content)}"
            )
        return [_one_of_batch(one) for one in content]
    return [_event(content)]


def identity(event: Event) -> str:
    """The idempotency key: (source, id) names an event, and no two pairs give the same key."""
    plain = f"ce:{len(event.source)}:{event.source}:{event.id}"
    raw = plain.encode()
    return plain if len(raw) <= LONGEST_KEY else f"ce#{hashlib.sha256(raw).hexdigest()}"


def _one_of_batch(content: Any) -> Event | Unread:
    try:
        return _event(content)
    except InvalidRequestError as error:
        names = {}
        for name in ("id", "source"):
            value = content.get(name) if isinstance(content, dict) else None
            names[name] = value[:LONGEST_KEY] if isinstance(value, str) else ""
        return Unread(names["id"], names["source"], error)


def _event(content: Any) -> Event:
    if not isinstance(content, dict):
        raise _bad("an event is a JSON object")
    data = content.get("data")
    if "data_base64" in content:
        if data is not None:
            raise _bad("data and data_base64 stand for the same: send one of them")
        data = _encoded(content["data_base64"])
    return _made({name: content.get(name) for name in _ATTRIBUTES}, data)


def _binary(headers: Mapping[str, str], kind: str, body: bytes) -> Event:
    attributes = {
        name: _header(name, headers[f"ce-{name}"])
        for name in _ATTRIBUTES
        if f"ce-{name}" in headers
    }
    if body and not _JSON.fullmatch(kind):
        raise _type_refused(f"the data of an event must be JSON, not {kind[:100] or 'unnamed'!r}")
    return _made(attributes, _json(body) if body else None)


def _made(attributes: Mapping[str, Any], data: Any) -> Event:
    if attributes.get("specversion") != "1.0":
        raise _bad('specversion must be "1.0"')
    names = {
        name: _named(name, attributes.get(name)) for name in ("id", "source", "type", "subject")
    }
    return Event(**names, at_ms=_moment(attributes.get("time")), data=data)


def _named(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        what = "the customer" if name == "subject" else "required"
        raise _bad(f"{name} must be a text that is not empty: {what}")
    return value


def _moment(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            at = (datetime.fromisoformat(value.upper()) - _EPOCH) // _MS
        except (ValueError, OverflowError):
            at = 0
        if at > 0:
            return at
    raise InvalidRequestError(
        "BAD_TIME", "time must be of RFC 3339 after 1970, with its zone: 2026-01-31T12:00:00Z"
    )


def _header(name: str, value: str) -> str:
    """Percent-decoded UTF-8, perhaps in quotes (HTTP protocol binding, 3.1.3.2)."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeError as error:
        raise _bad(f"ce-{name} is not percent-encoded UTF-8") from error


def _encoded(value: Any) -> Any:
    try:
        raw = base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise _bad("data_base64 must be JSON in base64") from error
    return _json(raw)


def _json(raw: bytes) -> Any:
    try:
        text = raw.decode()
        content = json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
        if "\\u" in text:
            _utf8(content)
    except UnicodeError as error:
        raise InvalidRequestError("BAD_JSON", "the body is not UTF-8") from error
    except (ValueError, InvalidOperation) as error:
        said = str(error) if isinstance(error, json.JSONDecodeError) else "a number too large"
        raise InvalidRequestError("BAD_JSON", f"the body is not JSON: {said}") from error
    except RecursionError as error:
        raise InvalidRequestError("BAD_JSON", "the body is nested too deep") from error
    return content


def _no_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is no JSON", name, 0)


def _utf8(content: Any) -> None:
    """Raise `UnicodeError` for halves of characters, which JSON's escapes can write."""
    rest = [content]
    while rest:
        value = rest.pop()
        match value:
            case str():
                value.encode()
            case dict():
                rest += [*value.keys(), *value.values()]
            case list():
                rest += value


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError("BAD_EVENT", message)


def _type_refused(message: str) -> InvalidRequestError:
    return InvalidRequestError("BAD_CONTENT_TYPE", message)
