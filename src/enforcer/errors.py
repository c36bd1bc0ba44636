"""The enforcer's errors: one tree, and with each the gRPC and HTTP status it answers with.

MetergateError
├── InvalidRequestError        the question is malformed; `reason` says how
│   └── CatalogInvalidError    a catalog file has issues, all of them listed
├── NotFoundError              an unknown customer or feature, a reservation that is gone
├── NotPossibleError           well-formed, but not in this state (a lease that has expired)
├── UnauthenticatedError       no API key, or an unknown one
├── ForbiddenError             the key's role does not allow it
├── UnavailableError           something is away; a retry with the same key is safe
│   ├── StoreUnavailableError  Redis does not answer
│   ├── CountersRebuildingError  Redis may lack counters: they are held against the records, or made again
│   ├── DefinitionsUnavailableError
│   ├── JournalUnavailableError  an emergency use could not be made durable
│   ├── MeterUnavailableError
│   └── TermsChangingError     a customer's terms change faster than they are read
├── OverloadedError            more calls at once than this process takes
├── TenantOverShareError       more calls of one tenant than it may have here
├── OutcomeUnknownError        a check without idempotency key may have run or not
├── MisconfiguredError         a setting is wrong: the process does not start
│   └── StoreMisconfiguredError
├── RelayedError               what the meter says is wrong
└── InternalError              a bug

A refused check is none of these: it is data (`CheckResponse.allowed`).
"""

from __future__ import annotations

from typing import ClassVar

from meter.errors import Code

__all__ = [
    "DOMAIN",
    "REASONS",
    "CatalogInvalidError",
    "Code",
    "CountersRebuildingError",
    "DefinitionsUnavailableError",
    "ForbiddenError",
    "InternalError",
    "InvalidRequestError",
    "JournalUnavailableError",
    "MeterUnavailableError",
    "MetergateError",
    "MisconfiguredError",
    "NotFoundError",
    "NotPossibleError",
    "OutcomeUnknownError",
    "OverloadedError",
    "RelayedError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "TenantOverShareError",
    "TermsChangingError",
    "UnauthenticatedError",
    "UnavailableError",
]

DOMAIN = "metergate"
"""The domain of every `google.rpc.ErrorInfo`."""


_HTTP = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 503,
    Code.UNAUTHENTICATED: 401,
}


class MetergateError(Exception):
    """The root.

    `reason` is the stable UPPER_SNAKE name for machines; `code` and `http` are the statuses; `retryable` tells
    whether the same call, with the same idempotency key, may succeed later. `metadata` names the details.
    """

    reason: str = "INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL
    http: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class _ReasonedError(MetergateError):
    """An error whose raiser names the reason, one of `REASONS`."""

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        assert REASONS[reason][0] is type(self), reason
        self.reason = reason


class InvalidRequestError(_ReasonedError):
    """The request is malformed."""

    code = Code.INVALID_ARGUMENT
    http = 400


class CatalogInvalidError(MetergateError):
    """A catalog file has issues; the message has one line `file:line: field: what is wrong` for each."""

    reason = "CATALOG_INVALID"
    code = Code.INVALID_ARGUMENT
    http = 400


class NotFoundError(_ReasonedError):
    """What was named does not exist for this tenant."""

    code = Code.NOT_FOUND
    http = 404


class NotPossibleError(_ReasonedError):
    """The request is well-formed, but the state does not allow it."""

    code = Code.FAILED_PRECONDITION
    http = 409


class UnauthenticatedError(MetergateError):
    """There is no API key in `authorization: Bearer`, or an unknown or revoked one."""

    reason = "BAD_API_KEY"
    code = Code.UNAUTHENTICATED
    http = 401


class ForbiddenError(MetergateError):
    """The key's role does not allow this call."""

    reason = "ROLE_REQUIRED"
    code = Code.PERMISSION_DENIED
    http = 403


class UnavailableError(MetergateError):
    """Something is away. `refused`: it answers, and does not let this process in: a matter of settings."""

    reason = "UNAVAILABLE"
    code = Code.UNAVAILABLE
    http = 503
    retryable = True
    refused = False


class StoreUnavailableError(UnavailableError):
    """Redis does not answer, or refuses to. `sent`: where the check went all the same, and may have run."""

    reason = "STORE_UNAVAILABLE"

    def __init__(self, message: str, sent: object = None) -> None:
        super().__init__(message)
        self.sent = sent


class DefinitionsUnavailableError(UnavailableError):
    """The definitions' database does not answer."""

    reason = "DEFINITIONS_UNAVAILABLE"


