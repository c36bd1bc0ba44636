"""The specification behind the port, for tests of everything above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.commands import (
        Answer,
        Ask,
        BucketState,
        Counter,
        EpochStale,
        HoldGone,
        KeyReused,
        LeaseInfo,
        Settled,
        TooMuch,
    )
    from enforcer.core.corrections import Correction, Levels, Outcome
    from enforcer.core.memory import MemoryCounters
    from enforcer.errors import MetergateError

__all__ = ["MemoryStore"]


class MemoryStore:
    """Implements `enforcer.ports.counters.CounterStore` on opened `MemoryCounters`."""

    def __init__(self, counters: MemoryCounters) -> None:
        self._counters = counters

    async def decide(self, group: Sequence[Ask]) -> list[Answer]:
        return self._counters.decide(group)

    async def decide_all(
        self, groups: Sequence[Sequence[Ask]]
    ) -> list[list[Answer] | MetergateError]:
        return [self._counters.decide(group) for group in groups]

    async def commit(
        self, bucket: int, reservation: str, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return self._counters.commit(bucket, reservation, quantity)

    async def release(self, bucket: int, reservation: str) -> Settled | HoldGone | KeyReused:
        return self._counters.release(bucket, reservation)

    async def give_back(
        self, bucket: int, allowance: str, used: int
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        return self._counters.give_back(bucket, allowance, used)

    async def renew(
        self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int
    ) -> LeaseInfo | EpochStale | None:
        return self._counters.renew(bucket, lease, ttl_ms, account_id, epoch)

    async def release_lease(
        self, bucket: int, lease: str, *, unbind: bool
    ) -> tuple[int, int] | None:
        return self._counters.release_lease(bucket, lease, unbind=unbind)

    async def leases(
        self, bucket: int, suffix: str, after: tuple[int, str], most: int
    ) -> list[LeaseInfo]:
        return self._counters.leases(bucket, suffix, after, most)

    async def project(self, bucket: int, account_id: int, epoch: int) -> int:
        return self._counters.project(bucket, account_id, epoch)

    async def tick(self, bucket: int) -> int:
        return self._counters.tick(bucket)

    async def slots(self, bucket: int, suffixes: Sequence[str]) -> Levels:
        return self._counters.slots(bucket, suffixes)

    async def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> list[Outcome]:
        return self._counters.correct(bucket, acknowledged, corrections, certain=certain)

    async def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
        return self._counters.repair(bucket, body, changes)

    async def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> bool:
        return self._counters.adjust_seats(bucket, compared, body, changes)

    async def counters(self, bucket: int) -> BucketState:
        return self._counters.counters(bucket)
