"""A mapping file is either read or refused with places and reasons; what is read maps descriptors without a surprise."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from enforcer.catalog.ratelimit import parse_domains
from enforcer.core.descriptors import Domain, Rule, Text, UnusableError
from enforcer.core.model import MAX_QUANTITY
from enforcer.errors import CatalogInvalidError
from tests.property.enforcer.test_catalog import ODD

EXAMPLE = (Path(__file__).parents[3] / "deploy" / "envoy" / "ratelimit.yaml").read_text()
FULL = """\
version: 1
domains:
  - domain: shop
    tenant: demo
    unmapped: refuse
    headers: false
    rules:
      - {match: {a: [x, y], b: "*"}, customer: "c-{a}-{b}", feature: f, quantity: "{b}", unknown: allow}
      - {match: {b: "*"}, customer: c, feature: "{b}", quantity: 3, mode: record_only, idempotency_key: "{b}"}
      - {match: {c: "*"}, customer: c, feature: f, mode: check_only, dimensions: {d: "{c}", e: fixed}}
"""
LINES = [*EXAMPLE.splitlines(), *FULL.splitlines()]
PLACED = re.compile(r"r\.yaml:\d+: \S.*: \S.*", re.DOTALL)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A sound file with a few things changed in it."""
    text = draw(st.sampled_from([EXAMPLE, FULL]))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        end = min(len(text), place + draw(st.integers(0, 12)))
        what = draw(
            st.sampled_from([*ODD, "{", "}", "{a}", "{z}"])
            | st.text(max_size=4)
            | st.sampled_from(LINES)
        )
        text = text[:place] + what + text[end:]
    return text


@given(mutated())
@example("")
@example("domains: [{rules: [{match: {a: {b: c}}, dimensions: [x]}]}]")
def test_a_file_is_read_or_refused_with_places(text: str) -> None:
    try:
        domains = parse_domains(text, "r.yaml")
    except CatalogInvalidError as error:
        lines = error.message.splitlines()
        assert lines
        assert all(PLACED.fullmatch(line) for line in lines), lines
        for line in lines:
            assert 1 <= int(line.split(":")[1]) <= len(text.splitlines()) + 2
        return
    for (tenant, name), domain in domains.items():
        assert (domain.tenant, domain.name) == (tenant, name)
        for rule in domain.rules:
            # Whatever matches can be filled in: nothing is missing at run time.
            values = {key: min(one) if one else "1" for key, one in rule.match.items()}
            assert rule.matches(values)
            try:
                wanted = rule.wanted(values, 1)
            except UnusableError:
                assert isinstance(rule.quantity, str)
            else:
                assert wanted.customer
                assert wanted.feature
                assert 0 <= wanted.quantity <= MAX_QUANTITY


KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["x", "y", "*", ""])
MATCHES = st.dictionaries(KEYS, st.none() | st.frozensets(VALUES, min_size=1), min_size=1)


@given(st.lists(MATCHES, max_size=4), st.lists(st.tuples(KEYS, VALUES), max_size=4), st.randoms())
def test_a_descriptor_maps_to_the_first_rule_with_its_entries(
    matches: list[dict[str, frozenset[str] | None]],
    entries: list[tuple[str, str]],
    dice: object,
) -> None:
    fixed = Text(("x",))
    rules = tuple(Rule(match, fixed, fixed) for match in matches)
    domain = Domain("t", "d", rules)
    found = domain.find(entries)
    keys = [key for key, _ in entries]
    expected = [
        rule
        for rule in rules
        if sorted(rule.match) == sorted(keys)
        and all((rule.match[key] or {value}) >= {value} for key, value in entries)
    ]
    assert (found[0] if found else None) == (expected[0] if expected else None)
    # In whatever order they come.
    shuffled = list(entries)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert domain.find(shuffled) == found
