"""How descriptors become checks."""

from __future__ import annotations

import pytest

from enforcer.core.descriptors import Domain, Rule, Text, UnusableError
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.rules import Mode

ACME = Text(("acme",))
CALLS = Text(("api.calls",))


def rule(*names: str, **fields: object) -> Rule:
    return Rule(dict.fromkeys(names), ACME, CALLS, **fields)  # type: ignore[arg-type]


def found(domain: Domain, **entries: str) -> Rule | None:
    match = domain.find(list(entries.items()))
    return match[0] if match else None


def test_a_rule_matches_exactly_its_entries_in_any_order() -> None:
    made = Rule({"a": frozenset({"x", "y"}), "b": None}, ACME, CALLS)
    domain = Domain("demo", "shop", (made,))
    assert domain.find([("b", "any"), ("a", "x")]) == (made, {"a": "x", "b": "any"})
    assert found(domain, a="y", b="") is made
    for entries in ({"a": "z", "b": "1"}, {"a": "x"}, {"a": "x", "b": "1", "c": "1"}, {}):
        assert found(domain, **entries) is None


def test_the_first_rule_that_matches_counts() -> None:
    special = Rule({"a": frozenset({"x"})}, ACME, CALLS)
    domain = Domain("demo", "shop", (special, rule("a")))
    assert found(domain, a="x") is special
    assert found(domain, a="y") is domain.rules[1]


def test_a_descriptor_that_has_a_key_twice_matches_nothing() -> None:
    domain = Domain("demo", "shop", (rule("a"),))
    assert domain.find([("a", "1"), ("a", "1")]) is None


def test_texts_are_filled_with_values() -> None:
    made = Rule(
        {"org": None, "user": None, "id": None},
        customer=Text(("org-", "org", "-", "user", "")),
        feature=CALLS,
        mode=Mode.RECORD_ONLY,
        key=Text(("", "id", "")),
        dimensions={"who": Text(("", "user", "")), "where": Text(("edge",))},
    )
    wanted = made.wanted({"org": "a", "user": "{org}", "id": "7"}, 3)
    assert wanted == (
        "org-a-{org}", "api.calls", 3, Mode.RECORD_ONLY, "7", {"who": "{org}", "where": "edge"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("quantity", "written", "hits", "wanted"),
    [
        (1, "", 1, 1),
        (1, "", 0, 0),
        (5, "", 3, 15),
        ("n", "7", 1, 7),
        ("n", "007", 2, 14),
        ("n", "0", 9, 0),
        ("n", str(MAX_QUANTITY), 1, MAX_QUANTITY),
    ],
)
def test_a_quantity_is_units_of_a_hit_times_hits(
    quantity: int | str, written: str, hits: int, wanted: int
) -> None:
    assert rule("n", quantity=quantity).wanted({"n": written}, hits).quantity == wanted


@pytest.mark.parametrize(
    ("written", "hits"),
    [
        ("", 1), ("-1", 1), ("+1", 1), ("1.0", 1), (" 1", 1), ("1_0", 1), ("٣", 1), ("²", 1), ("many", 1),
        ("9" * 5000, 1), (str(MAX_QUANTITY + 1), 1), (str(MAX_QUANTITY), 2), ("1", 2**64 - 1),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_unusable(written: str, hits: int) -> None:
    with pytest.raises(UnusableError):
        rule("n", quantity="n").wanted({"n": written}, hits)
