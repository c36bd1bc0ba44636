"""YAML as values: what a scalar means, anchors and merges, lines, and what cannot be read."""

from __future__ import annotations

import math

import pytest

from enforcer.catalog.document import List, Map, UnreadableError, load


def loaded(text: str) -> object:
    return load(f"x: {text}")["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, None) for word in ("", "~", "null", "Null", "NULL", "!!null ''", "# nothing")],
        *[(word, True) for word in ("true", "True", "TRUE", "!!bool true")],
        *[(word, False) for word in ("false", "False", "FALSE")],
        *[
            (word, word)
            for word in ("no", "on", "Yes", "y", "nULL", "2026-01-31", "1:30", "<", "=")
        ],
        *[(word, word) for word in ("+", ".", "..", "0x", "0b", "0o_", "1e", "1.2.3", "0x1G")],
        *[('"5"', "5"), ("'true'", "true"), ("!!str 5", "5"), ("! 5", "5"), ("!mine 5", "5")],
        *[("12", 12), ("-012", -12), ("+1_000", 1000), ("0x1F", 31), ("0o17", 15), ("0b101", 5)],
        *[("1.5", 1.5), ("-.5", -0.5), ("1.", 1.0), ("1e3", 1000.0), ("1_0.5E-1", 1.05)],
        *[(".inf", math.inf), ("-.INF", -math.inf), ("!!float 3", 3.0), ("!!int '7'", 7)],
        *[("|\n  a\n  b\n", "a\nb\n"), (">-\n  a\n  b\n", "a b"), ('"\\u00e4\\n"', "ä\n")],
        *[("[a, [b], {c: d}]", ["a", ["b"], {"c": "d"}]), ("{}", {}), ("[]", [])],
    ],
)
def test_what_a_value_means(text: str, value: object) -> None:
    found = loaded(text)
    assert found == value
    assert type(found) in (type(value), Map, List)


def test_no_number_is_none() -> None:
    found = loaded(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: &v [1], b: *v}", {"a": [1], "b": [1]}),
        ("{a: &v 1, b: &v 2, c: *v}", {"a": 1, "b": 2, "c": 2}),
        ("[&m {a: 1, b: 2}, {<<: *m, b: 3}]", [{"a": 1, "b": 2}, {"a": 1, "b": 3}]),
        (
            "[&m {a: 1}, &n {a: 2, b: 2}, {<<: [*m, *n]}]",
            [{"a": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}],
        ),
        ("{'<<': 5}", {"<<": 5}),
        ("{? [a, {b: c}] : d}", {("a", (("b", "c"),)): "d"}),
    ],
)
def test_what_is_said_once_counts_in_every_place(text: str, value: object) -> None:
    assert loaded(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: *a", "1: no &a comes before *a"),
        ("x:\n- &a [*a]", "2: *a stands in what it means"),
        ("x: &a\n  y: {z: *a}", "2: *a stands in what it means"),
        ("a: 1\nb:\n  <<: 5", "3: `<<` merges a mapping, or a list of mappings"),
        ("a: 1\nb: 2\na: 3", "3: found duplicate key 'a'"),
        ("a: !!int x", "1: 'x' is no int"),
        ("a: !!null x", "1: 'x' is no null"),
        ("a: !!bool 1", "1: '1' is no bool"),
        ("a: !!float true", "1: 'true' is no float"),
        ("a: 1\n---\na: 1", "2: a second document begins; a file has one"),
        ("a: 1\nb: [\n\n", "2: not YAML: did not find expected node content"),
        ("a: {b", "1: not YAML: did not find expected ',' or '}'"),
        ("%YAML 9.9\n---\na: 1", "1: not YAML: found incompatible YAML document"),
        ("a: \ud800", "1: not YAML: "),
    ],
)
def test_what_cannot_be_read_is_refused_in_its_line(text: str, said: str) -> None:
    with pytest.raises(UnreadableError) as refused:
        load(text)
    assert f"{refused.value.line}: {refused.value.message}".startswith(said)


def test_what_is_used_often_as_a_key_or_merged_is_counted_each_time() -> None:
    many = "m: &m {" + ", ".join(f"k{number}: 1" for number in range(5_000)) + "}\n"
    with pytest.raises(UnreadableError, match="has more than 1000000 values"):
        load(many + "a: {<<: [" + ", ".join(["*m"] * 1_000) + "]}")
    keys = "m: &m [" + ", ".join(["x"] * 5_000) + "]\n"
    with pytest.raises(UnreadableError, match="has more than 1000000 values"):
        load(keys + "a:\n" + "".join("- {? *m : 1}\n" for _ in range(1_000)))


def test_aliases_make_nothing_deeper_than_it_may_be() -> None:
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3_000))
    with pytest.raises(UnreadableError, match="is nested too deep: more than 64 levels") as refused:
        load(chain)
    assert refused.value.line in (64, 65)


def test_a_number_that_is_too_large_for_a_float_is_infinite() -> None:
    assert loaded(f"!!float {2**1024 - 1}") == math.inf


def test_what_is_merged_keeps_its_line() -> None:
    found = load("a: &m\n  b: 1\nc:\n  <<: *m\n  d: 2\n")["c"]
    assert (found, found.line, found.lines) == ({"b": 1, "d": 2}, 4, {"b": 2, "d": 5})
    items = load("a:\n- 1\n-\n  - 2\n")["a"]
    assert (items.line, items.lines, items[1].lines) == (2, [2, 4], [4])
