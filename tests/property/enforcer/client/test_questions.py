"""Checks serialised by hand are what protobuf would have made of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.client import ConfigurationError, Mode
from enforcer.client.questions import Question, Questions, packed
from enforcer.v1 import enforcer_pb2 as pb

# Surrogates cannot be encoded.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ASKED = st.fixed_dictionaries(
    {
        "customer": TEXTS,
        "feature": TEXTS,
        "quantity": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300),
        "key": st.none() | TEXTS,
        "dimensions": st.none() | st.dictionaries(TEXTS, TEXTS, max_size=3),
        "mode": st.sampled_from(Mode),
        "product_version": st.just("") | TEXTS,
    }
)


def message(asked: dict[str, Any], key: str) -> pb.CheckRequest:
    request = pb.CheckRequest(
        customer=asked["customer"],
        feature=asked["feature"],
        quantity=asked["quantity"],
        idempotency_key=key,
        dimensions=asked["dimensions"],
        product_version=asked["product_version"],
    )
    if asked["mode"] is not Mode.ENFORCE:  # which is what nothing means
        request.mode = asked["mode"].value
    return request


def key_of(question: Question, asked: dict[str, Any]) -> str:
    """The key it was given, which is its own where it was asked for with one."""
    key = question.message.idempotency_key
    if asked["key"]:
        assert key == asked["key"]
    elif asked["mode"] is Mode.CHECK_ONLY:
        assert key == ""
    else:
        assert len(key) == 32
        bytes.fromhex(key)
    return key


@given(st.lists(ASKED, min_size=1, max_size=8))
def test_a_check_and_a_batch_are_what_protobuf_makes_of_them(some: list[dict[str, Any]]) -> None:
    questions = Questions()
    # Each twice: the second is made of what was kept of the first.
    asked = [one for one in some for _ in range(2)]
    together = [questions.ask(**one) for one in asked]
    batch = pb.CheckBatchRequest.FromString(packed(together))
    keys = [key_of(question, one) for question, one in zip(together, asked, strict=True)]
    expected = [message(one, key) for one, key in zip(asked, keys, strict=True)]
    assert list(batch.items) == expected
    assert not batch.atomic
    assert [question.message for question in together] == expected
    alone = [questions.ask(**one) for one in asked]
    requests = [pb.CheckRequest.FromString(question.request) for question in alone]
    keys += [one.idempotency_key for one in requests]
    for request, one in zip(requests, asked, strict=True):
        assert request == message(one, request.idempotency_key)
    made = [key for key, one in zip(keys, asked * 2, strict=True) if key and not one["key"]]
    assert len(set(made)) == len(made)


def test_a_question_keeps_its_key_however_often_it_is_asked() -> None:
    question = Questions().ask("acme", "api.calls", 1, None, None, Mode.ENFORCE, "")
    first = question.request
    assert question.request == first
    assert packed([question, question]) == packed([question]) * 2
    assert pb.CheckBatchRequest.FromString(packed([question])).items[0] == question.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"customer": 5},
        {"customer": ["acme"]},
        {"feature": None, "quantity": "3"},
        {"quantity": 1.5},
        {"quantity": 2**63},
        {"quantity": None, "key": 7},
        {"customer": "\ud800"},
        {"key": "\ud800"},
        {"key": 7},
        {"dimensions": {"region": 7}},
        {"dimensions": 3},
        {"product_version": 3},
    ],
)
def test_what_cannot_travel_is_refused_also_beside_what_can(wrong: dict[str, Any]) -> None:
    questions = Questions()
    fine: dict[str, Any] = {
        "customer": "acme",
        "feature": "api.calls",
        "quantity": 1,
        "key": None,
        "dimensions": None,
        "mode": Mode.ENFORCE,
        "product_version": "",
    }
    for _ in range(2):
        questions.ask(**fine)
        with pytest.raises(ConfigurationError, match="a check has texts"):
            questions.ask(**{**fine, **wrong})


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enforcer.client.questions.MOST_FORMS", 10)
    questions = Questions()
    for number in range(100):
        questions.ask(
            f"c{number}", "f" * (2000 if number % 2 else 1), 1, None, None, Mode.ENFORCE, ""
        )
        questions.ask("c", "f", 1, None, {"request": f"{number}"}, Mode.RECORD_ONLY, "")
        assert len(questions._forms) <= 10
    assert all(len(feature) == 1 for _, feature, *_ in questions._forms)
