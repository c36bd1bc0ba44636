"""A minute of mixed load under faults, as `make soak` has it for half an hour: nothing lost, repeated or past a limit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.chaos import load
from tests.chaos.faults import FAULTS
from tests.chaos.soak import Plan, faults_of, soak

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ("enforcer.killed", "meter.paused", "redis.killed", "redis.old_copy")
"""What is quick and touches every part; each comes once."""


@pytest.mark.timeout(300)
async def test_a_minute_of_mixed_load_under_faults_is_exact(tmp_path: Path) -> None:
    plan = Plan("embedded", minutes=0.6, every=9, seed=7, only=SMALL, whole=False)
    outcome = await soak(tmp_path, plan)
    assert outcome.findings == []
    assert {fault.name for fault in outcome.faults} <= set(SMALL)
    assert len(outcome.faults) > 1
    # It was a trial of something: limits were reached, and every kind of call was made.
    for feature in ("s.quota", "s.credits", "s.spend"):
        assert outcome.caps[feature][0], feature
    assert outcome.denied > 100
    assert outcome.allowed > 1000
    assert len(outcome.decisions) == 11, outcome.decisions
    assert outcome.records > outcome.allowed / 2


def test_every_fault_of_the_table_takes_part() -> None:
    dice = random.Random(1)
    both = {**faults_of(Plan("embedded"), dice), **faults_of(Plan("kafka"), dice)}
    assert set(FAULTS) <= set(both)
    for name in set(FAULTS) - {"redis.failover"}:  # with nothing under way
        assert both[name].words == FAULTS[name].words


def test_every_limit_of_the_load_has_its_place_in_the_judgement() -> None:
    turns = 3
    capped = {cap.feature for cap in load.caps(turns)}
    judged = (
        capped | {rate.feature for rate in load.rates()} | {one.feature for one in load.seats()}
    )
    assert set(load.FEATURES) - judged == {"s.payg", "s.told", "s.amended"}, "what has no limit"
