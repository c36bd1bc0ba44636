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
    RateAlgorithm,
    RateTerms,
    Terms,
    TieredTerms,
    Validity,
)

__all__ = [
    "ANCHOR_AT_START",
    "MODELS",
    "MOST_ENTITLEMENTS",
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
    "needs_anchor",
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

MOST_ENTITLEMENTS = 32
"""Of one node and feature, grants counted: all of them are read by each check."""

ANCHOR_AT_START = -1
"""In a plan's item: the period's anchor is the start of whoever subscribes."""

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
    """`meter` is how its usage adds up; `on_outage` what happens while counters are away.

    `emergency`: what a customer may use of it meanwhile, over all enforcers together; 0 unless it fails open.
    `unique_by` is the dimension whose values a `unique` meter counts. Events of `event_type` that come from elsewhere
    feed it: with the quantity at `value_property` of their data, by the dimensions of `group_by`, name → place.
    """

    key: str
    product: str = ""
    meter: str = "sum"
    unit: str = ""
    on_outage: str = "fail_closed"
    unique_by: str = ""
    emergency: int = 0
    where: Where = field(default=Where(0, ""), compare=False)
    event_type: str = ""
    value_property: str = ""
    group_by: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        found: dict[str, Any] = {
            "product": self.product,
            "meter": self.meter,
            "unit": self.unit,
            "on_outage": self.on_outage,
            "emergency": self.emergency,
        }
        if self.unique_by:
            found["unique_by"] = self.unique_by
        if self.event_type:
            found["event_type"] = self.event_type
            found["value_property"] = self.value_property
            found["group_by"] = self.group_by
        return found


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
    money = terms["price"]["currency"] if terms.get("spend_cap") is not None else None
    # A window's slots are a part of its length: their numbers mean nothing for another length.
    window = terms["per_ms"] if terms.get("algorithm") == RateAlgorithm.SLIDING_WINDOW else None
    extra = (terms.get("algorithm"), window, terms.get("cap"), money)
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
    anchor_ms: int | None = None
    where: Where = field(default=Where(0, ""), compare=False)

    def to_json(self) -> dict[str, Any]:
        """As the database keeps it."""
        found: dict[str, Any] = _plain(
            {
                "license_type": self.license_type,
                "validity": self.validity,
                "anchor_ms": self.anchor_ms,
            }
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
            stored.get("anchor_ms"),
        )

    def anchor(self) -> int | None:
        """Where anniversaries fall, in ms: on its own anchor, else on its start."""
        return self.validity.start_ms if self.anchor_ms is None else self.anchor_ms

    def entitlements(self, items: tuple[EntitlementSpec, ...]) -> tuple[EntitlementSpec, ...]:
        """The plan's items for this subscriber, with its validity and licence, and anniversaries of its anchor."""
        return tuple(self._entitlement(item) for item in items)

    def _entitlement(self, item: EntitlementSpec) -> EntitlementSpec:
        mine, its = self.validity, item.validity
        starts = [start for start in (mine.start_ms, its.start_ms) if start is not None]
        ends = [end for end in (mine.end_ms, its.end_ms) if end is not None]
        terms = item.terms
        if needs_anchor(item):
            assert isinstance(terms, QuotaTerms | PaygTerms | TieredTerms)
            terms = replace(terms, period=replace(terms.period, anchor_ms=self.anchor()))
        return replace(
            item,
            key=f"{self.key}/{item.key}",
            terms=terms,
            license_type=self.license_type,
            validity=Validity(
                start_ms=max(starts, default=None),
                end_ms=min(ends, default=None),
                grace_ms=max(mine.grace_ms, its.grace_ms),
                maintenance_until_ms=(
                    mine.maintenance_until_ms
                    if its.maintenance_until_ms is None
                    else its.maintenance_until_ms
                ),
            ),
            where=self.where,
        )


def needs_anchor(item: EntitlementSpec) -> bool:
    """Whether a plan's item has periods that begin with the subscription."""
    period = getattr(item.terms, "period", None)
    return period is not None and period.anchor_ms == ANCHOR_AT_START


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
