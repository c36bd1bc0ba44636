"""What a catalog file declares, and what is said when it is wrong."""

from __future__ import annotations

import re
import textwrap
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from enforcer.catalog.model import ANCHOR_AT_START, AccountSpec, EntitlementSpec, identity
from enforcer.catalog.parse import parse
from enforcer.catalog.read import Reader
from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Grant,
    LicenseType,
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
from enforcer.errors import CatalogInvalidError

ROOT = Path(__file__).parents[4]
SAMPLE = ROOT / "deploy" / "sample-catalog.yaml"
MANUAL = ROOT / "docs" / "catalog.md"
DAY = 86_400_000
JULY = 1_782_864_000_000  # 2026-07-01


def one(fields: str) -> EntitlementSpec:
    """The entitlement that `fields` declare on an account."""
    text = f"version: 1\naccounts:\n- key: a\n  entitlements:\n  - {{feature: f, {fields}}}\n"
    (spec,) = parse(text, "c.yaml").accounts[0].nodes[0].entitlements
    return spec


def issues(text: str) -> list[str]:
    """What is said about a file, without its name."""
    with pytest.raises(CatalogInvalidError) as refused:
        parse(text, "c.yaml")
    lines = str(refused.value).splitlines()
    assert refused.value.metadata["issues"] == str(len(lines))
    assert all(line.startswith("c.yaml:") for line in lines)
    return [line.removeprefix("c.yaml:") for line in lines]


def issue(fields: str) -> str:
    """The one thing that is said about an entitlement."""
    (found,) = issues(
        f"version: 1\naccounts:\n- key: a\n  entitlements:\n  - {{feature: f, {fields}}}\n"
    )
    return found.removeprefix("5: accounts[0].entitlements[0].")


# -- terms, one by one

MONTH = Period(PeriodUnit.MONTH)


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ("model: boolean", BooleanTerms()),
        ("model: config, value: 1080", ConfigTerms(1080)),
        ("model: config, value: '1080'", ConfigTerms("1080")),
        ("model: config, value: true", ConfigTerms(value=True)),
        ("model: config, value: &x true", ConfigTerms(value=True)),
        ("model: config, value: 2026-01-31", ConfigTerms("2026-01-31")),
        ("model: quota, limit: 100_000_000, per: month", QuotaTerms(100_000_000, MONTH)),
        ("model: quota, limit: 0, per: total", QuotaTerms(0, Period(PeriodUnit.TOTAL))),
        (
            "model: quota, limit: 9007199254740991, per: hour",
            QuotaTerms(MAX_QUANTITY, Period(PeriodUnit.HOUR)),
        ),
        (
            "model: quota, limit: 5, per: day, zone: Europe/Berlin, hard: false",
            QuotaTerms(5, Period(PeriodUnit.DAY, "Europe/Berlin"), hard=False),
        ),
        (
            "model: quota, limit: 5, per: week, rolling: true, overage: 2, cap: true",
            QuotaTerms(5, Period(PeriodUnit.WEEK, rolling=True), overage=2, cap=True),
        ),
        (
            "model: quota, limit: 5, per: year, anchor: 2026-07-01, rollover: {max: 3, min: 1}",
            QuotaTerms(5, Period(PeriodUnit.YEAR, anchor_ms=JULY), rollover=Rollover(3, 1)),
        ),
        (
            "model: quota, limit: 5, per: month, anchor: start, start: 2026-07-01T02:00:00+02:00",
            QuotaTerms(5, Period(PeriodUnit.MONTH, anchor_ms=JULY)),
        ),
        ("model: payg, per: month", PaygTerms(MONTH)),
        (
            "model: payg, per: month, price: {amount: 0.15, currency: USD, per: 1_000_000}",
            PaygTerms(MONTH, Price(Decimal("0.15"), "USD", 1_000_000)),
        ),
        (
            'model: payg, per: month, price: {amount: "0.000000001", currency: EUR}, spend_cap: 9.5',
            PaygTerms(MONTH, Price(Decimal("0.000000001"), "EUR"), Decimal("9.5")),
        ),
        ("model: credits", CreditsTerms()),
        (
            (
                "model: credits, overdraft: 5, grants: [{key: g, amount: 9, priority: 2, "
                "effective: 2026-07-01, expires: 2026-07-02T00:00:00Z}, {key: h, amount: 1}]"
            ),
            CreditsTerms((Grant(0, "g", 9, 2, JULY, JULY + DAY), Grant(0, "h", 1)), overdraft=5),
        ),
        (
            (
                "model: tiered, per: month, tiers: [{name: a, up_to: 10}, {name: b, up_to: 20, "
                "behaviour: throttle, rate: 5, rate_per: 1m, burst: 9}, {name: c, behaviour: deny}]"
            ),
            TieredTerms(
                (
                    Tier("a", 10),
                    Tier("b", 20, TierBehaviour.THROTTLE, None, 5, 60_000, 9),
                    Tier("c", None, TierBehaviour.DENY),
                ),
                MONTH,
            ),
        ),
        ("model: concurrent, seats: 2", ConcurrentTerms(2)),
        (
            "model: concurrent, seats: 2, mode: named, overdraft: 3, overdraft_factor: 1.25, ttl: 10s",
            ConcurrentTerms(2, SeatMode.NAMED, 3, Decimal("1.25"), 10_000),
        ),
        ("model: rate, limit: 5, per: 500ms", RateTerms(5, 500)),
        ("model: rate, limit: 5, per: 24h, burst: 50", RateTerms(5, DAY, 50)),
        (
            "model: rate, limit: 5, per: 1m, algorithm: sliding_window",
            RateTerms(5, 60_000, None, RateAlgorithm.SLIDING_WINDOW),
        ),
    ],
)
def test_terms_are_read_as_they_are_written(fields: str, terms: Terms) -> None:
    assert one(fields).terms == terms


