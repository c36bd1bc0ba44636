"""A gateway of single processes, each to be killed, stopped and started alone, and the judge over its totals."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import grpc.aio
import psutil

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1 import catalog_pb2, catalog_pb2_grpc, enforcer_pb2_grpc
from enforcer.v1 import enforcer_pb2 as pb
from meter.crash import SETTING
from meter.v1 import report_pb2, report_pb2_grpc
from tests.chaos.clients import CUSTOMERS, Clients
from tests.fixtures.enforcer_process import EnforcerProcess
from tests.fixtures.meter_process import TOKEN, MeterProcess
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.fixtures.valkey_cluster import ValkeyCluster

__all__ = ["Deployment", "Verdict"]

BUCKETS: Final = 2
CAP: Final = 4_000
CATALOG: Final = """
version: 1
features:
  - {{key: calls}}
  - {{key: capped}}
  - {{key: gauge, meter: max}}
  - {{key: loose}}
  - {{key: held}}
  - {{key: blocks}}
  - {{key: changing}}
  - {{key: seats}}
  - {{key: voided}}
  - {{key: open, on_outage: fail_open, emergency: 1_000_000_000}}
plans:
  - key: all
    items:
      - {{feature: calls, model: payg, per: month}}
      - {{feature: gauge, model: payg, per: month}}
      - {{feature: loose, model: payg, per: month}}
      - {{feature: open, model: payg, per: month}}
      - {{feature: voided, model: payg, per: month}}
      - {{feature: seats, model: concurrent, seats: 1_000, mode: floating, ttl: 10s}}
      - {{feature: capped, model: quota, limit: {cap}, per: total}}
      - {{feature: held, model: quota, limit: 1_000_000_000, per: total}}
      - {{feature: blocks, model: quota, limit: 1_000_000_000, per: total}}
accounts:
  - key: ada
    subscriptions: [{{plan: all}}]
    entitlements: [{{feature: changing, model: quota, limit: {limit}, per: total}}]
  - key: bob
    subscriptions: [{{plan: all}}]
"""
CRASH_SECONDS: Final = 120.0
AGREE_SECONDS: Final = 120.0
SETTLE_SECONDS: Final = 60.0
LATEST: Final = 300


@dataclass
class Verdict:
    """What the gateway holds against what clients saw: all but `records` should be 0 or empty."""

    records: int = 0
    lost: int = 0
    repeated: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Nothing lost, nothing twice, nothing that an audit finds."""
        return not (self.lost or self.repeated or self.findings)


