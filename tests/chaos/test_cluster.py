"""A deployment on a Redis Cluster under load: slots move, a primary dies, and books and audit agree to the record."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.chaos.deployment import BUCKETS, Deployment
from tests.fixtures.valkey_cluster import ValkeyCluster

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 8.0
"""Longer than the gateway waits for anything: what a client is told is its word."""
TOLD = {
    "UNAVAILABLE STORE_UNAVAILABLE",
    "UNAVAILABLE COUNTERS_REBUILDING",
    "UNAVAILABLE OUTCOME_UNKNOWN",
}


@pytest.mark.timeout(200)
async def test_slots_that_move_and_a_primary_that_dies_cost_retries_and_nothing_else(
    tmp_path: Path,
) -> None:
    cluster = ValkeyCluster(tmp_path / "cluster")
    async with Deployment(tmp_path / "gateway", valkey=cluster) as gateway:
        async with gateway.clients(1, PATIENCE) as clients:
            await clients.wait_for_answers(50)
            clients.begin()
            for _ in range(2):
                for bucket in range(BUCKETS):
                    target = cluster.another(bucket)
                    await asyncio.to_thread(cluster.move, [bucket], target)
                    await clients.wait_for_answers(50)
            await asyncio.to_thread(cluster.move_by_key, 0, cluster.another(0))
            await clients.quiet(1.0)
            moved, waited = Counter(clients.failures), clients.longest
            verdict = await gateway.judge(clients)
            assert verdict.exact, verdict
            clients.begin()
            await asyncio.to_thread(cluster.fail_over, 0)
            await clients.quiet(1.0)
            failed_over, longest = Counter(clients.failures), clients.longest
            verdict = await gateway.judge(clients)
        print(f"\nmoved: {dict(moved)}, {waited:.2f} s")  # noqa: T201
        print(f"failed over: {dict(failed_over)}, {longest:.2f} s; {verdict.records} records")  # noqa: T201
        assert moved.keys() <= TOLD
        assert failed_over.keys() <= TOLD
        assert verdict.exact, verdict
