"""What a counter store is asked and what it answers: plain values, the same for every store.

A store keeps the counters of buckets. Each of its operations is one atomic step that also writes the record of what it
changed; see `enforcer.ports.counters` for the operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from enforcer.core.program import Reason
from enforcer.core.rules import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enforcer.core.program import Program
    from enforcer.core.rules import Mode

__all__ = [
    "ENTRIES_AT",
    "NOW",
    "NO_KEY",
    "REASONS",
    "SEQUENCE",
    "WIDTH",
    "Answer",
    "Ask",
    "BucketState",
    "Counter",
    "Decision",
    "EpochStale",
    "Failed",
    "HoldGone",
    "Journaled",
    "KeyReused",
    "LeaseInfo",
    "OutOfTurn",
    "SeatAsk",
    "Sent",
    "Settled",
    "SliceStale",
    "Stock",
    "TooMuch",
    "decided",
    "fingerprint",
    "fingerprinted",
    "idempotency",
    "key_name",
]

NO_KEY = b""
NOW, SEQUENCE, ENTRIES_AT = 4, 6, 9
"""Where in a decision's numbers the time and the record's sequence stand, and from where on those of its entries."""
REASONS = [Reason(max(number, 1)) for number in range(max(Reason) + 1)]
"""By their numbers."""
WIDTH = len(Entry._fields)
"""Fields of an entry."""
_PARTS = (
    *("reason", "granted", "bucket", "now", "generation", "sequence", "overage", "shadow"),
    *("values", "id", "expires", "replayed", "degraded"),
)


def idempotency(account_id: int, feature_id: int, key: str, *parameters: object) -> bytes:
    """The `key_name`, and behind it 8 bytes of the parameters that the key came with."""
    return key_name(account_id, feature_id, key) + fingerprint(*parameters)


def key_name(account_id: int, feature_id: int, key: str) -> bytes:
    """16 bytes that name an idempotency key in its scope."""
    named = b"%d:%d:%b" % (account_id, feature_id, key.encode())
    return blake2b(named, digest_size=16).digest()


def fingerprint(*parameters: object) -> bytes:
    """8 bytes that differ when a parameter does.

    Length-safe: every part is preceded by its length, so ("a-b", "c") and ("a", "b-c") differ.
    """
    return blake2b(_joined(parameters), digest_size=8).digest()


def fingerprinted(before: tuple[object, ...], behind: tuple[object, ...]) -> Callable[[int], bytes]:
    """A function that gives `fingerprint(*before, number, *behind)`, for many numbers."""
    begun, end = blake2b(_joined(before), digest_size=8), _joined(behind)

    def of(number: int) -> bytes:
        digits = b"%d" % number
        whole = begun.copy()
        whole.update(b"%d:%b%b" % (len(digits), digits, end))
        return whole.digest()

    return of


def _joined(parameters: Iterable[object]) -> bytes:
    parts = [str(parameter).encode() for parameter in parameters]
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


@dataclass(frozen=True, slots=True)
class SeatAsk:
    """A seat to take: the lease's new id, who sits there (the lease id itself for floating seats), for how long."""

    lease: str
    holder: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Sent:
    """Where an ask went whose answer never came: it may have run there or not.

    `slot`: where the outcomes of `batch` are kept on this connection; `place`: the ask's among them, from 1.
    """

    enforcer: str
    connection: int
    slot: int
    batch: int
    place: int


@dataclass(frozen=True, slots=True)
class Journaled:
    """The place of an emergency use: `number` in its journal among those of its bucket, dense from 1.

    It is counted when the journal is counted up to `after` at least, and not up to itself.
    """

    journal: str
    number: int
    after: int
    sent: Sent | None = None


@dataclass(slots=True)  # not frozen: that costs a microsecond for each check
class Ask:
    """One check.

    `idempotency` is `NO_KEY` or what `idempotency()` gives. `body` becomes the record's. With `reservation` the amount
    is held under that id for `ttl_ms`; with `seat` a seat is taken (quantity 1). With `journaled` it was allowed while
    the store was away: in RECORD_ONLY and alone in its group, it counts what its own check has not counted already,
    once, and in its journal's order.
    """

    program: Program
    quantity: int
    mode: Mode
    body: bytes
    idempotency: bytes = NO_KEY
    reservation: str = ""
    ttl_ms: int = 0
    seat: SeatAsk | None = None
    journaled: Journaled | None = None


