"""What the gateway answers, as plain values: frozen, typed, free of gRPC and protobuf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final, overload

from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = [
    "Balance",
    "Check",
    "Limit",
    "LimitKind",
    "Mode",
    "Reason",
    "RecordId",
    "Verdict",
    "balance_of",
    "moment",
    "verdict_of",
]

_new: Final = object.__new__
_set: Final = object.__setattr__


class Mode(Enum):
    """How a check treats limits; docs/modes.md says what each does to each licence model."""

    ENFORCE = pb.MODE_ENFORCE
    """All or nothing."""
    CHECK_ONLY = pb.MODE_CHECK_ONLY
    """The same answer, but nothing is consumed or recorded."""
    BEST_EFFORT = pb.MODE_BEST_EFFORT
    """As much as every limit allows: see `Verdict.granted`."""
    RECORD_ONLY = pb.MODE_RECORD_ONLY
    """The usage has happened: consumes past every limit."""


class Reason(StrEnum):
    """Why a check was decided so. The values are the names in `enforcer.v1.Reason`, in lower case."""

    ALLOWED = "allowed"
    NOT_ENTITLED = "not_entitled"
    NOT_STARTED = "not_started"
    EXPIRED = "expired"
    TRIAL_EXPIRED = "trial_expired"
    SUSPENDED = "suspended"
    VERSION_NOT_COVERED = "version_not_covered"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    CREDITS_EXHAUSTED = "credits_exhausted"
    SPEND_CAP_REACHED = "spend_cap_reached"
    TIER_LIMIT_REACHED = "tier_limit_reached"
    NO_SEATS = "no_seats"
    CAP_REACHED = "cap_reached"
    BATCH_DENIED = "batch_denied"
    EMERGENCY_EXHAUSTED = "emergency_exhausted"
    GATEWAY_UNAVAILABLE = "gateway_unavailable"
    """Made by the client: the gateway did not answer, and the feature fails closed."""
    UNRECOGNISED = "unrecognised"
    """The gateway is newer than this client."""

    @property
    def of_terms(self) -> bool:
        """What was bought does not cover it: neither waiting nor a smaller quantity helps."""
        return self in _TERMS


_TERMS: Final = frozenset(
    {
        Reason.NOT_ENTITLED,
        Reason.NOT_STARTED,
        Reason.EXPIRED,
        Reason.TRIAL_EXPIRED,
        Reason.SUSPENDED,
        Reason.VERSION_NOT_COVERED,
    }
)
_REASONS: Final[dict[int, Reason]] = {
    number: Reason(name.removeprefix("REASON_").lower())
    for name, number in pb.Reason.items()
    if number
}


class LimitKind(StrEnum):
    """What a limit is. The values are the names in `enforcer.v1.LimitKind`, in lower case."""

    QUOTA = "quota"
    OVERAGE = "overage"
    CREDITS = "credits"
    OVERDRAFT = "overdraft"
    PAYG = "payg"
    TIER = "tier"
    RATE = "rate"
    WINDOW = "window"
    SEATS = "seats"
    UNRECOGNISED = "unrecognised"
    """The gateway is newer than this client."""


_KINDS: Final[dict[int, LimitKind]] = {
    number: LimitKind(name.removeprefix("LIMIT_KIND_").lower())
    for name, number in pb.LimitKind.items()
    if number
}


@dataclass(frozen=True, slots=True)
class Check:
    """One question of a batch. `quantity` is in the feature's own unit, from 1 to 2^53 - 1.

    `key` is the idempotency key, up to 256 bytes; None: the client makes one, which its retries keep.
    """

    customer: str
    feature: str
    quantity: int = 1
    key: str | None = None
    dimensions: Mapping[str, str] = field(default_factory=dict)
    mode: Mode = Mode.ENFORCE
    product_version: str = ""


@dataclass(frozen=True, slots=True)
class RecordId:
    """The identity of a usage record: its place in its bucket's sequence."""

    bucket: int
    generation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Limit:
    """One constraint or supply as it stands after the decision, in the feature's own unit.

    `id` is the entitlement's key in the catalog, for credits and tiers with `/grant` or `/tier`;
    `drawn` what this decision took from it; `resets_at` is None where nothing ever does.
    """

    kind: LimitKind
    id: str
    customer: str
    limit: int
    used: int
    held: int
    remaining: int
    drawn: int = 0
    resets_at: datetime | None = None
    denied: bool = False
    shadow: bool = False
    unlimited: bool = False


class _Told:
    """Has what a gateway said, and reads it when it is looked at: most of it never is."""

    __slots__ = ("_answer",)

    _answer: pb.CheckResponse

    if not TYPE_CHECKING:  # a field that does not exist should not pass

        def __getattr__(self, name: str) -> object:
            """Only what was not read yet comes here."""
            read = _READ.get(name)
            if read is None:
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            value = read(self._answer)
            _set(self, name, value)
            return value


