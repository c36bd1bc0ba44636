"""Every process is restarted in its turn while clients ask: no check fails, and all adds up."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import grpc.aio
import pytest

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.client import Client, Options
from enforcer.transport.envoy import obstacle
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1 import enforcer_pb2_grpc
from meter.v1 import report_pb2, report_pb2_grpc
from tests.chaos.deployment import Deployment
from tests.chaos.matrix import kafka_settings
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from meter.adapters.kafka.client import KafkaOptions
    from tests.fixtures.enforcer_process import EnforcerProcess
    from tests.fixtures.meter_process import MeterProcess

BARE, WITH_CLIENT = 6, 6
"""Askers over plain gRPC channels, which repeat nothing, and over the Python client."""
THINK: Final = 0.05
BETWEEN: Final = 0.5
"""Seconds of load between two restarts."""
STOP_WITHIN: Final = 20.0
LONGEST: Final = 2.0
"""Seconds that any check may take while processes other than the store are restarted; a busy machine takes 0.3."""
PATIENCE: Final = 20.0
"""Seconds that calls wait for Redis and their answers."""


class Load:
    """Checks without end, and what became of them."""

    def __init__(self, gateway: Deployment) -> None:
        self._gateway = gateway
        self._listen = gateway.enforcers[0].listen
        self.granted = 0
        self.failures: list[str] = []
        self.longest = 0.0
        self._over = False

    async def bare(self) -> None:
        """Each asker has a connection of its own: the kernel deals connections to the processes of one port."""
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._listen, options=options) as channel:
            stub: Any = enforcer_pb2_grpc.EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            metadata = (("authorization", f"Bearer {self._gateway.key}"),)
            while not self._over:
                request = pb.CheckRequest(
                    customer="ada", feature="calls", idempotency_key=uuid4().hex
                )
                began = time.monotonic()
                try:
                    answer = await stub.Check(request, metadata=metadata, timeout=PATIENCE)
                except grpc.aio.AioRpcError as error:
                    self.failures.append(f"bare: {error.code().name} {error.details()}")
                else:
                    self._took(began, answer.allowed)
                await asyncio.sleep(THINK)

    async def with_client(self, client: Client) -> None:
        while not self._over:
            began = time.monotonic()
            try:
                answer = await client.check("ada", "calls")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed check
                self.failures.append(f"client: {error!r}")
            else:
                self._took(began, answer.allowed)
            await asyncio.sleep(THINK)

    def _took(self, began: float, allowed: bool) -> None:
        assert allowed
        self.granted += 1
        self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> None:
        self._over = True


async def ready(url: str, process: MeterProcess | EnforcerProcess) -> None:
    """Wait until its own probe says so."""

    def asks() -> bool:
        try:
            with urllib.request.urlopen(f"http://{url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    give_up = time.monotonic() + 60
    while not await asyncio.to_thread(asks):
        assert process.process is not None
        assert process.process.poll() is None, process.log[-3000:]
        assert time.monotonic() < give_up, process.log[-3000:]
        await asyncio.sleep(0.05)


@pytest.mark.timeout(200)
async def test_a_rolling_restart_under_load_fails_no_check(tmp_path: Path) -> None:
    if missing := obstacle():
        pytest.skip(missing)
    await restart_all(tmp_path, "envoy", {})


@pytest.mark.timeout(200)
async def test_nor_does_one_with_a_relay(kafka: KafkaOptions, tmp_path: Path) -> None:
    await restart_all(tmp_path, "grpcio", kafka_settings(kafka))


async def restart_all(folder: Path, transport: str, kafka: dict[str, str]) -> None:
    """Restart meter, relay and each enforcer under load."""
    port = free_port()
    gateway = Deployment(
        folder,
        kafka=kafka,
        METERGATE_TRANSPORT=transport,
        METERGATE_LISTEN=f"127.0.0.1:{port}",
        METERGATE_STORE_PATIENCE_SECONDS=str(PATIENCE),
    )
    probes: dict[int, str] = {}
    for process in gateway.processes:
        probes[id(process)] = listen = f"127.0.0.1:{free_port()}"
        process.environment["METERGATE_HTTP_LISTEN"] = listen
        process.environment["METERGATE_METER_METRICS_LISTEN"] = listen
    for enforcer in gateway.enforcers:
        enforcer.listen = f"127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gateway)
        for process in gateway.processes:
            await ready(probes[id(process)], process)
        client = await stack.enter_async_context(
            Client(f"127.0.0.1:{port}", gateway.key, options=Options(timeout=PATIENCE))
        )
        load = Load(gateway)
        asking = [asyncio.create_task(load.bare()) for _ in range(BARE)]
        asking += [asyncio.create_task(load.with_client(client)) for _ in range(WITH_CLIENT)]
        for process in gateway.processes:
            granted = load.granted
            began = time.monotonic()
            status = await asyncio.to_thread(process.end)
            took = time.monotonic() - began
            sys.stdout.write(f"{process.__class__.__name__} ended within {took:.1f} s\n")
            assert (status, took < STOP_WITHIN) == (0, True), process.log[-3000:]
            process.start()
            await ready(probes[id(process)], process)
            await asyncio.sleep(BETWEEN)  # of load, not a wait
            assert load.granted > granted, "checks go on"
        assert load.longest < LONGEST
        # The counters, too: checks wait for them.
        granted = load.granted
        await asyncio.to_thread(gateway.valkey.stop)
        await asyncio.to_thread(gateway.valkey.start)
        give_up = time.monotonic() + PATIENCE
        while load.granted < granted + 2 * len(asking):
            assert time.monotonic() < give_up, load.failures
            await asyncio.sleep(0.02)
        load.end()
        await asyncio.gather(*asking)
        assert load.failures == []
        await adds_up(gateway, load.granted)


async def adds_up(gateway: Deployment, granted: int) -> None:
    """Reports, counters and records agree with what the askers were told."""
    reports = report_pb2_grpc.ReportServiceStub
    found = await gateway.call(reports, "Audit", report_pb2.AuditRequest())
    assert not found.gaps
    assert not found.drift
    assert found.rollup_difference == 0
    if not gateway.kafka:  # a relay may send a record twice: it is counted once
        assert found.repeats == 0
    asked = report_pb2.QueryUsageRequest(meter="calls", customers=["ada"])
    usage = await gateway.call(reports, "QueryUsage", asked)
    assert usage.total == granted
