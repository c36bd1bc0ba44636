"""The definitions: what is sold, to whom, on which terms. The only truth about them is a SQL database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from enforcer.catalog.model import Catalog
    from enforcer.core.events import EventMeter
    from enforcer.core.model import Customer, Feature
    from enforcer.core.rebuild import Account

__all__ = ["Applied", "Caller", "Change", "Definitions", "LimitName", "Touched"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the API key's tenant, its public id, and its role, `check` or `admin`."""

    tenant: str
    key_id: str
    role: str


class Change(NamedTuple):
    """One thing that a catalog changed.

    `action` is created, updated or removed; `kind` is product, feature, plan, account, node, subscription or
    entitlement. Keys of the last two are `customer/key`.
    """

    action: str
    kind: str
    key: str


class Touched(NamedTuple):
    """An account that a change concerns, and its new epoch, to be projected before the change is answered."""

    account_id: int
    bucket: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a catalog did, or with `dry_run` would do."""

    changes: tuple[Change, ...]
    touched: tuple[Touched, ...]


class LimitName(NamedTuple):
    """A limit as the catalog names it: the customer it belongs to, and its key; `key/grant` of a grant."""

    customer: str
    key: str


class Definitions(Protocol):
    """All operations raise `DefinitionsUnavailableError` when the database does not answer."""

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        """A customer with all above it and the account's epoch, read in one transaction."""
        ...

    async def resolve_all(self, names: Sequence[tuple[str, str]]) -> Sequence[Customer | None]:
        """The same of several at once: tenant and customer of each. In their order; None for one that is not there."""
        ...

    async def feature(self, tenant: str, key: str) -> Feature | None:
        """A feature of the tenant."""
        ...

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        """The accounts of a bucket with a number above `after`, in order, each with its whole tree."""
        ...

    async def event_meters(self, tenant: str) -> list[EventMeter]:
        """The tenant's features that events from elsewhere feed by their type, in the order of their making."""
        ...

    async def caller(self, api_key: str) -> Caller | None:
        """Who has this key; None if nobody has, or it was revoked."""
        ...

    async def descendants(self, tenant: str, customers: list[str]) -> list[str]:
        """The keys of these nodes and of all below them, sorted. Unknown ones are left out."""
        ...

    async def limits(
        self, tenant: str, ids: Collection[int], features: Collection[str]
    ) -> dict[int, LimitName]:
        """The names of limits by their numbers, as far as there are such limits of the features still."""
        ...

    async def seat_limits(self, ids: Collection[int]) -> dict[int, str]:
        """Which of these numbers are limits of seats, and whose: tenants by number."""
        ...

    async def aggregations(self, tenant: str, feature: str = "") -> dict[str, tuple[str, str]]:
        """How features' meters add up where it is no sum: name of the way, and for `unique` the dimension.

        Of one feature, or without its key of all.
        """
        ...

    async def apply(self, catalog: Catalog, *, actor: str, dry_run: bool = False) -> Applied:
        """Make the definitions what a validated catalog declares, in one transaction.

        Every account that is concerned gets the next epoch; one that is not keeps its own. `touched` also has
        accounts of the tenant that an earlier change left unprojected (`projected`), so that repeating a call that
        failed half-way makes its change count. A dry run touches nothing. Raise `CatalogInvalidError` for what only
        the database can know (a key that another account has, a plan or feature that was never declared).
        """
        ...

    async def account_epoch(self, tenant: str, account_id: int) -> int | None:
        """How often the account's tree was changed; None for an unknown account."""
        ...

    async def pending(self) -> tuple[Touched, ...]:
        """Accounts of all tenants whose newest epoch was not reported by `projected` yet.

        There are some when a process ended between a change and its projection: whoever starts projects them.
        """
        ...

    async def projected(self, accounts: Iterable[Touched]) -> None:
        """Note that the counters know these epochs. Call it after projecting, never before."""
        ...

    async def next_generation(self, bucket: int, at_least: int) -> int:
        """Allocate a bucket's generation: greater than every earlier one and than `at_least`."""
        ...

    async def was_opened(self, bucket: int) -> bool:
        """Whether a generation of the bucket was ever confirmed to be in Redis."""
        ...

    async def confirm_opened(self, bucket: int) -> None:
        """Redis has the bucket: from now on its absence there is a loss."""
        ...

    async def note(self, tenant: str, actor: str, action: str, kind: str, key: str) -> None:
        """Write an entry of the audit log: who did what to which thing, now."""
        ...

    async def last_generation(self, bucket: int) -> int:
        """The greatest generation given out; 0 if the bucket was never opened."""
        ...

    async def lease_secret(self) -> bytes:
        """The deployment's own key for signing leases and reservations, made once."""
        ...