class Deployment:
    """Valkey, a meter, two enforcers, and with `kafka` (settings) a relay; all in `folder`.

    `names` of the enforcers, one letter each; `more` of their settings.
    `redis_url` and `database_url`: where the processes find them, if not directly.
    `port`: where all enforcers listen; without it each has its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka: Mapping[str, str] | None = None,
        valkey: ValkeyProcess | ValkeyCluster | None = None,
        redis_url: str = "",
        database_url: str = "",
        names: str = "ab",
        port: int = 0,
        **more: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.kafka = dict(kafka or {})
        # A cluster only has what is needed here.
        self.valkey: Any = valkey or ValkeyProcess(folder / "valkey")
        url = redis_url or self.valkey.url
        self.database_url = database_url or f"sqlite+aiosqlite:///{folder / 'definitions.db'}"
        self.meter = MeterProcess(folder / "meter", url, **self.kafka)
        relay = {"METERGATE_METER_ROLES": '["relay"]'}
        self.relay = MeterProcess(folder / "relay", url, **relay, **self.kafka)
        marks = f"sqlite+aiosqlite:///{folder / 'meter' / 'meter.db'}"
        settings = {
            "METERGATE_REDIS_URL": url,
            "METERGATE_DATABASE_URL": self.database_url,
            "METERGATE_BUCKETS": str(BUCKETS),
            "METERGATE_INTERNAL_TOKEN": TOKEN,
            "METERGATE_JOURNAL_DIR": str(folder / "journal"),
            "METERGATE_MOST_ENFORCERS": "2",
            "METERGATE_METER_ENDPOINT": self.meter.listen,
            "METERGATE_METER_DATABASE_URL": "" if self.kafka else marks,
            **more,
        }
        self.enforcers = [
            EnforcerProcess(folder / f"enforcer-{name}.log", **settings) for name in names
        ]
        self.settings = settings
        if port:
            self._share(port)
        self.key = ""
        self._stack = AsyncExitStack()
        self._channels: list[grpc.aio.Channel] = []
        self.limit = 0

    async def __aenter__(self) -> Self:
        definitions = SqlDefinitions(self.database_url, BUCKETS)
        await definitions.migrate()
        await definitions.ensure_tenant("demo")
        self.key = await definitions.create_api_key("demo", "admin")
        await definitions.close()
        await asyncio.to_thread(self.valkey.start)
        for process in self.processes:
            process.start()
        try:
            await self.serving()
            for enforcer in self.enforcers:
                channel = grpc.aio.insecure_channel(enforcer.listen, options=CHANNEL_OPTIONS)
                self._channels.append(await self._stack.enter_async_context(channel))
            await self.change()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._end()

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        self.valkey.kill()

    @property
    def processes(self) -> list[MeterProcess | EnforcerProcess]:
        """All of ours, in the order of their start."""
        relay = [self.relay] if self.kafka else []
        return [self.meter, *relay, *self.enforcers]

    def _share(self, port: int) -> None:
        """Have all enforcers at one port: by their own probes they are told apart."""
        for enforcer in self.enforcers:
            enforcer.listen = f"127.0.0.1:{port}"
            enforcer.environment["METERGATE_LISTEN"] = enforcer.listen
            enforcer.environment["METERGATE_HTTP_LISTEN"] = f"127.0.0.1:{free_port()}"

    async def serving(self) -> None:
        """Wait until everything serves."""
        for process in self.processes:
            await self.serves(process)

    @staticmethod
    async def serves(process: MeterProcess | EnforcerProcess) -> None:
        """Wait until this very process does, whoever else listens at its port."""
        if isinstance(process, MeterProcess):
            async with process.channel():
                return
        await process.serving()
        if not (listen := process.environment["METERGATE_HTTP_LISTEN"]):
            return

        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://{listen}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        give_up = time.monotonic() + SETTLE_SECONDS
        while not await asyncio.to_thread(ready):
            assert process.process is not None, "it was ended meanwhile"
            assert process.process.poll() is None, process.log
            assert time.monotonic() < give_up, process.log
            await asyncio.sleep(0.05)

    def clients(self, seed: int, patience: float = 1.5) -> Clients:
        """Clients of both enforcers."""
        return Clients([one.listen for one in self.enforcers], self.key, seed, patience)

    async def restart(self, process: MeterProcess | EnforcerProcess, plan: str = "") -> None:
        """Kill it if it lives, and start it with a plan to crash or none."""
        await asyncio.to_thread(process.end, signal.SIGKILL)
        process.start(**({SETTING: plan} if plan else {}))

    async def all_up(self, but: MeterProcess | EnforcerProcess | None = None) -> None:
        """Start whatever is dead, without plans, and wait until it serves."""
        for process in self.processes:
            if process is but or (process.process is not None and process.process.poll() is None):
                continue
            process.start()
            await self.serves(process)

    async def ended(self, process: MeterProcess | EnforcerProcess) -> None:
        """Wait until it has died by its plan."""
        give_up = time.monotonic() + CRASH_SECONDS
        assert process.process is not None
        while process.process.poll() is None:
            assert time.monotonic() < give_up, f"it did not crash: {process.log[-3000:]}"
            await asyncio.sleep(0.01)
        assert process.process.returncode == -signal.SIGKILL, process.log[-3000:]

    async def stopped(self, process: MeterProcess | EnforcerProcess) -> None:
        """Wait until it stands still by its plan."""
        give_up = time.monotonic() + CRASH_SECONDS
        assert process.process is not None
        while psutil.Process(process.process.pid).status() != psutil.STATUS_STOPPED:
            assert process.process.poll() is None, process.log[-3000:]
            assert time.monotonic() < give_up, f"it did not stop: {process.log[-3000:]}"
            await asyncio.sleep(0.01)

    @staticmethod
    def go_on(process: MeterProcess | EnforcerProcess) -> None:
        """Continue one that stands still."""
        assert process.process is not None
        os.kill(process.process.pid, signal.SIGCONT)

    async def rolled_up(self) -> None:
        """Wait until the outboxes are empty: everything is in the rollups, or in Kafka."""
        give_up = time.monotonic() + AGREE_SECONDS
        async with self._redis() as client:
            while any([await client.xlen(f"{{b{bucket}}}:o") for bucket in range(BUCKETS)]):
                assert time.monotonic() < give_up, self.meter.log[-3000:]
                await asyncio.sleep(0.02)

    def _redis(self) -> Any:
        import redis.asyncio as aioredis  # noqa: PLC0415

        return aioredis.Redis.from_url(self.valkey.url)

    async def flush_all(self) -> None:
        """Empty the server."""
        async with self._redis() as client:
            await client.flushall()

    # -- calls of an operator

    async def call(
        self, stub: Any, method: str, request: Any, *, at: int = 0, once: bool = False
    ) -> Any:
        """Call an enforcer until it answers; `once`: raise the first failure."""
        give_up = time.monotonic() + AGREE_SECONDS
        metadata = (("authorization", f"Bearer {self.key}"),)
        while True:
            try:
                return await getattr(stub(self._channels[at]), method)(
                    request, timeout=40, metadata=metadata
                )
            except grpc.aio.AioRpcError as error:
                away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)
                if once or not away or time.monotonic() > give_up:
                    raise
            await asyncio.sleep(0.1)

    async def apply(self, text: str, *, at: int = 0, once: bool = False) -> None:
        """Declare a catalog at an enforcer."""
        request = catalog_pb2.ApplyRequest(document=text, file_name="catalog.yaml")
        await self.call(catalog_pb2_grpc.CatalogServiceStub, "Apply", request, at=at, once=once)

    async def change(self, *, crash: bool = False, at: int = 0, once: bool = False) -> None:
        """Raise a limit; with `crash` the enforcer is going to die in the middle of it."""
        self.limit += 1
        text = CATALOG.format(cap=CAP, limit=self.limit)
        if crash:
            with suppress(grpc.aio.AioRpcError):
                await self.apply(text, once=True)
        else:
            await self.apply(text, at=at, once=once)

    # -- the judge

    async def judge(self, clients: Clients) -> Verdict:
        """Hold what clients saw against records, rollups, reports and counters. Clients pause meanwhile."""
        await self.all_up()
        await clients.pause()
        give_up = time.monotonic() + SETTLE_SECONDS
        # Journals are counted, and changes that were cut off are finished, some seconds later.
        verdict = await self._verdict(clients)
        while not verdict.exact and time.monotonic() < give_up:
            await asyncio.sleep(0.5)
            verdict = await self._verdict(clients)
        clients.go_on()
        return verdict

    async def _verdict(self, clients: Clients) -> Verdict:
        verdict = Verdict()
        await self._usage(clients, verdict)
        await self._audit(verdict)
        await self._counters(clients, verdict)
        verdict.findings += (await clients.ask_again(LATEST))[:10]
        return verdict

    async def _audit(self, verdict: Verdict) -> None:
        found = await self.call(
            report_pb2_grpc.ReportServiceStub, "Audit", report_pb2.AuditRequest(), at=1
        )
        verdict.records = found.records
        verdict.findings += [f"gap: {gap}" for gap in found.gaps]
        verdict.findings += [f"drift: {drift}" for drift in found.drift]
        if found.rollup_difference:
            verdict.findings.append(f"rollups differ by {found.rollup_difference}")
        if found.repeats and not self.kafka:  # a relay may send twice: counted once
            verdict.findings.append(f"{found.repeats} records were read twice from one outbox")

    async def _usage(self, clients: Clients, verdict: Verdict) -> None:
        now_ms = int(time.time() * 1000)
        for (customer, feature), saw in clients.saw.items():
            request = report_pb2.QueryUsageRequest(meter=feature, customers=[customer])
            give_up = time.monotonic() + AGREE_SECONDS
            while True:
                found = await self.call(
                    report_pb2_grpc.ReportServiceStub, "QueryUsage", request, at=1
                )
                if found.fresh_until.ToMilliseconds() > now_ms:
                    break
                assert time.monotonic() < give_up, self.meter.log[-3000:]
                await asyncio.sleep(0.1)
            events = sum(row.events for row in found.rows)
            quantity = sum(row.quantity for row in found.rows)
            unaccounted = sum(row.unaccounted_quantity for row in found.rows)
            if unaccounted > saw.out:
                verdict.findings.append(
                    f"{customer} {feature}: {unaccounted} unaccounted, {saw.out} were not returned"
                )
            told = len(saw.records) + saw.degraded
            if twice := len(saw.records) - len(set(saw.records)):
                verdict.findings.append(f"{customer} {feature}: {twice} records were told twice")
            verdict.lost += max(0, told - events)
            verdict.repeated += max(0, events - told - saw.unknown)
            if not saw.granted <= quantity <= saw.granted + saw.unknown_quantity:
                verdict.findings.append(
                    f"{customer} {feature}: reported {quantity}, told {saw.granted} "
                    f"and perhaps {saw.unknown_quantity} more"
                )

    async def _counters(self, clients: Clients, verdict: Verdict) -> None:
        for customer in CUSTOMERS:
            for feature in ("capped", "held"):
                shown = await self._balance(customer, feature)
                granted = clients.saw[customer, feature].granted
                if (shown.used, shown.held) != (granted, 0):
                    verdict.findings.append(
                        f"{customer} {feature}: the counter shows {shown.used} used and "
                        f"{shown.held} held, {granted} were granted"
                    )
                if feature == "capped" and shown.used > CAP:
                    verdict.findings.append(f"{customer}: a hard limit of {CAP} was passed")
            # Blocks of clients that are gone are held until they are given up, and count as used since.
            shown, saw = await self._balance(customer, "blocks"), clients.saw[customer, "blocks"]
            if shown.used < saw.granted or shown.used + shown.held != saw.granted + saw.out:
                verdict.findings.append(
                    f"{customer} blocks: the counter shows {shown.used} used and {shown.held} held, "
                    f"{saw.granted} were used and {saw.out} not returned"
                )
        shown = await self._balance("ada", "changing")
        if shown.limit != self.limit:
            verdict.findings.append(f"a change does not count: {shown.limit}, not {self.limit}")

    async def _balance(self, customer: str, feature: str) -> pb.Limit:
        request = pb.GetBalanceRequest(customer=customer, feature=feature)
        response = await self.call(
            enforcer_pb2_grpc.EnforcerServiceStub, "GetBalance", request, at=1
        )
        limit: pb.Limit = response.limits[0]
        return limit
