"""From terms to a program: which limits apply to a customer's use of a feature, in which order.

The rules, over the path from the customer up to its account's root:

- An entitlement counts while it is valid: `[start, end + grace)`, and for the product version that asks.
- *Givers* let the feature be used (boolean, config, supplies, seats); rates and caps only limit. A customer is entitled
  while one giver of the path is valid, or if nothing but rates and caps is defined.
- A feature with supplies needs a valid one: when they have all ended, a boolean beside them does not make it free.
- Fallback entitlements count only while the others do not entitle, and then entitle by themselves by the same rules.
- Rates, seats and caps of every node on the path apply, each on its own.
- The supply is that of the nearest node that has a valid one: quotas by priority, then expiry, then age; credits the
  same; overdrafts; then overage, tiers and pay-as-you-go by priority, bounded ones first. Nothing is drawn from the
  nodes above it, but their quotas count along and cap it.
- A limit in shadow mode is evaluated as a constraint of its own and never denies.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    LicenseType,
    PaygTerms,
    QuotaTerms,
    RateAlgorithm,
    RateTerms,
    SeatMode,
    TierBehaviour,
    TieredTerms,
)
from enforcer.core.periods import ROLLING_MS, Span, span_at
from enforcer.core.program import (
    FAMILY_OF,
    Chain,
    Family,
    Kind,
    Label,
    Level,
    Program,
    Reason,
    Shape,
    View,
)
from meter.core.records import Body, encode_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.core.model import Customer, Entitlement, Feature, Period, Price

__all__ = [
    "MONEY_SCALE",
    "SEAT_MODES",
    "Place",
    "compile_program",
    "places_of",
    "price_fraction",
]

MONEY_SCALE = 10**6
"""Money in programs is an integer: millionths of the currency, rounded down once over the whole period."""

SEAT_MODES = {SeatMode.FLOATING: 1, SeatMode.NAMED: 2, SeatMode.NODE_LOCKED: 3}

_SUPPLIES = (QuotaTerms, PaygTerms, CreditsTerms, TieredTerms)
_FOREVER = 1 << 62


class _Placed(NamedTuple):
    """An entitlement and the place of its node on the path."""

    level: int
    entitlement: Entitlement


def price_fraction(price: Price) -> tuple[int, int]:
    """The price of one unit in millionths of the currency, as a reduced numerator and denominator."""
    return (Fraction(price.amount) * MONEY_SCALE / price.per).as_integer_ratio()


def _is_supply(entitlement: Entitlement) -> bool:
    terms = entitlement.terms
    return isinstance(terms, _SUPPLIES) and not (isinstance(terms, QuotaTerms) and terms.cap)


def _is_giver(entitlement: Entitlement) -> bool:
    return _is_supply(entitlement) or isinstance(
        entitlement.terms, BooleanTerms | ConfigTerms | ConcurrentTerms
    )


def _is_enforced_supply(entitlement: Entitlement) -> bool:
    return _is_supply(entitlement) and not entitlement.shadow


def _entitling(defined: list[_Placed], valid: list[_Placed]) -> list[_Placed]:
    """Those of `valid` that let the feature be used: the supplies where some are defined, else all that give."""
    need_supply = any(_is_enforced_supply(one.entitlement) for one in defined)
    gives = _is_enforced_supply if need_supply else _is_giver
    return [one for one in valid if gives(one.entitlement)]


def _ends(entitlement: Entitlement) -> int:
    """When it stops counting, its grace included."""
    validity = entitlement.validity
    return _FOREVER if validity.end_ms is None else validity.end_ms + validity.grace_ms


def _is_valid(entitlement: Entitlement, at: int) -> bool:
    return (entitlement.validity.start_ms or 0) <= at < _ends(entitlement)


class _Slice:
    """The time around `at` in which nothing begins, ends or turns."""

    def __init__(self, at: int) -> None:
        self.at, self.start, self.end = at, 0, _FOREVER

    def cut(self, *moments: int | None) -> None:
        for moment in moments:
            if moment is None:
                continue
            if moment <= self.at:
                self.start = max(self.start, moment)
            else:
                self.end = min(self.end, moment)

    def span(self, period: Period) -> Span:
        span = span_at(period, self.at)
        self.cut(span.start, span.end)
        return span


class Place(NamedTuple):
    """A counter that an entitlement has: the limit's id, how it counts, and what its fields depend on.

    `period` is None for one count for ever; `width` is a ring's ms per slot; `throttled` counts also keep tokens;
    `rate` is set for limits of speed, which no record tells of.
    """

    limit: int
    family: Family
    period: Period | None = None
    width: int = 0
    throttled: bool = False
    rate: RateTerms | None = None

    @property
    def slot(self) -> int:
        """The slot's code."""
        return self.limit << 3 | self.family


