"""What every report has in common: the question's range, windows and scope, and how answers are paged."""

from __future__ import annotations

import base64
import hashlib
import hmac
from bisect import bisect_right
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from meter.core.windows import QUARTER, Window, boundaries, zone
from meter.errors import InvalidRequestError, ReportOverflowError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meter.ports.usage import Scope

__all__ = [
    "DEFAULT_PAGE",
    "MAX_NAME",
    "Pages",
    "Question",
    "Token",
    "check",
    "check_sums",
    "starts_of",
    "window_end",
]

MAX_PAGE, DEFAULT_PAGE = 10_000, 1_000
MAX_GROUPS = 4
MAX_FILTERS = 16
MAX_VALUES = 1_000
MAX_CUSTOMERS = 100_000
MAX_NAME = 1_024
"""Bytes of a name or value."""
END_OF_TIME = 2**32 - QUARTER
INT64 = 2**63 - 1

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Question:
    """As asked. Times in seconds since 1970; None: from the first record, until now."""

    scope: Scope
    window: Window = Window.WHOLE
    zone: str = ""
    start: int | None = None
    end: int | None = None
    page_size: int = 0
    page_token: str = ""

    @property
    def more(self) -> tuple[object, ...]:
        """What a kind of question has besides."""
        return ()


class Token(msgspec.Struct, Generic[K], array_like=True):
    """Where a page ended, in which range. Bound to the query by its digest."""

    query: str
    start: int
    end: int
    key: K


class Pages(Generic[K]):
    """Page tokens with keys of one kind, sealed with a secret."""

    def __init__(self, secret: bytes, key: type[K]) -> None:
        self._secret = hashlib.sha256(b"page tokens\0" + secret).digest()
        self._key = key

    def seal(self, question: Question, start: int, end: int, key: K) -> str:
        """A token that goes on after `key`."""
        data = msgspec.msgpack.encode(Token(_digest(question), start, end, key))
        return base64.urlsafe_b64encode(self._mac(data) + data).decode()

    def open(self, question: Question) -> Token[K] | None:
        """What the question's token says; None without one. Raise `InvalidRequestError`."""
        if not question.page_token:
            return None
        try:
            sealed = base64.urlsafe_b64decode(question.page_token.encode())
        except ValueError:
            sealed = b""
        data = sealed[16:]
        if not hmac.compare_digest(sealed[:16], self._mac(data)):
            raise InvalidRequestError("PAGE_TOKEN_INVALID", "page_token is none of ours")
        token: Token[K] | None = None
        if msgspec.msgpack.decode(data)[0] == _digest(question):
            token = msgspec.msgpack.decode(data, type=Token[self._key])  # type: ignore[name-defined]
        if token is None:
            raise InvalidRequestError(
                "PAGE_TOKEN_INVALID",
                "page_token belongs to another query: only page_size may differ",
            )
        return token

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")[:16]


def _digest(question: Question) -> str:
    """What a page token is bound to: everything of the question but the page."""
    data = msgspec.json.encode(
        [
            *(type(question).__name__, astuple(question.scope), question.window.name),
            *(question.zone, question.start, question.end, question.more),
        ]
    )
    return hashlib.sha256(data).hexdigest()[:32]


def starts_of(question: Question, start: int, end: int, most: int) -> Sequence[int]:
    """Where the windows of `[start, end)` begin. Raise `InvalidRequestError` when there are too many."""
    try:
        return boundaries(start, end, question.window, zone(question.zone), most)
    except ValueError as error:
        raise InvalidRequestError("TOO_MANY_WINDOWS", f"window: {error}") from error


def window_end(start: int, starts: Sequence[int], end: int) -> int:
    """Where the window that begins at `start` ends."""
    at = bisect_right(starts, start)
    return starts[at] if at < len(starts) else end


def check_sums(numbers: Iterable[int]) -> None:
    """Raise `ReportOverflowError` for a sum that no int64 holds."""
    for number in numbers:
        if number > INT64:
            raise ReportOverflowError(
                "a sum is beyond 2^63 - 1: ask for smaller windows or fewer customers"
            )


def check(question: Question) -> None:
    """Raise `InvalidRequestError` with the reason of the first fault found."""
    _check_range(question)
    if not 0 <= question.page_size <= MAX_PAGE:
        raise InvalidRequestError("PAGE_SIZE_INVALID", f"page_size must be 1 to {MAX_PAGE}")
    try:
        zone(question.zone)
    except ValueError as error:
        raise InvalidRequestError("ZONE_UNKNOWN", f"zone: {error}", zone=question.zone) from error
    _check_scope(question.scope)


def _check_range(question: Question) -> None:
    for name, value in (("start", question.start), ("end", question.end)):
        if value is None:
            continue
        if value % QUARTER:
            raise InvalidRequestError(
                "TIME_OFF_QUARTER_HOUR", f"{name} must be on a quarter hour", field=name
            )
        if not 0 <= value <= END_OF_TIME:
            raise InvalidRequestError(
                "TIME_OUT_OF_RANGE", f"{name} must be in the years 1970 to 2106", field=name
            )
    if question.start is not None and question.end is not None and question.start >= question.end:
        raise InvalidRequestError("RANGE_EMPTY", "start must be before end")


def _check_scope(scope: Scope) -> None:
    if len(scope.group_by) > MAX_GROUPS:
        raise InvalidRequestError("TOO_MANY_DIMENSIONS", f"group_by: at most {MAX_GROUPS}")
    if len(set(scope.group_by)) != len(scope.group_by):
        raise InvalidRequestError("DIMENSION_REPEATED", "group_by names a dimension twice")
    if len(scope.filters) > MAX_FILTERS:
        raise InvalidRequestError("TOO_MANY_FILTERS", f"filters: at most {MAX_FILTERS}")
    if len(scope.customers) > MAX_CUSTOMERS:
        raise InvalidRequestError("TOO_MANY_CUSTOMERS", f"customers: at most {MAX_CUSTOMERS}")
    for dimension, values in scope.filters:
        if not 0 < len(values) <= MAX_VALUES:
            raise InvalidRequestError(
                "FILTER_VALUES_INVALID", f"filters: 1 to {MAX_VALUES} values", dimension=dimension
            )
    names = (*scope.group_by, *(name for name, _ in scope.filters), *scope.customers)
    if not all(names):
        raise InvalidRequestError("NAME_EMPTY", "customers and dimensions need names")
    texts = (scope.meter, *names, *(value for _, values in scope.filters for value in values))
    if any(len(text) > MAX_NAME or "\0" in text for text in texts):
        raise InvalidRequestError(
            "NAME_INVALID", f"names and values have at most {MAX_NAME} characters and no NUL"
        )
