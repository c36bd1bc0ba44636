"""How a client behaves: deadlines, retries, coalescing, keep-alive. Every value has a default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from enforcer.client.errors import ConfigurationError

__all__ = ["Options"]

MOST_ITEMS: Final = 256
"""Of a `CheckBatch`, as the gateway has it."""
_WHOLE: Final = {"most_in_flight", "largest_batch", "most_waiting", "connections"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times are seconds. A value that makes no sense is a `ConfigurationError` that says what does."""

    timeout: float = 5.0
    """How long one call may take with all its retries, where the call itself says nothing else."""
    attempt_timeout: float = 2.0
    """How long one attempt may take: after it the next one may reach another gateway."""
    first_pause: float = 0.05
    """Before the first retry; doubled for each further one, and each time shortened by up to a half by chance."""
    longest_pause: float = 1.0
    """Between two retries, unless the gateway asks for more."""
    most_in_flight: int = 4
    """So many calls with checks travel at a time; checks that are asked for meanwhile wait and travel together."""
    largest_batch: int = 128
    """So many checks travel together, from 1 (never together) to 256."""
    most_waiting: int = 10_000
    """So many checks may wait in this client; one more is refused with `OverloadedError`."""
    connections: int = 1
    """To each gateway address. Several reach several worker processes of one gateway."""
    keepalive: float = 30.0
    """A silent connection is probed after so long, from 1, and given up as much later, at most 5 s. 0 = never."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            whole = name in _WHOLE
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number of seconds"
                raise ConfigurationError(f"{name} is {value!r}: {kind} is expected")
            least = 0 if name in {"keepalive", "first_pause"} else None
            # `not … >` catches NaN, too.
            if not (value > 0 or value == least) or value == float("inf"):
                bound = "0 or more" if least == 0 else "more than 0"
                raise ConfigurationError(f"{name} is {value!r}: {bound} is expected")
        if 0 < self.keepalive < 1:
            raise ConfigurationError(
                f"keepalive is {self.keepalive}: gateways take probes once a second at most, or 0 = never"
            )
        if self.largest_batch > MOST_ITEMS:
            raise ConfigurationError(
                f"largest_batch is {self.largest_batch}: a batch has at most {MOST_ITEMS} checks"
            )
