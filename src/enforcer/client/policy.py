"""What a feature does while no gateway answers: `FailOpen`, `FailClosed`. Pure: no clock, no calls.

Where a feature has no policy, the caller gets the error. With one, the caller gets a verdict that is
marked `degraded`; nothing is allowed silently, and never more than the policy's amount.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import grpc

from enforcer.client.errors import CallError, ConfigurationError
from enforcer.client.results import Reason, Verdict
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ALL", "FailClosed", "FailOpen", "Outages", "Policy", "Use"]

ALL: Final = "*"
"""In place of a feature: every one that is not named."""
MOST_UNCOUNTED: Final = 10_000
"""Uses that wait to be counted. Beyond it features fail closed."""
MOST_SEEN: Final = 10_000
"""Terms remembered."""
OUTAGE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailClosed:
    """Denied with `Reason.GATEWAY_UNAVAILABLE` and `degraded`, after `patience` seconds without an answer."""

    patience: float = 1.0

    def __post_init__(self) -> None:
        _check_patience(self.patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailOpen:
    """Allowed and `degraded`, after `patience` seconds without an answer.

    Each customer may use up to `amount`, in the feature's own unit, in this process, until the uses
    have been counted: when a gateway answers again, each is counted once, past the limits if need be.
    Who was last seen not entitled, expired or suspended is denied. Uses of a process that dies before
    they are counted are lost: where that is too much, the feature has to fail closed.
    """

    amount: int
    patience: float = 1.0

    def __post_init__(self) -> None:
        _check_patience(self.patience)
        if type(self.amount) is not int or self.amount < 1:
            raise ConfigurationError(
                f"amount is {self.amount!r}: a whole number from 1 is expected"
            )


Policy = FailOpen | FailClosed


def _check_patience(patience: float) -> None:
    if not 0 < patience < float("inf"):
        raise ConfigurationError(
            f"patience is {patience!r}: a number of seconds above 0 is expected"
        )


@dataclass(frozen=True, slots=True)
class Use:
    """Something that was allowed without counters, and has to be counted."""

    request: pb.CheckRequest

    @property
    def quantity(self) -> int:
        """In the feature's own unit."""
        return self.request.quantity

    def rest(self, granted: int) -> pb.CheckRequest | None:
        """What the check itself, asked now, did not cover: to be recorded past the limits."""
        left = self.quantity - granted
        if left <= 0:
            return None
        asked = pb.CheckRequest()
        asked.CopyFrom(self.request)
        asked.quantity, asked.mode = left, pb.MODE_RECORD_ONLY
        # Of the use's own key, which may be as long as a key can be.
        own = sha256(self.request.idempotency_key.encode()).hexdigest()
        asked.idempotency_key = f"degraded-{own}"
        return asked


class Outages:
    """Decides while nobody else does, and keeps what has to be counted afterwards, oldest first."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        for feature, policy in policies.items():
            if not isinstance(policy, Policy):
                raise ConfigurationError(
                    f"the policy of {feature!r} is {policy!r}: FailOpen(…) or FailClosed() is expected"
                )
        self._policies, self._otherwise = dict(policies), policies.get(ALL)
        self.out = False
        """The last check that a policy covers was decided here: the next one is tried once only."""
        self.uncounted: deque[Use] = deque()
        self._by_key: dict[tuple[str, str, str], Use] = {}
        self._weight: dict[tuple[str, str], int] = {}
        self._terms: OrderedDict[tuple[str, str], Reason] = OrderedDict()

    def __bool__(self) -> bool:
        """There is a policy at all."""
        return bool(self._policies)

    def of(self, feature: str) -> Policy | None:
        """The feature's policy, if it has one."""
        return self._policies.get(feature, self._otherwise)

    def saw(self, customer: str, feature: str, verdict: Verdict) -> None:
        """A gateway has answered."""
        self.out = False
        place = customer, feature
        if not verdict.allowed and verdict.reason.of_terms:
            self._terms[place] = verdict.reason
            self._terms.move_to_end(place)
            if len(self._terms) > MOST_SEEN:
                self._terms.popitem(last=False)
        elif self._terms:
            self._terms.pop(place, None)

    def decide(self, request: pb.CheckRequest, error: CallError) -> Verdict:
        """The verdict without counters. Raise `error` where no policy covers it."""
        policy = self.of(request.feature)
        if policy is None or error.code not in OUTAGE:
            raise error
        self.out = True
        if isinstance(policy, FailClosed):
            return _denied(Reason.GATEWAY_UNAVAILABLE)
        place = request.customer, request.feature
        if place in self._terms:
            return _denied(self._terms[place])
        quantity, weight = request.quantity, self._weight.get(place, 0)
        if (earlier := self._by_key.get((*place, request.idempotency_key))) is not None:
            return Verdict(allowed=True, granted=earlier.quantity, degraded=True, replayed=True)
        if quantity < 1:
            raise error  # no question that could be answered
        fits = weight + quantity <= policy.amount and len(self.uncounted) < MOST_UNCOUNTED
        if not fits:
            if request.mode == pb.MODE_RECORD_ONLY:
                raise error  # what has happened cannot be denied
            return _denied(Reason.EMERGENCY_EXHAUSTED)
        if request.mode != pb.MODE_CHECK_ONLY:
            use = self._by_key[(*place, request.idempotency_key)] = Use(request)
            self.uncounted.append(use)
            self._weight[place] = weight + quantity
        return Verdict(allowed=True, granted=quantity, degraded=True)

    def counted(self, use: Use) -> None:
        """The oldest use weighs no longer."""
        assert self.uncounted[0] is use
        self.uncounted.popleft()
        place = use.request.customer, use.request.feature
        del self._by_key[(*place, use.request.idempotency_key)]
        left = self._weight[place] - use.quantity
        if left:
            self._weight[place] = left
        else:
            del self._weight[place]


def _denied(reason: Reason) -> Verdict:
    return Verdict(allowed=False, reason=reason, degraded=True)
