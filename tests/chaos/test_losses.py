"""Redis loses its data under load: nothing is answered from wrong counters, and everything adds up afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
