"""The methods of `meter.v1.UsageService` that correct usage, and those that show what was corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enforcer.transport.services import Method, by_caller
from meter.v1 import usage_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from enforcer.gateway.backfill import Backfilling
    from enforcer.gateway.corrections import Correcting
    from enforcer.ports.definitions import Caller

__all__ = ["correction_methods"]


def correction_methods(correcting: Correcting, backfilling: Backfilling) -> list[Method]:
    """All of them. What changes usage needs an admin key."""
    found = []
    answer: Callable[[Caller, Any], Awaitable[Message]]
    for name, request, response, role, answer in (
        ("Void", pb.VoidRequest, pb.VoidResponse, "admin", correcting.void),
        ("Amend", pb.AmendRequest, pb.AmendResponse, "admin", correcting.amend),
        ("Backfill", pb.BackfillRequest, pb.BackfillResponse, "admin", backfilling.backfill),
        (
            "ListCorrections",
            pb.ListCorrectionsRequest,
            pb.ListCorrectionsResponse,
            "check",
            correcting.page,
        ),
        ("SealPeriod", pb.SealPeriodRequest, pb.SealPeriodResponse, "admin", correcting.seal),
        ("ListReview", pb.ListReviewRequest, pb.ListReviewResponse, "check", backfilling.review),
        (
            "ResolveReview",
            pb.ResolveReviewRequest,
            pb.ResolveReviewResponse,
            "admin",
            backfilling.resolve,
        ),
    ):
        service = "meter.v1.UsageService"
        found.append(Method(service, name, request, response, role, by_caller(answer)))
    return found
