"""When a failed call is tried again. No clock and no chance of its own: both are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.client.errors import CallError

__all__ = ["Retries", "Schedule"]

MOST_TOKENS: Final = 20.0
TOKENS_BY_SUCCESS: Final = 0.1
MOST_DOUBLINGS: Final = 16


@dataclass(slots=True)
class Retries:
    """What a client may spend on retries of calls that reached a gateway in trouble, as in gRFC A6.

    Each such failure costs a token, each success brings a tenth; at half the tokens retries stop, so
    that a gateway that cannot cope is not asked twice as much. A gateway that is not reached at all,
    or that itself says when to come again, costs nothing.
    """

    tokens: float = MOST_TOKENS

    def succeeded(self) -> None:
        """A call was answered."""
        if self.tokens < MOST_TOKENS:
            self.tokens = min(MOST_TOKENS, self.tokens + TOKENS_BY_SUCCESS)

    def failed(self, error: CallError) -> None:
        """A call failed."""
        if error.retryable and _reached(error):
            self.tokens = max(0.0, self.tokens - 1)

    def allow(self, error: CallError) -> bool:
        """Whether it may be tried again at all."""
        return error.retryable and (self.tokens > MOST_TOKENS / 2 or not _reached(error))


def _reached(error: CallError) -> bool:
    if error.retry_after is not None:
        return False
    # Without a reason of the gateway's own it is gRPC's word for "no connection".
    return error.code is not grpc.StatusCode.UNAVAILABLE or error.reason != "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to wait before each retry. `chance` gives numbers in [0, 1)."""

    first: float
    longest: float
    chance: Callable[[], float]

    def pause(self, failures: int, error: CallError) -> float:
        """Seconds to wait after so many failures, at least what the gateway asks for."""
        step = min(self.longest, self.first * 2.0 ** min(failures - 1, MOST_DOUBLINGS))
        if error.retry_after is not None:
            # Clients that were sent away together do not come back together.
            return error.retry_after + step * self.chance()
        return step * (1 - self.chance() / 2)
