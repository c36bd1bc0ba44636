"""What clients were told: the side of the final check that no server has a hand in.

A call without an answer leaves its client in doubt whether it ran. It is asked again after the load under
the same idempotency key, as a client does; what is still open then is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.sessions import Call

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IN_DOUBT", "Seats", "Told", "Usage", "added", "seats_added"]

IN_DOUBT: Final = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED", "ABORTED"}
)
"""After these faults a call may have run."""
ASKED_AGAIN: Final = frozenset({"Check", "CheckBatch", "AcquireLease"})
"""Calls that take something. What a lost renewal or return leaves open, `still_held` closes."""


class Usage(msgspec.Struct):
    """Of one customer and feature."""

    customer: str
    feature: str
    allowed: int = 0
    """The sum of what was granted."""
    allowed_events: int = 0
    denied: int = 0
    denied_events: int = 0


class Seats(msgspec.Struct):
    """Of one customer and feature: the least and the most that can be true."""

    customer: str
    feature: str
    granted: int = 0
    surely_ms: int = 0
    """From the answer that granted to the call that gave back."""
    perhaps_ms: int = 0
    """From the call that asked to the answer to giving back."""


class _Lease(msgspec.Struct):
    customer: str
    feature: str
    asked: float
    granted: float


class Told:
    """Adds up the answers of one process."""

    def __init__(self) -> None:
        self.usage: dict[tuple[str, str], Usage] = {}
        self.seats: dict[tuple[str, str], Seats] = {}
        self.doubtful: list[Call] = []
        self.codes: dict[str, int] = {}
        self._leases: dict[str, _Lease] = {}

    def answered(self, call: Call, answer: Any, sent: float, now: float) -> tuple[int, int]:
        """Note an answer; return how many decisions of it allowed and denied. Times in seconds, of one clock."""
        request = call.request
        if call.method == "Check":
            return self._decided(request, answer)
        if call.method == "CheckBatch":
            return self._batch(request, answer)
        if call.method == "AcquireLease":
            return self._acquired(request, answer, sent, now)
        if call.method == "ReleaseLease":
            self._released(request.token, answer, sent, now)
        return 0, 0

    def failed(self, call: Call, code: str, *, counts: bool = True) -> None:
        """Note a call that ended with a fault of this name; `counts` among the run's faults."""
        if counts:
            self.codes[code] = self.codes.get(code, 0) + 1
        if code in IN_DOUBT and call.method in ASKED_AGAIN:
            self.doubtful.append(call)

    def take_doubtful(self) -> list[Call]:
        """Those to be asked again; they are no more in doubt until that fails."""
        calls, self.doubtful = self.doubtful, []
        return calls

    def still_held(self) -> list[Call]:
        """What gives back every lease that was granted and not given back."""
        return [Call("ReleaseLease", pb.ReleaseLeaseRequest(token=token)) for token in self._leases]

    def _decided(self, request: pb.CheckRequest, answer: pb.CheckResponse) -> tuple[int, int]:
        asked = request.quantity if request.HasField("quantity") else 1
        noted = self._of(request.customer, request.feature)
        if answer.allowed:
            noted.allowed += answer.granted
            noted.allowed_events += 1
            return 1, 0
        noted.denied += asked
        noted.denied_events += 1
        return 0, 1

    def _batch(
        self, request: pb.CheckBatchRequest, answer: pb.CheckBatchResponse
    ) -> tuple[int, int]:
        allowed = denied = 0
        for item, outcome in zip(request.items, answer.items, strict=True):
            if outcome.HasField("fault"):
                code = next(c.name for c in grpc.StatusCode if c.value[0] == outcome.fault.code)
                self.failed(Call("Check", item), code)
                continue
            yes, no = self._decided(item, outcome.response)
            allowed, denied = allowed + yes, denied + no
        return allowed, denied

    def _acquired(
        self,
        request: pb.AcquireLeaseRequest,
        answer: pb.AcquireLeaseResponse,
        sent: float,
        now: float,
    ) -> tuple[int, int]:
        where = (request.customer, request.feature)
        noted = self.seats.setdefault(where, Seats(*where))
        if not answer.check.allowed:
            usage = self._of(*where)
            usage.denied += 1
            usage.denied_events += 1
            return 0, 1
        noted.granted += 1
        self._leases[answer.lease.token] = _Lease(*where, asked=sent, granted=now)
        return 1, 0

    def _released(
        self, token: str, answer: pb.ReleaseLeaseResponse, sent: float, now: float
    ) -> None:
        if lease := self._leases.pop(token, None):
            noted = self.seats[lease.customer, lease.feature]
            # Else it had ended before: by its expiry, or by a call whose answer was lost.
            if answer.released:
                noted.surely_ms += max(int((sent - lease.granted) * 1000), 0)
            noted.perhaps_ms += int((now - lease.asked) * 1000) + 1

    def _of(self, customer: str, feature: str) -> Usage:
        found = self.usage.get((customer, feature))
        if found is None:
            found = self.usage[customer, feature] = Usage(customer, feature)
        return found


def added(parts: Iterable[list[Usage]]) -> list[Usage]:
    """Those of several processes as one, by customer and feature."""
    whole: dict[tuple[str, str], Usage] = {}
    for part in parts:
        for one in part:
            into = whole.setdefault((one.customer, one.feature), Usage(one.customer, one.feature))
            into.allowed += one.allowed
            into.allowed_events += one.allowed_events
            into.denied += one.denied
            into.denied_events += one.denied_events
    return [whole[key] for key in sorted(whole)]


def seats_added(parts: Iterable[list[Seats]]) -> list[Seats]:
    """Likewise."""
    whole: dict[tuple[str, str], Seats] = {}
    for part in parts:
        for one in part:
            into = whole.setdefault((one.customer, one.feature), Seats(one.customer, one.feature))
            into.granted += one.granted
            into.surely_ms += one.surely_ms
            into.perhaps_ms += one.perhaps_ms
    return [whole[key] for key in sorted(whole)]
