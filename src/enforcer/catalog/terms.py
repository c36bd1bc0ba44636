"""The terms of an entitlement in a catalog: one function for each licence model."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from enforcer.catalog.model import ANCHOR_AT_START
from enforcer.core.compile import price_fraction
from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Grant,
    PaygTerms,
    Period,
    PeriodUnit,
    Price,
    QuotaTerms,
    RateAlgorithm,
    RateTerms,
    Rollover,
    SeatMode,
    Terms,
    Tier,
    TierBehaviour,
    TieredTerms,
)

if TYPE_CHECKING:
    from enforcer.catalog.read import Reader

__all__ = ["read_terms"]

_LARGEST_PART = 2**31
_LONGEST_LEASE = 86_400_000
_SHORTEST_LEASE = 10_000
_MOST_TIERS = 32
_MOST_GRANTS = 32


def _period(at: Reader, *, in_plan: bool, rolling: bool = True) -> Period:
    unit = PeriodUnit(at.choice("per", [unit.value for unit in PeriodUnit]))
    zone = at.zone("zone")
    rolls = at.flag("rolling")
    if rolls and not rolling:
        at.issue("rolling", "is not possible here: tiers and spend caps need periods that end")
        rolls = False
    if rolls and unit is PeriodUnit.TOTAL:
        at.issue("rolling", "has no meaning with `per: total`")
    anchor_ms: int | None = None
    anchor = at.value("anchor")
    if anchor == "start":
        if in_plan:
            anchor_ms = ANCHOR_AT_START
        else:
            anchor_ms = at.moment("start")
            if anchor_ms is None:
                at.issue("anchor", "`start` needs a `start` of the entitlement")
    elif anchor is not None:
        anchor_ms = at.as_moment("anchor", anchor)
    if anchor_ms is not None and (rolls or unit is PeriodUnit.TOTAL):
        at.issue("anchor", "has no meaning for a rolling period or `per: total`")
        anchor_ms = None
    return Period(unit, zone, anchor_ms, rolls)


def _price(at: Reader, name: str = "price") -> Price | None:
    below = at.child(name)
    if below is None:
        return None
    amount = below.decimal("amount")
    currency = below.text("currency")
    if currency and (len(currency) != 3 or not currency.isupper()):  # noqa: PLR2004 - ISO 4217
        below.issue("currency", f"{currency!r} is no ISO 4217 code like EUR")
    price = Price(amount, currency, below.integer("per", 1, least=1, most=10**9))
    if amount and max(price_fraction(price)) >= _LARGEST_PART:
        below.issue(
            "amount", "is too fine or too large: in millionths per unit it has no short fraction"
        )
    below.finish()
    return price


def _quota(at: Reader, *, in_plan: bool) -> Terms:
    limit = at.integer("limit")
    period = _period(at, in_plan=in_plan)
    hard = at.flag("hard", default=True)
    overage = at.integer("overage", 0)
    if overage and not hard:
        at.issue("overage", "bounds a hard quota; a soft one has no bound")
    rollover = None
    below = at.child("rollover")
    if below is not None:
        maximum = below.integer("max")
        minimum = below.integer("min", 0)
        if minimum > maximum:
            below.issue("min", f"is {minimum}, must be at most max ({maximum})")
        below.finish()
        if period.rolling or period.unit is PeriodUnit.TOTAL:
            at.issue("rollover", "needs periods that end")
        else:
            rollover = Rollover(maximum, minimum)
    carried = rollover.maximum if rollover else 0
    if limit + overage + carried > MAX_QUANTITY:
        at.issue("limit", f"with overage and rollover must be at most {MAX_QUANTITY}")
    return QuotaTerms(limit, period, hard, overage, rollover, at.flag("cap"))


def _payg(at: Reader, *, in_plan: bool) -> Terms:
    capped = at.has("spend_cap")
    period = _period(at, in_plan=in_plan, rolling=not capped)
    price = _price(at)
    cap = at.decimal("spend_cap") if capped else None
    if cap is not None and price is None:
        at.issue("spend_cap", "needs a price to count money by")
    if cap is not None and cap > 9 * 10**9:
        at.issue("spend_cap", "must be at most 9,000,000,000")
        cap = None
    return PaygTerms(period, price, cap)


def _credits(at: Reader) -> Terms:
    grants: list[Grant] = []
    for below in at.children("grants"):
        grant = Grant(
            0,
            below.key("key"),
            below.integer("amount", least=1),
            below.integer("priority", 0, most=1000),
            below.moment("effective"),
            below.moment("expires"),
        )
        if grant.expires_ms is not None and (grant.effective_ms or 0) >= grant.expires_ms:
            below.issue("expires", "must be after effective")
        if grant.key in {one.key for one in grants}:
            below.issue("key", f"{grant.key!r} is here twice")
        below.finish()
        grants.append(grant)
    if len(grants) > _MOST_GRANTS:
        at.issue("grants", f"has {len(grants)}, at most {_MOST_GRANTS} are possible")
    return CreditsTerms(tuple(grants), at.integer("overdraft", 0))


def _tiered(at: Reader, *, in_plan: bool) -> Terms:
    tiers: list[Tier] = []
    readers = at.children("tiers")
    if not readers:
        at.issue("tiers", "needs at least one tier")
    if len(readers) > _MOST_TIERS:
        at.issue("tiers", f"has {len(readers)}, at most {_MOST_TIERS} are possible")
    reached = 0
    for place, below in enumerate(readers):
        up_to = below.integer("up_to", least=1) if below.has("up_to") else None
        if up_to is None and place < len(readers) - 1:
            below.issue("up_to", "is required for every tier but the last")
        elif up_to is not None and up_to <= reached:
            below.issue("up_to", f"is {up_to}, must be more than the tier before ({reached})")
        reached = up_to or reached
        behaviour = TierBehaviour(
            below.choice("behaviour", [one.value for one in TierBehaviour], "allow")
        )
        rate = burst = 0
        per = 1000
        if behaviour is TierBehaviour.THROTTLE:
            rate = below.integer("rate", least=1, most=10**9)
            per = below.duration("rate_per", 1000, most=86_400_000)
            burst = below.integer("burst", rate, least=1, most=10**12)
        tier = Tier(below.key("name"), up_to, behaviour, _price(below), rate, per, burst)
        if tier.name in {one.name for one in tiers}:
            below.issue("name", f"{tier.name!r} is here twice")
        tiers.append(tier)
        if behaviour is TierBehaviour.DENY and place < len(readers) - 1:
            below.issue("behaviour", "only the last tier can deny")
        below.finish()
    return TieredTerms(tuple(tiers), _period(at, in_plan=in_plan, rolling=False))


def _concurrent(at: Reader) -> Terms:
    factor = at.decimal("overdraft_factor", Decimal(1))
    if not 1 <= factor <= 10:  # noqa: PLR2004 - see text
        at.issue("overdraft_factor", f"is {factor}, must be from 1 to 10")
        factor = Decimal(1)
    return ConcurrentTerms(
        at.integer("seats", most=10**6),
        SeatMode(at.choice("mode", [mode.value for mode in SeatMode], "floating")),
        at.integer("overdraft", 0, most=10**6),
        factor,
        at.duration("ttl", 60_000, least=_SHORTEST_LEASE, most=_LONGEST_LEASE),
    )


def _rate(at: Reader) -> Terms:
    algorithm = RateAlgorithm(
        at.choice("algorithm", [one.value for one in RateAlgorithm], "token_bucket")
    )
    limit = at.integer("limit", least=1, most=10**12)
    per = at.duration("per", least=1, most=86_400_000)
    burst = at.integer("burst", least=1, most=10**12) if at.has("burst") else None
    if burst is not None and algorithm is RateAlgorithm.SLIDING_WINDOW:
        at.issue("burst", "belongs to a token bucket; a sliding window has none")
    return RateTerms(limit, per, burst, algorithm)


def _config(at: Reader) -> Terms:
    value = at.value("value")
    if isinstance(value, bool):
        return ConfigTerms(value)
    if isinstance(value, str):
        return ConfigTerms(at.text("value"))
    if isinstance(value, int) and abs(value) <= MAX_QUANTITY:
        return ConfigTerms(int(value))
    at.issue(
        "value", f"is required: text, true or false, or an integer up to {MAX_QUANTITY} in size"
    )
    return ConfigTerms("")


def read_terms(at: Reader, model: str, *, in_plan: bool) -> Terms:  # noqa: PLR0911 - one for each
    """The terms of the licence model named `model`, one of `catalog.model.MODELS`."""
    match model:
        case "boolean":
            return BooleanTerms()
        case "config":
            return _config(at)
        case "quota":
            return _quota(at, in_plan=in_plan)
        case "payg":
            return _payg(at, in_plan=in_plan)
        case "credits":
            return _credits(at)
        case "tiered":
            return _tiered(at, in_plan=in_plan)
        case "concurrent":
            return _concurrent(at)
        case _:
            return _rate(at)
