from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from enforcer.client import Limit, LimitKind, Mode, Reason, RecordId, Verdict
from enforcer.client.results import verdict_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable


def test_every_reason_kind_and_mode_of_the_proto_has_its_name() -> None:
    own = {Reason.GATEWAY_UNAVAILABLE, Reason.UNRECOGNISED}
    assert {one.name for one in set(Reason) - own} == {
        name.removeprefix("REASON_") for name, number in pb.Reason.items() if number
    }
    assert {one.name for one in set(LimitKind) - {LimitKind.UNRECOGNISED}} == {
        name.removeprefix("LIMIT_KIND_") for name, number in pb.LimitKind.items() if number
    }
    assert {f"MODE_{one.name}": one.value for one in Mode} == {
        name: number for name, number in pb.Mode.items() if number
    }


def test_every_field_of_an_answer_is_in_the_verdict() -> None:
    answer = pb.CheckResponse(
        allowed=True,
        granted=7,
        reason=pb.REASON_ALLOWED,
        tier="gold",
        overage=2,
        shadow=True,
        degraded=True,
        record=pb.RecordId(bucket=3, generation=2, sequence=0),
        grace=True,
        replayed=True,
        config_value="1080",
        notify=True,
    )
    answer.retry_after.FromTimedelta(timedelta(seconds=2, microseconds=5))
    limit = answer.limits.add(
        kind=pb.LIMIT_KIND_CREDITS,
        id="e/g",
        customer="acme",
        limit=10,
        used=7,
        held=1,
        remaining=2,
        denied=True,
        shadow=True,
        drawn=7,
        unlimited=True,
    )
    at = datetime(2026, 11, 24, 12, 0, 0, 5, tzinfo=UTC)
    limit.resets_at.FromDatetime(at)
    verdict = verdict_of(answer)
    assert verdict == Verdict(
        allowed=True,
        granted=7,
        reason=Reason.ALLOWED,
        limits=verdict.limits,
        retry_after=timedelta(seconds=2, microseconds=5),
        degraded=True,
        replayed=True,
        tier="gold",
        overage=2,
        shadow=True,
        grace=True,
        notify=True,
        record=RecordId(3, 2, 0),
        config_value="1080",
    )
    assert verdict.limits == (
        Limit(LimitKind.CREDITS, "e/g", "acme", 10, 7, 1, 2, 7, at, True, True, True),
    )
    fields = {field.name for field in dataclasses.fields(Verdict)}
    assert fields == {field.name for field in pb.CheckResponse.DESCRIPTOR.fields}
    assert {field.name for field in dataclasses.fields(Limit)} == {
        field.name for field in pb.Limit.DESCRIPTOR.fields
    }


def test_what_a_newer_gateway_says_is_not_taken_for_something_else() -> None:
    answer = pb.CheckResponse(reason=99)  # type: ignore[arg-type]
    answer.limits.add(kind=99)
    verdict = verdict_of(answer)
    assert verdict.reason is Reason.UNRECOGNISED
    assert verdict.limits[0].kind is LimitKind.UNRECOGNISED
    assert not verdict


def test_a_verdict_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Verdict(allowed=False).allowed = True  # type: ignore[misc]


def told() -> Verdict:
    answer = pb.CheckResponse(allowed=True, granted=5, reason=pb.REASON_ALLOWED, tier="gold")
    answer.record.sequence = 7
    answer.limits.add(kind=pb.LIMIT_KIND_QUOTA, id="q", limit=9)
    return verdict_of(answer)


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda verdict: pickle.loads(pickle.dumps(verdict)),  # noqa: S301 - ours
        lambda verdict: dataclasses.replace(verdict, granted=5),
        lambda verdict: Verdict(
            **{field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
        ),
    ],
)
def test_a_verdict_that_was_not_looked_at_is_as_good_as_one_that_was(
    again: Callable[[Verdict], Verdict],
) -> None:
    assert again(told()) == told()
    assert hash(again(told())) == hash(told())
    assert repr(again(told())) == repr(told())
    looked_at = told()
    assert (looked_at.tier, looked_at.granted) == ("gold", 5)
    assert again(looked_at) == told()
    assert dataclasses.asdict(told())["record"] == {"bucket": 0, "generation": 0, "sequence": 7}
    with pytest.raises(dataclasses.FrozenInstanceError):
        told().granted = 8  # type: ignore[misc]
    with pytest.raises(AttributeError, match="has no 'grated'"):
        told().grated  # type: ignore[attr-defined] # noqa: B018 - misspelt
    with pytest.raises(AttributeError):
        Verdict(allowed=True)._answer  # noqa: B018 - there is none
