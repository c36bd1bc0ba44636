"""The counter store: where decisions are made, one atomic step each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

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
    from enforcer.errors import MetergateError

__all__ = ["CounterStore"]


class CounterStore(Protocol):
    """Counters, leases, reservations, remembered answers and the outbox of every bucket.

    `enforcer.core.memory.MemoryCounters` is the specification. All operations raise `StoreUnavailableError` when the store
    cannot be reached, `CountersRebuildingError` while a bucket is not proven, and `OutcomeUnknownError` when a step without an
    idempotency key may or may not have run.
    """

    def decide(self, group: Sequence[Ask]) -> Awaitable[list[Answer]]:
        """Decide checks of one account: several are all granted or none of them.

        Answers come in the order of the asks. When one is denied in a group of several, the others answer
        `BATCH_DENIED`. When one is stale, reused or failed, it says so and the others may say anything: nothing of
        the group was done.
        """
        ...

    def decide_all(
        self, groups: Sequence[Sequence[Ask]]
    ) -> Awaitable[list[list[Answer] | MetergateError]]:
        """Decide groups that do not depend on each other, in their order; an error concerns its group alone."""
        ...

    async def commit(
        self, bucket: int, reservation: str, quantity: int | None
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        """Use `quantity` (None: all) of what a reservation holds and give back the rest. Repeatable."""
        ...

    async def release(self, bucket: int, reservation: str) -> Settled | HoldGone | KeyReused:
        """Give back all that a reservation holds. Repeatable."""
        ...

    async def give_back(
        self, bucket: int, allowance: str, used: int
    ) -> Settled | HoldGone | TooMuch | KeyReused:
        """Count `used` of a block of supply as usage and give back the rest. Repeatable."""
        ...

    async def renew(
        self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int
    ) -> LeaseInfo | EpochStale | None:
        """Prolong a live lease to now + `ttl_ms`. None: it has expired or was never there."""
        ...

    async def release_lease(
        self, bucket: int, lease: str, *, unbind: bool
    ) -> tuple[int, int] | None:
        """End a live lease; return generation and sequence of its record. None: it had ended before.

        `unbind` also frees the binding of a node-locked device.
        """
        ...

    async def leases(
        self, bucket: int, suffix: str, after: tuple[int, str], most: int
    ) -> list[LeaseInfo]:
        """Live leases at and below a level (`<node>:<feature>`), by expiry then id, those after (expiry, id)."""
        ...

    async def project(self, bucket: int, account_id: int, epoch: int) -> int:
        """Make `epoch` the account's, unless a newer one is stored; return the stored one."""
        ...

    async def tick(self, bucket: int) -> int:
        """End what has expired and write the denials of past seconds; return how many records that left."""
        ...

    async def slots(self, bucket: int, suffixes: Sequence[str]) -> Levels:
        """The slots of levels (`<node>:<feature>`), the bucket's last record and the store's time, read in one step."""
        ...

    async def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> list[Outcome]:
        """Carry out corrections in the order of their numbers, each once, each with its record. Repeatable.

        `acknowledged`: all up to this number are settled in the list of corrections; their outcomes are forgotten here.
        Outcomes come in the order of the corrections, up to and with the first that has to be planned again. In a new
        generation nothing is done unless `certain`: what is behind `acknowledged` is in no record.
        """
        ...

    async def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> list[Counter]:
        """Add to counters what they lack, with one record that says so; return the changes that were made.

        A counter that has left the period of its change is left alone. The record's effects are no part of the ledger:
        they bring the counters to it.
        """
        ...

    async def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> bool:
        """Tell the ledger what the leases are: a record with these changes of `held`, which count there alone.

        `compared`: the place (generation, sequence) as of which leases and ledger were compared. False, and nothing is
        done, when an adjustment came after that: somebody has compared at the same time.
        """
        ...

    async def counters(self, bucket: int) -> BucketState:
        """Every counter and the last record, read in one step."""
        ...
