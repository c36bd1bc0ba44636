"""From the text of a catalog file to what it declares; every issue is found, not only the first."""

from __future__ import annotations

from collections import Counter
from typing import Any

from enforcer.catalog.model import (
    MODELS,
    MOST_ENTITLEMENTS,
    AccountSpec,
    Catalog,
    EntitlementSpec,
    FeatureSpec,
    NodeSpec,
    PlanSpec,
    ProductSpec,
    SubscriptionSpec,
    Where,
)
from enforcer.catalog.read import Issue, Reader, load, refuse
from enforcer.catalog.terms import read_terms
from enforcer.core.events import path_of
from enforcer.core.model import ConcurrentTerms, CreditsTerms, LicenseType, Validity

__all__ = ["AGGREGATIONS", "MOST_LEVELS", "parse"]

FAIL_OPEN = "fail_open"
AGGREGATIONS = ["sum", "count", "min", "max", "latest", "unique"]
MOST_DIMENSIONS = 16
LONGEST_NAME = 64
"""Bytes of a dimension's name, as checks may have them."""
MOST_LEVELS = 8
"""How deep an account's tree may be: every level is read by each check below it."""


def parse(document: str, file_name: str) -> Catalog:
    """Read a catalog file. Raise `CatalogInvalidError` with all its issues."""
    issues: list[Issue] = []
    top = Reader(load(document, file_name), "", 1, issues, file_name)
    version = top.value("version")
    if isinstance(version, bool) or version != 1:
        top.issue("version", "must be 1, the only version of this format")
    catalog = Catalog(
        file_name=file_name,
        tenant=top.key("tenant", ""),
        prune=top.flag("prune"),
        products=tuple(_product(at) for at in top.children("products")),
        features=tuple(_feature(at) for at in top.children("features")),
        plans=tuple(_plan(at) for at in top.children("plans")),
        accounts=tuple(_account(at) for at in top.children("accounts")),
    )
    top.finish()
    _unique(catalog, top)
    if issues:
        raise refuse(issues)
    return catalog


def _product(at: Reader) -> ProductSpec:
    releases: dict[str, int] = {}
    below = at.child("releases")
    if below is not None:
        for version in list(below.names()):
            if not isinstance(version, str):
                below.value(version)
                below.issue(str(version), 'versions are text: put them in quotes ("1.0")')
                continue
            moment = below.moment(version)
            if moment is not None:
                releases[version] = moment
    product = ProductSpec(at.key("key"), releases)
    at.finish()
    return product


def _unique_by(at: Reader, meter: str) -> str:
    name = at.text("unique_by", "")
    if meter == "unique" and not name:
        at.issue("unique_by", "is required for unique: the dimension whose values are counted")
    elif meter != "unique" and name:
        at.issue("unique_by", f"has no meaning for {meter}, only for unique")
    elif len(name.encode()) > LONGEST_NAME or "\0" in name:
        at.issue("unique_by", f"must be the name of a dimension: at most {LONGEST_NAME} bytes")
    return name


def _emergency(at: Reader, on_outage: str) -> int:
    """The amount belongs to `fail_open` and to nothing else."""
    if on_outage == FAIL_OPEN:
        return at.integer("emergency", least=1)
    if at.has("emergency"):
        at.issue("emergency", "is for on_outage: fail_open; remove one or change the other")
    return 0


def _feature(at: Reader) -> FeatureSpec:
    meter = at.choice("meter", AGGREGATIONS, "sum")
    on_outage = at.choice("on_outage", ["fail_closed", FAIL_OPEN], "fail_closed")
    feature = FeatureSpec(
        at.key("key"),
        at.key("product", ""),
        meter,
        at.text("unit", ""),
        on_outage,
        _unique_by(at, meter),
        _emergency(at, on_outage),
        Where(at.line_of("product"), f"{at.path}.product"),
        at.text("event_type", ""),
        _place(at, "value_property"),
        _group_by(at),
    )
    if not feature.event_type and (feature.value_property or feature.group_by):
        at.issue("event_type", "is required with value_property and group_by: whose data they read")
    at.finish()
    return feature


def _place(at: Reader, name: str, default: str | None = "") -> str:
    """Where an event's data has something."""
    place = at.text(name, default)
    if place and path_of(place) is None:
        at.issue(name, f"{place[:100]!r} is no place in an event's data; write $.tokens or $.a.b")
        return ""
    return place


def _group_by(at: Reader) -> dict[str, str]:
    below = at.child("group_by")
    if below is None:
        return {}
    names = below.names()
    if len(names) > MOST_DIMENSIONS:
        at.issue("group_by", f"has {len(names)} dimensions, at most {MOST_DIMENSIONS} are possible")
    found = {}
    for name in names:
        if isinstance(name, str) and 0 < len(name.encode()) <= LONGEST_NAME and "\0" not in name:
            found[str(name)] = _place(below, name, None)
        else:
            below.value(name)
            below.issue(name, f"a dimension has a name of 1 to {LONGEST_NAME} bytes")
    below.finish()
    return found


def _plan(at: Reader) -> PlanSpec:
    plan = PlanSpec(at.key("key"), _entitlements(at, "items", in_plan=True))
    at.finish()
    return plan


