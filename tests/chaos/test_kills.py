"""kill -9 of any process at random instants of a replay: nothing lost, nothing counted twice.

Each run replays a trace of its own while enforcer, meter and Valkey are killed one after the other;
then the trace is replayed again without kills, and everything has to add up to the unit.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest

from tests.fixtures.stack import sums, write_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.stack import Stack

RUNS: Final = 1
"""Without limits; one more has a hard limit in its middle."""
KILLS: Final = 12
MOST: Final = 2 * KILLS
"""In one run: a machine on which a part takes longer to start than to be killed again would never end it."""
ROWS: Final = 2500
PARTS: Final = ("enforcer", "envoy", "meter", "valkey")
"""`enforcer` is the process that watches over Envoy, where Envoy carries the calls; without Envoy it is all there is."""
SHORTEST, LONGEST = 0.3, 1.4
"""Seconds from one kill to the next: some hit a process that is just starting again."""


@dataclass
class Killer:
    """Kills a random part again and again until the replay ends, `MOST` times."""

    stack: Stack
    dice: random.Random
    kills: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while len(self.kills) < MOST and not self.done.wait(self.dice.uniform(SHORTEST, LONGEST)):
            part = self.dice.choice(parts_of(self.stack))
            if pids := self.pids(part):
                try:
                    os.kill(self.dice.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.kills.append(part)

    def pids(self, part: str) -> list[int]:
        """Of its processes, perhaps none just now."""
        if part != "envoy":
            return self.stack.pids(part)
        found = []
        for pid in self.stack.pids("enforcer"):
            with suppress(psutil.NoSuchProcess):
                found += [child.pid for child in psutil.Process(pid).children()]
        return found


def parts_of(stack: Stack) -> list[str]:
    """What there is to be killed."""
    (ready,) = stack.events("ready")
    return [part for part in PARTS if part != "envoy" or ready["transport"] == "envoy"]


def replay_under_fire(
    stack: Stack, trace: Path, seed: int, seconds: float, *options: str
) -> tuple[Any, Killer]:
    """Replay `trace` in real time, which takes `seconds`, while parts are killed."""
    killer = Killer(stack, random.Random(seed))
    thread = threading.Thread(target=killer.run)
    thread.start()
    try:
        replayed = stack.json(
            "replay", str(trace), "--speed", "real", *options, timeout=seconds + 120
        )
    finally:
        killer.done.set()
        thread.join()
    return replayed, killer


def wait_until_answering(stack: Stack, within: float = 120) -> None:
    """All processes run again, the gateway decides, and its meter answers: it may have been the last to be killed."""
    asked = (
        ("check", "acme", "api.calls", "--mode", "check_only"),
        ("usage", "--customer", "acme"),
    )
    give_up = time.monotonic() + within
    while time.monotonic() < give_up:
        answered = all(stack.run(*words).returncode == 0 for words in asked)
        if answered and len(stack.pids("")) == 4:
            return
        time.sleep(0.2)
    pytest.fail("the gateway did not come back:\n" + "\n".join(stack.lines[-50:]))


def clean_audit(stack: Stack) -> None:
    audit = stack.json("audit")
    assert (audit["gaps"], audit["repeats"], audit["drift"]) == ([], 0, [])
    assert audit["rollup_difference"] == 0


def up_to_a_hard_limit(stack: Stack, tmp_path: Path) -> list[str]:
    """One more run, on a customer with half of what the trace asks for; return the kills."""
    seconds = KILLS * (SHORTEST + LONGEST) / 2
    trace = write_trace(tmp_path / "capped.csv", rows=ROWS, seed=RUNS, seconds=seconds)
    asked = sums(trace)
    limit = asked["llm.input_tokens"] // 2
    stack.apply(
        f"""
        version: 1
        accounts:
          - key: capped
            entitlements:
              - {{feature: llm.requests, model: payg, per: month}}
              - {{feature: llm.output_tokens, model: payg, per: month}}
              - {{feature: llm.input_tokens, model: quota, limit: {limit}, per: total}}
        """
    )
    capped = ("--customers", "capped")
    first, killer = replay_under_fire(stack, trace, RUNS, seconds, *capped)
    wait_until_answering(stack)
    again = stack.json("replay", str(trace), *capped)
    for meter, quantity in asked.items():
        assert first[meter]["consumed"] + first[meter]["denied"] == quantity
        assert again[meter]["consumed"] == again[meter]["replayed"] == first[meter]["consumed"]
        report = stack.json("usage", "--meter", meter, "--customer", "capped")
        assert report["total"] == first[meter]["consumed"], f"{meter} after {killer.kills}"
    consumed = first["llm.input_tokens"]["consumed"]
    assert 0 < consumed <= limit
    (quota,) = stack.json("balance", "capped", "llm.input_tokens")["limits"]
    assert quota["used"] == consumed
    clean_audit(stack)
    return killer.kills


@pytest.mark.timeout(600)
def test_totals_are_exact_after_kills_at_random_instants(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = new_stack("data", "--workers", "2").start()
    expected = {"llm.requests": 0, "llm.input_tokens": 0, "llm.output_tokens": 0}
    kills: list[str] = []
    for run in range(RUNS):
        seconds = KILLS * (SHORTEST + LONGEST) / 2
        trace = write_trace(tmp_path / f"{run}.csv", rows=ROWS, seed=run, seconds=seconds)
        asked = sums(trace)
        for meter, quantity in asked.items():
            expected[meter] += quantity
        first, killer = replay_under_fire(stack, trace, seed=run, seconds=seconds)
        kills += killer.kills
        for meter, quantity in asked.items():
            assert first[meter]["requested"] == first[meter]["consumed"] == quantity
        wait_until_answering(stack)
        again = stack.json("replay", str(trace))
        for meter, quantity in asked.items():
            assert again[meter] == {
                "requested": quantity,
                "consumed": quantity,
                "denied": 0,
                "replayed": quantity,
            }
        for meter, quantity in expected.items():
            report = stack.json("usage", "--meter", meter)
            assert report["total"] == quantity, f"{meter} after {killer.kills}"
        clean_audit(stack)
    kills += up_to_a_hard_limit(stack, tmp_path)
    assert len(kills) >= 20, kills
    assert set(kills) == set(parts_of(stack))
