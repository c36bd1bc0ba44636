"""ASGI middleware: checks by method and path before the application sees a request.

A denial is answered with `application/problem+json` (RFC 9457): 403 where the customer's terms do not
cover it, 429 with `Retry-After` where something is used up, 503 where nobody could decide, 400 where
the request names no customer.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from enforcer.client.errors import ClientError, ConfigurationError
from enforcer.client.refusals import CUSTOMER_REQUIRED, Refusal, by_error, by_verdict

if TYPE_CHECKING:
    from enforcer.client.client import Client

__all__ = ["VERDICT", "MeteringMiddleware", "Route", "header"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
CustomerOf = Callable[[Scope], "str | Awaitable[str | None] | None"]

VERDICT: Final = "metergate.verdict"
"""Where the application finds the verdict: `scope[VERDICT]`."""
POLICY_VIOLATION: Final = 1008
"""Closes a WebSocket; before it was accepted, servers answer 403."""
_PLACE: Final = re.compile(r"\{([A-Za-z_]\w*)(:path)?\}")


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests use which feature.

    `method` is GET (which HEAD counts as, too), POST, …, WEBSOCKET, or * for all. In `path`, `{name}`
    stands for one segment and `{name:path}` for the rest; a slash at the end makes no difference.
    `quantity` in the feature's own unit may be a function of the ASGI scope.
    """

    method: str
    path: str
    feature: str
    quantity: int | Callable[[Scope], int] = 1
    dimensions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ConfigurationError(f"the path {self.path!r} of a route has to begin with /")

    def pattern(self) -> re.Pattern[str]:
        """Matches the paths it is for."""
        parts, place = [], 0
        for found in _PLACE.finditer(self.path):
            parts += [re.escape(self.path[place : found.start()]), ".*" if found[2] else "[^/]+"]
            place = found.end()
        rest = self.path[place:].rstrip("/")
        if "{" in rest or "}" in rest:
            raise ConfigurationError(
                f"the path {self.path!r} of a route is not understood: {{name}} and {{name:path}} are"
            )
        return re.compile("".join([*parts, re.escape(rest), "/?"]), re.DOTALL)


def header(name: str) -> Callable[[Scope], str | None]:
    """The customer is in this header. Only where something before sets it: callers can send what they like.

    A request that has it twice, with different values, names no customer.
    """
    wanted = name.lower().encode("latin-1")

    def customer(scope: Scope) -> str | None:
        found = {value for key, value in scope.get("headers", ()) if key.lower() == wanted}
        return found.pop().decode("latin-1").strip() if len(found) == 1 else None

    return customer


class MeteringMiddleware:
    """Wraps an ASGI application. The first route that matches decides; what matches none passes.

    `customer` gets the scope and may be a coroutine function; behind an authenticating middleware,
    take the customer from what that has put into the scope. The client has to be open while requests
    come: open it in the application's lifespan.
    """

    def __init__(
        self,
        app: Application,
        *,
        client: Client | Callable[[], Client],
        routes: Sequence[Route],
        customer: CustomerOf,
    ) -> None:
        self._app, self._client, self._customer = app, client, customer
        self._routes = [(route.method.upper(), route.pattern(), route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        route = self._route(scope)
        if route is not None:
            refused = await self._refused(route, scope)
            if refused is not None:
                await _answer(refused, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _route(self, scope: Scope) -> Route | None:
        if scope["type"] == "http":
            method = scope["method"].upper()
            # An application that answers HEAD runs what GET runs.
            method = "GET" if method == "HEAD" else method
        elif scope["type"] == "websocket":
            method = "WEBSOCKET"
        else:
            return None
        for wanted, pattern, route in self._routes:
            if wanted in {method, "*"} and pattern.fullmatch(scope["path"]):
                return route
        return None

    async def _refused(self, route: Route, scope: Scope) -> Refusal | None:
        named = self._customer(scope)
        customer = await named if inspect.isawaitable(named) else named
        if not customer:
            return CUSTOMER_REQUIRED
        client = self._client() if callable(self._client) else self._client
        quantity = route.quantity(scope) if callable(route.quantity) else route.quantity
        try:
            verdict = await client.check(
                customer, route.feature, quantity, dimensions=route.dimensions
            )
        except ClientError as error:
            return by_error(route.feature, error)
        scope[VERDICT] = verdict
        return None if verdict.allowed else by_verdict(route.feature, verdict)


async def _answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # the wish to connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send(
                {
                    "type": "websocket.close",
                    "code": POLICY_VIOLATION,
                    "reason": refusal.reason,
                }
            )
            return
        kind = "websocket.http.response"
    problem = {
        "title": HTTPStatus(refusal.http).phrase,
        "status": refusal.http,
        "detail": refusal.message,
        "reason": refusal.reason,
    }
    headers = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    if refusal.retry_after:
        problem["retry_after"] = refusal.retry_after
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.degraded:
        problem["degraded"] = True
    body = json.dumps(problem).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": f"{kind}.start", "status": refusal.http, "headers": headers})
    # A server leaves the body of an answer to HEAD out by itself.
    await send({"type": f"{kind}.body", "body": body})
