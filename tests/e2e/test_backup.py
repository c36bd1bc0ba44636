"""The drill: a backup under load, a loss of everything, a restore; what was in it counts once, what it lacks is known."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import redis

from enforcer.cli.backup import copy_rollups, copy_valkey
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1 import enforcer_pb2_grpc
from meter.v1 import repair_pb2, repair_pb2_grpc, report_pb2, report_pb2_grpc
from tests.chaos.deployment import CAP, Deployment
from tests.fixtures.stack import sums, write_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.stack import Stack

LIMIT = 5
ROWS = 400
SECONDS = 12.0
"""That the load under which the backup is made takes."""


def capped(stack: Stack) -> int:
    """What is used of a hard limit."""
    (quota,) = stack.json("balance", "capped", "api.calls")["limits"]
    used: int = quota["used"]
    assert used <= LIMIT
    return used


@pytest.mark.timeout(500)
def test_what_is_restored_counts_once_and_the_rest_can_be_sent_again(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack, copy = new_stack().start(), tmp_path / "copy"
    stack.apply(
        f"""
        version: 1
        accounts:
          - key: capped
            entitlements: [{{feature: api.calls, model: quota, limit: {LIMIT}, per: total}}]
        """
    )
    traces = [
        write_trace(tmp_path / f"{seed}.csv", rows=ROWS, seed=seed, seconds=SECONDS)
        for seed in (1, 2)
    ]
    stack.json("replay", str(traces[0]))
    stack.json("check", "capped", "api.calls", "--quantity", str(LIMIT - 1))
    under_way = threading.Thread(
        target=stack.json, args=("replay", str(traces[1]), "--speed", "real")
    )
    under_way.start()
    give_up = time.monotonic() + 60
    while stack.json("usage", "--meter", "llm.requests")["total"] <= ROWS:
        assert time.monotonic() < give_up, "the second trace does not begin"
    made = stack.json("backup", str(copy))
    under_way.join()
    last = stack.json("check", "capped", "api.calls")
    assert last["allowed"]
    assert made["bytes"] > 0
    assert copy.stat().st_mode & 0o077 == 0
    told = stack.run("backup", str(copy))
    assert (told.returncode, "is there already" in told.stderr) == (2, True)
    assert stack.stop() == 0

    told = stack.run("restore", str(copy))
    assert (told.returncode, "move it away" in told.stderr) == (2, True)
    shutil.rmtree(stack.folder)
    assert stack.json("restore", str(copy))["restored"] == str(stack.folder)
    again = new_stack().start()
    again.json("audit")
    assert capped(again) == LIMIT - 1, "the last check is not in the backup"
    first = again.json("check", "capped", "api.calls")
    assert first["record"]["generation"] > last["record"]["generation"], "no number comes again"
    assert again.json("check", "capped", "api.calls", status=1)["allowed"] is False
    lacked = dict.fromkeys(sums(traces[0]), 0)
    for trace in traces:
        asked = sums(trace)
        for meter, answer in again.json("replay", str(trace)).items():
            assert answer["consumed"] == asked[meter]
            lacked[meter] += asked[meter] - answer["replayed"]
    for meter in lacked:
        total = sum(sums(trace)[meter] for trace in traces)
        assert again.json("usage", "--meter", meter)["total"] == total
    assert lacked["llm.requests"] < ROWS, "the backup was made under load"
    again.json("audit")
    assert capped(again) == LIMIT

    # A stopped folder can be copied, too; and a copy that was spoiled is not restored.
    assert again.stop() == 0
    at_rest = tmp_path / "at rest"
    again.json("backup", str(at_rest))
    (at_rest / "definitions.db").write_bytes(b"spoiled")
    told = again.run("restore", str(at_rest), "--data-dir", str(tmp_path / "new"))
    assert told.returncode == 2
    assert "definitions.db is not what was written: the backup is damaged" in told.stderr


async def test_what_a_backup_lacks_is_named_when_an_enforcer_was_answered_from_it(
    tmp_path: Path,
) -> None:
    """As in a deployment whose Redis and ClickHouse are lost, and whose enforcers and definitions are not."""
    async with Deployment(tmp_path / "gateway") as gateway:

        async def check(feature: str, quantity: int = 1) -> Any:
            request = pb.CheckRequest(
                customer="ada", feature=feature, quantity=quantity, idempotency_key=uuid4().hex
            )
            return await gateway.call(enforcer_pb2_grpc.EnforcerServiceStub, "Check", request)

        async def audit() -> report_pb2.AuditResponse:
            found: report_pb2.AuditResponse = await gateway.call(
                report_pb2_grpc.ReportServiceStub, "Audit", report_pb2.AuditRequest()
            )
            assert not found.drift
            assert (found.repeats, found.rollup_difference) == (0, 0)
            return found

        for _ in range(20):
            assert (await check("calls")).allowed
        assert (await check("capped", CAP - 10)).allowed
        await gateway.rolled_up()
        copy = tmp_path / "copy"
        copy.mkdir()
        with redis.Redis(port=gateway.valkey.port, decode_responses=True) as client:
            await asyncio.to_thread(copy_valkey, client, gateway.valkey.folder, copy / "valkey")
        assert gateway.meter.process is not None
        meter = gateway.meter.process.pid
        await asyncio.to_thread(copy_rollups, meter, gateway.meter.folder, copy)
        for _ in range(30):
            assert (await check("calls")).allowed
        last = await check("capped", 4)
        await gateway.rolled_up()

        await asyncio.to_thread(gateway.valkey.kill)
        await asyncio.to_thread(gateway.meter.kill)
        for folder in (gateway.valkey.folder, gateway.meter.folder):
            shutil.rmtree(folder)
        gateway.meter.folder.mkdir()
        shutil.copytree(copy / "valkey", gateway.valkey.folder)
        shutil.copytree(copy / "clickhouse", gateway.meter.folder / "clickhouse", symlinks=True)
        shutil.copy2(copy / "meter.db", gateway.meter.folder / "meter.db")
        await asyncio.to_thread(gateway.valkey.start)
        gateway.meter.start()
        await gateway.serving()

        first = await check("capped", 4)
        assert first.allowed, "what the backup lacks is not used"
        assert first.record.generation > last.record.generation
        assert not (await check("capped", 7)).allowed
        found = await audit()
        lost = {(gap.bucket, gap.generation): gap.last - gap.first for gap in found.gaps}
        assert lost == {(last.record.bucket, last.record.generation): 31}, found.gaps
        for gap in found.gaps:
            await gateway.call(
                repair_pb2_grpc.RepairServiceStub,
                "AcceptGap",
                repair_pb2.AcceptGapRequest(
                    bucket=gap.bucket, generation=gap.generation, first=gap.first, last=gap.last
                ),
            )
        assert not (await audit()).gaps