def test_an_entitlement_has_a_name_of_its_feature_and_model_unless_it_says_another() -> None:
    assert one("model: boolean").key == "f:boolean"
    assert one("model: boolean, key: mine").key == "mine"


def test_what_every_model_may_have() -> None:
    spec = one(
        "model: boolean, license: trial, start: 2026-07-01, end: 2026-07-02, grace: 14d, "
        "maintenance_until: 2026-07-01T00:00:00.5Z, fallback: true, shadow: true, priority: 7"
    )
    assert spec.license_type is LicenseType.TRIAL
    assert spec.validity == Validity(JULY, JULY + DAY, 14 * DAY, JULY + 500)
    assert (spec.fallback, spec.shadow, spec.priority) == (True, True, 7)
    plain = one("model: boolean")
    assert plain.license_type is LicenseType.SUBSCRIPTION
    assert plain.validity == Validity()


@pytest.mark.parametrize(
    "fields",
    [
        "model: boolean",
        "model: config, value: '5'",
        "model: quota, limit: 5, per: month, anchor: 2026-07-01, rollover: {max: 3}",
        "model: payg, per: month, price: {amount: 0.15, currency: USD}, spend_cap: 9.5",
        "model: credits, grants: [{key: g, amount: 9}]",
        "model: tiered, per: day, tiers: [{name: a, price: {amount: '1.1', currency: EUR}}]",
        "model: concurrent, seats: 2, overdraft_factor: 1.25",
        "model: rate, limit: 5, per: 1s, license: trial, end: 2027-01-01, grace: 1d",
    ],
)
def test_what_the_database_keeps_says_the_same(fields: str) -> None:
    spec = one(fields)
    assert EntitlementSpec.from_json(spec.key, spec.feature, spec.to_json()) == spec


QUOTA = "model: quota, limit: 5, per: month"
CAPPED = "model: payg, per: month, price: {amount: 1, currency: EUR}, spend_cap: 5"
WINDOW = "model: rate, limit: 1, per: 1s, algorithm: sliding_window"
TIERS = "model: tiered, per: day, tiers: [{name: a, up_to: 5}, {name: b}]"


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (QUOTA, f"{QUOTA}, overage: 3, rollover: {{max: 2}}", True),
        (QUOTA, f"{QUOTA}, hard: false", True),
        (QUOTA, f"{QUOTA}, license: trial, start: 2026-01-01, end: 2027-01-01, grace: 1d", True),
        (QUOTA, f"{QUOTA}, fallback: true, shadow: true, priority: 3", True),
        (QUOTA, f"{QUOTA}, zone: UTC", True),
        (QUOTA, f"{QUOTA}, zone: Europe/Berlin", False),
        (QUOTA, f"{QUOTA}, anchor: 2026-01-01", False),
        (QUOTA, f"{QUOTA}, rolling: true", False),
        (QUOTA, f"{QUOTA}, cap: true", False),
        (QUOTA, "model: quota, limit: 5, per: year", False),
        (QUOTA, "model: payg, per: month", False),
        (
            f"{QUOTA}, anchor: start, start: 2026-01-01",
            f"{QUOTA}, anchor: start, start: 2026-01-02",
            False,
        ),
        (CAPPED, CAPPED.replace("spend_cap: 5", "spend_cap: 6"), True),
        (CAPPED, CAPPED.replace("amount: 1", "amount: 2"), True),
        (CAPPED, CAPPED.replace(", spend_cap: 5", ""), False),
        (CAPPED, CAPPED.replace("EUR", "USD"), False),
        (TIERS, TIERS.replace("up_to: 5", "up_to: 6").replace("name: b", "name: c"), True),
        ("model: concurrent, seats: 1", "model: concurrent, seats: 2, ttl: 10s", True),
        ("model: rate, limit: 1, per: 1s", "model: rate, limit: 2, per: 1m, burst: 9", True),
        ("model: rate, limit: 1, per: 1s", WINDOW, False),
        # A window counts in slots of a tenth of its length: of slots of another length nothing can be told, and numbers
        # of shorter slots are so much greater that the window would never move on.
        (WINDOW, WINDOW.replace("per: 1s", "per: 1m"), False),
        (WINDOW, WINDOW.replace("limit: 1", "limit: 2"), True),
        ("model: credits", "model: credits, overdraft: 5, grants: [{key: g, amount: 1}]", True),
        ("model: config, value: 1", "model: config, value: x", True),
    ],
)
def test_what_keeps_a_count_and_what_restarts_it(before: str, after: str, *, stays: bool) -> None:
    assert (identity(one(before).to_json()) == identity(one(after).to_json())) is stays


