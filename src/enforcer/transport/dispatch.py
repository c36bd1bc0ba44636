"""What every call has in common, whatever carries it: who calls, what is counted, and how errors are answered."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from google.rpc import status_pb2  # type: ignore[import-untyped]

from enforcer.errors import (
    InternalError,
    MetergateError,
    OverloadedError,
    TenantOverShareError,
)
from enforcer.gateway.requests import parsed
from enforcer.ports.definitions import Caller
from enforcer.transport.callers import needs
from enforcer.transport.calllog import REQUEST_ID, CallLog
from enforcer.transport.errors import status_of
from enforcer.transport.framing import WireError
from enforcer.transport.health import Health
from enforcer.transport.reflection import reflection_methods
from enforcer.transport.tenants import HEAVY, Tenants, weight_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from enforcer.metrics import Metrics
    from enforcer.transport.callers import Callers
    from enforcer.transport.services import Method

__all__ = [
    "COMPRESSED_FROM",
    "LATE",
    "NOBODY",
    "Call",
    "Dispatch",
    "FailedError",
]

COMPRESSED_FROM = 32 * 1024
"""Bytes of a response from which it travels as gzip to clients that take it."""
MOST_CALLS = 10_000
UNEXPECTED = "internal error; the server's log tells more"
LATE = status_pb2.Status(code=4, message="the deadline has passed")
NOBODY = Caller("", "", "")
"""Who calls a method that everybody may call, without an API key."""


class Call:
    """What a service may know of the call that it answers, and say beside its answer.

    When the client has gone or its time is up, the task that answers is cancelled. `caller` is `NOBODY` only for methods
    that everybody may call. `trailing` is sent after the answer. `ending`, of streams alone, is set when the process takes
    no more calls.
    """

    __slots__ = ("authorization", "caller", "deadline", "ending", "started", "trailing")

    ending: asyncio.Event

    def __init__(self, authorization: str | None, started: float, deadline: float | None) -> None:
        self.authorization = authorization
        self.started = started
        """When it came, on the clock of `time.monotonic`."""
        self.deadline = deadline
        """On the clock of `time.monotonic`; None: the client waits for ever."""
        self.caller = NOBODY
        self.trailing: Sequence[tuple[str, str]] = ()

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the client sent beside its request, without binary values. Each transport knows where."""
        return {}

    def header(self, name: str) -> str | None:
        """One of `metadata`, which has a text."""
        return self.metadata.get(name)

    def ends_soon(self) -> None:
        """Whether its client has gone matters no more."""

    def time_left(self) -> float | None:
        """Seconds that the client still waits, never negative; None: for ever."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


class FailedError(Exception):
    """A call ends with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Dispatch:
    """Answers calls of `methods`, and of the services that every gRPC server has: health and reflection.

    At most `most_calls` at once: who comes later learns at once that it has to wait, instead of waiting in a queue that
    only grows. Health is told all the same.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        callers: Callers,
        metrics: Metrics,
        most_calls: int = MOST_CALLS,
        log: CallLog | None = None,
        tenants: Tenants | None = None,
    ) -> None:
        self._running, self._most = 0, most_calls
        self._log = log or CallLog()
        self._slow_from = self._log.slow_from
        self.tenants = tenants or Tenants()
        self._calm = self.tenants.calm
        services = list(dict.fromkeys(method.service for method in methods))
        self.health = Health(services)
        everything = [*methods, *self.health.methods()]
        everything += reflection_methods({method.service for method in everything})
        self.routes = {method.path: method for method in everything}
        self._known, self._sender, self._finished = callers.known, callers.sender, metrics.call

    async def unary(self, method: Method, call: Call, data: bytes) -> bytes:
        """Answer one call. Raise `FailedError` with its status."""
        start = call.started
        if self._running >= self._most or (call.deadline is not None and call.deadline <= start):
            self._refuse(method, call)
        self._running += 1
        code, share, weight = "CANCELLED", None, 0
        try:
            caller = self._known(call.authorization, start)
            if caller is None:
                caller = await self._identified(method, call)
            elif caller.role != method.role and method.role not in ("check", ""):
                needs(caller, method.role)
            if caller is not None:
                call.caller = caller
                if self._running > self._calm or len(data) > HEAVY:
                    weight = weight_of(len(data))
                    share = self.tenants.enter(caller.tenant, weight, start)
            request = data if method.as_bytes else parsed(method.request, data)
            response = await method.answer(call, request)
            packed: bytes = (
                response if isinstance(response, bytes) else response.SerializeToString()
            )
        except MetergateError as error:
            code = error.code.name
            if isinstance(error, TenantOverShareError):
                raise await self._held_back(method, call, error) from error
            raise self._failed(method, call, error) from error
        except Exception as error:
            code = "INTERNAL"
            raise self._failed(method, call, error) from error
        else:
            code = "OK"
            return packed
        finally:
            self._running -= 1
            if share is not None:
                share.running -= weight
            seconds = time.monotonic() - start
            self._finished(method.label, code, seconds)
            if seconds > self._slow_from:
                self._slow(method, call, code, seconds)

    async def stream(
        self, method: Method, call: Call, messages: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """Answer one call with messages, those together that are there at once. Raise `FailedError` with its status."""
        start = call.started
        self._refuse(method, call)
        counted = bool(method.role)  # who watches health, or asks for protos, waits for nothing
        self._running += counted
        code, share = "CANCELLED", None
        try:
            caller = self._known(call.authorization, start) or await self._identified(method, call)
            if caller is not None:
                call.caller = caller
                if method.role not in ("check", ""):
                    needs(caller, method.role)
                share = self.tenants.enter(caller.tenant, 1, start)
            call.ending = self.health.ended
            requests: AsyncIterator[Any] = messages
            if not method.as_bytes:
                requests = (parsed(method.request, data) async for data in messages)
            async for response in method.answer(call, requests):
                yield response if isinstance(response, list) else [response.SerializeToString()]
        except MetergateError as error:
            code = error.code.name
            if isinstance(error, TenantOverShareError):
                raise await self._held_back(method, call, error) from error
            raise self._failed(method, call, error) from error
        except (FailedError, WireError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            code = "INTERNAL"
            raise self._failed(method, call, error) from error
        else:
            code = "OK"
        finally:
            self._running -= counted
            if share is not None:
                share.running -= 1
            self._finished(method.label, code, time.monotonic() - start)

    def _refuse(self, method: Method, call: Call) -> None:
        """Raise `FailedError` if there are too many calls, or nobody waits for the answer any more."""
        if self._running >= self._most and method.role:
            self._finished(method.label, "RESOURCE_EXHAUSTED", 0.0)
            raise self._failed(method, call, OverloadedError(self._most))
        if call.deadline is not None and call.deadline <= call.started:
            self._finished(method.label, "DEADLINE_EXCEEDED", 0.0)
            raise FailedError(LATE)

    def _failed(self, method: Method, call: Call, error: Exception) -> FailedError:
        """The status that a call ends with; it is logged, and its client learns how to name it."""
        sent, seconds = call.header(REQUEST_ID), time.monotonic() - call.started
        name = self._log.failed(method.label, call.caller.tenant, sent, seconds, error)
        told = error if isinstance(error, MetergateError) else InternalError(UNEXPECTED)
        return FailedError(status_of(told, name))

    async def _held_back(
        self, method: Method, call: Call, error: TenantOverShareError
    ) -> FailedError:
        """A refusal, told later; meanwhile it takes no room from others. Of a flood's one in a second is logged."""
        self._running -= 1
        call.ends_soon()
        tenant = call.caller.tenant
        try:
            await self.tenants.hold(tenant, call.time_left())
        finally:
            self._running += 1
        if self.tenants.speaks_of(tenant, time.monotonic()):
            return self._failed(method, call, error)
        return FailedError(_over_share(error.metadata["limit"], error.metadata["retry_after_ms"]))

    def _slow(self, method: Method, call: Call, code: str, seconds: float) -> None:
        if code in ("OK", "CANCELLED"):  # else it is told already
            sent = call.header(REQUEST_ID)
            self._log.slow(method.label, call.caller.tenant, sent, seconds, code)

    async def _identified(self, method: Method, call: Call) -> Caller | None:
        if not method.role:
            return None
        caller = await self._sender(call.authorization)
        if method.role != "check":
            needs(caller, method.role)
        return caller


@lru_cache(1024)
def _over_share(limit: str, retry_after_ms: str) -> status_pb2.Status:
    return status_of(TenantOverShareError(limit, int(retry_after_ms)))
