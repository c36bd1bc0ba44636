"""What one arrival does: calls and pauses, told to whoever sends them. No I/O, no clock.

A session is a generator: it yields a `Call` and gets the answer, or a `Pause` and gets nothing. So the same
session runs on asyncio and in Locust's greenlets.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from enforcer.v1 import enforcer_pb2 as pb

__all__ = ["ANSWERS", "Call", "Pause", "Session"]

ANSWERS = {
    "Check": pb.CheckResponse,
    "CheckBatch": pb.CheckBatchResponse,
    "AcquireLease": pb.AcquireLeaseResponse,
    "RenewLease": pb.RenewLeaseResponse,
    "ReleaseLease": pb.ReleaseLeaseResponse,
}
"""The methods of EnforcerService that sessions call."""


@dataclass(frozen=True, slots=True)
class Call:
    """One of `ANSWERS`, with its request."""

    method: str
    request: Any


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so long after the last answer."""

    seconds: float


Session = Generator[Call | Pause, Any, None]
"""Ends when nothing is left to do, or is closed after a call that failed."""