# -- the document around them


def test_a_file_may_declare_nothing() -> None:
    catalog = parse("version: 1\n", "c.yaml")
    assert (catalog.tenant, catalog.prune, catalog.accounts) == ("", False, ())


def test_a_tree_becomes_a_list_with_parents_first() -> None:
    text = """
version: 1
tenant: demo
accounts:
  - key: a
    name: Ay
    nodes:
      - key: b
        suspended: true
        nodes: [{key: c}]
      - {key: d}
"""
    (account,) = parse(text, "c.yaml").accounts
    assert isinstance(account, AccountSpec)
    assert account.key == "a"
    found = [(node.key, node.name, node.parent, node.suspended) for node in account.nodes]
    assert found == [
        ("a", "Ay", "", False),
        ("b", "b", "a", True),
        ("c", "c", "b", False),
        ("d", "d", "a", False),
    ]


def test_products_features_plans_and_subscriptions() -> None:
    text = """
version: 1
products: [{key: p, releases: {"1.0": 2026-07-01}}]
features: [{key: f, product: p, meter: unique, unique_by: user, unit: user, on_outage: fail_open, emergency: 100}, {key: g}]
plans:
  - key: basic
    items: [{feature: f, model: quota, limit: 1, per: month, anchor: start}]
accounts:
  - key: a
    subscriptions:
      - {plan: basic, key: mine, license: trial, start: 2026-07-01, end: 2026-07-02, grace: 1d, anchor: 2026-07-01}
"""
    catalog = parse(text, "c.yaml")
    assert catalog.products[0].releases == {"1.0": JULY}
    feature = catalog.features[0]
    assert (feature.meter, feature.unit, feature.on_outage) == ("unique", "user", "fail_open")
    assert feature.unique_by == "user"
    assert (feature.emergency, catalog.features[1].emergency) == (100, 0)
    assert (catalog.features[1].meter, catalog.features[1].on_outage) == ("sum", "fail_closed")
    (item,) = catalog.plans[0].items
    assert isinstance(item.terms, QuotaTerms)
    assert item.terms.period.anchor_ms == ANCHOR_AT_START
    (subscription,) = catalog.accounts[0].nodes[0].subscriptions
    assert (subscription.key, subscription.plan) == ("mine", "basic")
    assert subscription.validity == Validity(JULY, JULY + DAY, DAY)
    assert subscription.anchor() == JULY


def test_yaml_anchors_and_merges_may_be_used() -> None:
    text = (
        "version: 1\nfeatures:\n- &base {key: a, unit: call}\n- {<<: *base, key: b}\n"
        "accounts:\n- {key: x, entitlements: &e [{feature: a, model: boolean}]}\n"
        "- {key: y, entitlements: *e}\n"
    )
    catalog = parse(text, "c.yaml")
    assert [(one.key, one.unit) for one in catalog.features] == [("a", "call"), ("b", "call")]
    first, second = catalog.accounts
    assert first.nodes[0].entitlements == second.nodes[0].entitlements