@dataclass(slots=True)  # not frozen: as `Ask`
class Decision:
    """The answer to an `Ask`, as the store gives it: `decided` makes one of its parts.

    `numbers`, all of them whole: reason, granted, overage, 1 in shadow mode, the store's time in ms, generation,
    sequence (-1: no record was left), expiry, number of entries; then the fields of all entries, one behind the other.
    `id` names the reservation or lease that was made, until that expiry (a replayed answer names the original).
    `degraded`: decided without the store, by the feature's failure policy.
    """

    bucket: int
    numbers: tuple[float, ...]
    id: str = ""
    replayed: bool = False
    degraded: bool = False

    @property
    def reason(self) -> Reason:
        """Why it was decided so."""
        return REASONS[int(self.numbers[0])]

    @property
    def granted(self) -> int:
        """What was consumed; 0 when denied."""
        return int(self.numbers[1])

    @property
    def overage(self) -> int:
        """What of it went past an included amount."""
        return int(self.numbers[2])

    @property
    def shadow(self) -> bool:
        """Whether a limit in shadow mode would have denied."""
        return self.numbers[3] == 1

    @property
    def now(self) -> int:
        """The store's time in ms."""
        return int(self.numbers[4])

    @property
    def generation(self) -> int:
        """Of the bucket's sequence."""
        return int(self.numbers[5])

    @property
    def sequence(self) -> int:
        """Of the record; -1 when none was left."""
        return int(self.numbers[6])

    @property
    def expires(self) -> int:
        """When what was made ends, in ms; 0 if nothing was."""
        return int(self.numbers[7])

    @property
    def values(self) -> tuple[int, ...]:
        """The fields of all `entries`, one behind the other."""
        return tuple(map(int, self.numbers[ENTRIES_AT:]))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every limit that was looked at, in the order of the program's views."""
        values = self.values
        return tuple([Entry._make(values[at : at + WIDTH]) for at in range(0, len(values), WIDTH)])

    def but(self, **parts: Any) -> Decision:
        """The same with other parts, named as for `decided`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _PARTS}
        return decided(**own | parts)


def decided(  # noqa: PLR0913 - it has so many parts
    reason: Reason,
    granted: int,
    bucket: int,
    *,
    now: int,
    generation: int = 0,
    sequence: int = -1,
    overage: int = 0,
    shadow: bool = False,
    values: tuple[int, ...] = (),
    id: str = "",  # noqa: A002 - the field's name
    expires: int = 0,
    replayed: bool = False,
    degraded: bool = False,
) -> Decision:
    """A decision of its parts."""
    count = len(values) // WIDTH
    head = int(reason), granted, overage, int(shadow), now, generation, sequence, expires, count
    return Decision(bucket, head + values, id, replayed, degraded)


@dataclass(frozen=True, slots=True)
class EpochStale:
    """The account was changed: `stored` is the store's epoch, 0 if it has none. Nothing was done."""

    stored: int


@dataclass(frozen=True, slots=True)
class SliceStale:
    """The program's slice does not contain the store's time `now`. Nothing was done."""

    now: int


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The idempotency key was used before with other parameters. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The store could not execute this ask; its neighbours were not touched. `what` is for the log and the caller."""

    what: str


@dataclass(frozen=True, slots=True)
class OutOfTurn:
    """The journal is counted up to `mark`: the use is counted already, or others come before it. Nothing was done."""

    mark: int


Answer = Decision | EpochStale | SliceStale | KeyReused | Failed | OutOfTurn


@dataclass(frozen=True, slots=True)
class Settled:
    """A reservation was committed or released."""

    used: int
    released: int
    now: int
    generation: int
    sequence: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class HoldGone:
    """No such reservation: it never was, has expired, or was settled the other way."""


@dataclass(frozen=True, slots=True)
class TooMuch:
    """More than the reservation holds."""

    held: int


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A live lease; times in ms. `body` is the body of its records."""

    id: str
    holder: str
    started: int
    expires: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter as the ledger sees it: limit id, start of its period in ms (0: none), used and held."""

    limit: int
    period: int
    used: int
    held: int


@dataclass(frozen=True, slots=True)
class BucketState:
    """All counters of a bucket and the last record they contain (`last` -1: none in this generation)."""

    bucket: int
    generation: int
    last: int
    counters: tuple[Counter, ...]


@dataclass(frozen=True, slots=True)
class Stock:
    """What lies in a store: records in the outboxes, when the oldest was decided (None: there is none), what is held."""

    outbox: int
    oldest_ms: int | None
    leases: int
    reservations: int
