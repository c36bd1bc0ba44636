from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import grpc
import pytest

from enforcer.client.errors import (
    CallError,
    DeniedError,
    InternalError,
    InvalidRequestError,
    UnavailableError,
    call_error,
)
from enforcer.client.results import verdict_of
from enforcer.client.retry import Retries, Schedule
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

STORE_AWAY = call_error(grpc.StatusCode.UNAVAILABLE, "away", reason="STORE_UNAVAILABLE")
NO_CONNECTION = call_error(grpc.StatusCode.UNAVAILABLE, "refused")


def never() -> float:
    return 0.0


def test_pauses_double_up_to_the_longest_and_are_shortened_by_up_to_a_half() -> None:
    assert [Schedule(0.1, 1, never).pause(n, NO_CONNECTION) for n in range(1, 7)] == [
        0.1,
        0.2,
        0.4,
        0.8,
        1,
        1,
    ]
    shortest = Schedule(0.1, 1, lambda: 1)
    assert shortest.pause(1, NO_CONNECTION) == pytest.approx(0.05)
    assert shortest.pause(10_000, NO_CONNECTION) == pytest.approx(0.5)


def test_a_named_time_is_never_shortened() -> None:
    asked = call_error(grpc.StatusCode.UNAVAILABLE, "later", retry_after=3.0)
    chance: list[Callable[[], float]] = [never, lambda: 0.99]
    for one in chance:
        assert 3 <= Schedule(0.1, 1, one).pause(1, asked) < 3.2


def test_retries_stop_when_a_gateway_in_trouble_keeps_failing_and_come_back_with_successes() -> (
    None
):
    retries = Retries()
    spent = 0
    while retries.allow(STORE_AWAY):
        retries.failed(STORE_AWAY)
        spent += 1
    assert spent == 10
    # Who was not reached is not burdened, and who names a time knows best.
    assert retries.allow(NO_CONNECTION)
    asked = call_error(grpc.StatusCode.UNAVAILABLE, "", reason="TERMS_CHANGING", retry_after=1)
    assert retries.allow(asked)
    for _ in range(5):
        retries.failed(NO_CONNECTION)
        retries.failed(asked)
    assert not retries.allow(STORE_AWAY)
    for _ in range(11):
        retries.succeeded()
    assert retries.allow(STORE_AWAY)


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnavailableError, True),
        (grpc.StatusCode.INTERNAL, InternalError, True),
        (grpc.StatusCode.UNKNOWN, InternalError, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, UnavailableError, False),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError, False),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidRequestError, False),
        (grpc.StatusCode.UNIMPLEMENTED, InternalError, False),
    ],
)
def test_a_code_says_what_kind_of_error_it_is(
    code: grpc.StatusCode, kind: type[CallError], retryable: bool
) -> None:
    error = call_error(code, "it failed")
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.reason == code.name
    assert Retries().allow(error) is retryable


def test_an_error_comes_through_a_process_pool_whole() -> None:
    answer = pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
    answer.limits.add(kind=pb.LIMIT_KIND_QUOTA, id="q", limit=3)
    verdict = verdict_of(answer)
    denied = pickle.loads(pickle.dumps(DeniedError("acme", "f", verdict)))  # noqa: S301 - ours
    assert isinstance(denied, DeniedError)
    assert (denied.customer, denied.verdict, str(denied)) == (
        "acme",
        verdict,
        "'acme' may not use 'f': quota_exceeded",
    )
    asked = call_error(
        grpc.StatusCode.UNAVAILABLE, "later", reason="BUSY", retry_after=3.0, metadata={"a": "b"}
    )
    again = pickle.loads(pickle.dumps(asked))  # noqa: S301 - ours
    assert isinstance(again, UnavailableError)
    assert vars(again) == vars(asked)
    assert again.retryable
