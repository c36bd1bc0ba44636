"""`metergate up --kafka`: the same totals as without, through a real Kafka."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.fixtures.stack import sums, write_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.kafka import KafkaBroker
    from tests.fixtures.stack import Stack


def exact(audit: dict[str, Any]) -> bool:
    """Nothing missing and nothing off; a record that came twice was counted once."""
    return (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)


def counted(stack: Stack, counter: str) -> int:
    """What `/metrics` says."""
    with urllib.request.urlopen(f"{stack.http}/metrics", timeout=30) as answer:  # noqa: S310
        (line,) = (
            line for line in answer.read().decode().splitlines() if line.startswith(f"{counter} ")
        )
    return int(float(line.rpartition(" ")[2]))


def test_a_replay_through_kafka_has_the_same_totals_to_the_token(
    new_stack: Callable[..., Stack], tmp_path: Path, kafka_broker: str
) -> None:
    stack = new_stack("data", "--workers", "1", "--kafka", kafka_broker).start()
    trace = write_trace(tmp_path / "trace.csv", rows=1500, seed=4)
    asked = sums(trace)
    replayed = stack.json("replay", str(trace))
    for meter, quantity in asked.items():
        assert replayed[meter]["consumed"] == quantity
    audit = stack.json("audit")
    assert exact(audit)
    assert audit["repeats"] == 0
    assert audit["records"] >= 2 * asked["llm.requests"]
    for meter, quantity in asked.items():
        assert stack.json("usage", "--meter", meter)["total"] == quantity
    assert stack.json("kafka", "dead-letters")["dead_letters"] == []
    # The relay has no port of its own: the enforcer tells what all processes count.
    # Nothing came twice, so each has counted every record once; the relay counts when it has trimmed.
    counters = "relay_records_total", "meter_records_read_total"
    give_up = time.monotonic() + 20
    while (told := [counted(stack, one) for one in counters]) != [audit["records"]] * 2:
        assert max(told) <= audit["records"]
        assert time.monotonic() < give_up, told
        time.sleep(0.05)
    assert stack.stop() == 0

    without = new_stack("data", "--workers", "1")
    without.launch()
    assert without.wait() == 2
    assert any(f"start with --kafka {kafka_broker}" in line for line in without.lines)

    again = new_stack("data", "--workers", "1", "--kafka", kafka_broker).start()
    for meter, quantity in asked.items():
        assert again.json("usage", "--meter", meter)["total"] == quantity
    assert exact(again.json("audit"))


def test_checks_go_on_while_kafka_is_away_and_every_record_arrives(
    own_broker: KafkaBroker, new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = new_stack("data", "--workers", "1", "--kafka", own_broker.servers).start()
    trace = write_trace(tmp_path / "trace.csv", rows=400, seed=5)
    asked = sums(trace)
    own_broker.kill()
    replayed = stack.json("replay", str(trace))
    for meter, quantity in asked.items():
        assert replayed[meter] == {
            "requested": quantity,
            "consumed": quantity,
            "denied": 0,
            "replayed": 0,
        }
    assert stack.json("usage", "--meter", "llm.requests")["total"] == 0, "records wait"
    own_broker.start()
    assert exact(stack.json("audit"))
    for meter, quantity in asked.items():
        assert stack.json("usage", "--meter", meter)["total"] == quantity
