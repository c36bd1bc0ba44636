"""What an event's data means for the meters that its type feeds."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from enforcer.core.events import EventMeter, Measured, Unmeasurable, measure, path_of

TOKENS = EventMeter("llm.tokens", "prompt", ("tokens",), (("model", ("model",)),), sums=True)
PROMPTS = EventMeter("llm.prompts", "prompt", None, (), sums=False)
PEAK = EventMeter("peak", "prompt", ("a", "b"), (), sums=False)


def refused(data: Any, *meters: EventMeter) -> tuple[str, str]:
    with pytest.raises(Unmeasurable) as caught:
        measure("prompt", data, meters)
    return caught.value.reason, caught.value.message


def test_one_event_feeds_every_meter_of_its_type() -> None:
    data = {"tokens": 12, "model": "gpt-4"}
    assert measure("prompt", data, [TOKENS, PROMPTS]) == [
        Measured("llm.tokens", 12, {"model": "gpt-4"}),
        Measured("llm.prompts", 1, {}),
    ]


def test_a_type_that_nothing_declares_is_the_feature_itself() -> None:
    assert measure("api.calls", None, []) == [Measured("api.calls", 1, {})]
    assert measure("api.calls", {"other": [1]}, []) == [Measured("api.calls", 1, {})]
    data = {"quantity": 3, "dimensions": {"region": "eu", "n": 1, "ok": True, "none": None}}
    expected = {"region": "eu", "n": "1", "ok": "true"}
    assert measure("api.calls", data, []) == [Measured("api.calls", 3, expected)]


@pytest.mark.parametrize(
    ("value", "quantity"),
    [
        (12, 12),
        (Decimal("12.0"), 12),
        (Decimal("1.2e1"), 12),
        ("12", 12),
        ("12.00", 12),
        (2**53 - 1, 2**53 - 1),
        ("9007199254740991", 2**53 - 1),
        (0, 0),
    ],
)
def test_an_integer_counts_however_it_is_written(value: Any, quantity: int) -> None:
    (found,) = measure("prompt", {"tokens": value}, [TOKENS])
    assert found.quantity == quantity


@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.5"), "1.5", -1, "-1", 2**53, Decimal("1e400"), Decimal("1e999999"), "1e999999", "1e-999999",
        "", " 1", "0x10", "1_000", "NaN", "Infinity", "٣", True, None, [], {}, "9" * 10_000, 10**4000,
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_by_name(value: Any) -> None:
    reason, message = refused({"tokens": value}, TOKENS)
    assert reason == "BAD_QUANTITY"
    assert message.startswith("data.tokens is ")
    assert message.endswith("must be an integer from 0 to 9007199254740991")
    assert len(message) < 200


def test_nothing_is_guessed_where_the_value_is_missing() -> None:
    lacking: list[Any] = [None, 5, [], {}, {"a": 1}, {"a": {}}]
    for data in lacking:
        assert refused(data, PEAK) == (
            "BAD_QUANTITY",
            "data.a.b is missing, and 'peak' needs it",
        )


def test_a_zero_is_left_out_only_where_it_changes_nothing() -> None:
    assert measure("prompt", {"tokens": 0}, [TOKENS])[0].quantity == 0
    assert refused({"a": {"b": 0}}, PEAK)[0] == "BAD_QUANTITY"
    with pytest.raises(Unmeasurable):
        measure("api.calls", {"quantity": 0}, [])


def test_a_dimension_is_one_value() -> None:
    assert refused({"tokens": 1, "model": ["a"]}, TOKENS)[0] == "BAD_DIMENSIONS"
    assert measure("prompt", {"tokens": 1, "model": None}, [TOKENS])[0].dimensions == {}
    with pytest.raises(Unmeasurable):
        measure("x", {"dimensions": {"a": {}}}, [])
    with pytest.raises(Unmeasurable):
        measure("x", {"dimensions": []}, [])
    with pytest.raises(Unmeasurable):
        measure("x", "text", [])


def test_places_are_names_from_the_outside_in() -> None:
    assert path_of("$") == ()
    assert path_of("$.usage.total-tokens") == ("usage", "total-tokens")
    for wrong in (
        "",
        "tokens",
        "$tokens",
        "$.",
        "$.a[0]",
        "$..a",
        "$.a b",
        "$" + ".a" * 9,
        "$.a\n",
    ):
        assert path_of(wrong) is None
