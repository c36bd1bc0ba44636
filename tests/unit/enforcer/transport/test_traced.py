"""Which calls are traced, and that all others go the way they always went."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from structlog.contextvars import get_contextvars

from enforcer.errors import InvalidRequestError, StoreUnavailableError
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Call, FailedError
from enforcer.transport.services import Method
from enforcer.transport.traced import Lot, TracedDispatch
from meter.core.traced import current, written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WANTED, UNWANTED = written(7, 8), written(7, 8)[:-1] + "0"


class Asked(Call):
    __slots__ = ("_metadata",)

    def __init__(self, metadata: Mapping[str, str]) -> None:
        super().__init__(None, 0.0, None)
        self._metadata = metadata

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata


class Rig:
    def __init__(self, lot: Lot, sampler: Sampler | None = None) -> None:
        self.seen: list[str] = []
        self.logged: dict[str, Any] = {}
        self.error: Exception | None = None
        self.method = Method("s.S", "M", StringValue, StringValue, "check", self._answer)
        self.stream = Method("s.S", "T", StringValue, StringValue, "check", self._answers, True)
        self.open = Method("s.S", "O", StringValue, StringValue, "", self._answer)
        definitions: Any = None
        callers = Callers(definitions)
        self._callers = callers
        self.dispatch = TracedDispatch([self.method, self.stream, self.open], callers, Metrics())
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.dispatch.trace(provider.get_tracer("test"), lot)
        known: Any = lambda *_: CALLER  # noqa: E731
        self.dispatch._known = known

    async def _answer(self, call: Call, request: StringValue) -> bytes:
        self.seen.append(current.get())
        self.logged = dict(get_contextvars())
        if self.error is not None:
            raise self.error
        return b"answer"

    async def _answers(self, call: Call, requests: Any) -> Any:
        async for _ in requests:
            self.seen.append(current.get())
            yield [b"answer"]

    async def call(self, method: Method, traceparent: str | None = None) -> bytes:
        metadata = {} if traceparent is None else {"traceparent": traceparent}
        return await self.dispatch.unary(method, Asked(metadata), b"")


class _Caller:
    tenant, role, key_id = "demo", "check", "1"


CALLER = _Caller()


def lot(ratio: float = 0.0, most: int = 100, dice: Callable[[], float] = lambda: 0.5) -> Lot:
    return Lot(ratio, most, clock=lambda: 0.0, dice=dice)


async def test_a_call_that_its_client_traces_has_a_span_in_that_trace() -> None:
    rig = Rig(lot())
    assert await rig.call(rig.method, WANTED) == b"answer"
    (span,) = rig.exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert (span.name, span.context.trace_id, span.parent.span_id) == ("s.S/M", 7, 8)
    assert (span.attributes or {})["metergate.tenant"] == "demo"
    assert rig.seen == [written(7, span.context.span_id)]
    ids = {"trace_id": f"{7:032x}", "span_id": f"{span.context.span_id:016x}"}
    assert rig.logged == ids, "what is logged meanwhile says which trace it is of"
    assert get_contextvars() == {}
    assert current.get() == "", "it was of the call alone"


@pytest.mark.parametrize("traceparent", [None, UNWANTED, "nonsense"])
async def test_others_have_none(traceparent: str | None) -> None:
    rig = Rig(lot())
    assert await rig.call(rig.method, traceparent) == b"answer"
    assert rig.seen == [""]
    assert rig.exporter.get_finished_spans() == ()


async def test_of_calls_without_a_context_a_part_is_traced_and_of_unwanted_ones_none() -> None:
    rolls = iter([0.09, 0.1, 0.0])
    rig = Rig(lot(0.1, dice=lambda: next(rolls)))
    await rig.call(rig.method)
    await rig.call(rig.method, UNWANTED)
    await rig.call(rig.method, "nonsense")
    await rig.call(rig.method)
    spans = rig.exporter.get_finished_spans()
    assert [seen != "" for seen in rig.seen] == [True, False, False, True]
    assert [span.parent for span in spans] == [None, None]


async def test_who_sends_contexts_cannot_have_more_traced_than_is_allowed() -> None:
    now = 0.0
    allowed = Lot(0, 2, clock=lambda: now)
    assert [allowed.falls_on(WANTED) for _ in range(4)] == [True, True, False, False]
    now = 0.5
    assert [allowed.falls_on(WANTED) for _ in range(2)] == [True, False]
    now = 100.0
    assert [allowed.falls_on(WANTED) for _ in range(3)] == [True, True, False]


async def test_a_sampler_of_opentelemetry_has_the_last_word() -> None:
    rig = Rig(lot(), ALWAYS_OFF)
    await rig.call(rig.method, WANTED)
    assert rig.seen == [""], "no record says that it is traced"


async def test_health_is_not_traced() -> None:
    rig = Rig(lot())
    await rig.call(rig.open, WANTED)
    assert rig.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("error", "code", "failed"),
    [
        (InvalidRequestError("BAD_TOKEN", "hunter2"), 3, False),
        (StoreUnavailableError("hunter2"), 14, True),
        (RuntimeError("hunter2"), 13, True),
    ],
)
async def test_a_fault_is_told_by_its_code_and_never_by_its_text(
    error: Exception, code: int, failed: bool
) -> None:
    rig = Rig(lot())
    rig.error = error
    with pytest.raises(FailedError):
        await rig.call(rig.method, WANTED)
    (span,) = rig.exporter.get_finished_spans()
    assert (span.attributes or {})["rpc.grpc.status_code"] == code
    assert span.status.is_ok is not failed
    assert "hunter2" not in span.to_json()


@pytest.mark.parametrize(("deadline", "code"), [(None, 1), (float("inf"), 1), (1.0, 4)])
async def test_a_call_that_is_cut_off_says_whether_its_time_was_up(
    deadline: float | None, code: int
) -> None:
    rig = Rig(lot())
    cut: Any = asyncio.CancelledError()
    rig.error = cut
    call = Asked({"traceparent": WANTED})
    call.deadline = deadline
    with pytest.raises(asyncio.CancelledError):
        await rig.dispatch.unary(rig.method, call, b"")
    (span,) = rig.exporter.get_finished_spans()
    assert (span.attributes or {})["rpc.grpc.status_code"] == code


async def test_the_checks_of_a_stream_are_in_the_trace_of_the_stream() -> None:
    rig = Rig(lot())

    async def messages() -> Any:
        yield b""
        yield b""

    answers = rig.dispatch.stream(rig.stream, Asked({"traceparent": WANTED}), messages())
    assert [one async for one in answers] == [[b"answer"], [b"answer"]]
    (span,) = rig.exporter.get_finished_spans()
    assert span.context is not None
    assert set(rig.seen) == {written(7, span.context.span_id)}
