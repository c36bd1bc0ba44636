"""Random small accounts: every licence model, small numbers, so that limits are met all the time."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from enforcer.core.model import (
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Customer,
    Entitlement,
    Feature,
    Grant,
    LicenseType,
    Node,
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
    Validity,
)

if TYPE_CHECKING:
    import random

__all__ = ["FEATURES", "SEATS", "Maker"]

FEATURES = (Feature(1, "calls", "calls"), Feature(2, "words", "words"))
SEATS = Feature(3, "seats", "seats")
_UNITS = list(PeriodUnit)
_ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York")
_COUNTED = ("quota", "payg", "credits", "tiered", "rate", "boolean", "config")
DAY = 86_400_000


class Maker:
    """Makes accounts and changes them. Numbers of limits are never used again, as in the definitions."""

    def __init__(self, dice: random.Random, now: int) -> None:
        self._dice, self._now, self._last = dice, now, 100
        self.mode = dice.choice(list(SeatMode))

    def use(self, dice: random.Random, now: int) -> Maker:
        """Go on with other dice, at another time."""
        self._dice, self._now = dice, now
        return self

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _period(self, *, ends: bool = False) -> Period:
        dice = self._dice
        unit = dice.choice(_UNITS[:-1] if ends else _UNITS)
        anchor = dice.choice([None, None, 1_690_000_000_000])
        return Period(unit, dice.choice(_ZONES), anchor)

    def _quota(self) -> Terms:
        dice = self._dice
        hard = dice.random() < 0.8
        overage = dice.choice([0, 0, 5]) if hard else 0
        if dice.random() < 0.2:
            period = Period(dice.choice(_UNITS[:-1]), rolling=True)
            return QuotaTerms(dice.randint(0, 30), period, hard, overage, cap=dice.random() < 0.2)
        rollover = (
            Rollover(dice.choice([20, 200]), dice.randint(0, 3)) if dice.random() < 0.4 else None
        )
        period = self._period(ends=rollover is not None)
        return QuotaTerms(dice.randint(0, 30), period, hard, overage, rollover, dice.random() < 0.2)

    def terms(self, model: str) -> Terms:  # noqa: PLR0911 - one for each model
        dice = self._dice
        match model:
            case "quota":
                return self._quota()
            case "payg":
                # 1.5 or 3/7 millionths a unit: what is left of a fraction decides at the cap.
                price = dice.choice([("0.5", 1), ("0.0000015", 1), ("0.000003", 7)])
                caps = [None, Decimal(2), Decimal("0.00003")]
                return PaygTerms(
                    self._period(), Price(Decimal(price[0]), "EUR", price[1]), dice.choice(caps)
                )
            case "credits":
                return CreditsTerms(
                    tuple(self._grant(f"g{n}") for n in range(dice.randint(0, 3))),
                    dice.choice([0, 4]),
                )
            case "tiered":
                middle = dice.choice([TierBehaviour.NOTIFY, TierBehaviour.THROTTLE])
                first, second = dice.choice([(2, 4), (10, 20)])
                return TieredTerms(
                    (
                        Tier("a", first),
                        Tier("b", second, middle, rate=3, burst=5),
                        Tier(
                            "c",
                            dice.choice([None, 25]),
                            dice.choice(list(TierBehaviour)),
                            rate=1,
                            burst=2,
                        ),
                    ),
                    self._period(),
                )
            case "rate":
                return RateTerms(
                    dice.randint(1, 30),
                    dice.choice([10, 1000, 60_000]),
                    dice.choice([None, 10]),
                    dice.choice(list(RateAlgorithm)),
                )
            case "boolean":
                return BooleanTerms()
            case "config":
                return ConfigTerms(dice.randint(1, 9))
            case _:
                return ConcurrentTerms(
                    dice.randint(1, 3),
                    self.mode,
                    dice.choice([0, 1]),
                    Decimal(dice.choice(["1", "1.5"])),
                )

    def _grant(self, key: str) -> Grant:
        dice = self._dice
        return Grant(
            self._number(),
            key,
            dice.randint(1, 20),
            dice.randint(0, 2),
            dice.choice([None, self._now + dice.randint(-DAY, DAY)]),
            dice.choice([None, self._now + dice.randint(DAY, 90 * DAY)]),
        )

    def entitlement(self, feature: Feature, model: str) -> Entitlement:
        dice, number = self._dice, self._number()
        validity = Validity()
        if dice.random() < 0.2:
            start = self._now + dice.randint(-10 * DAY, DAY)
            validity = Validity(start, start + dice.randint(DAY, 60 * DAY), dice.choice([0, DAY]))
        return Entitlement(
            number,
            f"e{number}",
            feature.key,
            self.terms(model),
            dice.choice(list(LicenseType)),
            validity,
            fallback=dice.random() < 0.1,
            shadow=dice.random() < 0.15,
            priority=dice.randint(0, 2),
        )

    def account(self, levels: int = 3, number: int = 1, bucket: int = 0) -> Customer:
        """Account `number` with a path of `levels` nodes, the customer first."""
        dice = self._dice
        path = []
        for place in range(1, levels + 1):
            found = [
                self.entitlement(feature, model)
                for feature in FEATURES
                for model in dice.sample(_COUNTED, dice.randint(0, 3))
            ]
            found += [
                self.entitlement(SEATS, model)
                for model in dice.sample(("concurrent", "rate", "quota"), dice.randint(0, 2))
            ]
            node = 10 * number + place
            path.append(Node(node, f"n{node}", entitlements=tuple(found)))
        return Customer("demo", number, f"n{10 * number + levels}", bucket, 1, tuple(path))

    def changed(self, customer: Customer) -> Customer:
        """The next epoch: limits changed, credits topped up, entitlements gone and new, nodes suspended."""
        dice = self._dice
        path = []
        for node in customer.path:
            kept = [self._moved(one) for one in node.entitlements if dice.random() > 0.15]
            if dice.random() < 0.3:
                kept.append(self.entitlement(dice.choice(FEATURES), dice.choice(_COUNTED)))
            path.append(replace(node, entitlements=tuple(kept), suspended=dice.random() < 0.05))
        return replace(customer, epoch=customer.epoch + 1, path=tuple(path))

    def _moved(self, one: Entitlement) -> Entitlement:
        dice, terms = self._dice, one.terms
        match terms:
            case QuotaTerms():
                overage = dice.choice([0, 7]) if terms.hard else 0
                terms = replace(terms, limit=dice.randint(0, 40), overage=overage)
            case RateTerms():
                terms = replace(terms, limit=dice.randint(1, 30))
            case CreditsTerms():
                if dice.random() < 0.5:
                    terms = replace(terms, grants=(*terms.grants, self._grant("topup")))
            case ConcurrentTerms():
                terms = replace(terms, seats=dice.randint(0, 4))
            case PaygTerms():
                terms = replace(terms, spend_cap=dice.choice([Decimal(1), Decimal("0.00004")]))
            case _:
                pass
        return replace(one, terms=terms)
