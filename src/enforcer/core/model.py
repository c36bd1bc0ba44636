"""What a customer has bought: entitlements and their terms, as the rules see them.

Plain values without behaviour beyond validation. Times are integers, milliseconds since 1970 UTC; intervals are
half-open `[start, end)`; `None` as an end means for ever. Quantities are integers from 0 to `MAX_QUANTITY`. Money is
`Decimal`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

__all__ = [
    "MAX_QUANTITY",
    "BooleanTerms",
    "ConcurrentTerms",
    "ConfigTerms",
    "CreditsTerms",
    "Customer",
    "Entitlement",
    "Feature",
    "Grant",
    "LicenseType",
    "Node",
    "PaygTerms",
    "Period",
    "PeriodUnit",
    "Price",
    "QuotaTerms",
    "RateAlgorithm",
    "RateTerms",
    "Rollover",
    "SeatMode",
    "Terms",
    "Tier",
    "TierBehaviour",
    "TieredTerms",
    "Validity",
]

MAX_QUANTITY = 2**53 - 1
"""The largest quantity: scripts compute in doubles, which hold every integer up to here."""


class LicenseType(StrEnum):
    """How long an entitlement is meant to last; decides which reason an ended one gives."""

    PERPETUAL = "perpetual"
    SUBSCRIPTION = "subscription"
    TRIAL = "trial"


class PeriodUnit(StrEnum):
    """The length of a period. `TOTAL` never ends."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    TOTAL = "total"


class SeatMode(StrEnum):
    """Who fills a seat: each lease, each user (named), or each bound device (node-locked)."""

    FLOATING = "floating"
    NAMED = "named"
    NODE_LOCKED = "node_locked"


class RateAlgorithm(StrEnum):
    """A bucket that refills steadily, or a count over the time just past."""

    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - not a password
    SLIDING_WINDOW = "sliding_window"


class TierBehaviour(StrEnum):
    """What happens to usage that falls into a tier."""

    ALLOW = "allow"
    NOTIFY = "notify"
    THROTTLE = "throttle"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Period:
    """When a count starts afresh.

    Calendar-aligned in `zone` when `anchor_ms` is None; else on the anniversaries of `anchor_ms` as seen in `zone`
    (an anchor on the 31st falls on the last day of shorter months, and returns to the 31st). `rolling` counts the last
    `unit` up to now instead: the last 24 hours, 7 days, 30 days, 365 days.
    """

    unit: PeriodUnit
    zone: str = "UTC"
    anchor_ms: int | None = None
    rolling: bool = False


@dataclass(frozen=True, slots=True)
class Rollover:
    """What is left at a period's end goes on: `min(maximum, max(minimum, balance))` (OpenMeter's rule)."""

    maximum: int
    minimum: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """`amount` of `currency` for each `per` units. At most nine decimals."""

    amount: Decimal
    currency: str
    per: int = 1


@dataclass(frozen=True, slots=True)
class BooleanTerms:
    """The feature may be used."""


@dataclass(frozen=True, slots=True)
class ConfigTerms:
    """The feature has a value, handed back with the verdict."""

    value: str | int | bool


@dataclass(frozen=True, slots=True)
class QuotaTerms:
    """`limit` units a period.

    `hard`: nothing beyond `limit + overage`. Soft: never denies, usage beyond `limit` is overage. `cap`: a constraint
    that counts what other supplies give, instead of a supply of its own.
    """

    limit: int
    period: Period
    hard: bool = True
    overage: int = 0
    rollover: Rollover | None = None
    cap: bool = False


@dataclass(frozen=True, slots=True)
class PaygTerms:
    """Pay-as-you-go: metered without end, or up to `spend_cap` (in the price's currency) a period."""

    period: Period
    price: Price | None = None
    spend_cap: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """An amount of prepaid credits. `id` is unique over entitlements and grants: counters are kept by it."""

    id: int
    key: str
    amount: int
    priority: int = 0
    effective_ms: int | None = None
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class CreditsTerms:
    """Prepaid grants, used by priority (lowest first), then expiry, then age; then up to `overdraft` below zero."""

    grants: tuple[Grant, ...] = ()
    overdraft: int = 0


@dataclass(frozen=True, slots=True)
class Tier:
    """Usage of a period up to `up_to` in total (None: without end).

    A throttled tier gives `rate` units each `rate_per_ms`, with a burst of `burst`.
    """

    name: str
    up_to: int | None
    behaviour: TierBehaviour = TierBehaviour.ALLOW
    price: Price | None = None
    rate: int = 0
    rate_per_ms: int = 1000
    burst: int = 0


@dataclass(frozen=True, slots=True)
class TieredTerms:
    """Usage of a period priced and treated by how much of it there was before."""

    tiers: tuple[Tier, ...]
    period: Period


@dataclass(frozen=True, slots=True)
class ConcurrentTerms:
    """Seats held by leases.

    Beyond `seats`, as many again as the larger of `overdraft` seats and `(overdraft_factor - 1) x seats`, rounded
    down, are given and reported as overage.
    """

    seats: int
    mode: SeatMode = SeatMode.FLOATING
    overdraft: int = 0
    overdraft_factor: Decimal = Decimal(1)
    ttl_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class RateTerms:
    """`limit` units each `per_ms`. A token bucket holds at most `burst` (default: `limit`)."""

    limit: int
    per_ms: int
    burst: int | None = None
    algorithm: RateAlgorithm = RateAlgorithm.TOKEN_BUCKET


Terms = (
    BooleanTerms
    | ConfigTerms
    | QuotaTerms
    | PaygTerms
    | CreditsTerms
    | TieredTerms
    | ConcurrentTerms
    | RateTerms
)


@dataclass(frozen=True, slots=True)
class Validity:
    """`[start_ms, end_ms + grace_ms)`; inside the grace time the answer says so.

    With `maintenance_until_ms` the entitlement covers only product versions released before that time.
    """

    start_ms: int | None = None
    end_ms: int | None = None
    grace_ms: int = 0
    maintenance_until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Who (`node`), which feature, on which terms, when.

    `id` (1 to 2^32 - 1) names the counter: it is never reused, and changes when the terms change so that the old
    count means nothing (another licence model or another period). `fallback`: counts only while no other entitlement
    to the feature is valid (freemium). `shadow`: evaluated and recorded, never denies. Lower `priority` is drawn
    first.
    """

    id: int
    key: str
    feature: str
    terms: Terms
    license_type: LicenseType = LicenseType.SUBSCRIPTION
    validity: Validity = field(default_factory=Validity)
    fallback: bool = False
    shadow: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """`id` is the feature's number in keys. `releases`: product version → release time in ms, for maintenance.

    `emergency`: what a customer may use of it while counters are away, over all enforcers; 0: it fails closed.
    """

    id: int
    key: str
    meter: str
    releases: dict[str, int] = field(default_factory=dict)
    emergency: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A place in an account's tree. `id` is its number in keys, `key` its name for the tenant."""

    id: int
    key: str
    suspended: bool = False
    entitlements: tuple[Entitlement, ...] = ()


@dataclass(frozen=True, slots=True)
class Customer:
    """One node with all above it, read from the definitions in one transaction.

    `path` leads from the customer itself up to the account's root; `account_id` is the root's number; `epoch` counts
    the changes of the account's tree, `revision` those of the tenant's products and features; `bucket` is where its
    counters live.
    """

    tenant: str
    account_id: int
    account_key: str
    bucket: int
    epoch: int
    path: tuple[Node, ...]
    revision: int = 0
