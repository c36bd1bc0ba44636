"""What a denial, or an error, is to whoever calls a metered service: one table for HTTP and gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from enforcer.client.errors import CallError, InternalError, OverloadedError, UnavailableError
from enforcer.client.results import Reason

if TYPE_CHECKING:
    from enforcer.client.errors import ClientError
    from enforcer.client.results import Verdict

__all__ = ["CUSTOMER_REQUIRED", "Refusal", "by_error", "by_verdict"]

_NO_CUSTOMER: Final = {"UNKNOWN_CUSTOMER", "BAD_CUSTOMER"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One answer in both languages. `reason` is in lower case; `retry_after` whole seconds, 0 = unknown."""

    http: int
    code: grpc.StatusCode
    reason: str
    message: str
    retry_after: int = 0
    degraded: bool = False


CUSTOMER_REQUIRED: Final = Refusal(
    400,
    grpc.StatusCode.INVALID_ARGUMENT,
    "customer_required",
    "the request does not say which customer it is for",
)


def by_verdict(feature: str, verdict: Verdict) -> Refusal:
    """403 where the terms do not cover it, 429 where something is used up, 503 where nobody could decide."""
    if verdict.reason is Reason.GATEWAY_UNAVAILABLE:
        return Refusal(
            503,
            grpc.StatusCode.UNAVAILABLE,
            verdict.reason.value,
            f"whether {feature} may be used cannot be decided at the moment",
            degraded=True,
        )
    if verdict.reason.of_terms:
        return Refusal(
            403,
            grpc.StatusCode.PERMISSION_DENIED,
            verdict.reason.value,
            f"{feature} may not be used: {verdict.reason.value}",
            degraded=verdict.degraded,
        )
    wait = verdict.retry_after
    return Refusal(
        429,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        verdict.reason.value,
        f"{feature} may not be used now: {verdict.reason.value}",
        # Not sooner than it helps, and never "at once".
        max(1, math.ceil(wait.total_seconds())) if wait is not None else 0,
        verdict.degraded,
    )


def by_error(feature: str, error: ClientError) -> Refusal:
    """503 where the gateway is away, 403 for a customer it does not know. Raise what is the service's own fault."""
    if isinstance(error, CallError) and error.reason in _NO_CUSTOMER:
        return Refusal(
            403,
            grpc.StatusCode.PERMISSION_DENIED,
            "unknown_customer",
            f"{feature} may not be used: the customer is not known",
        )
    if isinstance(error, UnavailableError | InternalError | OverloadedError):
        wait = error.retry_after if isinstance(error, CallError) else None
        return Refusal(
            503,
            grpc.StatusCode.UNAVAILABLE,
            Reason.GATEWAY_UNAVAILABLE.value,
            f"whether {feature} may be used cannot be decided at the moment",
            max(1, math.ceil(wait)) if wait is not None else 0,
        )
    raise error
