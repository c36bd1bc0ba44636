"""Seats that differ from their records: the leases are right, the ledger is told, and somebody can read of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import redis.asyncio as aioredis

from enforcer.adapters.meter import MeterClient
from enforcer.gateway.audits import Audits
from enforcer.ports.definitions import Caller
from enforcer.v1 import enforcer_pb2 as pb
from meter.transport.calls import Caller as Internal
from meter.transport.ledger_service import LedgerService
from meter.transport.server import Server
from tests.fixtures.meter_process import TOKEN
from tests.fixtures.service_desk import BUCKETS, TENANT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures.service_desk import Desk
    from tests.fixtures.valkey import ValkeyProcess

CATALOG = """
version: 1
features: [{key: seats}]
accounts:
  - key: acme
    entitlements: [{feature: seats, key: five, model: concurrent, seats: 5, ttl: 1h}]
"""
ADMIN = Caller(TENANT, "ann", "admin")


@asynccontextmanager
async def auditing(desk: Desk) -> AsyncIterator[Audits]:
    """Audits that ask a meter at work, over its own service."""
    rollup = desk.meter.rollup()
    server = Server(
        "127.0.0.1:0",
        LedgerService(
            desk.meter.audit(wait=30),
            desk.meter.recall(),
            desk.meter.lookup(),
            rollup,
            Internal(TOKEN),
        ),
    )
    await server.start()
    client = MeterClient(f"127.0.0.1:{server.port}", TOKEN)
    running = asyncio.create_task(rollup.run())
    try:
        yield Audits(desk.store, client, desk.definitions, BUCKETS)
    finally:
        rollup.stop()
        await running
        await client.close()
        await server.stop(0)


def noted(desk: Desk) -> list[tuple[str, str, str]]:
    """Who has reconciled which seats, as the audit trail has it."""
    return [
        (actor, kind, key.partition(": ")[2])
        for actor, action, kind, key in desk.audit_log()
        if action == "reconciled"
    ]


@pytest.fixture
async def drifting(desk: Desk, valkey: ValkeyProcess) -> Desk:
    """Three seats are taken; of two leases nothing is there any more, and no record tells of their end."""
    await desk.apply(CATALOG)
    request = pb.AcquireLeaseRequest(customer="acme", feature="seats")
    for _ in range(3):
        assert (await desk.gateway.leases.acquire(TENANT, request)).check.allowed
    async with aioredis.Redis.from_url(valkey.url) as client:
        for bucket in range(BUCKETS):
            for name in (await client.hkeys(f"{{b{bucket}}}:l"))[:2]:
                await client.hdel(f"{{b{bucket}}}:l", name)
    return desk


async def test_a_reconciliation_tells_the_ledger_of_the_seats_that_there_are(
    drifting: Desk,
) -> None:
    async with auditing(drifting) as audits:
        (drift,) = (await audits.audit()).drift
        assert (drift.counter_held, drift.ledger_held) == (1, 3)
        response = await audits.reconcile(ADMIN)
        assert list(response.drift) == [drift]
        assert not response.left
        assert not (await audits.audit()).drift
        assert not (await audits.reconcile(ADMIN)).drift
        assert noted(drifting) == [("ann", "seats", "held -2 in the ledger")]


async def test_many_that_reconcile_at_the_same_time_tell_it_once(drifting: Desk) -> None:
    async with auditing(drifting) as audits:
        await asyncio.gather(*(audits.reconcile(ADMIN) for _ in range(4)))
        assert not (await audits.audit()).drift
        assert len(noted(drifting)) == 1


async def test_the_audit_that_never_stops_does_so_by_itself(drifting: Desk) -> None:
    async with auditing(drifting) as audits:
        watching = asyncio.create_task(audits.watch(0.05, lambda _, __, ___: None, lambda _: None))
        async with asyncio.timeout(120):
            while not noted(drifting):
                assert not watching.done()
                await asyncio.wait({watching}, timeout=0.1)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert not (await audits.audit()).drift
        assert noted(drifting) == [("audit", "seats", "held -2 in the ledger")]
