"""Which call a record comes from: W3C's `traceparent`, of calls that are traced.

https://www.w3.org/TR/trace-context/: `00-<trace id>-<span id>-<flags>`, in lower-case hex; flag 1 says that somebody
wants to see the trace. Only such calls are traced here.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["Traced", "current", "read_traceparent", "traceparent_of", "written"]

current: ContextVar[str] = ContextVar("traceparent", default="")
"""The `traceparent` of the call that is being answered; empty unless it is traced."""

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_FIELD = b',"tp":"'
_END = b'"}'
_LENGTH = 55
_BEGINS = -(len(_FIELD) + _LENGTH + len(_END))
_VALUE = _BEGINS + len(_FIELD)


class Traced(NamedTuple):
    """The ids that a `traceparent` names, and whether the trace is wanted."""

    trace_id: int
    span_id: int
    sampled: bool


def read_traceparent(text: str) -> Traced | None:
    """What it says; None for one that is none, which counts as not sent."""
    found = _FORM.fullmatch(text)
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    return Traced(trace_id, span_id, bool(int(found[4], 16) & 1))


def written(trace_id: int, span_id: int) -> str:
    """The `traceparent` of a span whose trace is wanted."""
    return f"00-{trace_id:032x}-{span_id:016x}-01"


def traceparent_of(body: bytes) -> str:
    """The `tp` of a record's body, which is its last field; empty when it has none.

    Looks at one place: nearly all records have none, and each is asked. What a client sent cannot look like it: in JSON
    the quotes of its text are escaped, and its dimensions end with one brace more.
    """
    if body[_BEGINS:_VALUE] != _FIELD:
        return ""
    return body[_VALUE : -len(_END)].decode("ascii", "replace")
