"""A catalog file is either read or refused with places and reasons, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from enforcer.catalog.model import EntitlementSpec, SubscriptionSpec, identity
from enforcer.catalog.parse import parse
from enforcer.core.model import CreditsTerms
from enforcer.errors import CatalogInvalidError

SAMPLE = (Path(__file__).parents[3] / "deploy" / "sample-catalog.yaml").read_text()
LINES = SAMPLE.splitlines()
SMALL = """\
version: 1
tenant: demo
prune: false
products: [{key: p, releases: {"1.0": 2025-01-01}}]
features: [{key: f, product: p, meter: sum, unit: u, on_outage: fail_open, emergency: 7}]
plans:
  - key: basic
    items:
      - {feature: f, model: payg, per: month, anchor: start, price: {amount: "0.15", currency: USD, per: 1000}}
accounts:
  - key: a
    name: A
    suspended: false
    subscriptions: [{plan: basic, start: 2026-01-01, end: 2027-01-01, grace: 3d, license: trial}]
    entitlements:
      - {feature: f, model: quota, limit: 5, per: day, zone: UTC, overage: 1, rollover: {min: 0, max: 2}}
      - {feature: f, model: credits, overdraft: 1, grants: [{key: g, amount: 5, expires: 2030-01-01}]}
      - {feature: f, model: tiered, per: day, tiers: [{name: x, up_to: 5}, {name: y, behaviour: throttle, rate: 1}]}
      - {feature: f, model: concurrent, seats: 2, mode: named, overdraft_factor: 1.5, ttl: 10s}
      - {feature: f, model: rate, limit: 5, per: 1s, burst: 5, shadow: true, priority: 1}
      - {feature: f, model: config, value: 5, fallback: true}
    nodes: [{key: b, nodes: [{key: c}]}]
"""
ODD = [
    "null", "~", "true", "[]", "{}", "-1", "0", "1e999", ".inf", ".nan", "0x10", "0o7", "1_0", "9007199254740992",
    "9" * 5000, "2026-01-31", "2026-01-31T12:00:00", "9999-12-31T23:59:59+00:00", "0001-01-01", "!!binary aGk=",
    "!!set {a}", "!!omap [a: b]", "!!python/object:os.system x", "!foo bar", "!!int x", "!!float x", "!!bool x",
    "!!timestamp x", "&a x", "*a", "*nowhere", "<<", '"\\ud83d"', '"\\0"', "|\n  x", "'", '"', "\t", "\x85", "\ufeff",
    "...", "---", "%YAML 9.9", "? ", ": ", "- ", "\u2028", "{a: b, a: c}", "0d", "99999999999999999999d", "💥",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A sound file with a few things changed in it."""
    text = draw(st.sampled_from([SMALL, "\n".join(LINES)]))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        end = min(len(text), place + draw(st.integers(0, 12)))
        what = draw(st.sampled_from(ODD) | st.text(max_size=4) | st.sampled_from(LINES))
        text = text[:place] + what + text[end:]
    return text


@st.composite
def revalued(draw: st.DrawFn) -> str:
    """A sound file with the values of some fields exchanged."""
    parts = SMALL.split(": ")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(1, len(parts) - 1))
        value, separator, rest = parts[place].partition(",")
        if not separator:
            value, separator, rest = parts[place].partition("\n")
        closing = value[len(value.rstrip("}]")) :]
        parts[place] = f"{draw(st.sampled_from(ODD))}{closing}{separator}{rest}"
    return ": ".join(parts)


FIELDS = sorted({word.strip("{[- \n'\"") for word in SMALL.replace(",", ":").split(":")})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(FIELDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=30,
)


def read(text: str) -> None:
    """What is read can be stored; what is refused says where and why."""
    try:
        catalog = parse(text, "c.yaml")
    except CatalogInvalidError as refused:
        lines = str(refused).splitlines()
        assert lines
        for line in lines:
            assert line.startswith("c.yaml:")
            assert 1 <= int(line.split(":")[1]) <= text.count("\n") + text.count("\r") + 2
            line.encode()
        return
    nodes = [node for account in catalog.accounts for node in account.nodes]
    for spec in [one for node in nodes for one in node.entitlements]:
        stored = json.loads(json.dumps(spec.to_json()))
        identity(stored)
        assert EntitlementSpec.from_json(spec.key, spec.feature, stored) == spec
        grants = spec.terms.grants if isinstance(spec.terms, CreditsTerms) else ()
        spec.numbered(1, {grant.key: 2 for grant in grants})
    items = {plan.key: plan.items for plan in catalog.plans}
    for one in [one for node in nodes for one in node.subscriptions]:
        stored = json.loads(json.dumps(one.to_json()))
        assert SubscriptionSpec.from_json(one.key, one.plan, stored) == one
        one.entitlements(items.get(one.plan, ()))


@given(st.text() | mutated() | revalued() | st.sampled_from(ODD))
@example(SMALL)
@example(SAMPLE)
def test_a_broken_file_is_refused_and_never_more_than_that(text: str) -> None:
    read(text)


@given(
    st.fixed_dictionaries(
        {"version": st.just(1)},
        optional={
            name: VALUES | st.lists(VALUES, max_size=2)
            for name in ("products", "features", "plans", "accounts", "tenant", "prune")
        },
    )
)
def test_values_of_any_shape_are_refused_where_they_stand(document: dict[str, object]) -> None:
    read(json.dumps(document))
