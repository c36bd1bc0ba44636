"""A mapping file is either read or refused with places and reasons; what is read maps descriptors without a surprise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from enforcer.catalog.ratelimit import parse_domains
from enforcer.core.descriptors import Domain, Rule, Text, UnusableError
from enforcer.core.model import MAX_QUANTITY
from enforcer.errors import CatalogInvalidError, InvalidRequestError
from enforcer.gateway.forms import Forms
from enforcer.gateway.ratelimit import _Request
from enforcer.gateway.wire import embedded
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb
from tests.property.enforcer.test_catalog import ODD

if TYPE_CHECKING:
    import random

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


MAPPING = """\
version: 1
domains:
  - domain: shop
    tenant: demo
    rules:
      - {match: {user: "*", id: "*"}, customer: "{user}", feature: calls, idempotency_key: "r-{id}"}
      - {match: {user: "*", path: [a, b], id: "*"}, customer: "{user}", feature: "{path}", idempotency_key: "{id}"}
      - {match: {user: "*", path: "*"}, customer: "{user}", feature: calls, dimensions: {path: "{path}"}}
      - {match: {user: "*", n: "*"}, customer: "{user}", feature: calls, quantity: "{n}"}
      - {match: {user: "*", look: "*"}, customer: "{user}", feature: calls, mode: check_only}
      - {match: {id: "*"}, customer: fixed, feature: calls, mode: record_only}
  - domain: other
    tenant: demo
    rules:
      - {match: {user: "*", id: "*"}, customer: "{user}", feature: calls, idempotency_key: "{user}-{id}"}
      - {match: {user: "*", n: "*"}, customer: "{user}", feature: calls, idempotency_key: "{n}"}
      - {match: {n: ["1", "2"]}, customer: fixed, feature: calls, idempotency_key: "{n}"}
      - {match: {path: "*"}, customer: fixed, feature: calls, idempotency_key: "{path}", dimensions: {p: "{path}"}}
  - domain: shop
    tenant: neighbour
    rules: [{match: {user: "*", id: "*"}, customer: "their-{user}", feature: calls, idempotency_key: "{id}"}]
