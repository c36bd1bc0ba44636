"""What a request may contain: every bound of the protos, each broken one with its own named error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from enforcer.core.model import MAX_QUANTITY
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = [
    "MODES",
    "dimensions_of",
    "key_of",
    "mode_of",
    "named",
    "parsed",
    "quantity_of",
    "time_of",
    "ttl_of",
]

MOST_DIMENSIONS = 16
LONGEST_NAME = 64
LONGEST_VALUE = 256
LONGEST_KEY = 256
LONGEST_CUSTOMER = 128
NANOS = 1_000_000_000
MODES = {
    0: Mode.ENFORCE,
    1: Mode.ENFORCE,
    2: Mode.CHECK_ONLY,
    3: Mode.BEST_EFFORT,
    4: Mode.RECORD_ONLY,
}


AnyMessage = TypeVar("AnyMessage", bound=Message)


def parsed(kind: type[AnyMessage], data: bytes) -> AnyMessage:
    """The message that these bytes are."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(
            "BAD_MESSAGE", f"the request is no {kind.DESCRIPTOR.full_name}"
        ) from error


def named(customer: str, feature: str) -> None:
    """Both have to be there, and be no longer than a catalog allows."""
    if not 0 < len(customer) <= LONGEST_CUSTOMER:
        raise InvalidRequestError(
            "BAD_CUSTOMER", f"customer must have 1 to {LONGEST_CUSTOMER} characters"
        )
    if not 0 < len(feature) <= LONGEST_CUSTOMER:
        raise InvalidRequestError(
            "BAD_FEATURE", f"feature must have 1 to {LONGEST_CUSTOMER} characters"
        )


def quantity_of(quantity: int | None, least: int = 1) -> int:
    """Absent means 1."""
    if quantity is None:
        return 1
    if not least <= quantity <= MAX_QUANTITY:
        raise InvalidRequestError(
            "BAD_QUANTITY",
            f"quantity is {quantity}, must be from {least} to {MAX_QUANTITY}",
            quantity=str(quantity),
        )
    return quantity


def mode_of(mode: int) -> Mode:
    """Absent means ENFORCE."""
    known = MODES.get(mode)
    if known is None:
        raise InvalidRequestError(
            "UNKNOWN_MODE",
            f"mode {mode} is unknown; known: 1 ENFORCE, 2 CHECK_ONLY, 3 BEST_EFFORT, 4 RECORD_ONLY",
            mode=str(mode),
        )
    return known


def dimensions_of(dimensions: Mapping[str, str]) -> dict[str, str]:
    """Sorted, so that a retry has the same fingerprint."""
    if not dimensions:
        return {}
    if len(dimensions) > MOST_DIMENSIONS:
        raise InvalidRequestError(
            "BAD_DIMENSIONS", f"{len(dimensions)} dimensions, at most {MOST_DIMENSIONS} are allowed"
        )
    for name, value in dimensions.items():
        if not 0 < len(name.encode()) <= LONGEST_NAME or len(value.encode()) > LONGEST_VALUE:
            raise InvalidRequestError(
                "BAD_DIMENSIONS",
                f"dimension {name[:LONGEST_NAME]!r}: a name has 1 to {LONGEST_NAME} bytes, "
                f"a value at most {LONGEST_VALUE}",
            )
    return dict(sorted(dimensions.items()))


def key_of(key: str) -> str:
    """At most 256 bytes."""
    if len(key) > LONGEST_KEY or (not key.isascii() and len(key.encode()) > LONGEST_KEY):
        raise InvalidRequestError(
            "BAD_IDEMPOTENCY_KEY", f"idempotency_key must have at most {LONGEST_KEY} bytes"
        )
    return key


def ttl_of(ttl: Duration | None, default_ms: int, least_ms: int, most_ms: int) -> int:
    """A time to live in ms."""
    if ttl is None:
        return default_ms
    length = ttl.ToMilliseconds()
    if not least_ms <= length <= most_ms:
        raise InvalidRequestError(
            "BAD_TTL",
            f"ttl is {length / 1000:g} s, must be from {least_ms / 1000:g} s to {most_ms / 1000:g} s",
        )
    return length


def time_of(stamp: Timestamp, field: str, oldest_ms: int, latest_ms: int) -> int:
    """A time in ms since 1970, at most so far from now."""
    # By hand: the library's own conversion raises on what is no valid time, a client's mistake like another.
    at, now = stamp.seconds * 1000 + stamp.nanos // 1_000_000, time.time_ns() // 1_000_000
    if not now - oldest_ms <= at <= now + latest_ms or not 0 <= stamp.nanos < NANOS:
        raise InvalidRequestError(
            "BAD_TIME",
            f"{field} must be at most {oldest_ms // 3_600_000} h ago and at most "
            f"{latest_ms // 60_000} min ahead",
        )
    return at
