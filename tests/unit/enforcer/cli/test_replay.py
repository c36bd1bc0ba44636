"""Customers, keys and outcomes of a replay follow from the file alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from enforcer.cli import replay as module
from enforcer.cli.connection import Gateway
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.replay import Replay, ReplayMode, batch_for, speed_factor
from enforcer.cli.trace import Row
from enforcer.v1 import enforcer_pb2 as pb

GATEWAY = Gateway("127.0.0.1:1", "key", "file")


def row(number: int, **quantities: int) -> Row:
    return Row(number, number + 1, 0.0, quantities)


def batch(number: int, mode: ReplayMode = ReplayMode.ENFORCE) -> pb.CheckBatchRequest:
    return batch_for(row(number, calls=2, tokens=7), "d1", ["a", "b", "c"], mode, {"region": "eu"})


def test_rows_are_dealt_in_turn() -> None:
    dealt = [batch(number).items[0].customer for number in range(1, 6)]
    assert dealt == ["a", "b", "c", "a", "b"]


def test_a_row_is_one_atomic_batch_with_keys_from_digest_row_and_feature() -> None:
    request = batch(4)
    assert request.atomic
    assert [item.idempotency_key for item in request.items] == [
        "replay:d1:4:calls",
        "replay:d1:4:tokens",
    ]
    assert [item.quantity for item in request.items] == [2, 7]
    assert {item.customer for item in request.items} == {"a"}
    assert all(dict(item.dimensions) == {"region": "eu"} for item in request.items)


def test_best_effort_rows_are_not_atomic() -> None:
    request = batch(1, ReplayMode.BEST_EFFORT)
    assert not request.atomic
    assert request.items[0].mode == pb.MODE_BEST_EFFORT


@pytest.mark.parametrize(
    ("text", "factor"), [("max", None), ("real", 1.0), ("60", 60.0), ("0.5x", 0.5)]
)
def test_speeds(text: str, factor: float | None) -> None:
    assert speed_factor(text) == factor


@pytest.mark.parametrize("text", ["0", "-1", "fast", "inf", "nan", ""])
def test_other_speeds_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="real, max or a number above 0"):
        speed_factor(text)


def fault(code: grpc.StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), "broken", "")


def granted(request: pb.CheckBatchRequest, *, replayed: bool = False) -> pb.CheckBatchResponse:
    return pb.CheckBatchResponse(
        items=[
            pb.CheckBatchItem(
                response=pb.CheckResponse(allowed=True, granted=item.quantity, replayed=replayed)
            )
            for item in request.items
        ]
    )


class Gate:
    """Answers `CheckBatch` with what is queued; the last of it for ever."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[pb.CheckBatchRequest] = []

    async def CheckBatch(self, request: pb.CheckBatchRequest, **_: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome(request) if callable(outcome) else outcome


class Channel:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def run(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, rows: list[Row], retry_for: float = 5
) -> Replay:
    monkeypatch.setattr(
        module,
        "grpc",
        SimpleNamespace(aio=SimpleNamespace(AioRpcError=AioRpcError)),
    )
    monkeypatch.setattr(Gateway, "aio_channel", lambda _: Channel())
    monkeypatch.setattr(module, "EnforcerServiceStub", lambda _: gate)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    sent = Replay(GATEWAY, "d1", ["a"], ReplayMode.ENFORCE, {}, 4, retry_for)
    await sent.run(iter(rows))
    return sent


async def test_what_is_granted_is_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = await run(monkeypatch, Gate(granted), [row(1, calls=2), row(2, calls=3)])
    tally = sent.tallies["calls"]
    assert (tally.consumed, tally.denied, tally.replayed) == (5, 0, 0)
    assert sent.rows == 2


async def test_consumed_and_denied_add_up_to_what_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partly = pb.CheckBatchResponse(
        items=[pb.CheckBatchItem(response=pb.CheckResponse(allowed=True, granted=3))]
    )
    sent = await run(monkeypatch, Gate(partly), [row(1, calls=10)])
    assert (sent.tallies["calls"].consumed, sent.tallies["calls"].denied) == (3, 7)


async def test_answers_of_an_earlier_run_are_counted_as_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(lambda request: granted(request, replayed=True))
    sent = await run(monkeypatch, gate, [row(1, calls=2)])
    assert (sent.tallies["calls"].consumed, sent.tallies["calls"].replayed) == (2, 2)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL"])
async def test_an_outage_is_retried_with_the_same_keys(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    gate = Gate(fault(grpc.StatusCode[code]), lambda request: granted(request, replayed=True))
    sent = await run(monkeypatch, gate, [row(1, calls=2)])
    assert gate.requests[0] == gate.requests[1]
    # Our own lost answer: not one of an earlier run.
    assert (sent.tallies["calls"].consumed, sent.tallies["calls"].replayed) == (2, 0)


async def test_an_item_that_could_not_be_decided_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = pb.CheckBatchResponse(
        items=[
            pb.CheckBatchItem(
                fault=pb.CheckFault(code=14, reason="STORE_UNAVAILABLE", message="no store")
            )
        ]
    )
    sent = await run(monkeypatch, Gate(broken, granted), [row(1, calls=2)])
    assert sent.tallies["calls"].consumed == 2


async def test_an_outage_that_lasts_ends_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match=r"line 2: .*not reachable") as error:
        await run(monkeypatch, Gate(fault(grpc.StatusCode.UNAVAILABLE)), [row(1, calls=2)], 0.05)
    assert error.value.status is Status.UNAVAILABLE


async def test_a_bad_row_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(fault(grpc.StatusCode.NOT_FOUND))
    with pytest.raises(CommandError, match="line 2: broken") as error:
        await run(monkeypatch, gate, [row(1, calls=2)])
    assert error.value.status is Status.BAD_INPUT
    assert len(gate.requests) == 1