"""
DOMAINS = parse_domains(MAPPING, "r.yaml")
ENTRIES = st.sampled_from(["user", "id", "path", "n", "look", "odd"])
SAID = st.sampled_from(["a", "b", "1", "2", "acme", "\n\x02id\x12\x02", "ü" * 20, "x" * 130, ""])
DESCRIPTORS = st.lists(st.dictionaries(ENTRIES, SAID, max_size=3), min_size=1, max_size=3)


def question(descriptors: list[dict[str, str]], domain: str, hits: int) -> rls.RateLimitRequest:
    request = rls.RateLimitRequest(domain=domain, hits_addend=hits)
    for entries in descriptors:
        made = request.descriptors.add().entries
        for key, value in entries.items():
            made.add(key=key, value=value)
    return request


def long_way(request: rls.RateLimitRequest) -> list[tuple[Rule, pb.CheckRequest]] | None:
    """What is asked for when rules are tried."""
    domain = DOMAINS.get(("demo", request.domain))
    if domain is None or not request.descriptors:
        return None
    nobody: Any = None
    try:
        asked = _Request(nobody, "demo", domain, lambda _: None).asked(request)
    except InvalidRequestError:
        return None
    return None if asked is None else [(one.rule, one.request) for one in asked]


def told_by(forms: Forms, message: bytes) -> None:
    """What is known of a message is what parsing it gives; afterwards it is known."""
    known = forms.find("demo", message)
    if known is not None:
        domain, checks = known
        try:
            request = rls.RateLimitRequest.FromString(message)
        except DecodeError:
            with pytest.raises(DecodeError):  # the id is no text: that is refused, too
                pb.CheckBatchRequest.FromString(
                    b"".join([embedded(b"\x0a", one) for one in checks])
                )
            return
        assert domain is DOMAINS["demo", request.domain]
        asked = long_way(request)
        assert asked is not None
        assert [pb.CheckRequest.FromString(one) for one in checks] == [one for _, one in asked]
    try:
        request = rls.RateLimitRequest.FromString(message)
    except DecodeError:
        return
    if asked := long_way(request):
        forms.learn(DOMAINS["demo", request.domain], message, request, asked)
    assert forms.find("neighbour", message) is None


@given(
    st.lists(
        st.tuples(DESCRIPTORS, st.sampled_from(["shop", "other", "none"]), st.integers(0, 2)),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.text(max_size=4), max_size=4),
    st.randoms(use_true_random=False),
)
def test_what_is_known_of_a_request_is_what_its_rules_say(
    asked: list[tuple[list[dict[str, str]], str, int]], ids: list[str], dice: random.Random
) -> None:
    forms = Forms(DOMAINS.values())
    for descriptors, domain, hits in asked:
        for name in [*ids, "1", "2", "1", "3"]:
            again = [
                {key: name if key == "id" else value for key, value in entries.items()}
                for entries in descriptors
            ]
            message = bytearray(question(again, domain, hits).SerializeToString())
            told_by(forms, bytes(message))
            for _ in range(dice.randint(0, 2)):
                if message:
                    message[dice.randrange(len(message))] = dice.randrange(256)
            if dice.random() < 0.2:
                message += question(again, domain, hits).SerializeToString()
            told_by(forms, bytes(message))


@pytest.mark.parametrize(
    "descriptors",
    [
        [{"user": "acme", "id": "{}"}],
        [{"id": "{}", "path": "a", "user": "acme"}],
        [{"user": "acme", "id": "{}"}, {"user": "acme", "path": "b", "id": "{}"}],
        [{"user": "acme", "id": "{}"}, {"user": "acme", "path": "x"}],
        [{"user": "acme", "path": "x"}],
        [{"user": "acme", "n": "7"}],
        [{"user": "acme", "look": ""}],
    ],
)
def test_a_request_that_differs_in_its_id_alone_is_known(descriptors: list[dict[str, str]]) -> None:
    forms = Forms(DOMAINS.values())
    for number in range(100, 200):
        entries = [{key: value.format(number) for key, value in one.items()} for one in descriptors]
        message = question(entries, "shop", 0).SerializeToString()
        known = forms.find("demo", message)
        assert (known is not None) == (number >= 102)
        told_by(forms, message)
    assert len(forms._known) == 1
    entries = [{key: value.format(150) for key, value in one.items()} for one in descriptors]
    message = question(entries, "shop", 0).SerializeToString()
    forms.forget("neighbour", message)
    assert forms.find("demo", message) is not None
    forms.forget("demo", message)
    assert forms.find("demo", message) is None
    assert not forms._known


@pytest.mark.parametrize(
    ("learnt", "asked"),
    [
        # Looks like the id, but is a part of the customer's name.
        ([{"user": "\n\x02id\x12\x03{}", "id": "{}"}], ["abc", "xyz"]),
        ([{"user": "\n\x02id\x12\x03{}", "path": "b", "id": "{}"}], ["abc", "xyz"]),
        # Two ids are no id.
        ([{"user": "a", "id": "{}"}, {"user": "a", "path": "b", "id": "abc"}], ["abc", "xyz"]),
        ([{"user": "a", "id": "abc"}, {"user": "a", "path": "b", "id": "{}"}], ["abc", "xyz"]),
        # Of another length, which stands in the message.
        ([{"user": "a", "id": "{}"}], ["abc", "abcd"]),
    ],
)
def test_what_only_looks_alike_is_not_taken_for_it(
    learnt: list[dict[str, str]], asked: list[str]
) -> None:
    forms = Forms(DOMAINS.values())
    for said in [asked[0]] * 3 + asked[1:]:
        entries = [{key: value.format(said) for key, value in one.items()} for one in learnt]
        told_by(forms, question(entries, "shop", 0).SerializeToString())


def test_an_id_that_is_written_in_an_unusual_way_is_no_id() -> None:
    forms = Forms(DOMAINS.values())
    for usual, unusual in (("abc", "abc"),) * 3 + (("xyz", "abc"), ("abc", "xyz")):
        message = question([{"user": "a", "id": usual}], "shop", 0).SerializeToString()
        entry = b"\x12\x03" + unusual.encode() + b"\x0a\x02id"  # the value first
        user = rls.RateLimitRequest().descriptors.add().entries.add(key="user", value="b")
        entries = embedded(b"\x0a", user.SerializeToString()) + embedded(b"\x0a", entry)
        told_by(forms, message + embedded(b"\x12", entries))


def test_what_never_comes_again_leaves_nothing_behind() -> None:
    forms = Forms(DOMAINS.values())
    for number in range(25_000):
        told_by(
            forms, question([{"user": "c", "path": f"{number}"}], "shop", 0).SerializeToString()
        )
    assert not forms._known
    assert len(forms._seen) <= 10_000


def test_a_bounded_number_of_forms_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enforcer.gateway.forms.MOST_FORMS", 50)
    forms = Forms(DOMAINS.values())
    for number in range(200):
        for _ in range(2):
            one = question([{"user": "c", "path": f"{number}"}], "shop", 0)
            told_by(forms, one.SerializeToString())
        assert 0 < len(forms._known) <= 50
    told_by(
        forms, message := question([{"user": "c" * 2000, "id": "7"}], "shop", 0).SerializeToString()
    )
    told_by(forms, message)
    assert forms.find("demo", message) is None, "it is too large to be kept"


def test_an_entry_that_does_more_than_tell_requests_apart_is_no_id() -> None:
    assert DOMAINS["demo", "shop"].identifying == {"id"}
    assert DOMAINS["demo", "other"].identifying == frozenset()