def test_an_anchor_may_be_set_again() -> None:
    text = "version: 1\nfeatures: [{key: &a f}, {key: &a g}]\naccounts: [{key: x, name: *a}]\n"
    assert parse(text, "c.yaml").accounts[0].nodes[0].name == "g"


# -- what is wrong, and what is allowed


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        # fields and words
        ("model: boolean, lmit: 5, prority: 1", None),
        ("model: qota, limit: 5", "model: is 'qota', must be one of boolean, config, quota,"),
        ("limit: 5", "model: is required"),
        ("model: [quota]", "model: is a list, must be text"),
        ("model: boolean, shadow: 1", "shadow: is 1, must be true or false"),
        ("model: boolean, shadow: 'yes'", "shadow: is 'yes', must be true or false"),
        ("model: boolean, priority: -1", "priority: is -1, must be from 0 to 1000"),
        ("model: boolean, key: 'a/b'", "key: 'a/b' is no key: 1 to 128 letters"),
        ("model: boolean, license: rented", "license: is 'rented', must be one of perpetual,"),
        # quantities
        ("model: quota, per: day", "limit: is required"),
        ("model: quota, per: day, limit: null", "limit: is required"),
        ("model: quota, per: day, limit: -5", "limit: is -5, must be from 0 to 9007199254740991"),
        ("model: quota, per: day, limit: 9007199254740992", "limit: is 9007199254740992, must be"),
        ("model: quota, per: day, limit: 1e6", "limit: is 1000000.0, must be an integer"),
        ("model: quota, per: day, limit: true", "limit: is true, must be an integer"),
        ("model: quota, per: day, limit: '5'", "limit: is '5', must be an integer"),
        (
            "model: quota, per: day, limit: 9007199254740991, overage: 1",
            "limit: with overage and rollover must be at most 9007199254740991",
        ),
        ("model: concurrent, seats: 1000001", "seats: is 1000001, must be from 0 to 1000000"),
        ("model: rate, per: 1s, limit: 0", "limit: is 0, must be from 1 to"),
        # periods
        ("model: quota, limit: 1, per: fortnight", "per: is 'fortnight', must be one of hour, day,"),
        ("model: quota, limit: 1, per: day, zone: Berlin", "zone: 'Berlin' is no time zone"),
        ("model: quota, limit: 1, per: day, zone: ../x", "zone: '../x' is no time zone"),
        ("model: quota, limit: 1, per: total, rolling: true", "rolling: has no meaning with `per: t"),
        (
            "model: quota, limit: 1, per: day, rolling: true, anchor: 2026-01-01",
            "anchor: has no meaning for a rolling period",
        ),
        ("model: quota, limit: 1, per: total, anchor: 2026-01-01", "anchor: has no meaning for"),
        ("model: quota, limit: 1, per: day, anchor: start", "anchor: `start` needs a `start`"),
        ("model: quota, limit: 1, per: day, anchor: soon", "anchor: must be a date (2026-01-31) or"),
        # quotas
        ("model: quota, limit: 1, per: day, hard: false, overage: 5", "overage: bounds a hard quota"),
        ("model: quota, limit: 1, per: total, rollover: {max: 1}", "rollover: needs periods that end"),
        (
            "model: quota, limit: 1, per: day, rollover: {max: 1, min: 2}",
            "rollover.min: is 2, must be at most max (1)",
        ),
        ("model: quota, limit: 1, per: day, rollover: 5", "rollover: is 5, must be a mapping"),
        # money
        (
            "model: payg, per: day, price: {amount: -1, currency: EUR}",
            "price.amount: is -1, must be a number from 0",
        ),
        (
            "model: payg, per: day, price: {amount: 0.0000000001, currency: EUR}",
            "price.amount: is 1E-10, must have at most 9 decimals",
        ),
        ("model: payg, per: day, price: {amount: .nan, currency: EUR}", "price.amount: is nan, must"),
        ("model: payg, per: day, price: {amount: 1, currency: euro}", "price.currency: 'euro' is no"),
        ("model: payg, per: day, price: {amount: 1}", "price.currency: is required"),
        (
            "model: payg, per: day, price: {amount: '0.123456789', currency: EUR, per: 999999937}",
            "price.amount: is too fine or too large",
        ),
        (
            "model: payg, per: day, price: {amount: 2148, currency: EUR}",
            "price.amount: is too fine or too large",
        ),
        ("model: payg, per: day, spend_cap: 5", "spend_cap: needs a price to count money by"),
        (
            "model: payg, per: day, rolling: true, spend_cap: 5, price: {amount: 1, currency: EUR}",
            "rolling: is not possible here",
        ),
        # credits
        ("model: credits, grants: [{key: g, amount: 0}]", "grants[0].amount: is 0, must be from 1"),
        (
            "model: credits, grants: [{key: g, amount: 1}, {key: g, amount: 1}]",
            "grants[1].key: 'g' is here twice",
        ),
        (
            "model: credits, grants: [{key: g, amount: 1, effective: 2026-01-02, expires: 2026-01-01}]",
            "grants[0].expires: must be after effective",
        ),
        ("model: credits, grants: {key: g}", "grants: is a mapping, must be a list"),
        # tiers
        ("model: tiered, per: day", "tiers: needs at least one tier"),
        (
            "model: tiered, per: day, tiers: [{name: a}, {name: b, up_to: 5}]",
            "tiers[0].up_to: is required for every tier but the last",
        ),
        (
            "model: tiered, per: day, tiers: [{name: a, up_to: 5}, {name: b, up_to: 5}]",
            "tiers[1].up_to: is 5, must be more than the tier before (5)",
        ),
        (
            "model: tiered, per: day, tiers: [{name: a, up_to: 5}, {name: a}]",
            "tiers[1].name: 'a' is here twice",
        ),
        (
            "model: tiered, per: day, tiers: [{name: a, behaviour: throttle}]",
            "tiers[0].rate: is required",
        ),
        (
            "model: tiered, per: day, tiers: [{name: a, rate: 5}]",
            "tiers[0].rate: unknown field; allowed: up_to, behaviour, name, price",
        ),
        (
            "model: tiered, per: day, tiers: [{name: a, up_to: 5, behaviour: deny}, {name: b}]",
            "tiers[0].behaviour: only the last tier can deny",
        ),
        ("model: tiered, per: day, rolling: true, tiers: [{name: a}]", "rolling: is not possible"),
        # seats and rates
        ("model: concurrent, seats: 1, mode: shared", "mode: is 'shared', must be one of floating,"),
        ("model: concurrent, seats: 1, ttl: 9s", "ttl: is 9s, must be from 10s to 1d"),
        (f"model: concurrent, seats: 1, ttl: {'9' * 5000}s", "ttl: is '9999"),
        ("model: concurrent, seats: 1, ttl: 1.5m", "ttl: is '1.5m', must be a duration like"),
        ("model: concurrent, seats: 1, ttl: ٣٠s", "ttl: is '٣٠s', must be a duration like"),  # noqa: RUF001
        ("model: concurrent, seats: 1, ttl: 60", "ttl: is 60, must be a duration like 500ms, 30s,"),
        (
            "model: concurrent, seats: 1, overdraft_factor: 0.5",
            "overdraft_factor: is 0.5, must be from 1 to 10",
        ),
        ("model: rate, limit: 1, per: 2d", "per: is 2d, must be from 1ms to 1d"),
        (
            "model: rate, limit: 1, per: 1s, burst: 5, algorithm: sliding_window",
            "burst: belongs to a token bucket",
        ),
        # values
        ("model: config", "value: is required"),
        ("model: config, value: 1.5", "value: is required: text, true or false, or an integer"),
        ("model: config, value: 9007199254740992", "value: is required: text, true or false, or"),
        (f"model: config, value: {'x' * 1001}", "value: has 1001 characters, at most 1000"),
        # time
        ("model: boolean, license: trial", "end: is required for a trial"),
        ("model: boolean, license: perpetual, end: 2026-01-01", "end: has no meaning for a perpetual"),
        ("model: boolean, start: 2026-01-01, end: 2026-01-01", "end: must be after start"),
        ("model: boolean, grace: 1d", "grace: needs an end"),
        ("model: boolean, end: 2026-01-01, grace: 367d", "grace: is 367d, must be from 0ms to 366d"),
        ("model: boolean, end: 2026-01-01T12:00:00", "end: must be a date (2026-01-31) or a time wi"),
        ("model: boolean, end: 2026-02-30", "end: must be a date"),
        ("model: boolean, end: 20260131", "end: must be a date"),
    ],
)  # fmt: skip
def test_an_issue_says_what_is_wrong_and_what_is_allowed(fields: str, said: str | None) -> None:
    if said is None:
        text = f"version: 1\naccounts:\n- key: a\n  entitlements:\n  - {{feature: f, {fields}}}\n"
        assert issues(text) == [
            (
                "5: accounts[0].entitlements[0].lmit: unknown field; allowed: feature, model, license, "
                "key, start, end, grace, maintenance_until, fallback, shadow, priority"
            ),
            "5: accounts[0].entitlements[0].prority: unknown field; did you mean priority?",
        ]
        return
    assert issue(fields).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: -: is empty, must be a mapping"),
        ("- 1", "1: -: is a list, must be a mapping"),
        ("accounts: []", "1: version: must be 1"),
        ("version: 2", "1: version: must be 1"),
        ("version: true", "1: version: must be 1"),
        ("version: '1'", "1: version: must be 1"),
        ("version: 1\naccounts: 5", "2: accounts: is 5, must be a list"),
        ("version: 1\naccounts:\n- 5", "3: accounts[0]: is 5, must be a mapping"),
        ("version: 1\nacounts: []", "2: acounts: unknown field; did you mean accounts?"),
        ("version: 1\ntenant: 5", "2: tenant: is 5, must be text (put it in quotes)"),
        ("version: 1\n5: 6", "2: 5: unknown field; allowed: version, tenant, prune,"),
        ("version: 1\n? [1, 2]\n: 6", "2: (1, 2): unknown field; allowed: version,"),
        ("version: 1\nplans: [", "2: -: not YAML: did not find expected node content"),
        ("version: 1\nversion: 1", "2: -: found duplicate key"),
        ("version: 1\n---\nversion: 1", "2: -: "),
        ("version: 1\nx: \x01", "2: -: not YAML: control characters are not allowed"),
        ('version: 1\nfeatures:\n- {key: f, unit: "\\ud800"}', "3: -: not YAML: found invalid Unicode"),
        ('version: 1\nfeatures:\n- {key: f, unit: "\\0"}', "3: -: has a character that is no text"),
        ("version: 1\nproducts: [{key: p, releases: {1.0: 2026-01-01}}]", "2: products[0].releases.1"),
        (
            "version: 1\nfeatures: [{key: f}, {key: f}]",
            "2: features: names 'f' 2 times; keys are unique in a tenant",
        ),
        (
            "version: 1\naccounts:\n- {key: a}\n- {key: b, nodes: [{key: a}]}",
            "2: accounts: names 'a' 2 times",
        ),
        (
            "version: 1\nfeatures: [{key: f, meter: unique}]",
            "2: features[0].unique_by: is required for unique",
        ),
        (
            "version: 1\nfeatures: [{key: f, meter: max, unique_by: user}]",
            "2: features[0].unique_by: has no meaning for max",
        ),
        (
            f"version: 1\nfeatures: [{{key: f, meter: unique, unique_by: {'ü' * 33}}}]",
            "2: features[0].unique_by: must be the name of a dimension: at most 64 bytes",
        ),
        (
            "version: 1\nfeatures: [{key: f, on_outage: fail_open}]",
            "2: features[0].emergency: is required",
        ),
        (
            "version: 1\nfeatures: [{key: f, on_outage: fail_open, emergency: 0}]",
            "2: features[0].emergency: is 0, must be from 1 to 9007199254740991",
        ),
        (
            "version: 1\nfeatures: [{key: f, emergency: 5}]",
            "2: features[0].emergency: is for on_outage: fail_open; remove one or change the other",
        ),
        (
            "version: 1\nfeatures: [{key: f, value_property: $.a}]",
            "2: features[0].event_type: is required with value_property and group_by",
        ),
        (
            "version: 1\nfeatures: [{key: f, event_type: e, value_property: 'a[0]'}]",
            "2: features[0].value_property: 'a[0]' is no place in an event's data; write $.tokens",
        ),
        (
            "version: 1\nfeatures: [{key: f, event_type: e, group_by: {a: b}}]",
            "2: features[0].group_by.a: 'b' is no place in an event's data",
        ),
        (
            "version: 1\nfeatures: [{key: f, event_type: e, group_by: {a: }}]",
            "2: features[0].group_by.a: is required",
        ),
        (
            "version: 1\nfeatures: [{key: f, event_type: e, group_by: {5: $.a}}]",
            "2: features[0].group_by.5: a dimension has a name of 1 to 64 bytes",
        ),
        (
            "version: 1\nfeatures: [{key: f, meter: average}]",
            "2: features[0].meter: is 'average', must be one of sum, count, min, max, latest, unique",
        ),
        (
            "version: 1\nplans: [{key: p, items: [{feature: f, model: boolean, license: trial}]}]",
            "2: plans[0].items[0].license: belongs to the subscription",
        ),
        (
            "version: 1\naccounts: [{key: a, subscriptions: [{plan: p, license: trial}]}]",
            "2: accounts[0].subscriptions[0].end: is required for a trial",
        ),
        (
            ("version: 1\naccounts: [{key: a, entitlements: "
            "[{feature: f, model: boolean}, {feature: f, model: boolean}]}]"),
            "2: accounts[0].entitlements: has 'f:boolean' 2 times; give each a `key` of its own",
        ),
        (
            ("version: 1\naccounts: [{key: a, entitlements: [{feature: f, model: concurrent, seats: 1},"
            " {feature: f, key: x, model: concurrent, seats: 1, mode: named}]}]"),
            "2: accounts[0].entitlements: has seats of 'f' in several modes",
        ),
        (
            "version: 1\naccounts: [{key: a, subscriptions: [{plan: p}, {plan: p}]}]",
            "2: accounts[0].subscriptions: has 'p' 2 times",
        ),
    ],
)  # fmt: skip
def test_an_issue_names_its_place_in_the_document(text: str, said: str) -> None:
    (found,) = issues(text)
    assert found.startswith(said)