class MeterUnavailableError(UnavailableError):
    """The meter does not answer: no reports for the moment. Checks go on."""

    reason = "METER_UNAVAILABLE"


class TermsChangingError(UnavailableError):
    """The customer's terms changed each time they had been read. Nothing was decided."""

    reason = "TERMS_CHANGING"

    def __init__(self, customer: str) -> None:
        super().__init__(
            f"the terms of {customer!r} change faster than they can be read: nothing was decided",
            customer=customer,
            retry_after_ms="1000",
        )


class JournalUnavailableError(UnavailableError):
    """An emergency use could not be made durable, and is not allowed. `certain`: it is not in the journal.

    Where neither that is certain nor a key tells retries, clients see `OUTCOME_UNKNOWN` instead.
    """

    reason = "JOURNAL_UNAVAILABLE"

    def __init__(self, message: str, *, certain: bool = True) -> None:
        super().__init__(message)
        self.certain = certain


class OverloadedError(MetergateError):
    """So many calls wait for their answers that no more are taken. Nothing was decided."""

    reason = "OVERLOADED"
    code = Code.RESOURCE_EXHAUSTED
    http = 429
    retryable = True

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} calls wait for their answers here: this one was not taken",
            retry_after_ms="100",
        )


class TenantOverShareError(MetergateError):
    """The tenant has all the calls that it may have at this process. Nothing was decided. `limit`: concurrency or rate."""

    reason = "TENANT_OVER_SHARE"
    code = Code.RESOURCE_EXHAUSTED
    http = 429
    retryable = True

    def __init__(self, limit: str, retry_after_ms: int) -> None:
        more = "at once" if limit == "concurrency" else "in a second"
        super().__init__(
            f"this tenant has asked for more {more} than its share of this process: this call was not taken",
            limit=limit,
            retry_after_ms=str(retry_after_ms),
        )


class OutcomeUnknownError(MetergateError):
    """The connection broke after the check may have run, and it had no idempotency key to ask by."""

    reason = "OUTCOME_UNKNOWN"
    code = Code.UNAVAILABLE
    http = 503

    def __init__(self, sent: object = None) -> None:
        self.sent = sent
        super().__init__(
            "the connection to the counters broke: the check may have consumed or not; send an "
            "idempotency_key to make retries safe"
        )


class CountersRebuildingError(UnavailableError):
    """Redis was emptied, restarted or replaced: nothing of the bucket is answered before its counters are proven.

    `why` is what it waits for. `sent`: as with `StoreUnavailableError`.
    """

    reason = "COUNTERS_REBUILDING"

    def __init__(self, bucket: int, why: str, sent: object = None) -> None:
        self.sent = sent
        super().__init__(
            f"the counters of bucket {bucket} are being held against its records after a loss or a "
            f"restart of Redis: {why}",
            bucket=str(bucket),
            retry_after_ms="1000",
        )


class MisconfiguredError(MetergateError):
    """A setting is wrong; the message names it and what is allowed."""

    reason = "MISCONFIGURED"


class StoreMisconfiguredError(MisconfiguredError):
    """The Redis server is set up so that it could lose counters."""


class RelayedError(MetergateError):
    """What the meter says is wrong, passed on as it is."""

    def __init__(self, code: int, reason: str, message: str, metadata: dict[str, str]) -> None:
        super().__init__(message, **metadata)
        self.reason = reason
        known = code in {one.value for one in Code}
        self.code = Code(code) if known else Code.INTERNAL  # type: ignore[misc]  # as the meter has it
        self.http = _HTTP[self.code]  # type: ignore[misc]


class InternalError(MetergateError):
    """A bug. The message carries nothing of the inside."""


