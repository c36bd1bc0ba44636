"""The list of corrections: who corrects what, in which order, and how it ended. Also seals and the review.

The list decides: a correction counts once it stands there, and is carried out in the counter store afterwards, by
whoever comes first, in the order of its bucket's numbers. All of it is kept for ever: it is the audit trail, and it knows
every idempotency key that was ever used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enforcer.core.parcels import Parcel
    from meter.core.records import RecordType

__all__ = [
    "Corrections",
    "Intent",
    "KeyTaken",
    "Listed",
    "Place",
    "ReviewItem",
    "SealRule",
    "Settlement",
    "State",
]


class Place(NamedTuple):
    """Of a record in its bucket."""

    generation: int
    sequence: int


class State(StrEnum):
    """How far a correction is."""

    PENDING = "pending"
    APPLIED = "applied"
    REFUSED = "refused"


class KeyTaken(Exception):  # noqa: N818 - named for what it says
    """A key, or the next version of a record, was put into the list by somebody else meanwhile: look again."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A correction to be listed. `scope` and `key` name it for ever, `fingerprint` is that of its parameters.

    `target` and its `version` are absent for a backfill. `parcels` is what the target counts before, `quantity` what it
    shall count; `counts` whether it counts as an event before. `at_ms` is the time of the usage.
    """

    tenant: str
    bucket: int
    kind: RecordType
    scope: str
    key: str
    fingerprint: str
    actor: str
    reason: str
    account: str
    customer: str
    feature: str
    meter: str
    at_ms: int
    quantity: int
    dimensions: Mapping[str, str] = field(default_factory=dict)
    target: Place | None = None
    version: int = 0
    parcels: tuple[Parcel, ...] = ()
    counts: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of the list. `id` orders the list, `number` counts in the bucket, `listed_ms` is when it was made.

    `sealed`: its window was sealed then. Once applied, `place` is the correction's own record and `after` what the
    target counts from then on.
    """

    id: int
    number: int
    listed_ms: int
    intent: Intent
    sealed: bool
    state: State = State.PENDING
    place: Place | None = None
    overage: int = 0
    after: tuple[Parcel, ...] = ()
    refused: str = ""


class Settlement(NamedTuple):
    """How a correction ended."""

    number: int
    state: State
    place: Place | None = None
    overage: int = 0
    after: tuple[Parcel, ...] = ()
    refused: str = ""


class SealRule(NamedTuple):
    """Calendar months in UTC are sealed so many days after their end; 0: only by hand."""

    days: int = 0


class ReviewItem(NamedTuple):
    """An event that waits for a person: `event` is the UsageEvent in JSON."""

    id: int
    key: str
    event: str
    why: str
    actor: str
    at_ms: int


class Corrections(Protocol):
    """All operations raise `DefinitionsUnavailableError` when the database does not answer."""

    async def by_keys(self, tenant: str, keys: Sequence[tuple[str, str]]) -> Sequence[Listed]:
        """Entries with one of these (scope, key)."""
        ...

    async def latest(self, bucket: int, target: Place) -> tuple[int, Listed | None]:
        """The last version of a record that was listed, and the newest of them that was not refused."""
        ...

    async def add(self, intents: Sequence[Intent], rule: SealRule) -> None:
        """List them, all or none, each with the next number of its bucket. Raise `KeyTaken`."""
        ...

    async def pending(self, bucket: int, most: int) -> tuple[int, Sequence[Listed]]:
        """The number up to which all are settled, and the first pending ones behind it."""
        ...

    async def settle(self, bucket: int, settlements: Sequence[Settlement]) -> None:
        """Note how pending ones ended. Repeatable."""
        ...

    async def unfinished(self) -> Sequence[int]:
        """Buckets with pending corrections."""
        ...

    async def page(
        self, tenant: str, customer: str, record: tuple[int, Place] | None, before: int, most: int
    ) -> Sequence[Listed]:
        """Entries with ids below `before` (0: all), newest first."""
        ...

    async def seal(self, tenant: str, account: str, start_ms: int, end_ms: int, actor: str) -> bool:
        """Seal a range of an account (of all with ''). False: it was sealed before."""
        ...

    async def put_in_review(self, tenant: str, items: Sequence[ReviewItem]) -> set[str]:
        """Keep events for a person to look at, each once for ever; return the keys of those that wait."""
        ...

    async def review(self, tenant: str, after: int, most: int) -> Sequence[ReviewItem]:
        """Events that wait, with ids beyond `after`, oldest first."""
        ...

    async def review_item(self, tenant: str, number: int) -> ReviewItem | None:
        """One that waits."""
        ...

    async def resolve(
        self, tenant: str, number: int, *, accepted: bool, reason: str, actor: str
    ) -> bool:
        """Take it out of the review, with an audit entry. False: it does not wait (any more)."""
        ...