@dataclass(frozen=True, slots=True)
class Verdict(_Told):
    """The answer to a check. It is true when the check was allowed: `if await client.check(…)`.

    `granted` is what was consumed, in the feature's own unit, 0 when denied. `degraded`: decided
    without counters, by the feature's failure policy at the gateway or in this client. `replayed`:
    the original answer to an earlier call with the same key. `retry_after` is None when waiting does
    not help. `overage` is what went past an included amount.
    """

    allowed: bool
    granted: int = 0
    reason: Reason = Reason.ALLOWED
    limits: Sequence[Limit] = ()
    retry_after: timedelta | None = None
    degraded: bool = False
    replayed: bool = False
    tier: str = ""
    overage: int = 0
    shadow: bool = False
    grace: bool = False
    notify: bool = False
    record: RecordId | None = None
    config_value: str = ""

    def __bool__(self) -> bool:
        """`allowed`: a denial must not pass for a yes because it is an object."""
        return self.allowed

    def __reduce__(self) -> tuple[type[Verdict], tuple[object, ...]]:
        """Copies and pickles are plain values."""
        return Verdict, tuple([getattr(self, name) for name in _READ])


@dataclass(frozen=True, slots=True)
class Balance:
    """Every limit of a customer and feature as it stands now. `allowed`: a check of 1 would be."""

    allowed: bool
    reason: Reason
    limits: Sequence[Limit]
    config_value: str = ""
    grace: bool = False


def moment(at: Timestamp) -> datetime:
    """In UTC."""
    return datetime.fromtimestamp(at.seconds, UTC).replace(microsecond=at.nanos // 1000)


def _limit(found: pb.Limit) -> Limit:
    return Limit(
        _KINDS.get(found.kind, LimitKind.UNRECOGNISED),
        found.id,
        found.customer,
        found.limit,
        found.used,
        found.held,
        found.remaining,
        found.drawn,
        moment(found.resets_at) if found.HasField("resets_at") else None,
        found.denied,
        found.shadow,
        found.unlimited,
    )


class _Limits(Sequence[Limit]):
    """Limits read when they are looked at: most callers never do, and reading them is most of the cost."""

    __slots__ = ("_found",)

    def __init__(self, found: Iterable[pb.Limit]) -> None:
        self._found: Iterable[pb.Limit] | tuple[Limit, ...] = found

    def _read(self) -> tuple[Limit, ...]:
        if not isinstance(self._found, tuple):
            self._found = tuple([_limit(limit) for limit in self._found])
        return self._found

    @overload
    def __getitem__(self, place: int) -> Limit: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Limit]: ...
    def __getitem__(self, place: int | slice) -> Limit | Sequence[Limit]:
        return self._read()[place]

    def __len__(self) -> int:
        return len(self._read())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._read() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def __reduce__(self) -> tuple[type[tuple[Limit, ...]], tuple[tuple[Limit, ...]]]:
        """Copies and pickles are plain tuples."""
        return tuple, (self._read(),)


def _wait(answer: pb.CheckResponse) -> timedelta | None:
    if not answer.HasField("retry_after"):
        return None
    wait = answer.retry_after
    return timedelta(seconds=wait.seconds, microseconds=wait.nanos // 1000)


def _record(answer: pb.CheckResponse) -> RecordId | None:
    if not answer.HasField("record"):
        return None
    found = answer.record
    return RecordId(found.bucket, found.generation, found.sequence)


_READ: Final[dict[str, Callable[[pb.CheckResponse], object]]] = {
    # In the order of the fields.
    "allowed": attrgetter("allowed"),
    "granted": attrgetter("granted"),
    "reason": lambda answer: _REASONS.get(answer.reason, Reason.UNRECOGNISED),
    "limits": lambda answer: _Limits(answer.limits),
    "retry_after": _wait,
    "degraded": attrgetter("degraded"),
    "replayed": attrgetter("replayed"),
    "tier": attrgetter("tier"),
    "overage": attrgetter("overage"),
    "shadow": attrgetter("shadow"),
    "grace": attrgetter("grace"),
    "notify": attrgetter("notify"),
    "record": _record,
    "config_value": attrgetter("config_value"),
}


def verdict_of(answer: pb.CheckResponse) -> Verdict:
    """An answer as a value."""
    verdict = _new(Verdict)
    _set(verdict, "_answer", answer)
    # These two are looked at by nearly everybody.
    _set(verdict, "allowed", answer.allowed)
    _set(verdict, "granted", answer.granted)
    return verdict


def balance_of(answer: pb.GetBalanceResponse) -> Balance:
    """An answer as a value."""
    return Balance(
        answer.allowed,
        _REASONS.get(answer.reason, Reason.UNRECOGNISED),
        _Limits(answer.limits),
        answer.config_value,
        answer.grace,
    )