def places_of(entitlement: Entitlement) -> list[Place]:
    """All counters of an entitlement, valid or not."""
    number = entitlement.id
    found: list[Place] = []
    match entitlement.terms:
        case QuotaTerms(period=period) | PaygTerms(period=period) if period.rolling:
            found = [Place(number, Family.RING24, period, -(-ROLLING_MS[period.unit] // 24))]
        case QuotaTerms(period=period) | PaygTerms(period=period):
            found = [Place(number, Family.COUNT, period)]
        case TieredTerms(tiers, period):
            throttled = any(tier.behaviour is TierBehaviour.THROTTLE for tier in tiers)
            found = [Place(number, Family.COUNT, period, throttled=throttled)]
        case CreditsTerms(grants, overdraft):
            found = [Place(grant.id, Family.COUNT) for grant in grants]
            found += [Place(number, Family.COUNT)] if overdraft else []
        case RateTerms() as terms if terms.algorithm is RateAlgorithm.SLIDING_WINDOW:
            found = [Place(number, Family.RING10, width=-(-terms.per_ms // 10), rate=terms)]
        case RateTerms() as terms:
            found = [Place(number, Family.BUCKET, rate=terms)]
        case _:
            pass
    return found


def _slots(customer: Customer, feature: Feature, level: int) -> tuple[int, ...]:
    """The slots of a node's state. Of all its entitlements, valid or not: the layout depends on the epoch alone."""
    return tuple(
        sorted(
            {
                place.slot
                for entitlement in customer.path[level].entitlements
                if entitlement.feature == feature.key
                for place in places_of(entitlement)
            }
        )
    )


class _Compiler:
    """Compiles one customer and feature at one time. `views` collects what each view is called."""

    def __init__(self, customer: Customer, feature: Feature, at: int) -> None:
        self.customer = customer
        self.feature = feature
        self.slice = _Slice(at)
        self.labels: dict[int, Label] = {}

    def label(self, view: View, placed: _Placed, suffix: str = "", **more: object) -> View:
        self.labels[view.code] = replace(
            Label(
                id=placed.entitlement.key + (f"/{suffix}" if suffix else ""),
                customer=self.customer.path[placed.level].key,
            ),
            **more,  # type: ignore[arg-type]  # the fields of Label
        )
        return view

    def quota(self, placed: _Placed) -> tuple[View, View | None]:
        """The included part and, unless it is empty, the overage."""
        entitlement = placed.entitlement
        terms = entitlement.terms
        assert isinstance(terms, QuotaTerms)
        extra: tuple[float, ...]
        if terms.period.rolling:
            width = -(-ROLLING_MS[terms.period.unit] // 24)
            shape, start, end, extra = Shape.RING24, 0, 0, (width,)
        else:
            span = self.slice.span(terms.period)
            start, end = span.start, span.end or 0
            shape, extra = Shape.COUNT, (span.ordinal,)
            if terms.rollover is not None:
                first = entitlement.validity.start_ms
                first_ordinal = (
                    span.ordinal if first is None else span_at(terms.period, first).ordinal
                )
                bounded = terms.limit + (terms.overage if terms.hard else 0)
                most = min(terms.rollover.maximum, MAX_QUANTITY - bounded)
                least = min(terms.rollover.minimum, most)
                shape = Shape.ROLL
                extra = (span.ordinal, terms.limit, least, most, first_ordinal)
        beyond = terms.overage if terms.hard else MAX_QUANTITY
        upper = min(terms.limit + beyond, MAX_QUANTITY)
        base = View(
            shape=shape,
            kind=Kind.QUOTA,
            id=entitlement.id,
            level=placed.level,
            lower=0,
            upper=terms.limit,
            start=start,
            end=end,
            top=not beyond,
            extra=extra,
        )
        self.label(base, placed)
        if not beyond:
            return base, None
        over = replace(base, kind=Kind.OVERAGE, part=1, lower=terms.limit, upper=upper, top=True)
        return base, self.label(over, placed)

    def payg(self, placed: _Placed) -> View:
        entitlement = placed.entitlement
        terms = entitlement.terms
        assert isinstance(terms, PaygTerms)
        extra: tuple[float, ...]
        if terms.period.rolling:
            width = -(-ROLLING_MS[terms.period.unit] // 24)
            shape, start, end, extra = Shape.RING24, 0, 0, (width,)
        else:
            span = self.slice.span(terms.period)
            shape, start, end, extra = Shape.COUNT, span.start, span.end or 0, (span.ordinal,)
        if terms.spend_cap is not None and terms.price is not None and shape is Shape.COUNT:
            numerator, denominator = price_fraction(terms.price)
            if numerator:
                cap = int(terms.spend_cap * MONEY_SCALE)
                shape, extra = Shape.MONEY, (*extra, numerator, denominator, cap)
        view = View(
            shape=shape,
            kind=Kind.PAYG,
            id=entitlement.id,
            level=placed.level,
            lower=0,
            upper=MAX_QUANTITY,
            start=start,
            end=end,
            extra=extra,
        )
        return self.label(view, placed)

    def tiers(self, placed: _Placed) -> list[View]:
        entitlement = placed.entitlement
        terms = entitlement.terms
        assert isinstance(terms, TieredTerms)
        span = self.slice.span(terms.period)
        views: list[View] = []
        lower = 0
        for part, tier in enumerate(terms.tiers):
            if tier.behaviour is TierBehaviour.DENY:
                break
            upper = MAX_QUANTITY if tier.up_to is None else tier.up_to
            throttled = tier.behaviour is TierBehaviour.THROTTLE
            refill = tier.rate / tier.rate_per_ms if throttled else 0.0
            view = View(
                shape=Shape.THROTTLE if throttled else Shape.COUNT,
                kind=Kind.TIER,
                id=entitlement.id,
                level=placed.level,
                lower=lower,
                upper=upper,
                part=part,
                start=span.start,
                end=span.end or 0,
                top=False,
                extra=(span.ordinal, refill, tier.burst or tier.rate)
                if throttled
                else (span.ordinal,),
            )
            self.label(
                view,
                placed,
                tier.name,
                tier=tier.name,
                notify=tier.behaviour is TierBehaviour.NOTIFY,
                refill=refill,
            )
            views.append(view)
            lower = upper
        if views:
            views[-1] = replace(views[-1], top=True)
        return views

    def credits(
        self, placed: _Placed
    ) -> tuple[list[tuple[tuple[int, int, int], View]], list[View]]:
        """Open grants with the order in which they are used, and the overdraft."""
        entitlement = placed.entitlement
        terms = entitlement.terms
        assert isinstance(terms, CreditsTerms)
        grants = []
        for grant in terms.grants:
            expires = grant.expires_ms
            self.slice.cut(grant.effective_ms, expires)
            if not (grant.effective_ms or 0) <= self.slice.at < (expires or _FOREVER):
                continue
            view = View(
                shape=Shape.COUNT,
                kind=Kind.CREDITS,
                id=grant.id,
                level=placed.level,
                lower=0,
                upper=grant.amount,
                end=expires or 0,
                extra=(0,),
            )
            order = (entitlement.priority + grant.priority, expires or _FOREVER, grant.id)
            grants.append((order, self.label(view, placed, grant.key)))
        overdraft = []
        if terms.overdraft:
            view = View(
                shape=Shape.COUNT,
                kind=Kind.OVERDRAFT,
                id=entitlement.id,
                level=placed.level,
                lower=0,
                upper=terms.overdraft,
                extra=(0,),
            )
            overdraft.append(self.label(view, placed))
        return grants, overdraft

    def supply(self, placed: list[_Placed]) -> tuple[tuple[View, ...], Reason]:
        """The views of one node's supplies in the order in which they are drawn, and why they run out."""
        first: list[tuple[tuple[int, int, int], View]] = []
        grants: list[tuple[tuple[int, int, int], View]] = []
        overdrafts: list[View] = []
        last: list[tuple[tuple[int, bool, int, int], list[View]]] = []
        reason = Reason.QUOTA_EXCEEDED
        for one in placed:
            entitlement = one.entitlement
            priority, number = entitlement.priority, entitlement.id
            match entitlement.terms:
                case QuotaTerms():
                    base, over = self.quota(one)
                    expiry = min(_ends(entitlement), base.end or _FOREVER)
                    first.append(((priority, expiry, number), base))
                    if over is not None:
                        unbounded = over.upper >= MAX_QUANTITY
                        last.append(((priority, unbounded, 1, number), [over]))
                case CreditsTerms():
                    some, overdraft = self.credits(one)
                    grants += some
                    overdrafts += overdraft
                    reason = Reason.CREDITS_EXHAUSTED
                case TieredTerms():
                    views = self.tiers(one)
                    unbounded = bool(views) and views[-1].upper >= MAX_QUANTITY
                    last.append(((priority, unbounded, 2, number), views))
                    reason = Reason.TIER_LIMIT_REACHED
                case PaygTerms():
                    view = self.payg(one)
                    bounded = view.shape is Shape.MONEY
                    last.append(((priority, not bounded, 3, number), [view]))
                    reason = Reason.SPEND_CAP_REACHED
                case _:  # pragma: no cover - _is_supply lets nothing else in
                    raise AssertionError
        views = [view for _, view in sorted(first, key=lambda item: item[0])]
        views += [view for _, view in sorted(grants, key=lambda item: item[0])]
        views += overdrafts
        for _, more in sorted(last, key=lambda item: item[0]):
            views += more
        if views:
            reason = _OUT_OF[views[-1].kind]
        return tuple(views), reason

    def rate(self, placed: _Placed) -> Chain:
        entitlement = placed.entitlement
        terms = entitlement.terms
        assert isinstance(terms, RateTerms)
        if terms.algorithm is RateAlgorithm.SLIDING_WINDOW:
            shape, upper = Shape.RING10, terms.limit
            extra: float = -(-terms.per_ms // 10)
        else:
            shape, upper = Shape.BUCKET, terms.limit if terms.burst is None else terms.burst
            extra = terms.limit / terms.per_ms
        view = View(
            shape=shape,
            kind=Kind.RATE if shape is Shape.BUCKET else Kind.WINDOW,
            id=entitlement.id,
            level=placed.level,
            lower=0,
            upper=upper,
            extra=(extra,),
        )
        refill = extra if shape is Shape.BUCKET else 0.0
        return Chain((self.label(view, placed, refill=refill),), Reason.RATE_LIMITED)

    def seats(self, placed: list[_Placed], number: int) -> Chain:
        """One pool of all enforced seats of a node. `number`, the smallest id of them, valid or not, names its count."""
        seats = most = 0
        mode = SeatMode.FLOATING
        for one in placed:
            terms = one.entitlement.terms
            assert isinstance(terms, ConcurrentTerms)
            seats += terms.seats
            by_factor = int(terms.seats * (terms.overdraft_factor - 1))
            most += terms.seats + max(terms.overdraft, by_factor)
            mode = terms.mode
        view = View(
            shape=Shape.SEATS,
            kind=Kind.SEATS,
            id=number,
            level=placed[0].level,
            lower=0,
            upper=most,
            extra=(SEAT_MODES[mode], seats),
        )
        return Chain((self.label(view, placed[0]),), Reason.NO_SEATS)

    def cap(self, placed: list[_Placed]) -> Chain:
        """Quotas that limit what others supply: all included parts, then all overages."""
        pairs = [self.quota(one) for one in placed]
        views = [base for base, _ in pairs] + [over for _, over in pairs if over is not None]
        return Chain(tuple(views), Reason.CAP_REACHED)


_OUT_OF = {
    Kind.QUOTA: Reason.QUOTA_EXCEEDED,
    Kind.OVERAGE: Reason.QUOTA_EXCEEDED,
    Kind.WINDOW: Reason.QUOTA_EXCEEDED,
    Kind.CREDITS: Reason.CREDITS_EXHAUSTED,
    Kind.OVERDRAFT: Reason.CREDITS_EXHAUSTED,
    Kind.PAYG: Reason.SPEND_CAP_REACHED,
    Kind.TIER: Reason.TIER_LIMIT_REACHED,
}


def _not_entitled(defined: list[_Placed], uncovered: bool, at: int) -> Reason:  # noqa: FBT001
    """Why no giver is valid. `uncovered`: one would be, but for the product version."""
    if uncovered:
        return Reason.VERSION_NOT_COVERED
    givers = [one.entitlement for one in defined if _is_giver(one.entitlement)]
    ended = [entitlement for entitlement in givers if _ends(entitlement) <= at]
    if ended:
        latest = max(ended, key=_ends)
        trial = latest.license_type is LicenseType.TRIAL
        return Reason.TRIAL_EXPIRED if trial else Reason.EXPIRED
    return Reason.NOT_STARTED if givers else Reason.NOT_ENTITLED


def _config(valid: list[_Placed]) -> str:
    """The value of the nearest node; there, of the lowest priority, then the largest number, then the oldest."""

    def order(one: _Placed) -> tuple[int, int, float, int]:
        terms = one.entitlement.terms
        assert isinstance(terms, ConfigTerms)
        number = terms.value if isinstance(terms.value, int) else 0
        return one.level, one.entitlement.priority, -number, one.entitlement.id

    found = [one for one in valid if isinstance(one.entitlement.terms, ConfigTerms)]
    if not found:
        return ""
    terms = min(found, key=order).entitlement.terms
    assert isinstance(terms, ConfigTerms)
    return json.dumps(terms.value)


def _constraints(
    compiler: _Compiler, valid: list[_Placed], supplied_at: int | None
) -> Iterator[Chain]:
    """Chains of all that limits, from the customer up to the root."""
    customer, feature = compiler.customer, compiler.feature
    for level, node in enumerate(customer.path):
        here = [one for one in valid if one.level == level]
        shown = [one for one in here if one.entitlement.shadow]
        enforced = [one for one in here if not one.entitlement.shadow]
        for one in enforced:
            if isinstance(one.entitlement.terms, RateTerms):
                yield compiler.rate(one)
        seats = [one for one in enforced if isinstance(one.entitlement.terms, ConcurrentTerms)]
        if seats:
            number = min(
                entitlement.id
                for entitlement in node.entitlements
                if entitlement.feature == feature.key
                and isinstance(entitlement.terms, ConcurrentTerms)
                and not entitlement.shadow
            )
            yield compiler.seats(seats, number)
        for one in enforced:
            if isinstance(one.entitlement.terms, QuotaTerms) and one.entitlement.terms.cap:
                yield compiler.cap([one])
        if supplied_at is not None and level > supplied_at:
            above = [
                one
                for one in enforced
                if isinstance(one.entitlement.terms, QuotaTerms) and not one.entitlement.terms.cap
            ]
            if above:
                yield compiler.cap(above)
        for one in shown:
            chain = _shadow(compiler, one)
            if chain is not None:
                yield replace(chain, shadow=True)


def _shadow(compiler: _Compiler, one: _Placed) -> Chain | None:
    match one.entitlement.terms:
        case RateTerms():
            return compiler.rate(one)
        case ConcurrentTerms():
            return compiler.seats([one], one.entitlement.id)
        case BooleanTerms() | ConfigTerms():
            return None
        case _:
            return Chain(*compiler.supply([one]))


def compile_program(
    customer: Customer,
    feature: Feature,
    at: int,
    released_ms: int | None = None,
) -> tuple[Program, bool]:
    """The program of `customer` and `feature` for the slice of time around `at` (ms).

    `released_ms` is the release time of the product version that asks. The second value tells that an entitlement's
    maintenance makes the version matter: a caller that named none must be asked for it.
    """
    compiler = _Compiler(customer, feature, at)
    defined = [
        _Placed(level, entitlement)
        for level, node in enumerate(customer.path)
        for entitlement in node.entitlements
        if entitlement.feature == feature.key
    ]
    valid: list[_Placed] = []
    uncovered = version_matters = False
    for one in defined:
        validity = one.entitlement.validity
        compiler.slice.cut(validity.start_ms, validity.end_ms)
        if validity.end_ms is not None:
            compiler.slice.cut(_ends(one.entitlement))
        if not _is_valid(one.entitlement, at):
            continue
        if validity.maintenance_until_ms is not None:
            version_matters = True
            if released_ms is None or released_ms >= validity.maintenance_until_ms:
                uncovered = True
                continue
        valid.append(one)

    regular = [one for one in valid if not one.entitlement.fallback]
    entitling = _entitling([one for one in defined if not one.entitlement.fallback], regular)
    if entitling:
        valid = regular
    else:
        entitling = _entitling(
            [one for one in defined if one.entitlement.fallback],
            [one for one in valid if one.entitlement.fallback],
        )
    has_givers = any(_is_giver(one.entitlement) for one in defined)
    supplies = [one for one in valid if _is_enforced_supply(one.entitlement)]

    if any(node.suspended for node in customer.path):
        verdict = Reason.SUSPENDED
    elif not (entitling if has_givers else valid):
        verdict = _not_entitled(defined, uncovered, at)
    else:
        verdict = Reason.ALLOWED

    chains: list[Chain] = []
    if verdict is Reason.ALLOWED:
        supplied_at = min((one.level for one in supplies), default=None)
        chains += _constraints(compiler, valid, supplied_at)
        if supplied_at is not None:
            views, reason = compiler.supply([one for one in supplies if one.level == supplied_at])
            chains.append(Chain(views, reason, supply=True))

    chains, levels = _levels(compiler, chains)
    ended = [
        one.entitlement.validity.end_ms is not None and one.entitlement.validity.end_ms <= at
        for one in entitling
    ]
    seats = [
        one.entitlement.terms for one in valid if isinstance(one.entitlement.terms, ConcurrentTerms)
    ]
    program = Program(
        tenant=customer.tenant,
        customer=customer.path[0].key,
        feature=feature.key,
        account_id=customer.account_id,
        account_key=customer.account_key,
        bucket=customer.bucket,
        epoch=customer.epoch,
        start=compiler.slice.start,
        end=0 if compiler.slice.end == _FOREVER else compiler.slice.end,
        verdict=verdict,
        levels=levels,
        chains=tuple(chains),
        suffix=f"{customer.path[0].id}:{feature.id}",
        denial_body=encode_body(
            Body(
                t=customer.tenant,
                a=customer.account_key,
                c=customer.path[0].key,
                f=feature.key,
                m=feature.meter,
            )
        ),
        labels=compiler.labels,
        meter=feature.meter,
        feature_id=feature.id,
        emergency=feature.emergency,
        config=_config(valid) if verdict is Reason.ALLOWED else "",
        grace=verdict is Reason.ALLOWED and bool(ended) and all(ended),
        countable=any(
            not isinstance(one.entitlement.terms, BooleanTerms | ConfigTerms | ConcurrentTerms)
            for one in defined
        )
        and not any(isinstance(one.entitlement.terms, ConcurrentTerms) for one in defined),
        lease_ttl_ms=min((terms.ttl_ms for terms in seats), default=0),
    )
    return replace(program, packed=program.pack()), version_matters


def _levels(compiler: _Compiler, chains: list[Chain]) -> tuple[list[Chain], tuple[Level, ...]]:
    """Only the nodes whose counters are read, and the chains numbered by them. Leases are listed on every node."""
    customer, feature = compiler.customer, compiler.feature
    views = [view for chain in chains for view in chain.views]
    if any(view.shape is Shape.SEATS for view in views):
        used = list(range(len(customer.path)))
    else:
        used = sorted({view.level for view in views})
    place = {level: number for number, level in enumerate(used)}
    levels = tuple(
        Level(f"{customer.path[level].id}:{feature.id}", _slots(customer, feature, level))
        for level in used
    )
    numbered = [
        replace(
            chain,
            views=tuple(replace(view, level=place[view.level]) for view in chain.views),
        )
        for chain in chains
    ]
    return numbered, levels


assert set(FAMILY_OF) | {Shape.SEATS} == set(Shape)
