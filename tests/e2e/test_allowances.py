"""Blocks of supply on a real gateway, from the command line: one is returned, of the other nobody hears again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fixtures.stack import Stack

CATALOG = """
version: 1
accounts:
  - key: offline
    entitlements:
      - {feature: export.pdf, model: quota, limit: 800, per: total}
"""
PATIENCE = 60.0


def test_what_is_told_of_blocks_is_usage_and_what_is_not_counts_against_the_limit(
    stack: Stack,
) -> None:
    stack.apply(CATALOG)
    told = stack.json("allowance", "take", "offline", "export.pdf", "1000", "--key", "first")
    assert told["check"]["granted"] == 100
    assert told["lifetime"] == "60s"
    lost = stack.json("allowance", "take", "offline", "export.pdf", "8", "--ttl", "1s")
    done = stack.json("allowance", "return", told["allowance"], "30")
    assert (done["used"], done["returned"]) == (30, 70)
    assert stack.json("allowance", "return", told["allowance"], "30")["replayed"]
    give_up = time.monotonic() + PATIENCE
    while (limit := stack.json("balance", "offline", "export.pdf")["limits"][0])["held"]:
        assert (limit["used"], limit["held"]) == (30, 8)
        assert time.monotonic() < give_up, "the block was not given up"
        time.sleep(0.3)
    assert (limit["used"], limit["remaining"]) == (38, 762)
    late = stack.run("allowance", "return", lost["allowance"], "8")
    assert late.returncode == 2
    assert "[ALLOWANCE_EXPIRED]" in late.stderr
    found = stack.json("audit")
    assert (found["gaps"], found["repeats"], found["drift"]) == ([], 0, [])
    assert found["rollup_difference"] == 0
    usage = stack.json("usage", "--meter", "export.pdf", "--customer", "offline")
    (row,) = usage["rows"]
    assert (usage["total"], row["quantity"], row["unaccounted_quantity"]) == (30, 30, 8)
    shown = stack.run("usage", "--meter", "export.pdf", "--customer", "offline").stdout
    assert "unaccounted" in shown
