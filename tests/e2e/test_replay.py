"""`metergate replay` on a real gateway: cut short, refused, partly granted, without a gateway."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.fixtures.stack import METERGATE, metergate, sums, write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.stack import Stack


def declare(stack: Stack, customer: str, tokens: str) -> None:
    """An account without limits but for its input tokens."""
    stack.apply(
        f"""
        version: 1
        accounts:
          - key: {customer}
            entitlements:
              - {{feature: llm.requests, model: payg, per: month}}
              - {{feature: llm.output_tokens, model: payg, per: month}}
              - {{feature: llm.input_tokens, {tokens}}}
        """
    )


def test_a_replay_cut_short_tells_what_was_done_and_is_finished_by_another(
    stack: Stack, tmp_path: Path
) -> None:
    declare(stack, "impatient", "model: payg, per: month")
    trace = write_trace(tmp_path / "long.csv", rows=600, seed=11, seconds=60)
    process = subprocess.Popen(
        [
            *(str(METERGATE), "replay", str(trace), "--customers", "impatient"),
            *("--speed", "real", "--json", "--data-dir", str(stack.folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 30
    while stack.json("usage", "--customer", "impatient")["total"] == 0:
        assert time.monotonic() < give_up, "nothing was sent"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "of 600 rows" in err
    done = json.loads(out)
    again = stack.json("replay", str(trace), "--customers", "impatient")
    for meter, quantity in sums(trace).items():
        assert 0 < done[meter]["consumed"] < quantity
        assert again[meter]["consumed"] == quantity
        # A row that was on its way at Ctrl-C may have been decided without being told.
        assert done[meter]["consumed"] <= again[meter]["replayed"] < quantity
        total = stack.json("usage", "--customer", "impatient", "--meter", meter)["total"]
        assert total == quantity


def test_a_malformed_row_is_named_before_anything_is_sent(stack: Stack, tmp_path: Path) -> None:
    declare(stack, "careful", "model: payg, per: month")
    trace = write_trace(tmp_path / "bad.csv", rows=20, seed=12)
    trace.write_text(trace.read_text() + "\n2023-11-16 18:17:03,many,1\n")
    done = stack.run("replay", str(trace), "--customers", "careful")
    assert done.returncode == 2
    assert "bad.csv:22: column ContextTokens is 'many'" in done.stderr
    assert stack.json("usage", "--customer", "careful")["rows"] == []
    skipped = stack.json("replay", str(trace), "--customers", "careful", "--skip-bad")
    assert skipped["llm.requests"]["consumed"] == 20


def test_best_effort_takes_what_is_there(stack: Stack, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "much.csv", rows=50, seed=13)
    asked = sums(trace)
    limit = asked["llm.input_tokens"] // 3
    declare(stack, "modest", f"model: quota, limit: {limit}, per: total")
    told = stack.json("replay", str(trace), "--customers", "modest", "--mode", "best_effort")
    assert told["llm.input_tokens"]["consumed"] == limit
    assert told["llm.input_tokens"]["denied"] == asked["llm.input_tokens"] - limit
    assert told["llm.requests"]["denied"] == 0


def test_an_unknown_customer_ends_the_replay_with_its_line(stack: Stack, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "lost.csv", rows=3, seed=14)
    done = stack.run("replay", str(trace), "--customers", "nobody")
    assert done.returncode == 2
    # Rows are on their way at the same time: any may be refused first.
    assert re.search(r"line [2-4]: ", done.stderr)
    assert "UNKNOWN_CUSTOMER" in done.stderr


def test_without_a_gateway_a_replay_gives_up_in_time(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "alone.csv", rows=3, seed=15)
    done = metergate(
        *("replay", str(trace), "--retry-for", "0.5"),
        METERGATE_ENDPOINT="127.0.0.1:1",
        METERGATE_API_KEY="none",
    )
    assert done.returncode == 3
    assert "not reachable" in done.stderr
    assert "llm.requests" in done.stdout
