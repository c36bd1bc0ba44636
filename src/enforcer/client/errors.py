"""What can go wrong for a caller. A denial is none of these, unless a caller asked for it to be.

    ClientError
    ├── ConfigurationError     a setting or an argument is wrong; the message says what is allowed
    ├── ClosedError            the client was closed
    ├── DeniedError            the answer is no, where a call cannot return a verdict
    ├── LeaseLostError         the seat is gone although its holder is not
    ├── OverloadedError        more checks wait in this client than it may keep
    └── CallError              the gateway could not answer, or refused the question
        ├── InvalidRequestError    the request is malformed
        ├── NotFoundError          what was named does not exist for this tenant
        ├── NotPossibleError       well-formed, but the state does not allow it
        ├── NoAccessError          the API key is unknown, or its role does not allow this
        ├── UnavailableError       not answered within the deadline, retries included
        └── InternalError          a bug of the gateway, or an answer nobody can read

`reason` is the stable name that docs/errors.md lists; gRPC's own faults have the name of their code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enforcer.client.results import Verdict
    from enforcer.v1 import enforcer_pb2 as pb

__all__ = [
    "CallError",
    "ClientError",
    "ClosedError",
    "ConfigurationError",
    "DeniedError",
    "InternalError",
    "InvalidRequestError",
    "LeaseLostError",
    "NoAccessError",
    "NotFoundError",
    "NotPossibleError",
    "OverloadedError",
    "UnavailableError",
    "call_error",
    "from_fault",
    "from_rpc",
]

DETAILS: Final = "grpc-status-details-bin"
PUSHBACK: Final = "grpc-retry-pushback-ms"
_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        # Sent by gRPC when a connection breaks off; the caller's own cancelling never comes here.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
)
CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class ClientError(Exception):
    """The root. `reason` is a stable name for machines."""

    reason: str = ""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whole: pools pickle them."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(
    kind: type[ClientError], args: tuple[Any, ...], state: dict[str, Any]
) -> ClientError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigurationError(ClientError, ValueError):
    """A setting or an argument is wrong; the message says what is allowed."""

    reason = "MISCONFIGURED"


class ClosedError(ClientError):
    """The client was closed, or is used outside of `async with`."""

    reason = "CLIENT_CLOSED"


class OverloadedError(ClientError):
    """More checks wait in this client than `Options.most_waiting`: this one was not sent."""

    reason = "CLIENT_OVERLOADED"


class DeniedError(ClientError):
    """The answer is no. `verdict` tells why and every limit; `feature` and `customer` who asked."""

    def __init__(self, customer: str, feature: str, verdict: Verdict) -> None:
        super().__init__(
            f"{customer!r} may not use {feature!r}: {verdict.reason.value}",
            reason=verdict.reason.name,
        )
        self.customer, self.feature, self.verdict = customer, feature, verdict


class LeaseLostError(ClientError):
    """The seat is gone: it was revoked, or could not be renewed in time. Acquire a new one."""


class CallError(ClientError):
    """The gateway could not answer, or refused the question.

    `code` is gRPC's; `retryable`: the same call with the same idempotency key may succeed later;
    `retry_after` is how many seconds the gateway asks to wait, if it does; `metadata` has the details.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason or code.name)
        self.code, self.retry_after = code, retry_after
        self.metadata = dict(metadata or {})

    @property
    def request_id(self) -> str:
        """What the gateway's log calls the call, to quote it; empty when no gateway has named it."""
        return self.metadata.get("request_id", "")

    @property
    def retryable(self) -> bool:
        """The same call with the same idempotency key may succeed later."""
        if self.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self.retry_after is not None
        return self.code in _RETRYABLE

    def again(self) -> CallError:
        """The same error as another object, to be raised elsewhere."""
        return type(self)(
            self.message,
            code=self.code,
            reason=self.reason,
            retry_after=self.retry_after,
            metadata=self.metadata,
        )


class InvalidRequestError(CallError):
    """The request is malformed."""


class NotFoundError(CallError):
    """What was named does not exist for this tenant."""


class NotPossibleError(CallError):
    """The request is well-formed, but the state does not allow it."""


class NoAccessError(CallError):
    """The API key is missing or unknown, or its role does not allow this."""


class UnavailableError(CallError):
    """There was no answer within the deadline, retries included. The call may have been carried out.

    Calling again with the same idempotency key is safe: what ran counts once.
    """


class InternalError(CallError):
    """A bug of the gateway, or an answer that cannot be read."""


_CLASSES: Final[dict[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: NotPossibleError,
    grpc.StatusCode.FAILED_PRECONDITION: NotPossibleError,
    grpc.StatusCode.UNAUTHENTICATED: NoAccessError,
    grpc.StatusCode.PERMISSION_DENIED: NoAccessError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
}


def call_error(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    retry_after: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> CallError:
    """The error of a code; what is no known code is a bug of the gateway."""
    return _CLASSES.get(code, InternalError)(
        message, code=code, reason=reason, retry_after=retry_after, metadata=metadata
    )


def from_fault(fault: pb.CheckFault) -> CallError:
    """What a check among others failed with, as the error that it would have been alone."""
    wait = None
    if fault.HasField("retry_after"):
        wait = fault.retry_after.seconds + fault.retry_after.nanos / 1e9
    code = CODES.get(fault.code, grpc.StatusCode.UNKNOWN)
    return call_error(code, fault.message, reason=fault.reason, retry_after=wait)


def from_rpc(error: grpc.aio.AioRpcError) -> CallError:
    """A gRPC fault as an error, with `ErrorInfo`, `RetryInfo` and gRFC A6's push-back read."""
    reason = ""
    wait: float | None = None
    told: dict[str, str] = {}
    trailing: Any = error.trailing_metadata() or ()  # the stubs take pairs for something else
    for name, value in trailing:
        if name == PUSHBACK and isinstance(value, str):
            wait = _milliseconds(value)
        elif name == DETAILS and isinstance(value, bytes):
            reason, told, wait = _details(value, wait)
    return call_error(
        error.code(),
        error.details() or error.code().name,
        reason=reason,
        retry_after=wait,
        metadata=told,
    )


def _details(packed: bytes, wait: float | None) -> tuple[str, dict[str, str], float | None]:
    """`ErrorInfo.reason`, its metadata, and how long to wait."""
    reason: str = ""
    told: dict[str, str] = {}
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:  # a proxy's details are not ours to judge
        return reason, told, wait
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info):
            reason, told = info.reason, {**info.metadata, **told}
            if wait is None:
                wait = _milliseconds(told.get("retry_after_ms", ""))
        elif detail.Unpack(retry):
            wait = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Unpack(request):
            told["request_id"] = request.request_id
    return reason, told, wait


def _milliseconds(text: str) -> float | None:
    """Seconds, or None for what is no time to wait: negative means "do not retry" in gRFC A6."""
    try:
        wait = int(text) / 1000
    except ValueError:
        return None
    return wait if wait >= 0 else None
