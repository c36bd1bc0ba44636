"""What every answer over HTTP says to browsers and caches, and who is answered at all where clients need certificates."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from enforcer.transport.connections import CERTIFIED
from enforcer.transport.edge import LARGEST_HEADERS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["HEADERS", "OPEN_PATHS", "Protected"]

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    # Nothing here is a page: nothing may be loaded, framed or sent.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""For probes, which have no certificate: they tell only whether calls may come."""
_NO_CERTIFICATE: Final = "this port needs a client certificate"
_TOO_LARGE: Final = f"headers have at most {LARGEST_HEADERS} bytes"


class Protected:
    """Adds the headers to what `app` answers. `certified`: only clients with a certificate are answered."""

    def __init__(self, app: ASGIApp, *, tls: bool, certified: bool) -> None:
        self._app, self._certified = app, certified
        self._headers = [*HEADERS, _HSTS] if tls else [*HEADERS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [pair for pair in self._headers if pair[0] not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        # h11 bounds only headers that do not come at once.
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
            await _refuse(sent, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)
        elif self._certified and scope["path"] not in OPEN_PATHS and not scope["state"][CERTIFIED]:
            await _refuse(sent, HTTPStatus.FORBIDDEN, _NO_CERTIFICATE)
        else:
            await self._app(scope, receive, sent)


async def _refuse(send: Send, status: HTTPStatus, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": f"{why}\n".encode()})
