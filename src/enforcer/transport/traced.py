"""Calls that may be traced: a span for each that a client traces, or that falls to the lot.

Used in place of `Dispatch` where tracing is on; elsewhere nothing of this exists.
"""

from __future__ import annotations

import random
import time
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanKind,
    StatusCode,
    set_span_in_context,
)

from enforcer.transport.dispatch import Dispatch, FailedError
from meter.adapters.traces import parent_of
from meter.core.traced import current, read_traceparent, written

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from types import TracebackType

    from opentelemetry.trace import Span, Tracer

    from enforcer.transport.dispatch import Call
    from enforcer.transport.services import Method

__all__ = ["Lot", "TracedDispatch"]

HEADER: Final = "traceparent"
CANCELLED, DEADLINE = 1, 4
_OURS: Final = frozenset((2, 4, 12, 13, 14, 15))
"""Codes that are the server's fault, by OpenTelemetry's conventions for gRPC: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
INTERNAL, UNAVAILABLE, DATA_LOSS."""


class Lot:
    """Which calls are traced: those whose client traces them, `ratio` of those without a context, at most `most` a second."""

    def __init__(
        self,
        ratio: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._ratio, self._most, self._clock, self._dice = ratio, most, clock, dice
        self._left, self._at = float(most), clock()

    def falls_on(self, traceparent: str | None) -> bool:
        """Whether the call is traced that came with this."""
        found = None if traceparent is None else read_traceparent(traceparent)
        wanted = self._dice() < self._ratio if found is None else found.sampled
        return wanted and self._take()

    def _take(self) -> bool:
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self._most, float(self._most))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class TracedDispatch(Dispatch):
    """A `Dispatch` that makes spans, until whose end `current` names the span."""

    def trace(self, tracer: Tracer, lot: Lot) -> None:
        """From now on. Not in the constructor, so that this has the one of `Dispatch`."""
        self._tracer, self._lot = tracer, lot

    async def unary(self, method: Method, call: Call, data: bytes) -> bytes:
        """See `Dispatch`."""
        traceparent = call.header(HEADER)
        if not method.role or not self._lot.falls_on(traceparent):
            return await super().unary(method, call, data)
        with _Spanned(self._tracer, method, call, traceparent):
            return await super().unary(method, call, data)

    async def stream(
        self, method: Method, call: Call, messages: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """See `Dispatch`. One span for the whole stream: its checks share the context that it came with."""
        traceparent = call.header(HEADER)
        span: AbstractContextManager[None] = nullcontext()
        if method.role and self._lot.falls_on(traceparent):
            span = _Spanned(self._tracer, method, call, traceparent)
        with span:
            async with aclosing(super().stream(method, call, messages)) as answers:
                async for some in answers:
                    yield some


class _Spanned(AbstractContextManager[None]):
    """The span of one call."""

    def __init__(self, tracer: Tracer, method: Method, call: Call, traceparent: str | None) -> None:
        self._call = call
        parent = None if traceparent is None else parent_of(traceparent)
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(parent), context)
        self._span: Span = tracer.start_span(
            method.label,
            context=context,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": method.service,
                "rpc.method": method.name,
            },
        )
        self._place = self._span.get_span_context()

    def __enter__(self) -> None:
        place = self._place
        # OTEL_TRACES_SAMPLER may be against it.
        traced = self._span.is_recording()
        self._token = current.set(written(place.trace_id, place.span_id) if traced else "")
        self._bound = structlog.contextvars.bind_contextvars(
            trace_id=f"{place.trace_id:032x}", span_id=f"{place.span_id:016x}"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        span, call = self._span, self._call
        code, reason = 0, ""
        if isinstance(error, FailedError):
            code = error.status.code
        elif error is not None:
            late = call.deadline is not None and call.deadline <= time.monotonic()
            code, reason = (DEADLINE, "") if late else (CANCELLED, type(error).__name__)
        span.set_attribute("rpc.grpc.status_code", code)
        if call.caller.tenant:
            span.set_attribute("metergate.tenant", call.caller.tenant)
        if code in _OURS:
            # No text: it may tell what is for the log alone.
            span.set_status(StatusCode.ERROR, reason)
        span.end()
        with suppress(
            ValueError
        ):  # a stream may be ended from elsewhere: then its context has ended
            structlog.contextvars.reset_contextvars(**self._bound)
            current.reset(self._token)
