"""CloudEvents over HTTP: who sends them, how large they may be, and what is answered."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from enforcer.errors import InternalError, InvalidRequestError, MetergateError
from enforcer.gateway.cloudevents import read
from enforcer.transport.calllog import REQUEST_ID, CallLog
from enforcer.transport.dispatch import UNEXPECTED
from enforcer.transport.errors import message_of
from enforcer.transport.tenants import Tenants, weight_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from enforcer.gateway.events import Events, Refusal
    from enforcer.metrics import Metrics
    from enforcer.transport.callers import Callers

__all__ = ["EventsEndpoint"]

LARGEST_BODY = 8 * 1024 * 1024
RETRY_SECONDS = 1
NAME = "http/events"
SEVERAL = "EVENTS_REFUSED"
"""The reason of an answer whose errors have several."""
_STATUS = {
    "BAD_CONTENT_TYPE": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "BODY_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "BAD_BATCH": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "BAD_JSON": HTTPStatus.BAD_REQUEST,
}
"""Of requests that are wrong as a whole; what is wrong with an event is 422."""
_UNREADABLE = HTTPStatus.UNPROCESSABLE_ENTITY


class EventsEndpoint:
    """`POST /v1/events`: 204 when all is recorded, else problem+json that says what is not, and why."""

    def __init__(
        self,
        events: Events,
        callers: Callers,
        metrics: Metrics,
        log: CallLog | None = None,
        tenants: Tenants | None = None,
    ) -> None:
        self._events, self._callers, self._metrics = events, callers, metrics
        self._log = log or CallLog()
        self._tenants = tenants or Tenants()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        start = time.perf_counter()
        code, tenant = "OK", ""

        def told(error: Exception) -> str:
            sent = request.headers.get(REQUEST_ID)
            return self._log.failed(NAME, tenant, sent, time.perf_counter() - start, error)

        try:
            caller = await self._callers.of(request.headers.items())
            tenant = caller.tenant
            body = await _body(request)
            weight = weight_of(len(body))
            share = self._tenants.enter(tenant, weight, time.monotonic())
            try:
                events = read(request.headers, body)
                refused = await self._events.record(tenant, events)
            finally:
                share.running -= weight
            if not refused:
                return Response(status_code=HTTPStatus.NO_CONTENT)
            code = refused[0].reason
            return _refused(refused, len(events))
        except ClientDisconnect:
            code = "CANCELLED"
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except MetergateError as error:
            code = error.code.name
            return _failed(error, told(error))
        except Exception as error:  # noqa: BLE001 - logged here, answered without its text
            code = "INTERNAL"
            return _failed(InternalError(UNEXPECTED), told(error))
        finally:
            self._metrics.call(NAME, code, time.perf_counter() - start)


async def _body(request: Request) -> bytes:
    """All of it, but never more than is allowed."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise InvalidRequestError(
            "BAD_CONTENT_TYPE", f"content-encoding {coding[:40]!r} is not supported: send it plain"
        )
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise InvalidRequestError(
                "BODY_TOO_LARGE", f"a request has at most {LARGEST_BODY} bytes"
            )
    return bytes(body)


def _failed(error: MetergateError, request_id: str) -> Response:
    """The request as a whole was not taken; it is named so in the log."""
    status = error.http
    if isinstance(error, InvalidRequestError):
        status = _STATUS.get(error.reason, _UNREADABLE)
    headers = {REQUEST_ID: request_id}
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        headers["retry-after"] = str(RETRY_SECONDS)
    elif status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return _problem(status, message_of(error), headers, reason=error.reason, request_id=request_id)


def _refused(refused: Sequence[Refusal], total: int) -> Response:
    """Some events were not recorded. Sending all again is safe; it helps where an error is retryable."""
    bad, reasons = {one.index for one in refused}, {one.reason for one in refused}
    status, headers = _UNREADABLE, {}
    if any(one.retryable for one in refused):
        status, headers = (
            HTTPStatus.SERVICE_UNAVAILABLE,
            {"retry-after": str(RETRY_SECONDS)},
        )
    return _problem(
        status,
        f"{len(bad)} of {total} events were not recorded, see errors; the others were",
        headers,
        reason=reasons.pop() if len(reasons) == 1 else SEVERAL,
        accepted=total - len(bad),
        errors=[
            {
                "index": one.index,
                "id": one.id,
                "source": one.source,
                "feature": one.feature,
                "reason": one.reason,
                "message": one.message,
                "retryable": one.retryable,
            }
            for one in refused
        ],
    )


def _problem(
    status: int, detail: str, headers: dict[str, str], reason: str, **members: Any
) -> Response:
    """RFC 9457."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "reason": reason,
        **members,
    }
    return JSONResponse(content, status, headers, "application/problem+json")