def _license(at: Reader) -> LicenseType:
    allowed = [one.value for one in LicenseType]
    return LicenseType(at.choice("license", allowed, LicenseType.SUBSCRIPTION.value))


def _validity(at: Reader, license_type: LicenseType, *, in_plan: bool) -> Validity:
    start, end = at.moment("start"), at.moment("end")
    if license_type is LicenseType.TRIAL and end is None and not in_plan:
        at.issue("end", "is required for a trial")
    if license_type is LicenseType.PERPETUAL and end is not None:
        at.issue("end", "has no meaning for a perpetual licence; see maintenance_until")
    if start is not None and end is not None and start >= end:
        at.issue("end", "must be after start")
    grace = at.duration("grace", 0, least=0, most=366 * 86_400_000)
    if grace and end is None and not in_plan:
        at.issue("grace", "needs an end")
    return Validity(start, end, grace, at.moment("maintenance_until"))


def _entitlements(at: Reader, name: str, *, in_plan: bool = False) -> tuple[EntitlementSpec, ...]:
    found = [_entitlement(below, in_plan=in_plan) for below in at.children(name)]
    _keys_once(at, name, [one.key for one in found])
    for feature, count in _sizes(found).items():
        if count > MOST_ENTITLEMENTS:
            at.issue(name, f"has {count} limits of {feature!r}, at most {MOST_ENTITLEMENTS}")
    modes = {
        (one.feature, one.terms.mode) for one in found if isinstance(one.terms, ConcurrentTerms)
    }
    for feature, count in Counter(feature for feature, _ in modes).items():
        if count > 1:
            at.issue(name, f"has seats of {feature!r} in several modes; a feature has one")
    return tuple(found)


def _sizes(found: list[EntitlementSpec]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for one in found:
        sizes[one.feature] += len(one.terms.grants) if isinstance(one.terms, CreditsTerms) else 1
    return sizes


def _entitlement(at: Reader, *, in_plan: bool) -> EntitlementSpec:
    feature = at.key("feature")
    known = at.value("model") in list(MODELS)
    model = at.choice("model", list(MODELS))
    if not known:
        # Which fields are possible depends on it: do not report them on top.
        at.take_all()
        model = "boolean"
    if in_plan and at.has("license"):
        at.issue("license", "belongs to the subscription: each subscriber has a licence of its own")
    license_type = _license(at)
    spec = EntitlementSpec(
        key=at.key("key", feature and f"{feature}:{model}"),
        feature=feature,
        terms=read_terms(at, model, in_plan=in_plan),
        license_type=license_type,
        validity=_validity(at, license_type, in_plan=in_plan),
        fallback=at.flag("fallback"),
        shadow=at.flag("shadow"),
        priority=at.integer("priority", 0, most=1000),
        where=Where(at.line_of("feature"), f"{at.path}.feature"),
    )
    at.finish()
    return spec


def _subscriptions(at: Reader) -> tuple[SubscriptionSpec, ...]:
    found = [_subscription(below) for below in at.children("subscriptions")]
    _keys_once(at, "subscriptions", [one.key for one in found])
    return tuple(found)


def _keys_once(at: Reader, name: str, keys: list[str]) -> None:
    for key, count in Counter(keys).items():
        if count > 1 and key:
            at.issue(name, f"has {key!r} {count} times; give each a `key` of its own")


def _subscription(at: Reader) -> SubscriptionSpec:
    license_type = _license(at)
    plan = at.key("plan")
    spec = SubscriptionSpec(
        at.key("key", plan),
        plan,
        license_type,
        _validity(at, license_type, in_plan=False),
        at.moment("anchor"),
        Where(at.line_of("plan"), f"{at.path}.plan"),
    )
    at.finish()
    return spec


def _account(at: Reader) -> AccountSpec:
    nodes: list[NodeSpec] = []
    _node(at, "", 1, nodes)
    return AccountSpec(nodes[0].key, tuple(nodes))


def _node(at: Reader, parent: str, level: int, nodes: list[NodeSpec]) -> None:
    """A node and all below it, itself first."""
    if level > MOST_LEVELS:
        at.issue("", f"is on level {level} of its account; at most {MOST_LEVELS} are possible")
        at.take_all()
        return
    key = at.key("key")
    nodes.append(
        NodeSpec(
            key,
            at.text("name", key),
            parent,
            at.flag("suspended"),
            _entitlements(at, "entitlements"),
            _subscriptions(at),
            Where(at.line_of("key"), f"{at.path}.key" if at.path else "key"),
        )
    )
    for below in at.children("nodes"):
        _node(below, key, level + 1, nodes)
    at.finish()


def _unique(catalog: Catalog, top: Reader) -> None:
    groups: list[tuple[str, list[Any]]] = [
        ("products", [one.key for one in catalog.products]),
        ("features", [one.key for one in catalog.features]),
        ("plans", [one.key for one in catalog.plans]),
        ("accounts", [node.key for account in catalog.accounts for node in account.nodes]),
    ]
    for name, keys in groups:
        for key, count in Counter(keys).items():
            if count > 1 and key:
                top.issue(name, f"names {key!r} {count} times; keys are unique in a tenant")
