"""Who calls: the API key in `authorization: Bearer`, looked up once in a while."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from enforcer.errors import ForbiddenError, OverloadedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from enforcer.ports.definitions import Caller, Definitions

__all__ = ["KEPT_SECONDS", "Callers", "authorization_in", "needs"]

KEPT_SECONDS = 5.0
"""A revoked key is refused after this long at the latest."""
MOST_KEPT = 10_000
MOST_STRANGERS = 64
"""Look-ups at a time. Who sends made-up keys must not keep the database from those that were known a moment ago."""
_SCHEME = "bearer "


class Callers:
    """Callers by the value of the header. Unknown keys are not remembered: nobody can fill the memory with them.

    `opened` returns when the process has what it needs to answer calls, or raises why it has not.
    """

    def __init__(
        self, definitions: Definitions, opened: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._definitions, self._opened = definitions, opened
        self._known: dict[str, tuple[float, Caller]] = {}
        self._asked: dict[str, asyncio.Future[Caller]] = {}

    async def of(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
        """Who sent this metadata. Raise `UnauthenticatedError`."""
        return await self.sender(authorization_in(metadata))

    def known(self, header: str | None, now: float) -> Caller | None:
        """Who sent this header, if that was looked up lately: what most calls need, without waiting."""
        known = self._known.get(header)  # type: ignore[arg-type]  # None is never a key
        return known[1] if known is not None and known[0] > now else None

    async def sender(self, header: str | None) -> Caller:
        """Who sent this `authorization`. Raise `UnauthenticatedError`."""
        if header is None:
            raise UnauthenticatedError("send the API key as metadata `authorization: Bearer <key>`")
        return self.known(header, time.monotonic()) or await self._look_up(header)

    async def _look_up(self, header: str) -> Caller:
        """Once for all calls that come meanwhile: else every call in flight asks when the time is over."""
        asked = self._asked.get(header)
        if asked is None:
            if len(self._asked) >= MOST_STRANGERS and header not in self._known:
                raise OverloadedError(MOST_STRANGERS)
            asked = self._asked[header] = asyncio.ensure_future(self._ask(header))
            asked.add_done_callback(lambda _: self._asked.pop(header, None))
        # A client that goes takes only its own call along.
        return await asyncio.shield(asked)

    async def _ask(self, header: str) -> Caller:
        if not header[: len(_SCHEME)].lower() == _SCHEME:
            raise UnauthenticatedError("the authorization must be `Bearer <key>`")
        if self._opened is not None:
            await self._opened()
        caller = await self._definitions.caller(header[len(_SCHEME) :].strip())
        if caller is None:
            self._known.pop(header, None)
            raise UnauthenticatedError("unknown or revoked API key")
        if len(self._known) >= MOST_KEPT:
            self._known.clear()
        self._known[header] = time.monotonic() + KEPT_SECONDS, caller
        return caller


def authorization_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The header that says who calls."""
    for name, value in metadata or ():
        if name == "authorization":
            return str(value)  # text, as its name has no -bin
    return None


def needs(caller: Caller, role: str) -> None:
    """Raise `ForbiddenError` unless the caller's role is `role` (or `admin`, which may do everything)."""
    if caller.role not in (role, "admin"):
        raise ForbiddenError(
            f"this call needs an API key with the role {role}, yours has {caller.role}",
            role=role,
        )
