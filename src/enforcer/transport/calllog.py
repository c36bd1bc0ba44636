"""What is logged of calls: those that fail, and those that take long. Of all others nothing.

Each of them has an id, which its client gave (`x-request-id`) or gets with the answer, to quote it.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

import structlog

from enforcer.errors import Code, MetergateError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CLIENTS", "REQUEST_ID", "CallLog", "request_id"]

REQUEST_ID: Final = "x-request-id"
"""Metadata of calls, and header of requests and answers over HTTP."""
SLOW_SECONDS: Final = 1.0
_USABLE: Final = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}", re.ASCII)
CLIENTS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
    }
)
"""The client's own mistakes: nobody who runs a gateway has to do anything about them."""

_log = structlog.get_logger(__name__)


def request_id(sent: str | None) -> str:
    """The id of a call: what its client sent, if that is an id; else a new one."""
    if sent is not None and _USABLE.fullmatch(sent):
        return sent
    return secrets.token_hex(8)


class CallLog:
    """`slow`: from so many seconds on a call is slow; 0: none is."""

    def __init__(self, slow: float = SLOW_SECONDS) -> None:
        self.slow_from = slow or float("inf")

    def failed(
        self, method: str, tenant: str, sent: str | None, seconds: float, error: Exception
    ) -> str:
        """A call has ended with this error; return its id. `sent`: the one it came with."""
        name = request_id(sent)
        facts = {
            "method": method,
            "tenant": tenant,
            "request_id": name,
            "seconds": round(seconds, 6),
        }
        if not isinstance(error, MetergateError):
            _log.error("call failed", code="INTERNAL", exc_info=error, **facts)
            return name
        tell: Callable[..., object] = _log.warning
        if error.code in CLIENTS:
            tell = _log.info
        elif error.code is Code.INTERNAL:
            tell = _log.error
        code, reason = error.code.name, error.reason
        internal = error if error.code is Code.INTERNAL else None
        tell(
            "call failed", code=code, reason=reason, error=error.message, exc_info=internal, **facts
        )
        return name

    def slow(self, method: str, tenant: str, sent: str | None, seconds: float, code: str) -> None:
        """A call has taken long. `code` OK, or CANCELLED: its client has gone, or its time was up."""
        _log.warning(
            "slow call",
            method=method,
            tenant=tenant,
            code=code,
            request_id=request_id(sent),
            seconds=round(seconds, 6),
        )
