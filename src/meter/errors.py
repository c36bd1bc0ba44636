"""The meter's errors, one tree, and the one table that maps them to gRPC and HTTP.

MeterError
├── InvalidRequestError      the question is malformed (reason says how)
├── NotFoundError            no such record for this tenant
├── UnauthenticatedError     no or a wrong internal token
├── UnimplementedError       another service answers this call
├── ReportOverflowError      a sum that no int64 holds
├── RawExpiredError          the records are older than raw is kept
├── UnavailableError         something is away or behind; a retry can help
│   ├── LogUnavailableError
│   │   ├── LogMovedError  other buckets are this process's now
│   │   └── TopicMissingError  nobody has made a topic yet
│   ├── WarehouseUnavailableError
│   ├── MarksUnavailableError
│   └── RollupBehindError
├── GapUnknownError          no bucket is held at the gap that is to be accepted
├── FencedError              another process has moved the rollup's marks
└── MisconfiguredError       a setting is wrong; the process does not start
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

__all__ = [
    "DOMAIN",
    "Code",
    "FencedError",
    "GapUnknownError",
    "InvalidRequestError",
    "LogMovedError",
    "LogUnavailableError",
    "MarksUnavailableError",
    "MeterError",
    "MisconfiguredError",
    "NotFoundError",
    "RawExpiredError",
    "ReportOverflowError",
    "RollupBehindError",
    "TopicMissingError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "WarehouseUnavailableError",
]

DOMAIN = "metergate"
"""The domain of every `google.rpc.ErrorInfo`."""


class Code(IntEnum):
    """google.rpc.Code."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class MeterError(Exception):
    """The root.

    `reason` is the stable UPPER_SNAKE name for machines, `code` and `http` the statuses it answers
    with, `retryable` whether the same call may succeed later. `metadata` names the details.
    """

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL
    http: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidRequestError(MeterError):
    """The request is malformed. Each kind of fault has a reason of its own, given by the raiser."""

    code = Code.INVALID_ARGUMENT
    http = 400

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.reason = reason  # type: ignore[misc]  # one class, many reasons


class NotFoundError(MeterError):
    """The place has no record, or none of this tenant's."""

    reason = "RECORD_NOT_FOUND"
    code = Code.NOT_FOUND
    http = 404


class UnauthenticatedError(MeterError):
    """The internal token is missing or wrong, or the tenant is not named."""

    reason = "INTERNAL_TOKEN_INVALID"
    code = Code.UNAUTHENTICATED
    http = 401


class UnimplementedError(MeterError):
    """The call is part of the contract, but another service answers it."""

    reason = "UNIMPLEMENTED"
    code = Code.UNIMPLEMENTED
    http = 501


class ReportOverflowError(MeterError):
    """A sum is beyond 2^63 - 1: ask for smaller windows or fewer customers."""

    reason = "SUM_OUT_OF_RANGE"
    code = Code.OUT_OF_RANGE
    http = 400


class RawExpiredError(MeterError):
    """What is asked for needs raw records that were dropped when they had been kept long enough."""

    reason = "RAW_EXPIRED"
    code = Code.FAILED_PRECONDITION
    http = 409


class UnavailableError(MeterError):
    """Something that the meter needs is away or behind.

    `refused`: it answers, and does not let this process in: a matter of settings, here or there.
    """

    reason = "UNAVAILABLE"
    code = Code.UNAVAILABLE
    http = 503
    retryable = True

    def __init__(self, message: str, *, refused: bool = False, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.refused = refused


class LogUnavailableError(UnavailableError):
    """The log of usage records cannot be reached: records wait there."""

    reason = "LOG_UNAVAILABLE"


class LogMovedError(LogUnavailableError):
    """The log's buckets were dealt anew among processes: begin again with those of this one."""

    reason = "LOG_MOVED"


class TopicMissingError(LogUnavailableError):
    """A topic is missing: it may still be made, by whoever sets the deployment up."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


class WarehouseUnavailableError(UnavailableError):
    """ClickHouse or chDB failed: records wait in the log, reports have no answer."""

    reason = "WAREHOUSE_UNAVAILABLE"


class MarksUnavailableError(UnavailableError):
    """The SQL database of marks and manifests failed."""

    reason = "MARKS_UNAVAILABLE"


class GapUnknownError(MeterError):
    """The bucket is not held at the gap that is to be accepted."""

    reason = "GAP_UNKNOWN"
    code = Code.FAILED_PRECONDITION
    http = 409


class RollupBehindError(UnavailableError):
    """The rollup has not reached the wanted place in time; the metadata say how far it is."""

    reason = "ROLLUP_BEHIND"


class FencedError(MeterError):
    """Another process rolls up these buckets. This one starts again from the durable marks."""

    reason = "FENCED"
    code = Code.ABORTED
    http = 409
    retryable = True


class MisconfiguredError(MeterError):
    """A setting is wrong. The message names it and what is allowed."""

    reason = "MISCONFIGURED"
    code = Code.FAILED_PRECONDITION
