"""Each fault is caused for real under load: what clients are told, what is lost, and that all adds up afterwards."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from tests.chaos import results
from tests.chaos.deployment import Deployment
from tests.chaos.faults import FAULTS, Site, suffer
from tests.chaos.matrix import kafka_settings
from tests.chaos.proxy import Proxy, to_port, to_socket
from tests.fixtures.valkey import ValkeyProcess
from tests.nursery import MEASURED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.kafka import KafkaBroker

SMALL = ("redis.killed", "redis.half_open", "redis.emptied", "sql.away")
"""What runs with all tests, for their time; `make matrix` causes every fault."""
PATIENCE = 8.0
"""Longer than the gateway waits for anything: what a client is told is its word."""


def only_in_the_matrix(test: Callable[..., object]) -> Callable[..., object] | None:
    """Not collected otherwise: a skip would be a failure where everything has to run."""
    return test if os.environ.get(MEASURED) else None


async def suffer_all(site: Site, needs: str) -> None:
    """Every fault of this kind of site, one after the other."""
    known = results.faults()
    for name, fault in FAULTS.items():
        if fault.needs != needs or not (name in SMALL or os.environ.get(MEASURED)):
            continue
        row = await suffer(site, name)
        if os.environ.get(MEASURED):
            results.keep_fault(row)
            continue
        table = known[name]
        assert (row.lost, row.repeated, row.findings) == (
            table.lost,
            table.repeated,
            table.findings,
        ), name


@pytest.mark.timeout(300)
async def test_faults_of_redis_meter_and_sqlite_do_what_the_table_says(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path / "valkey")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Proxy(to_port(valkey.port)))
        gateway = Deployment(
            tmp_path / "gateway", valkey=valkey, redis_url=f"redis://127.0.0.1:{redis.port}/0"
        )
        await stack.enter_async_context(gateway)
        clients = await stack.enter_async_context(gateway.clients(1, PATIENCE))
        await suffer_all(Site(gateway, clients, redis), "redis")


@pytest.mark.timeout(200)
async def test_a_definitions_database_that_goes_away_does_what_the_table_says(
    postgres_url: str, tmp_path: Path
) -> None:
    address, _, options = postgres_url.partition("?host=")
    valkey = ValkeyProcess(tmp_path / "valkey")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Proxy(to_port(valkey.port)))
        sql = await stack.enter_async_context(Proxy(to_socket(f"{options}/.s.PGSQL.5432")))
        name = address.rpartition("/")[2]
        gateway = Deployment(
            tmp_path / "gateway",
            valkey=valkey,
            database_url=f"postgresql+asyncpg://metergate@127.0.0.1:{sql.port}/{name}",
        )
        await stack.enter_async_context(gateway)
        clients = await stack.enter_async_context(gateway.clients(1, PATIENCE))
        await suffer_all(Site(gateway, clients, redis, sql=sql), "sql")


@only_in_the_matrix
@pytest.mark.timeout(200)
async def test_a_broker_that_goes_away_does_what_the_table_says(
    own_broker: KafkaBroker, tmp_path: Path
) -> None:
    valkey = ValkeyProcess(tmp_path / "valkey")
    options = KafkaOptions(own_broker.servers, partitions=2)
    await prepare_topics(options, create=True)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Proxy(to_port(valkey.port)))
        gateway = Deployment(tmp_path / "gateway", valkey=valkey, kafka=kafka_settings(options))
        await stack.enter_async_context(gateway)
        clients = await stack.enter_async_context(gateway.clients(1, PATIENCE))
        await suffer_all(Site(gateway, clients, redis, kafka=own_broker), "kafka")


@only_in_the_matrix
@pytest.mark.timeout(200)
async def test_an_enforcer_whose_clock_is_wrong_does_what_the_table_says(tmp_path: Path) -> None:
    valkey = ValkeyProcess(tmp_path / "valkey")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Proxy(to_port(valkey.port)))
        gateway = Deployment(tmp_path / "gateway", valkey=valkey)
        await stack.enter_async_context(gateway)
        clients = await stack.enter_async_context(gateway.clients(1, PATIENCE))
        await suffer_all(Site(gateway, clients, redis), "clock")


def test_every_fault_has_its_row_in_the_table() -> None:
    known = results.faults()
    assert set(known) == set(FAULTS)
    for name, row in known.items():
        assert row.words == FAULTS[name].words
        assert (row.lost, row.repeated) == (0, 0), name