def test_every_issue_is_reported_in_the_order_of_the_file() -> None:
    text = """\
version: 1
features:
  - {key: "a b"}
plans:
  - key: p
    items:
      - {feature: f, model: quota, limit: -1, per: dya}
accounts:
  - key: a
    entitlements:
      - {feature: f, model: boolean, license: trial}
      - feature: f
        model: rate
        limit: 1
"""
    found = issues(text)
    assert [line.split(":")[0] for line in found] == ["3", "7", "7", "11", "12"]


def test_thirty_two_limits_of_one_feature_are_the_most() -> None:
    def with_grants(count: int) -> str:
        grants = ", ".join(f"{{key: g{number}, amount: 1}}" for number in range(count))
        return (
            "version: 1\naccounts:\n- key: a\n  entitlements:\n"
            "  - {feature: f, model: quota, limit: 1, per: day}\n"
            f"  - {{feature: f, model: credits, grants: [{grants}]}}\n"
        )

    parse(with_grants(31), "c.yaml")
    assert issues(with_grants(32)) == [
        "4: accounts[0].entitlements: has 33 limits of 'f', at most 32"
    ]


def test_a_tree_has_at_most_eight_levels() -> None:
    def nested(levels: int) -> str:
        tree = f"{{key: n{levels}}}"
        for level in range(levels - 1, 0, -1):
            tree = f"{{key: n{level}, nodes: [{tree}]}}"
        return f"version: 1\naccounts: [{tree}]\n"

    assert len(parse(nested(8), "c.yaml").accounts[0].nodes) == 8
    (found,) = issues(nested(9))
    assert found.endswith("is on level 9 of its account; at most 8 are possible")


