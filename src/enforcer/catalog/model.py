"""What a catalog file declares, validated but not stored yet; and how terms look in the database."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from enforcer.core.model import (
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Entitlement,
    LicenseType,
    PaygTerms,
    QuotaTerms,
    RateTerms,
    Terms,
    TieredTerms,
    Validity,
)

__all__ = [
    "MODELS",
    "AccountSpec",
    "Catalog",
    "EntitlementSpec",
    "FeatureSpec",
    "NodeSpec",
    "PlanSpec",
    "ProductSpec",
    "SubscriptionSpec",
    "Where",
    "identity",
]

MODELS: dict[str, type[Terms]] = {
    "boolean": BooleanTerms,
    "config": ConfigTerms,
    "quota": QuotaTerms,
    "payg": PaygTerms,
    "credits": CreditsTerms,
    "tiered": TieredTerms,
    "concurrent": ConcurrentTerms,
    "rate": RateTerms,
}
"""Licence models by their name in catalogs."""

_NAMES = {terms: name for name, terms in MODELS.items()}


def _plain(value: dict[str, Any]) -> Any:
    """As JSON gives it back, so that what was stored and what is declared can be compared."""
    return msgspec.json.decode(msgspec.json.encode(value))


@dataclass(frozen=True, slots=True)
class Where:
    """A place in the file, for errors that only the database can find."""

    line: int
    field: str


@dataclass(frozen=True, slots=True)
class ProductSpec:
    """`releases`: version → release time in ms."""

    key: str
    releases: dict[str, int]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """`meter` is how its usage adds up; `on_outage` what happens while counters are away."""

    key: str
    product: str = ""
    meter: str = "sum"
    unit: str = ""
    on_outage: str = "fail_closed"


@dataclass(frozen=True, slots=True)
class EntitlementSpec:
    """An entitlement without its numbers. Grants in `terms` have the id 0."""

    key: str
    feature: str
    terms: Terms
    license_type: LicenseType = LicenseType.SUBSCRIPTION
    validity: Validity = field(default_factory=Validity)
    fallback: bool = False
    shadow: bool = False
    priority: int = 0
    where: Where = field(default=Where(0, ""), compare=False)

    def to_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        found: dict[str, Any] = _plain(
            {
                "model": _NAMES[type(self.terms)],
                "terms": self.terms,
                "license_type": self.license_type,
                "validity": self.validity,
                "fallback": self.fallback,
                "shadow": self.shadow,
                "priority": self.priority,
            }
        )
        return found

    @classmethod
    def from_json(cls, key: str, feature: str, stored: dict[str, Any]) -> EntitlementSpec:
        """What `to_json` made."""
        return cls(
            key=key,
            feature=feature,
            terms=msgspec.convert(stored["terms"], MODELS[stored["model"]], strict=False),
            license_type=LicenseType(stored["license_type"]),
            validity=msgspec.convert(stored["validity"], Validity),
            fallback=stored["fallback"],
            shadow=stored["shadow"],
            priority=stored["priority"],
        )

    def numbered(self, number: int, grants: dict[str, int]) -> Entitlement:
        """The entitlement as the rules see it."""
        terms = self.terms
        if isinstance(terms, CreditsTerms):
            terms = replace(
                terms,
                grants=tuple(replace(grant, id=grants[grant.key]) for grant in terms.grants),
            )
        return Entitlement(
            id=number,
            key=self.key,
            feature=self.feature,
            terms=terms,
            license_type=self.license_type,
            validity=self.validity,
            fallback=self.fallback,
            shadow=self.shadow,
            priority=self.priority,
        )


def identity(stored: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a counter mean the same: when it changes, the entitlement gets a new number and counts from zero."""
    terms = stored["terms"]
    period = terms.get("period")
    shape = tuple(sorted(period.items())) if period else ()
    extra = (terms.get("algorithm"), terms.get("cap"))
    return (stored["model"], shape, extra)


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """A bundle of terms."""

    key: str
    items: tuple[EntitlementSpec, ...]


@dataclass(frozen=True, slots=True)
class SubscriptionSpec:
    """A plan that a node has. Its items become the node's entitlements, named `key/item`, valid within `validity`."""

    key: str
    plan: str
    license_type: LicenseType = LicenseType.SUBSCRIPTION
    validity: Validity = field(default_factory=Validity)
    where: Where = field(default=Where(0, ""), compare=False)

    def to_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        found: dict[str, Any] = _plain(
            {"license_type": self.license_type, "validity": self.validity}
        )
        return found

    @classmethod
    def from_json(cls, key: str, plan: str, stored: dict[str, Any]) -> SubscriptionSpec:
        """What `to_json` made."""
        return cls(
            key,
            plan,
            LicenseType(stored["license_type"]),
            msgspec.convert(stored["validity"], Validity),
        )

    def entitlements(self, items: tuple[EntitlementSpec, ...]) -> tuple[EntitlementSpec, ...]:
        """The plan's items for this subscriber. Anniversaries fall on the subscription's start."""
        return tuple(self._entitlement(item) for item in items)

    def _entitlement(self, item: EntitlementSpec) -> EntitlementSpec:
        mine, its = self.validity, item.validity
        starts = [start for start in (mine.start_ms, its.start_ms) if start is not None]
        ends = [end for end in (mine.end_ms, its.end_ms) if end is not None]
        terms = item.terms
        period = getattr(terms, "period", None)
        if period is not None and period.anchor_ms == ANCHOR_AT_START:
            anchored = replace(period, anchor_ms=mine.start_ms)
            terms = replace(terms, period=anchored)
        return replace(
            item,
            key=f"{self.key}/{item.key}",
            terms=terms,
            license_type=self.license_type,
            validity=Validity(
                start_ms=max(starts, default=None),
                end_ms=min(ends, default=None),
                grace_ms=max(mine.grace_ms, its.grace_ms),
                maintenance_until_ms=its.maintenance_until_ms or mine.maintenance_until_ms,
            ),
            where=self.where,
        )


ANCHOR_AT_START = -1
"""In a plan's item: the period's anchor is the start of whoever subscribes."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """`parent` is the key of the node above; empty for the account's root, whose key is the account's."""

    key: str
    name: str
    parent: str
    suspended: bool
    entitlements: tuple[EntitlementSpec, ...]
    subscriptions: tuple[SubscriptionSpec, ...]
    where: Where = field(default=Where(0, ""), compare=False)


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """An account's whole tree, parents before children."""

    key: str
    nodes: tuple[NodeSpec, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """One file. `prune`: what the tenant has and the file does not name is removed."""

    file_name: str
    tenant: str
    prune: bool
    products: tuple[ProductSpec, ...]
    features: tuple[FeatureSpec, ...]
    plans: tuple[PlanSpec, ...]
    accounts: tuple[AccountSpec, ...]

    def of_tenant(self, tenant: str) -> Catalog:
        """The same for the tenant of whoever applies it; a file need not name one."""
        return replace(self, tenant=tenant)
