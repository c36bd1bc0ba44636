"""Redis loses its data under load: nothing is answered from wrong counters, and everything adds up afterwards."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import sqlite3
import struct
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import redis

from meter.core.records import RecordType, decode_body, decode_effects
from tests.chaos.test_kills import clean_audit
from tests.fixtures.stack import sums, write_trace
from tests.nursery import MEASURED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.stack import Stack

Place = tuple[int, int, int]
ROWS: Final = 1500
SECONDS: Final = 20.0
UNREAD: Final = 20
"""Requests, at least, whose records no rollup has read when Redis loses them."""
AGE: Final = 10.0 if os.environ.get(MEASURED) else 2.0
CATALOG: Final = """
version: 1
accounts:
  - key: capped
    entitlements:
      - {{feature: llm.requests, model: payg, per: month}}
      - {{feature: llm.output_tokens, model: payg, per: month}}
      - {{feature: llm.input_tokens, model: quota, limit: {limit}, per: total}}
"""


def client(stack: Stack) -> redis.Redis:
    """Of the gateway's Redis."""
    (pid,) = stack.pids("valkey")
    title = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0 ")
    return redis.Redis(unix_socket_path=title.partition("unixsocket:")[2])


def balance(stack: Stack) -> int:
    """What the hard limit shows as used."""
    give_up = time.monotonic() + 120
    while True:
        done = stack.run("balance", "capped", "llm.input_tokens", "--json")
        if done.returncode == 0:
            break
        assert time.monotonic() < give_up, done.stderr
        time.sleep(0.1)
    (quota,) = stack.json("balance", "capped", "llm.input_tokens")["limits"]
    return int(quota["used"])