def test_aliases_cannot_make_a_small_file_large() -> None:
    levels = ["&l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"&l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 9)]
    text = "version: 1\n" + "".join(f"k{place}: {one}\n" for place, one in enumerate(levels))
    assert issues(text) == ["7: -: has more than 1000000 values with its aliases written out"]


@pytest.mark.parametrize("depth", [65, 3_000, 100_000])
def test_brackets_in_brackets_are_refused_before_they_take_time(depth: int) -> None:
    started = time.monotonic()
    found = issues(f"version: 1\nx: {'[' * depth}{']' * depth}\n")
    assert found in (
        ["2: -: is nested too deep: more than 64 levels"],
        ["2: -: not YAML: exceeded maximum nesting depth"],  # the parser's own
    )
    assert time.monotonic() - started < 5


def test_a_deep_block_is_refused() -> None:
    steps = "".join(f"{' ' * level}- \n" for level in range(1, 1_000))
    assert issues(f"version: 1\nx:\n{steps}") == ["66: -: is nested too deep: more than 64 levels"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 0x{huge}", "1: -: has an integer of more than 1024 bits"),
        ("version: 1\n? 0x{huge}\n: 1", "2: -: has an integer of more than 1024 bits"),
        ("version: 1\nx: [[0x{huge}]]", "2: -: has an integer of more than 1024 bits"),
        ("version: 1\n? [0x{huge}]\n: 1", "2: -: has an integer of more than 1024 bits"),
        ("version: 1\nx: {{? {{a: 0x{huge}}} : 1}}", "2: -: has an integer of more than 1024 bits"),
        ("version: {nines}", "1: -: has an integer of more than 1024 bits"),
    ],
)
def test_a_number_too_long_to_be_printed_is_refused(text: str, said: str) -> None:
    (found,) = issues(text.format(huge="f" * 5_000, nines="9" * 5_000))
    assert found.startswith(said)


