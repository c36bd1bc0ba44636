"""What a database says when it is there and does not let a process work, whichever driver says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_database_error", "refusal"]

_INVALID_AUTHORIZATION = "28"
"""SQLSTATE's class for an unknown user or a wrong password."""
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
