"""Corrections on a real gateway, through the command line: what finance does when something was counted wrongly."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tests.e2e.test_main_job import catalog, clean_audit, reported

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.stack import Stack


def test_a_mistake_is_voided_amended_and_backfilled(stack: Stack) -> None:
    stack.apply(catalog("corrected", "{feature: export.pdf, model: quota, limit: 100, per: month}"))
    places = []
    for quantity in ("5", "7"):
        record = stack.json("check", "corrected", "export.pdf", "-n", quantity)["record"]
        places.append(f"{record['bucket']}/{record['generation']}-{record['sequence']}")
    assert reported(stack, "export.pdf", "corrected") == 12
    voided = stack.json("void", places[0], "--reason", "a test", "--key", "v1")
    assert voided["correction"]["previous_quantity"] == 5
    assert stack.json("void", places[0], "--reason", "a test", "--key", "v1")["replayed"]
    stack.json("amend", places[1], "9", "--reason", "counted anew")
    assert reported(stack, "export.pdf", "corrected") == 9
    balance = stack.json("balance", "corrected", "export.pdf")
    assert balance["limits"][0]["used"] == 9

    old = datetime.now(UTC) - timedelta(days=70)
    ancient = datetime.now(UTC) - timedelta(days=500)
    lines = [
        {"quantity": 4, "idempotency_key": "b1", "occurred_at": old.isoformat()},
        {"quantity": 3, "idempotency_key": "b2", "occurred_at": ancient.isoformat()},
    ]
    file = stack.folder / "late.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"customer": "corrected", "feature": "export.pdf", **line}) for line in lines
        )
    )
    told = stack.json("backfill", str(file), "--reason", "it came late", status=1)
    assert (told["recorded"], told["in_review"], told["refused"]) == (1, 1, 0)
    told = stack.json("backfill", str(file), "--reason", "again", status=1)
    assert (told["recorded"], told["replayed"]) == (0, 1)
    assert reported(stack, "export.pdf", "corrected") == 13
    (waiting,) = stack.json("review", "list")["items"]
    accepted = stack.json("review", "accept", str(waiting["id"]), "--reason", "the customer agrees")
    assert accepted["outcome"]["accepted"]
    assert stack.json("review", "list") == {"items": [], "set_aside": []}
    assert reported(stack, "export.pdf", "corrected") == 16

    month = f"{old:%Y-%m}"
    assert stack.json("seal", month, "--account", "corrected")["sealed"]
    assert not stack.json("seal", month, "--account", "corrected")["sealed"]
    trail = stack.json("corrections", "--customer", "corrected")["corrections"]
    assert [one["kind"].removeprefix("CORRECTION_KIND_") for one in trail] == [
        "BACKFILL",
        "BACKFILL",
        "AMEND",
        "VOID",
    ]
    first = trail[1]["record"]
    place = f"{first['bucket']}/{first['generation']}-{first['sequence']}"
    adjusted = stack.json("void", place, "--reason", "a dispute")
    assert adjusted["correction"]["adjustment"]
    clean_audit(stack)
    rows = stack.json(
        "usage", "--meter", "export.pdf", "--customer", "corrected", "--window", "month"
    )["rows"]
    by_month = {row["start"][:7]: (row["quantity"], row["adjustment_quantity"]) for row in rows}
    assert by_month[month] == (4, 0)
    assert by_month[f"{datetime.now(UTC):%Y-%m}"] == (9, -4)
    refused = stack.run("void", place, "--reason", "twice")
    assert "[RECORD_VOIDED]" in refused.stderr


def test_an_enforcer_killed_between_counters_and_list_loses_and_repeats_nothing(
    new_stack: Callable[..., Stack],
) -> None:
    """Each enforcer dies when it has carried out its second correction and is about to note that."""
    stack = new_stack("data", "--workers", "1")
    stack.environment["METERGATE_CRASH_AT"] = "enforcer.corrected:2:kill"
    stack.start()
    stack.apply(catalog("killed", "{feature: export.pdf, model: quota, limit: 100, per: month}"))
    places = []
    for quantity in ("5", "7", "1"):
        record = stack.json("check", "killed", "export.pdf", "-n", quantity)["record"]
        places.append(f"{record['bucket']}/{record['generation']}-{record['sequence']}")
    stack.json("void", places[0], "--reason", "a test", "--key", "first")
    died = stack.run("void", places[1], "--reason", "a test", "--key", "second")
    assert died.returncode == 3, died
    give_up = time.monotonic() + 60
    while stack.run("void", places[1], "--reason", "a test", "--key", "second").returncode:
        assert time.monotonic() < give_up, "the correction was never finished"
        time.sleep(0.2)
    assert stack.events("restart")
    assert reported(stack, "export.pdf", "killed") == 1
    assert stack.json("balance", "killed", "export.pdf")["limits"][0]["used"] == 1
    trail = stack.json("corrections", "--customer", "killed")["corrections"]
    assert [one["state"] for one in trail] == ["CORRECTION_STATE_APPLIED"] * 2