def test_a_tagged_list_is_read_like_any_other() -> None:
    found = issues("version: 1\nfeatures: !mine\n- {key: a}\n- 5\n")
    assert found == ["4: features[1]: is 5, must be a mapping"]


def test_a_wrong_name_that_another_is_made_of_is_reported_once() -> None:
    text = """\
version: 1
accounts:
  - key: a
    entitlements:
      - {model: boolean}
      - {model: boolean, feature: "a b"}
      - {model: boolean, feature: "a b"}
    subscriptions: [{plan: "a b"}, {start: 2026-01-01}]
"""
    assert [line.split(": ")[:2] for line in issues(text)] == [
        ["5", "accounts[0].entitlements[0].feature"],
        ["6", "accounts[0].entitlements[1].feature"],
        ["7", "accounts[0].entitlements[2].feature"],
        ["8", "accounts[0].subscriptions[0].plan"],
        ["8", "accounts[0].subscriptions[1].plan"],
    ]


def test_no_line_of_an_issue_is_long() -> None:
    text = f"version: 1\nfeatures: [{{key: f, meter: {'x' * 900}}}]\n{'y' * 900}: 1\n"
    found = issues(text)
    assert len(found) == 2
    assert all(len(line) <= 500 for line in found)


# -- the manual and the sample


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(), re.DOTALL))
def test_the_examples_of_the_manual_are_right(block: str) -> None:
    head = "version: 1\n"
    if block.startswith("- "):
        head += "accounts:\n- key: a\n  entitlements:\n"
        block = textwrap.indent(block, "  ")
    parse(head + block, "catalog.md")


