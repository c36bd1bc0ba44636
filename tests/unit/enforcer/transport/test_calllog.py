"""What is logged of calls, and how their clients can name them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from enforcer.errors import (
    InternalError,
    InvalidRequestError,
    MetergateError,
    OverloadedError,
    StoreUnavailableError,
)
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.calllog import CallLog, request_id
from enforcer.transport.dispatch import Call, Dispatch, FailedError
from enforcer.transport.services import Method

if TYPE_CHECKING:
    from collections.abc import Mapping


class Asked(Call):
    __slots__ = ("_metadata",)

    def __init__(self, started: float, **metadata: str) -> None:
        super().__init__(None, started, None)
        self._metadata = {name.replace("_", "-"): value for name, value in metadata.items()}

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._metadata


class _Caller:
    tenant, role, key_id = "demo", "check", "1"


class Rig:
    def __init__(self, slow: float = 1.0, most: int = 10) -> None:
        self.error: Exception | None = None
        self.method = Method("s.S", "M", StringValue, StringValue, "check", self._answer)
        definitions: Any = None
        self.dispatch = Dispatch(
            [self.method], Callers(definitions), Metrics(), most, CallLog(slow)
        )
        known: Any = lambda *_: _Caller()  # noqa: E731
        self.dispatch._known = known

    async def _answer(self, call: Call, request: StringValue) -> bytes:
        if self.error is not None:
            raise self.error
        return b""

    async def told(self, call: Call) -> tuple[str, dict[str, Any]]:
        """The id that a failed call's client learns, and what was logged."""
        with capture_logs() as logged, pytest.raises(FailedError) as failed:
            await self.dispatch.unary(self.method, call, b"")
        info = error_details_pb2.RequestInfo()
        (found,) = [one for one in failed.value.status.details if one.Unpack(info)]
        assert found
        (line,) = logged
        return info.request_id, dict(line)


NOW = float("inf")


@pytest.mark.parametrize(
    ("error", "level", "code"),
    [
        (InvalidRequestError("BAD_TOKEN", "what"), "info", "INVALID_ARGUMENT"),
        (StoreUnavailableError("what"), "warning", "UNAVAILABLE"),
        (OverloadedError(5), "warning", "RESOURCE_EXHAUSTED"),
        (InternalError("what"), "error", "INTERNAL"),
        (RuntimeError("what"), "error", "INTERNAL"),
    ],
)
async def test_a_failed_call_is_logged_and_its_client_learns_its_id(
    error: Exception, level: str, code: str
) -> None:
    rig = Rig()
    rig.error = error
    name, line = await rig.told(Asked(0.0))
    assert len(name) == 16
    facts = ("event", "log_level", "method", "tenant", "code", "request_id")
    assert [line[fact] for fact in facts] == ["call failed", level, "s.S/M", "demo", code, name]
    assert line["seconds"] > 0
    if isinstance(error, MetergateError):
        assert (line["reason"], line["error"]) == (error.reason, error.message)
    else:
        assert line["exc_info"] is error


async def test_the_id_that_a_client_sends_is_kept() -> None:
    rig = Rig()
    rig.error = InvalidRequestError("BAD_TOKEN", "what")
    name, line = await rig.told(Asked(0.0, x_request_id="order-4711/1"))
    assert name == line["request_id"] == "order-4711/1"


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, "line\nbreak", "é", "<script>"])
def test_what_is_no_id_is_replaced(sent: str | None) -> None:
    assert request_id(sent) != sent
    assert request_id(sent) != request_id(sent), "each is another"


async def test_a_call_too_many_is_told_likewise() -> None:
    rig = Rig(most=0)
    name, line = await rig.told(Asked(0.0))
    assert (line["reason"], line["request_id"]) == ("OVERLOADED", name)


async def test_a_slow_call_is_logged_and_a_quick_one_is_not() -> None:
    rig = Rig(slow=1.0)
    with capture_logs() as logged:
        await rig.dispatch.unary(rig.method, Asked(0.0, x_request_id="mine"), b"")
        await rig.dispatch.unary(rig.method, Asked(NOW), b"")
    (line,) = logged
    assert line["seconds"] > 1
    facts = ("event", "code", "tenant", "method", "request_id")
    assert [line[fact] for fact in facts] == ["slow call", "OK", "demo", "s.S/M", "mine"]


async def test_a_slow_call_that_fails_is_told_once_and_0_is_never() -> None:
    rig = Rig()
    rig.error = StoreUnavailableError("what")
    await rig.told(Asked(0.0))
    never = Rig(slow=0)
    with capture_logs() as logged:
        await never.dispatch.unary(never.method, Asked(0.0), b"")
    assert logged == []
