"""Mapping files: what they say, and what is wrong with them, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from enforcer.catalog.ratelimit import parse_domains, read_domains
from enforcer.core.descriptors import Domain, Rule, Text
from enforcer.core.rules import Mode
from enforcer.errors import CatalogInvalidError

EXAMPLE = Path(__file__).parents[4] / "deploy" / "envoy" / "ratelimit.yaml"
HEAD = "version: 1\ndomains:\n- domain: shop\n  tenant: demo\n  rules:\n"


def issues(text: str) -> list[str]:
    with pytest.raises(CatalogInvalidError) as refused:
        parse_domains(text, "r.yaml")
    lines = str(refused.value).splitlines()
    assert all(line.startswith("r.yaml:") for line in lines)
    return [line.removeprefix("r.yaml:") for line in lines]


def test_the_example_says_what_it_means() -> None:
    assert read_domains(EXAMPLE) == {
        ("demo", "shop"): Domain(
            "demo",
            "shop",
            (
                Rule(
                    {"customer": None, "api": frozenset({"search", "items"}), "request": None},
                    Text(("", "customer", "")),
                    Text(("api.calls",)),
                    key=Text(("", "request", "")),
                    dimensions={"api": Text(("", "api", ""))},
                ),
                Rule(
                    {"customer": None, "documents": None},
                    Text(("", "customer", "")),
                    Text(("export.csv",)),
                    quantity="documents",
                ),
                *(
                    Rule(
                        {"customer": None, "tokens": frozenset({when})},
                        Text(("", "customer", "")),
                        Text(("llm.output_tokens",)),
                        mode=mode,
                    )
                    for when, mode in (("before", Mode.CHECK_ONLY), ("after", Mode.RECORD_ONLY))
                ),
            ),
        )
    }


def test_every_field_can_be_told() -> None:
    text = (
        "version: 1\ndomains:\n"
        "- {domain: any thing, tenant: a, unmapped: refuse, headers: false, rules: [{match: {k: v}, "
        "customer: x, feature: f, quantity: 3, mode: record_only, unknown: allow}]}\n"
        "- {domain: any thing, tenant: b, rules: []}\n"
    )
    domains = parse_domains(text, "r.yaml")
    (only,) = domains["a", "any thing"].rules
    assert only == Rule(
        {"k": frozenset({"v"})}, Text(("x",)), Text(("f",)), 3, Mode.RECORD_ONLY, allow_unknown=True
    )
    assert domains["a", "any thing"].refuse_unmapped
    assert not domains["a", "any thing"].headers
    assert domains["b", "any thing"] == Domain("b", "any thing", ())


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("{customer: a, feature: f}", "match: is required: the entries"),
        ("{match: {}, customer: a, feature: f}", "match: is empty"),
        ("{match: x, customer: a, feature: f}", "match: is 'x', must be a mapping"),
        ("{match: {a: 1}, customer: a, feature: f}", "match.a: must be a value, a list"),
        ("{match: {a: []}, customer: a, feature: f}", "match.a: must be a value, a list"),
        ("{match: {a: ''}, customer: a, feature: f}", "match.a: must be a value, a list"),
        ("{match: {7: x}, customer: a, feature: f}", "match.7: names of entries are text"),
        ("{match: {a: x}, feature: f}", "customer: is required"),
        ("{match: {a: x}, customer: '', feature: f}", "customer: is empty"),
        ("{match: {a: x}, customer: a b, feature: f}", "customer: 'a b' is no key"),
        ("{match: {a: x}, customer: '{b}', feature: f}", "{b} is no entry of match; there are: a"),
        ("{match: {a: x}, customer: '{a', feature: f}", "customer: has a brace without its other"),
        ("{match: {a: x}, customer: 'a}}', feature: f}", "customer: has a brace without its other"),
        ("{match: {a: x}, customer: a}", "feature: is required"),
        ("{match: {a: x}, customer: a, feature: f, quantity: 0}", "quantity: is 0, must be from 1"),
        ("{match: {a: x}, customer: a, feature: f, quantity: two}", "quantity: must be an integer"),
        ("{match: {a: x}, customer: a, feature: f, quantity: '2{a}'}", "quantity: must be an int"),
        ("{match: {a: x}, customer: a, feature: f, quantity: '{b}'}", "quantity: {b} is no entry"),
        ("{match: {a: x}, customer: a, feature: f, mode: best_effort}", "must be one of enforce"),
        ("{match: {a: x}, customer: a, feature: f, unknown: maybe}", "must be one of refuse, allow"),
        ("{match: {a: x}, customer: a, feature: f, idempotency_key: k}", "needs an {entry}"),
        ("{match: {a: x}, customer: a, feature: f, dimensions: {d: '{e}'}}", "dimensions.d: {e} is"),
        ("{match: {a: x}, customer: a, feature: f, dimensions: {1: x}}", "dimensions.1: a dimension"),
        (f"{{match: {{a: x}}, customer: a, feature: f, dimensions: {{d: {'x' * 257}}}}}", "too long"),
        (f"{{match: {{a: x}}, customer: a, feature: f, dimensions: {{{'d' * 65}: x}}}}", "64 bytes"),
        ("{match: {a: x}, customer: a, feature: f, featur: g}", "featur: unknown field; did you mean"),
    ],
)  # fmt: skip
def test_an_issue_names_its_place_and_what_is_allowed(rule: str, told: str) -> None:
    (found,) = issues(f"{HEAD}  - {rule}\n")
    assert found.startswith("6: domains[0].rules[0].")
    assert told in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1: -: is empty, must be a mapping"),
        ("version: 1\n", "1: domains: is required"),
        ("version: 2\ndomains: []\n", "1: version: must be 1"),
        ("version: 1\ndomains:\n- {tenant: a, rules: []}\n", "3: domains[0].domain: is required"),
        ("version: 1\ndomains:\n- {domain: a, rules: []}\n", "3: domains[0].tenant: is required"),
        ("version: 1\ndomains:\n- {domain: '', tenant: a, rules: []}\n", "domain: is empty"),
        ("version: 1\ndomains:\n- {domain: a, tenant: a}\n", "3: domains[0].rules: is required"),
        ("version: 1\ndomains: [\n", "not YAML"),
        (
            (
                "version: 1\ndomains:\n- {domain: a, tenant: b, rules: []}\n"
                "- {domain: a, tenant: b, rules: []}\n"
            ),
            "4: domains[1].domain: 'a' of 'b' is there twice",
        ),
        (
            (
                f"{HEAD}  - {{match: {{a: x}}, customer: a, feature: f}}\n"
                "  - {match: {a: x}, customer: b, feature: f}\n"
            ),
            "7: domains[0].rules[1].match: is the same as an earlier rule's",
        ),
    ],
)
def test_so_does_one_of_the_whole_file(text: str, told: str) -> None:
    found = issues(text)
    if "not YAML" not in told:
        assert any(told in line for line in found), found


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(CatalogInvalidError, match=f"{path}:1: -: cannot be read"):
            read_domains(path)
    odd = tmp_path / "odd.yaml"
    odd.write_bytes(b"\xff")
    with pytest.raises(CatalogInvalidError, match="is no text in UTF-8"):
        read_domains(odd)