def test_the_sample_uses_every_field_and_every_word_of_the_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that whoever looks for an example finds one."""
    known: set[str] = set()
    used: set[str] = set()
    words: set[tuple[str, str]] = set()
    said: set[tuple[str, str]] = set()
    raw, choice = Reader._raw, Reader.choice

    def watched_raw(self: Reader, name: str) -> Any:
        known.add(name)
        if self.has(name):
            used.add(name)
        return raw(self, name)

    def watched_choice(
        self: Reader, name: str, allowed: list[str], default: str | None = None
    ) -> str:
        value = choice(self, name, allowed, default)
        words.update((name, word) for word in allowed)
        if self.has(name):
            said.add((name, value))
        elif default is not None:
            said.add((name, default))
        return value

    monkeypatch.setattr(Reader, "_raw", watched_raw)
    monkeypatch.setattr(Reader, "choice", watched_choice)
    catalog = parse(SAMPLE.read_text(), "sample")
    manual = re.sub(r"```.*?```", "", MANUAL.read_text(), flags=re.DOTALL)
    versions = {version for product in catalog.products for version in product.releases}
    assert known - used == versions - used
    assert words - said == set()
    explained = {
        word for quoted in re.findall(r"`([^`]+)`", manual) for word in re.split(r"\W+", quoted)
    }
    assert known - versions - explained == set()
    assert {word for _, word in words} - explained == set()
    models = {
        type(spec.terms)
        for account in catalog.accounts
        for node in account.nodes
        for spec in node.entitlements
    }
    assert len(models) == 8


def test_the_sample_has_what_is_promised_of_it() -> None:
    catalog = parse(SAMPLE.read_text(), "sample")
    assert catalog.tenant == "demo"
    accounts = {account.key: account for account in catalog.accounts}
    acme = {spec.key: spec for spec in accounts["acme"].nodes[0].entitlements}
    assert acme["api.calls:quota"].terms == QuotaTerms(100_000_000, Period(PeriodUnit.DAY))
    assert acme["api.calls:rate"].terms == RateTerms(1_000_000, 1000, 1_000_000)
    seats = acme["seats:concurrent"].terms
    assert isinstance(seats, ConcurrentTerms)
    assert (seats.seats, seats.mode, seats.ttl_ms) == (2, SeatMode.FLOATING, 10_000)
    pdf = acme["export.pdf:quota"].terms
    assert isinstance(pdf, QuotaTerms)
    assert (pdf.limit, pdf.hard, pdf.period.unit) == (3, True, PeriodUnit.DAY)
    items = {plan.key: plan.items for plan in catalog.plans}
    for name in ("llm-a", "llm-b", "llm-c", "llm-d"):
        (subscription,) = accounts[name].nodes[0].subscriptions
        features = {item.feature for item in items[subscription.plan]}
        assert features == {"llm.requests", "llm.input_tokens", "llm.output_tokens"}
        for item in items[subscription.plan]:
            assert isinstance(item.terms, PaygTerms)
            assert item.terms.spend_cap is None
