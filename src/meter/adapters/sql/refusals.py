"""What a database says when it is there and does not let a process work, whichever driver says it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_database_error", "refusal", "wrong_option"]

_INVALID_AUTHORIZATION = "28"
"""SQLSTATE's class for an unknown user or a wrong password."""
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")
_REFUSALS = ("3D000", "42501")
"""No such database; insufficient privilege."""


def refusal(error: BaseException) -> str:
    """Why the database lets nobody in under these settings; empty if it is another failure."""
    for one in _chain(error):
        state = str(getattr(one, "sqlstate", None) or "")
        if state.startswith(_INVALID_AUTHORIZATION) or state in _REFUSALS:
            return str(one).splitlines()[0]
    return ""


def is_database_error(error: BaseException) -> bool:
    """Whether it is asyncpg's own: while a connection is made they come without SQLAlchemy's wrapping."""
    return type(error).__module__.startswith("asyncpg.")


def wrong_option(error: BaseException) -> str:
    """What of the URL the driver does not know, if it failed for that; else empty."""
    found = _UNKNOWN.search(str(error)) if isinstance(error, TypeError) else None
    return f"{found[1]!r} is no option of the driver" if found else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        causes = (one.__cause__, one.__context__, getattr(one, "orig", None))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]
