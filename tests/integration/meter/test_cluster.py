"""Outboxes in a real cluster: read where they are, while slots move and nodes are away."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from meter.adapters.log.cluster import ClusterOutboxLog, outbox_log
from meter.core.keys import outbox
from meter.core.sequence import START, Position
from meter.errors import LogUnavailableError
from meter.metrics import RelayMetrics
from meter.relay import Relay, RelayOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from meter.core.sequence import Entry
    from tests.fixtures.valkey_cluster import ValkeyCluster

BUCKETS = range(12)
BEGINNING = dict.fromkeys(BUCKETS, START)


@asynccontextmanager
async def log_of(cluster: ValkeyCluster, member: str = "") -> AsyncIterator[ClusterOutboxLog]:
    log = outbox_log(cluster.url, BUCKETS, member)
    assert isinstance(log, ClusterOutboxLog)
    try:
        yield log
    finally:
        await log.close()


def add(cluster: ValkeyCluster, bucket: int, count: int = 1) -> None:
    for _ in range(count):
        cluster.call(bucket, "XADD", outbox(bucket), "1-*", "b", "body", "e", "effects")


async def test_every_bucket_is_read_from_its_node_waited_for_and_trimmed(
    cluster: ValkeyCluster,
) -> None:
    for bucket in BUCKETS:
        add(cluster, bucket, 1 + bucket)
    async with log_of(cluster) as log:
        now = time.time() * 1000
        assert await log.backlog() == sum(1 + bucket for bucket in BUCKETS)
        batch = await log.read(BEGINNING, 10_000, 1_000)
        assert {one: len(found) for one, found in batch.entries.items()} == {
            bucket: 1 + bucket for bucket in BUCKETS
        }
        assert batch.entries[3][2] == (1, 2, b"body", b"effects")
        assert batch.fresh.keys() == set(BUCKETS)
        assert all(now - 1_000 < at < now + 5_000 for at in batch.fresh.values())
        assert not batch.more
        part = await log.read(BEGINNING, 12, 1_000)
        assert part.more
        assert {len(found) for found in part.entries.values()} == {1}

        places = {one: found[-1].position for one, found in batch.entries.items()}
        await log.commit(places)
        assert await log.backlog() == 0
        waiting = asyncio.create_task(log.read(places, 100, 10_000))
        await asyncio.sleep(0.15)
        add(cluster, 5)
        batch = await waiting
        assert [one.position for one in batch.entries[5]] == [Position(1, 6)]
        assert (await log.read({5: Position(1, 6)}, 100, 1)).entries == {}


async def test_reading_follows_a_bucket_that_moves(cluster: ValkeyCluster) -> None:
    async with log_of(cluster) as log:
        add(cluster, 0, 2)
        assert len((await log.read(BEGINNING, 100, 1_000)).entries[0]) == 2
        held_up: list[bool] = []

        async def when_gone() -> None:
            # Its outbox is at the target, which does not have the slot yet.
            batch = await log.read({0: Position(1, 1), 1: START}, 100, 100)
            held_up.append(0 not in batch.fresh and 1 in batch.fresh)

        loop = asyncio.get_running_loop()

        def between() -> None:
            asyncio.run_coroutine_threadsafe(when_gone(), loop).result(20)

        await asyncio.to_thread(cluster.move_by_key, 0, cluster.another(0), after=between)
        assert held_up == [True]
        add(cluster, 0)
        batch = await log.read({0: Position(1, 1)}, 100, 5_000)
        assert [one.position for one in batch.entries[0]] == [Position(1, 2)]
        await log.commit({0: Position(1, 2)})
        assert cluster.call(0, "XLEN", outbox(0)) == 0


async def test_a_node_that_is_away_holds_up_no_other(cluster: ValkeyCluster) -> None:
    async with log_of(cluster) as log:
        await log.read(BEGINNING, 100, 1)
        dead = cluster.primary_of(0)
        theirs = {one for one in BUCKETS if cluster.primary_of(one) is dead}
        gone = [dead, *cluster.replicas_of(dead)]
        for bucket in BUCKETS:
            add(cluster, bucket)
        for server in gone:
            server.kill()
        try:
            batch = await log.read(BEGINNING, 100, 100)
            assert batch.entries.keys() == batch.fresh.keys() == set(BUCKETS) - theirs
            await log.commit(dict.fromkeys(BUCKETS, Position(1, 0)))
            assert await log.backlog() == 0
            with pytest.raises(LogUnavailableError, match="reading the outboxes failed"):
                await log.read(dict.fromkeys(theirs, START), 100, 1)
        finally:
            await asyncio.to_thread(cluster.whole)
        async with asyncio.timeout(20):
            while theirs - (await log.read(BEGINNING, 100, 1)).fresh.keys():
                pass
        assert await log.backlog() == 0, "what could not be trimmed then is now"


async def test_relays_deal_the_buckets_among_themselves(cluster: ValkeyCluster) -> None:
    async with log_of(cluster, "one") as one:
        assert await one.assigned() == set(BUCKETS)
        async with log_of(cluster, "other") as other:
            theirs = await other.assigned()
            assert 0 < len(theirs) < len(BUCKETS)
            assert await one.assigned() == set(BUCKETS) - theirs
        assert await one.assigned() == set(BUCKETS)


class Taken:
    """What a relay has published, by bucket."""

    def __init__(self) -> None:
        self.places: dict[int, list[Position]] = {bucket: [] for bucket in BUCKETS}

    async def publish(
        self, entries: Mapping[int, Sequence[Entry]], fresh: Mapping[int, int]
    ) -> None:
        for bucket, found in entries.items():
            self.places[bucket] += [one.position for one in found]


async def test_a_relay_takes_every_record_in_order_while_slots_move(cluster: ValkeyCluster) -> None:
    taken = Taken()
    async with log_of(cluster, "relay") as log:
        relay = Relay(log, taken, RelayMetrics(CollectorRegistry()), RelayOptions(idle_wait=0.02))
        running = asyncio.create_task(relay.run())
        for number in range(4):
            for bucket in BUCKETS:
                await asyncio.to_thread(add, cluster, bucket)
            move = cluster.move if number % 2 else cluster.move_all_by_key
            await asyncio.to_thread(move, [0, 1], cluster.another(0))
        async with asyncio.timeout(20):
            while any(cluster.call(bucket, "XLEN", outbox(bucket)) for bucket in BUCKETS):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        relay.stop()
        await running
    for bucket in BUCKETS:
        assert sorted(set(taken.places[bucket])) == [Position(1, number) for number in range(4)]
        # What was sent again after an interruption begins with what was not trimmed.
        for before, after in pairwise(taken.places[bucket]):
            assert after.sequence <= before.sequence + 1
