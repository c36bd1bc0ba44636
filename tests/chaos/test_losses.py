"""Redis loses its data under load: nothing is answered from wrong counters, and everything adds up afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import struct
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import redis

from tests.chaos.test_kills import clean_audit
from tests.fixtures.stack import sums, write_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.stack import Stack

ROWS: Final = 600
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
    give_up = time.monotonic() + 60
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
    trace = write_trace(tmp_path / "capped.csv", rows=ROWS, seed=1, seconds=4)
    asked = sums(trace)
    limit = asked["llm.input_tokens"] // 2
    stack.apply(CATALOG.format(limit=limit))
    capped = ("--customers", "capped")
    first = stack.json("replay", str(trace), *capped)
    consumed = first["llm.input_tokens"]["consumed"]
    clean_audit(stack)
    with client(stack) as server:
        server.flushall()
    assert balance(stack) == consumed
    again = stack.json("replay", str(trace), *capped)
    for meter in asked:
        assert again[meter]["consumed"] == again[meter]["replayed"] == first[meter]["consumed"]
        assert stack.json("usage", "--meter", meter)["total"] == first[meter]["consumed"]
    assert balance(stack) == consumed
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
    give_up = time.monotonic() + 60
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