@pytest.mark.timeout(300)
def test_an_emptied_redis_is_made_again_from_the_records(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = new_stack("data", "--workers", "2").start()
    trace = write_trace(tmp_path / "capped.csv", rows=600, seed=1, seconds=4)
    asked = sums(trace)
    limit = asked["llm.input_tokens"] // 2
    stack.apply(CATALOG.format(limit=limit))
    capped = ("--customers", "capped")
    first = stack.json("replay", str(trace), *capped)
    consumed = first["llm.input_tokens"]["consumed"]
    block = ("allowance", "take", "capped", "llm.output_tokens", "50", "--ttl", "10m", "--key", "b")
    taken = stack.json(*block)
    clean_audit(stack)
    with client(stack) as server:
        server.flushall()
    assert balance(stack) == consumed
    again = stack.json("replay", str(trace), *capped)
    for meter in asked:
        assert again[meter]["consumed"] == again[meter]["replayed"] == first[meter]["consumed"]
        assert stack.json("usage", "--meter", meter)["total"] == first[meter]["consumed"]
    assert balance(stack) == consumed
    assert stack.json(*block)["allowance"] == taken["allowance"]
    returned = stack.json("allowance", "return", taken["allowance"], "20")
    assert (returned["used"], returned["returned"]) == (20, 30)
    (limit_,) = stack.json("balance", "capped", "llm.output_tokens")["limits"]
    written = first["llm.output_tokens"]["consumed"]
    assert (limit_["used"], limit_["held"]) == (written + 20, 0)
    clean_audit(stack)


def audit_log(stack: Stack) -> list[tuple[str, str, str]]:
    """Action, kind and key of what is in the definitions' audit log."""
    with closing(sqlite3.connect(stack.folder / "definitions.db")) as database:
        return database.execute("SELECT action, kind, key FROM audit_log").fetchall()


def accept_all(stack: Stack) -> list[dict[str, Any]]:
    """Accept every gap that holds a bucket until none is open; return them."""
    accepted: list[dict[str, Any]] = []
    gaps: dict[int, dict[str, Any]] = {}
    for _ in range(20):
        found = json.loads(stack.run("audit", "--json").stdout)
        # The gap that holds a bucket is its earliest; what lies behind is missing only until then.
        gaps = {one["bucket"]: one for one in found["gaps"]}
        for one in found["gaps"]:
            first = gaps[one["bucket"]]
            if (one["generation"], one["first"]) < (first["generation"], first["first"]):
                gaps[one["bucket"]] = one
        if not gaps:
            return accepted
        for one in gaps.values():
            place = (one["bucket"], one["generation"], one["first"], one["last"] - 1)
            if stack.run("gap", "accept", *map(str, place)).returncode == 0:
                accepted.append(one)
    pytest.fail(f"gaps stay open: {gaps}")


def holding(server: redis.Redis, then: str, *arguments: Any) -> dict[Place, Any]:
    """What the outboxes hold in the very instant before a command."""
    with server.pipeline(transaction=True) as pipe:
        keys: list[Any] = sorted(server.keys("*:o"))
        for key in keys:
            pipe.xrange(key)
        pipe.execute_command(then, *arguments)  # type: ignore[no-untyped-call]
        found = pipe.execute()
    held: dict[Place, Any] = {}
    for key, entries in zip(keys, found, strict=False):
        bucket = int(key.removeprefix(b"{b").partition(b"}")[0])
        for name, fields in entries:
            generation, sequence = map(int, name.split(b"-"))
            held[bucket, generation, sequence] = fields
    return held


def wiped(stack: Stack) -> dict[Place, Any]:
    with client(stack) as server:
        return holding(server, "FLUSHALL")


def killed_on(stack: Stack, copy: Path) -> dict[Place, Any]:
    """Its successor finds the copy, while it writes on into the folder that it has open."""
    valkey = stack.folder / "valkey"
    (pid,) = stack.pids("valkey")
    with client(stack) as server:
        valkey.rename(stack.folder / "gone")
        copy.rename(valkey)
        held = holding(server, "CLIENT", "PAUSE", 60_000, "ALL")
        os.kill(pid, signal.SIGKILL)
    return held


def emptied(stack: Stack) -> dict[Place, Any]:
    (stack.folder / "empty").mkdir()
    return killed_on(stack, stack.folder / "empty")


def old_copy(stack: Stack) -> dict[Place, Any]:
    return killed_on(stack, stack.folder / "copy")


def granted(fields: dict[bytes, bytes]) -> tuple[str, int]:
    """Meter and quantity of what a record granted."""
    effects = decode_effects(fields[b"e"])
    used = effects.granted if effects.type is RecordType.USAGE else 0
    return decode_body(fields[b"b"]).m, used


LOSSES: Final = (wiped, old_copy, emptied) if os.environ.get(MEASURED) else (wiped,)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("lose", LOSSES)
def test_what_redis_loses_in_a_replay_is_answered_rightly_and_named_to_the_record(
    lose: Callable[[Stack], dict[Place, Any]],
    new_stack: Callable[..., Stack],
    trace: Path,
    tmp_path: Path,
) -> None:
    """Told by clients - reported = granted by the records that the audit names as missing, to the unit."""
    stack = new_stack("data", "--workers", "2").start()
    part = tmp_path / "part.csv"
    with trace.open() as opened:
        part.write_text("".join(itertools.islice(opened, 1 + ROWS)))
    asked = sums(part)
    limit = asked["llm.input_tokens"] * 3 // 4
    stack.apply(CATALOG.format(limit=limit))
    capped = ("--customers", "capped")
    found: list[dict[str, Any]] = []

    def replay() -> None:
        options = ("--speed", f"{lasts(part) / SECONDS}", "--retry-for", "150", *capped)
        found.append(stack.json("replay", str(part), *options, timeout=300))

    running = threading.Thread(target=replay)
    running.start()
    give_up = time.monotonic() + 120
    while not used(stack):
        assert time.monotonic() < give_up, "the replay does not begin"
    if lose is old_copy:
        shutil.copytree(stack.folder / "valkey", stack.folder / "copy")
        time.sleep(AGE)  # how old the copy is to be, not a wait for anything
    (process,) = stack.pids("meter")
    os.kill(process, signal.SIGSTOP)
    before = used(stack)
    while used(stack) < before + UNREAD:
        assert running.is_alive(), "the replay is over"
        assert time.monotonic() < give_up, "the replay stands still"
    held = lose(stack)
    os.kill(process, signal.SIGCONT)
    running.join()
    (told,) = found
    shown = balance(stack)  # waits until it is answered
    gaps = accept_all(stack)
    named = {
        (gap["bucket"], gap["generation"], place)
        for gap in gaps
        for place in range(gap["first"], gap["last"])
    }
    assert named <= held.keys(), "only what Redis had was lost"
    assert len(named) > UNREAD
    lost = Counter[str]()
    for meter, quantity in (granted(held[place]) for place in named):
        lost[meter] += quantity
    reported = {meter: total(stack, meter) for meter in asked}
    assert {meter: told[meter]["consumed"] - reported[meter] for meter in asked} == {
        meter: lost[meter] for meter in asked
    }
    assert shown == reported["llm.input_tokens"] <= limit
    again = stack.json("replay", str(part), *capped)
    audit = stack.json("audit")  # waits until all of it is rolled up
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)
    for meter, quantity in asked.items():
        assert again[meter]["consumed"] + again[meter]["denied"] == quantity
        assert total(stack, meter) == again[meter]["consumed"], (meter, gaps, told, again)
    assert 0 < balance(stack) == again["llm.input_tokens"]["consumed"] <= limit
    assert len(audit["accepted_gaps"]) == len(gaps)
    assert [kind for _, kind, _ in audit_log(stack)].count("gap") == len(gaps)


