"""Recalling records page by page, and writing what they say in few commands."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcer.adapters.counters import recall
from enforcer.adapters.counters.writing import joined
from enforcer.errors import MeterUnavailableError
from meter.core.sequence import START, Position
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORDS = 3


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "RECORDS", RECORDS)


class Meter:
    """Has `count` records. What comes after `stuck` is not answered, unless it is None; `error` is raised instead."""

    def __init__(self, count: int, stuck: int | None = None) -> None:
        self.count, self.stuck = count, stuck
        self.error: MeterUnavailableError | None = None
        self.asked: list[int] = []
        self.given_up = 0

    async def recall(self, request: ledger_pb2.RecallRequest) -> ledger_pb2.RecallResponse:
        self.asked.append(request.after_sequence)
        if self.stuck is not None and request.after_sequence >= self.stuck:
            if self.error:
                raise self.error
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up += 1
        first = request.after_sequence + 1
        numbers = range(first, min(first + request.most, self.count))
        return ledger_pb2.RecallResponse(
            records=[ledger_pb2.Record(generation=1, sequence=one, body=b"x") for one in numbers]
        )


def pages_of(meter: Any) -> Any:
    return aclosing(recall.recall_pages(meter, 0, START, ledger_pb2.CHOICE_ALL))


@pytest.mark.parametrize("count", [0, 1, RECORDS, RECORDS + 1, 3 * RECORDS - 1, 3 * RECORDS])
async def test_every_record_comes_once_in_its_order(count: int) -> None:
    meter: Any = Meter(count)
    found = [
        entry.position
        async for entry in recall.recall_entries(meter, 0, START, ledger_pb2.CHOICE_ALL)
    ]
    assert found == [Position(1, one) for one in range(count)]
    assert meter.asked == list(range(-1, count, RECORDS))


async def test_the_next_page_is_asked_for_while_one_is_looked_at_and_given_up_with_it() -> None:
    meter = Meter(100, stuck=RECORDS - 1)
    async with pages_of(meter) as pages:
        assert len(await anext(pages)) == RECORDS
        await asyncio.sleep(0)
        assert meter.asked == [-1, RECORDS - 1]
    assert meter.given_up == 1


async def test_a_page_that_fails_is_told_behind_those_before_it_or_to_nobody() -> None:
    meter = Meter(100, stuck=RECORDS - 1)
    meter.error = MeterUnavailableError("away")
    async with pages_of(meter) as pages:
        await anext(pages)
        await asyncio.sleep(0)
    async with pages_of(meter) as pages:
        await anext(pages)
        with pytest.raises(MeterUnavailableError):
            await anext(pages)


def run(commands: Iterable[tuple[Any, ...]]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """What Redis has after them."""
    hashes: dict[str, dict[str, int]] = {}
    lives: dict[str, int] = {}
    for name, key, *words in commands:
        if name == "PEXPIRE":
            assert key in hashes, "what is not there gets no life"
            lives[key] = words[0]
            continue
        for field, value in zip(words[::2], words[1::2], strict=True):
            if name == "HSET":
                hashes.setdefault(key, {})[field] = value
            else:
                hashes.setdefault(key, {}).setdefault(field, value)
    return hashes, lives


answers = st.lists(
    st.tuples(st.sampled_from(["HSET", "HSETNX"]), st.sampled_from("kr"), st.sampled_from("abc"))
)


@given(answers)
def test_joined_commands_leave_behind_what_they_do_one_by_one(
    answers: list[tuple[str, str, str]],
) -> None:
    commands: list[tuple[Any, ...]] = []
    for number, (name, key, field) in enumerate(answers):
        commands += [(name, key, field, number), ("PEXPIRE", key, 7)]
    few = joined(commands)
    assert run(few) == run(commands)
    assert len([one for one in few if one[0] == "HSET"]) <= 2
