"""A deployment on a Redis Cluster under load: slots move, a primary dies, and books and audit agree to the record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.chaos.deployment import BUCKETS, Deployment
from tests.fixtures.valkey_cluster import PASSWORD, ValkeyCluster

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 8.0
"""Longer than the gateway waits for anything: what a client is told is its word."""
AGAIN = {
    "UNAVAILABLE STORE_UNAVAILABLE",
    "UNAVAILABLE COUNTERS_REBUILDING",
    "UNAVAILABLE OUTCOME_UNKNOWN",
}
"""What clients ask again after, with the same key."""


@pytest.mark.timeout(200)
async def test_slots_that_move_and_a_primary_that_dies_cost_retries_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ValkeyCluster(tmp_path / "cluster")
    told: list[str] = []
    async with (
        Deployment(tmp_path / "gateway", valkey=cluster) as gateway,
        gateway.clients(1, PATIENCE) as clients,
    ):

        async def costs(what: str) -> None:
            await clients.quiet(1.0)
            failures, longest = dict(clients.failures), clients.longest
            told.append(f"{what}: {failures or 'no failure'}, longest wait {longest:.2f} s")
            assert failures.keys() <= AGAIN
            clients.begin()

        await clients.wait_for_answers(50)
        clients.begin()
        for bucket in range(BUCKETS):
            await asyncio.to_thread(cluster.move, [bucket], cluster.another(bucket))
            await clients.wait_for_answers(50)
        await costs("moved at once")
        await asyncio.to_thread(cluster.move_by_key, 0, cluster.another(0))
        await costs("moved key by key")
        await asyncio.to_thread(cluster.fail_over, 0)
        await costs("failed over")
        verdict = await gateway.judge(clients)
        for process in gateway.processes:
            assert PASSWORD not in process.log
    with capsys.disabled():
        print("", *told, f"{verdict.records} records", sep="\n")  # noqa: T201
    assert verdict.exact, verdict