def lasts(part: Path) -> float:
    """From the first row of a trace to its last, in seconds."""
    with part.open(newline="") as opened:
        first, *_, last = (
            datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in csv.DictReader(opened)
        )
    return (last - first).total_seconds()


def used(stack: Stack) -> int:
    """Requests so far. Whoever asks again and again leaves the processor to the replay."""
    time.sleep(0.1)
    done = stack.run("balance", "capped", "llm.requests", "--json")
    return int(json.loads(done.stdout)["limits"][0]["used"]) if done.returncode == 0 else 0


def total(stack: Stack, meter: str) -> int:
    """What reports say."""
    return int(stack.json("usage", "--meter", meter, "--customer", "capped")["total"])


@pytest.mark.timeout(300)
def test_a_redis_on_an_old_copy_catches_up_under_load_and_what_is_nowhere_is_named(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    # One enforcer: what it was answered last is what is known to have existed.
    stack = new_stack("data", "--workers", "1").start()
    trace = write_trace(tmp_path / "capped.csv", rows=1500, seed=2, seconds=8)
    asked = sums(trace)
    limit = asked["llm.input_tokens"] * 3 // 4
    stack.apply(CATALOG.format(limit=limit))
    capped = ("--customers", "capped")
    found: list[dict[str, Any]] = []

    def replay() -> None:
        options = ("--speed", "real", *capped)
        found.append(stack.json("replay", str(trace), *options, timeout=200))

    running = threading.Thread(target=replay)
    running.start()
    valkey, copy = stack.folder / "valkey", stack.folder / "copy"
    time.sleep(2)  # how old the copy is to be, not a wait for anything
    shutil.copytree(valkey, copy)
    time.sleep(3)
    (pid,) = stack.pids("valkey")
    # The server writes on into the folder that it has open; its successor finds the copy.
    valkey.rename(stack.folder / "gone")
    copy.rename(valkey)
    os.kill(pid, signal.SIGKILL)
    running.join()
    balance(stack)  # waits until it is answered
    gaps = accept_all(stack)
    again = stack.json("replay", str(trace), *capped)
    audit = stack.json("audit")  # waits until all of it is rolled up
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)
    for meter, quantity in asked.items():
        assert again[meter]["consumed"] + again[meter]["denied"] == quantity
        total = stack.json("usage", "--meter", meter, "--customer", "capped")["total"]
        assert total == again[meter]["consumed"], (meter, gaps, found, again)
        if not gaps:
            assert again[meter]["consumed"] == found[0][meter]["consumed"]
    assert 0 < again["llm.input_tokens"]["consumed"] <= limit
    assert balance(stack) == again["llm.input_tokens"]["consumed"]
    assert len(audit["accepted_gaps"]) == len(gaps)
    assert [kind for _, kind, _ in audit_log(stack)].count("gap") == len(gaps)


@pytest.mark.timeout(300)
def test_a_counter_that_differs_from_its_records_is_found_and_brought_in_line(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack()
    stack.environment["METERGATE_AUDIT_INTERVAL_SECONDS"] = "0.2"
    stack.start()
    stack.apply(CATALOG.format(limit=1000))
    stack.json("check", "capped", "llm.input_tokens", "--quantity", "40")
    clean_audit(stack)
    with client(stack) as server:
        for key in server.scan_iter("*:s:*"):
            values = list(struct.unpack(f"<{server.strlen(key) // 8}d", server.get(key)))
            if 40 in values:
                values[values.index(40)] = 33
                server.set(key, struct.pack(f"<{len(values)}d", *values))
    assert balance(stack) == 33
    dry = stack.json("reconcile", "--dry-run", status=1)
    (drift,) = dry["drift"]
    assert (drift["counter_used"], drift["ledger_used"]) == (33, 40)
    assert balance(stack) == 33
    give_up = time.monotonic() + 120
    while "enforcer_audit_drift_counters" not in drifting_metrics(stack):
        assert time.monotonic() < give_up, "the continuous audit says nothing"
        time.sleep(0.2)
    mended = stack.json("reconcile")
    assert (len(mended["drift"]), mended["left"]) == (1, [])
    assert balance(stack) == 40
    clean_audit(stack)
    assert [key for action, _, key in audit_log(stack) if action == "reconciled"] == [
        f"{drift['bucket']}/{drift['limit']}/{drift['period_start']}: used +7, held +0"
    ]


def drifting_metrics(stack: Stack) -> str:
    """Of the audit's metrics those lines that are not 0, but for its age."""
    with urllib.request.urlopen(f"{stack.http}/metrics", timeout=10) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    assert any(line.startswith("enforcer_audit_age_seconds") for line in lines)
    return "\n".join(
        line
        for line in lines
        if line.startswith(("enforcer_audit_drift", "enforcer_audit_gaps"))
        and not line.endswith(" 0.0")
    )