REASONS: dict[str, tuple[type[MetergateError], str]] = {
    "UNKNOWN_CUSTOMER": (NotFoundError, "no such customer; apply a catalog that has it"),
    "UNKNOWN_FEATURE": (NotFoundError, "no such feature; apply a catalog that has it"),
    "UNKNOWN_DOMAIN": (NotFoundError, "the mapping file of METERGATE_RATELIMIT_FILE lacks it"),
    "RESERVATION_NOT_FOUND": (NotFoundError, "never made, expired or settled the other way"),
    "BAD_CONTENT_TYPE": (InvalidRequestError, "send CloudEvents as JSON: see docs/events.md"),
    "BAD_EVENT": (
        InvalidRequestError,
        "send the attributes that CloudEvents 1.0 requires, and subject",
    ),
    "BAD_MESSAGE": (InvalidRequestError, "send the message of the proto, and of this version"),
    "SERVICE_UNKNOWN": (NotFoundError, "ask for the health of a service that is served here"),
    "BAD_JSON": (InvalidRequestError, "send JSON in UTF-8"),
    "BODY_TOO_LARGE": (InvalidRequestError, "send smaller batches: see the message for the bound"),
    "BAD_CUSTOMER": (InvalidRequestError, "send the key of a customer"),
    "BAD_FEATURE": (InvalidRequestError, "send the key of a feature"),
    "BAD_QUANTITY": (InvalidRequestError, "send an integer from 1 to 2^53 - 1, or none for 1"),
    "UNKNOWN_MODE": (InvalidRequestError, "send one of the modes of the proto"),
    "BAD_DIMENSIONS": (InvalidRequestError, "at most 16; keys to 64 bytes, values to 256 bytes"),
    "BAD_IDEMPOTENCY_KEY": (InvalidRequestError, "at most 256 bytes; required for reports"),
    "IDEMPOTENCY_MISMATCH": (
        InvalidRequestError,
        "the key was used with other parameters: take a new one",
    ),
    "BAD_BATCH": (InvalidRequestError, "see the message for size and what may stand together"),
    "BAD_DESCRIPTOR": (InvalidRequestError, "see docs/envoy.md for what a descriptor may have"),
    "BAD_LOG_LEVEL": (InvalidRequestError, "send a level and a part of the proto"),
    "BAD_TTL": (InvalidRequestError, "see the message for the bounds"),
    "BAD_TOKEN": (InvalidRequestError, "send the token as it was given out"),
    "BAD_PAGE": (InvalidRequestError, "send the page token of the same question"),
    "BAD_TIME": (InvalidRequestError, "see the message for the bounds"),
    "HOLDER_REQUIRED": (InvalidRequestError, "name the user or the device"),
    "MODE_NOT_SUPPORTED": (InvalidRequestError, "see docs/modes.md"),
    "UNKNOWN_VERSION": (InvalidRequestError, "send a version that the catalog lists"),
    "PRODUCT_VERSION_REQUIRED": (InvalidRequestError, "send product_version"),
    "QUANTITY_OVERFLOW": (InvalidRequestError, "a count would pass 2^53 - 1"),
    "COMMIT_EXCEEDS_RESERVATION": (
        InvalidRequestError,
        "commit at most what is held, record the rest with MODE_RECORD_ONLY",
    ),
    "ALLOWANCE_EXCEEDED": (
        InvalidRequestError,
        "more was used than the block had: report at most its size, the rest with MODE_RECORD_ONLY",
    ),
    "ALLOWANCE_EXPIRED": (
        NotPossibleError,
        "the block counts as used and is reported as unaccounted: send what was used as a Check in MODE_RECORD_ONLY",
    ),
    "ALLOWANCE_RETURNED": (NotPossibleError, "it was returned before, with another `used`"),
    "DOCUMENT_TOO_LARGE": (
        InvalidRequestError,
        "a catalog has at most 1 MiB: declare accounts in several files",
    ),
    "RESERVATION_SETTLED": (NotPossibleError, "it was committed or released before"),
    "BAD_RECORD": (InvalidRequestError, "name bucket, generation and sequence of a record"),
    "BAD_REASON": (InvalidRequestError, "say why, in 1 to 500 characters"),
    "BAD_MONTH": (InvalidRequestError, "send a calendar month such as 2026-10"),
    "RECORD_NOT_FOUND": (NotFoundError, "no such record of this tenant"),
    "RAW_EXPIRED": (
        NotPossibleError,
        "it stays as it is: raw records that it needs are dropped after METERGATE_METER_RAW_DAYS days",
    ),
    "REVIEW_NOT_FOUND": (NotFoundError, "no such event waits for a review"),
    "RECORD_VOIDED": (
        NotPossibleError,
        "nothing is left to void; an amendment makes it count again",
    ),
    "NOT_CORRECTABLE": (
        NotPossibleError,
        "correct the record of the usage itself: of a check, report, commit, returned allowance or backfill",
    ),
    "CORRECTION_REFUSED": (NotPossibleError, "see `because` in the metadata"),
    "PERIOD_OPEN": (NotPossibleError, "a month can be sealed 25 hours after its end"),
    "LEASE_EXPIRED": (NotPossibleError, "acquire a new lease"),
    "LEASE_REVOKED": (NotPossibleError, "the customer may not use the feature any more"),
}
"""Reasons that several errors of a class have: the class, and what a client does about it."""
