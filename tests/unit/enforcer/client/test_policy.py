from __future__ import annotations

from typing import Any, cast

import grpc
import pytest

from enforcer.client import (
    CallError,
    ConfigurationError,
    FailClosed,
    FailOpen,
    Mode,
    Reason,
    Verdict,
)
from enforcer.client.errors import call_error
from enforcer.client.policy import Outages
from enforcer.v1 import enforcer_pb2 as pb

AWAY = call_error(grpc.StatusCode.UNAVAILABLE, "no connection")


def ask(
    quantity: int = 1,
    *,
    customer: str = "acme",
    feature: str = "open",
    key: str = "",
    mode: Mode = Mode.ENFORCE,
) -> pb.CheckRequest:
    ask.number = getattr(ask, "number", 0) + 1  # type: ignore[attr-defined]
    return pb.CheckRequest(
        customer=customer,
        feature=feature,
        quantity=quantity,
        idempotency_key=key or f"k{ask.number}",  # type: ignore[attr-defined]
        mode=mode.value,
    )


def outages(**more: Any) -> Outages:
    return Outages({"open": FailOpen(amount=10), "closed": FailClosed(), **more})


def test_a_feature_without_a_policy_passes_the_error_on() -> None:
    with pytest.raises(CallError) as caught:
        outages().decide(ask(feature="other"), AWAY)
    assert caught.value is AWAY


def test_one_policy_may_stand_for_all_other_features() -> None:
    some = Outages({"*": FailClosed(), "open": FailOpen(amount=1)})
    assert not some.decide(ask(feature="other"), AWAY)
    assert some.decide(ask(), AWAY)


def test_what_fails_closed_is_denied_and_marked() -> None:
    assert outages().decide(ask(feature="closed"), AWAY) == Verdict(
        allowed=False, reason=Reason.GATEWAY_UNAVAILABLE, degraded=True
    )


def test_what_fails_open_is_allowed_up_to_the_amount_of_each_customer_and_marked() -> None:
    some = outages()
    assert some.decide(ask(6), AWAY) == Verdict(allowed=True, granted=6, degraded=True)
    assert some.decide(ask(5), AWAY) == Verdict(
        allowed=False, reason=Reason.EMERGENCY_EXHAUSTED, degraded=True
    )
    assert some.decide(ask(4), AWAY)
    assert some.decide(ask(10, customer="bob"), AWAY)
    # Uses weigh until they are counted.
    some.saw("acme", "open", Verdict(allowed=True))
    assert not some.decide(ask(1), AWAY)
    some.counted(some.uncounted[0])
    assert some.decide(ask(6), AWAY)
    assert not some.decide(ask(1), AWAY)


def test_only_an_outage_is_covered_not_a_wrong_question() -> None:
    wrong = call_error(grpc.StatusCode.NOT_FOUND, "no such customer", reason="UNKNOWN_CUSTOMER")
    with pytest.raises(CallError, match="no such customer"):
        outages().decide(ask(), wrong)
    with pytest.raises(CallError, match="no connection"):
        outages().decide(ask(0), AWAY)


@pytest.mark.parametrize("reason", [one for one in Reason if one.of_terms])
def test_terms_count_as_last_seen(reason: Reason) -> None:
    some = outages()
    some.saw("acme", "open", Verdict(allowed=False, reason=reason))
    assert some.decide(ask(), AWAY) == Verdict(allowed=False, reason=reason, degraded=True)
    assert some.decide(ask(customer="bob"), AWAY)
    some.saw("acme", "open", Verdict(allowed=True))
    assert some.decide(ask(), AWAY)


def test_a_used_up_quota_is_no_term() -> None:
    some = outages()
    some.saw("acme", "open", Verdict(allowed=False, reason=Reason.QUOTA_EXCEEDED))
    assert some.decide(ask(), AWAY)


def test_a_repeated_key_gets_its_answer_and_weighs_once() -> None:
    some = outages()
    first = some.decide(ask(7, key="order"), AWAY)
    again = some.decide(ask(7, key="order"), AWAY)
    assert (first.replayed, again.replayed, again.granted) == (False, True, 7)
    assert len(some.uncounted) == 1
    assert some.decide(ask(3), AWAY)


def test_a_question_that_consumes_nothing_leaves_nothing_to_count() -> None:
    some = outages()
    assert some.decide(ask(10, mode=Mode.CHECK_ONLY), AWAY)
    assert not some.uncounted
    assert some.decide(ask(10), AWAY)
    assert not some.decide(ask(1, mode=Mode.CHECK_ONLY), AWAY)


def test_what_has_happened_is_an_error_rather_than_denied() -> None:
    some = outages()
    assert some.decide(ask(10, mode=Mode.RECORD_ONLY), AWAY)
    with pytest.raises(CallError):
        some.decide(ask(1, mode=Mode.RECORD_ONLY), AWAY)


def test_the_rest_of_a_use_has_a_key_of_its_own() -> None:
    some = outages()
    some.decide(ask(7, key="x" * 256), AWAY)
    [use] = some.uncounted
    assert use.rest(7) is None
    rest = use.rest(2)
    assert rest is not None
    assert (rest.quantity, rest.mode) == (5, pb.MODE_RECORD_ONLY)
    assert rest.idempotency_key != use.request.idempotency_key
    assert len(rest.idempotency_key) <= 256
    again = use.rest(2)
    assert again is not None
    assert again.idempotency_key == rest.idempotency_key


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FailOpen(amount=0), "amount"),
        (lambda: FailOpen(amount=cast("int", 1.5)), "amount"),
        (lambda: FailOpen(amount=1, patience=0), "patience"),
        (lambda: FailClosed(patience=float("nan")), "patience"),
        (lambda: Outages(dict.fromkeys("f", cast("Any", "fail_open"))), "policy of 'f'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make()
