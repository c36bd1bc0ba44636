"""The method of `envoy.service.ratelimit.v3.RateLimitService`, where Envoys ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enforcer.ratelimit import rls_pb2 as pb
from enforcer.transport.services import Method, by_caller

if TYPE_CHECKING:
    from enforcer.gateway.ratelimit import RateLimits

__all__ = ["ratelimit_methods"]


def ratelimit_methods(limits: RateLimits) -> list[Method]:
    """For every API key."""
    return [
        Method(
            "envoy.service.ratelimit.v3.RateLimitService",
            "ShouldRateLimit",
            pb.RateLimitRequest,
            pb.RateLimitResponse,
            "check",
            by_caller(limits.should_rate_limit),
            as_bytes=True,
        )
    ]
