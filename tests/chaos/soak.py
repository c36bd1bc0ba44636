"""Mixed load with a random fault again and again, and the judgement over all of it: `make soak`.

    python -m tests.chaos.soak --minutes 30 --every 20 --seed 1 --path kafka

Each fault is drawn from a bag that is filled anew when it is empty, so that in half an hour each of them comes several
times, in an order that the seed decides. What the clients send is dealt by the same seed; how their calls fall between the
steps of the processes is not in anybody's hand. Exit status 1 when anything is lost, repeated, past a limit or not as an
audit wants it: then the data and logs are kept, and the line that runs it again is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import grpc.aio
import psutil

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.transport.envoy import obstacle
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1 import enforcer_pb2_grpc
from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from meter.core.records import decode_body, decode_effects
from meter.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2, report_pb2_grpc
from tests.chaos import load
from tests.chaos.books import Kind, Reading, differences
from tests.chaos.clients import CUSTOMERS
from tests.chaos.crashes import PATHS
from tests.chaos.deployment import BUCKETS, Deployment
from tests.chaos.faults import FAULTS, LASTS, Fault, Site, failover, settle_changes, watched
from tests.chaos.load import Load
from tests.chaos.matrix import kafka_settings
from tests.chaos.proxy import Proxy, to_port, to_socket
from tests.fixtures import postgres
from tests.fixtures.kafka import KafkaBroker, why_no_kafka
from tests.fixtures.meter_process import metadata
from tests.fixtures.valkey import ValkeyProcess
from tests.nursery import MEASURED
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from tests.chaos.books import Pair
    from tests.chaos.results import Faults
    from tests.fixtures.enforcer_process import EnforcerProcess
    from tests.fixtures.meter_process import MeterProcess

__all__ = ["Outcome", "Plan", "faults_of", "missing", "soak"]

CONNECTIONS: Final = 8
"""To one port, where the kernel deals them to the processes."""
PATIENCE: Final = 5.0
JUDGED: Final = 10
"""After so many faults the load pauses, and the customers without reachable limits are judged to the unit."""
AGREE_SECONDS: Final = 120.0
SERVED_SECONDS: Final = 300.0
"""A Redis that was emptied is made again from the records, and the longer the load has lasted the more they are."""
END_SECONDS: Final = 5.0
AT_ONCE: Final = 4_000
SHOWN: Final = 50
COUNTING: Final = (
    *(pb.LIMIT_KIND_QUOTA, pb.LIMIT_KIND_CREDITS, pb.LIMIT_KIND_SEATS),
    *(pb.LIMIT_KIND_OVERAGE, pb.LIMIT_KIND_OVERDRAFT),
)
"""Limits that count units up to a bound."""


@dataclass(frozen=True)
class Plan:
    """What is run. `only`: these faults alone; `whole`: one of the enforcers is behind Envoy, and clocks go wrong."""

    path: str = "embedded"
    minutes: float = 30.0
    every: float = 20.0
    seed: int = 1
    only: Sequence[str] = ()
    whole: bool = True

    @property
    def turns(self) -> int:
        """How many faults at most."""
        return max(1, int(self.minutes * 60 / self.every))

    def command(self) -> str:
        """The line that runs it again."""
        return (
            f"make soak MINUTES={self.minutes:g} EVERY={self.every:g} SEED={self.seed} "
            f"WAY={self.path}"
        )


@dataclass
class Outcome:
    """What came of it. All is well when `findings` is empty."""

    plan: Plan
    seconds: float = 0.0
    faults: list[Faults] = field(default_factory=list)
    decisions: dict[str, int] = field(default_factory=dict)
    allowed: int = 0
    denied: int = 0
    unknown: int = 0
    unknown_counted: int = 0
    records: int = 0
    generations: int = 0
    audits: int = 0
    caps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By feature: how many were used to the last unit, of how many."""
    peak_mb: int = 0
    findings: list[str] = field(default_factory=list)

    def table(self) -> Iterator[str]:
        """For a terminal and for Markdown."""
        yield "| fault | times | checks failed meanwhile | longest wait | served again after |"
        yield "|---|--:|---|--:|--:|"
        names = sorted({one.name for one in self.faults})
        for name in names:
            rows = [one for one in self.faults if one.name == name]
            failed: Counter[str] = Counter()
            for row in rows:
                failed.update(row.checks)
            told = ", ".join(f"{count} `{reason}`" for reason, count in sorted(failed.items()))
            yield (
                f"| `{name}`: {rows[0].words} | {len(rows)} | {told or 'none'} | "
                f"{max(row.longest_wait for row in rows):.1f} s | "
                f"{max(row.recovery for row in rows):.1f} s |"
            )

    def summary(self) -> Iterator[str]:
        """In lines."""
        full = ", ".join(f"{of}: {some} of {all_}" for of, (some, all_) in self.caps.items())
        many = ", ".join(f"{count:,} {what}" for what, count in sorted(self.decisions.items()))
        yield (
            f"{self.seconds / 60:.1f} minutes, {len(self.faults)} faults of "
            f"{len({one.name for one in self.faults})} kinds, seed {self.plan.seed}, path "
            f"{self.plan.path}; {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{datetime.now(UTC):%Y-%m-%d}"
        )
        yield f"asked: {many}"
        yield (
            f"keys: {self.allowed:,} told allowed, {self.denied:,} told denied, {self.unknown:,} without an "
            f"answer, of which {self.unknown_counted:,} have a record"
        )
        yield f"limits used to their last unit: {full}"
        yield (
            f"records: {self.records:,} in {self.generations} generations; {self.audits} audits; "
            f"all processes together had at most {self.peak_mb:,} MB"
        )
        yield f"violations: {len(self.findings) or 'none'}"
        yield from (f"  {finding}" for finding in self.findings[:SHOWN])


# -- where it runs


def missing(path: str) -> str:
    """Why this way of the records cannot be run here, or nothing."""
    if path == "embedded":
        return ""
    if postgres.binaries() is None:
        return "no PostgreSQL here: install postgresql, or take WAY=embedded"
    return why_no_kafka()


@asynccontextmanager
async def _site(folder: Path, plan: Plan) -> AsyncIterator[Site]:
    valkey = ValkeyProcess(folder / "valkey")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Proxy(to_port(valkey.port)))
        sql, broker, url, kafka = None, None, "", {}
        if plan.path == "kafka":
            socket = await asyncio.to_thread(stack.enter_context, postgres.running())
            sql = await stack.enter_async_context(Proxy(to_socket(f"{socket}/.s.PGSQL.5432")))
            url = f"postgresql+asyncpg://metergate@127.0.0.1:{sql.port}/postgres"
            broker = KafkaBroker(folder / "kafka")
            stack.callback(broker.stop)
            await asyncio.to_thread(broker.start)
            name = uuid4().hex[:8]
            options = KafkaOptions(broker.servers, f"records.{name}", 2, f"rollup.{name}")
            await prepare_topics(options, create=True)
            kafka = kafka_settings(options)
        gateway = Deployment(
            folder / "gateway",
            kafka=kafka,
            valkey=valkey,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            database_url=url,
            port=free_port(),
        )
        if _envoy(plan):
            gateway.enforcers[0].environment["METERGATE_TRANSPORT"] = "envoy"
        await stack.enter_async_context(gateway)
        await gateway.apply(load.catalog(plan.turns))
        at = [gateway.enforcers[0].listen] * CONNECTIONS
        clients = Load(at, gateway.key, plan.seed, PATIENCE)
        await stack.enter_async_context(clients)
        yield Site(gateway, clients, redis, sql, broker)


def _envoy(plan: Plan) -> bool:
    return plan.whole and not obstacle()


# -- faults beside those of the table


def faults_of(plan: Plan, dice: random.Random) -> dict[str, Fault]:
    """All that one deployment of this way can suffer without a loss that the table of guarantees knows of."""
    needs = {"redis", "clock", *(("sql", "kafka") if plan.path == "kafka" else ())}
    found = {name: fault for name, fault in FAULTS.items() if fault.needs in needs}
    if plan.path == "kafka":
        del found["sql.locked"]
    for name in ("clock.ahead", "clock.behind"):
        found[name] = replace(found[name], cause=_started_anew(found[name].cause))
        if not plan.whole:
            del found[name]
    found["redis.failover"] = Fault(
        "with no call under way the primary is killed, Sentinel promotes its replica",
        "redis",
        lambda site: failover(site, quiet=True),
    )
    found |= _own(plan, dice)
    return {name: found[name] for name in sorted(found) if not plan.only or name in plan.only}


def _started_anew(cause: Callable[[Site], Awaitable[None]]) -> Callable[[Site], Awaitable[None]]:
    """A fork would not read the start-up module of a wrong clock."""

    async def caused(site: Site) -> None:
        os.environ[MEASURED] = "1"
        try:
            await cause(site)
        finally:
            del os.environ[MEASURED]

    return caused


def _own(plan: Plan, dice: random.Random) -> dict[str, Fault]:
    def one_of(site: Site) -> EnforcerProcess:
        return dice.choice(site.gateway.enforcers)

    after = f"started again after {LASTS:g} s"
    still = f"stands still for {LASTS:g} s"
    found = {
        "enforcer.killed": (
            f"one of two at the port, {after}",
            lambda site: _killed(one_of(site)),
        ),
        "enforcer.paused": (
            f"one of two at the port {still}",
            lambda site: _paused(_pids(one_of(site))),
        ),
        "enforcer.ended": (
            "SIGTERM to one of two at the port, started again at once",
            lambda site: _ended(site, [one_of(site)]),
        ),
        "meter.paused": (still, lambda site: _paused(_pids(site.gateway.meter))),
        "meter.ended": (
            "SIGTERM, started again at once",
            lambda site: _ended(site, [site.gateway.meter]),
        ),
        "all.restarted": ("each process in its turn by SIGTERM, Redis at the end", _all_restarted),
    }
    if _envoy(plan):
        found["envoy.killed"] = (
            f"of one of two enforcers, which ends with it, {after}",
            _envoy_killed,
        )
    if plan.path == "kafka":
        found["relay.killed"] = (after, lambda site: _killed(site.gateway.relay))
        found["relay.paused"] = (still, lambda site: _paused(_pids(site.gateway.relay)))
    return {name: Fault(words, "", cause) for name, (words, cause) in found.items()}


def _pids(process: MeterProcess | EnforcerProcess) -> list[int]:
    """A process and those below it: Envoy is its enforcer's child."""
    assert process.process is not None
    whole = psutil.Process(process.process.pid)
    return [whole.pid, *(child.pid for child in whole.children(recursive=True))]


async def _killed(process: MeterProcess | EnforcerProcess) -> None:
    """It comes up while the load goes on; the next fault may strike before it has."""
    await asyncio.to_thread(process.kill)
    await asyncio.sleep(LASTS)
    process.start()


async def _paused(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(LASTS)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _envoy_killed(site: Site) -> None:
    """Of the one that is behind it: the other carries its calls itself."""
    enforcer = site.gateway.enforcers[0]
    await site.gateway.serves(enforcer)
    for pid in _pids(enforcer)[1:]:
        os.kill(pid, signal.SIGKILL)
    assert enforcer.process is not None
    await asyncio.to_thread(enforcer.process.wait, 30)
    await asyncio.sleep(LASTS)
    enforcer.start()


async def _ended(site: Site, processes: Sequence[MeterProcess | EnforcerProcess]) -> None:
    """One after the other, each when the one before serves again."""
    for process in processes:
        for other in site.gateway.processes:
            await site.gateway.serves(other)
        status = await asyncio.to_thread(process.end)
        assert status == 0, f"SIGTERM ended it with status {status}: {process.log[-2000:]}"
        process.start()


async def _all_restarted(site: Site) -> None:
    await _ended(site, site.gateway.processes)
    await asyncio.to_thread(site.gateway.valkey.stop)
    await asyncio.to_thread(site.gateway.valkey.start)


# -- the run


def _say(words: str) -> None:
    """Write it with the time."""
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {words}\n")
    sys.stdout.flush()


async def soak(folder: Path, plan: Plan) -> Outcome:
    """Run it all in `folder`. Whatever fails is a finding."""
    dice = random.Random(plan.seed)
    outcome = Outcome(plan)
    faults = faults_of(plan, dice)
    _say(f"{plan.command()}: {plan.turns} faults of {len(faults)} kinds: {', '.join(faults)}")
    began = time.monotonic()
    try:
        async with _site(folder, plan) as site, _watching(outcome):
            _say("served; the load begins")
            began = time.monotonic()
            await _turns(site, plan, faults, dice, outcome)
            outcome.seconds = time.monotonic() - began
            await _judge(site, plan, outcome)
    except Exception as error:  # noqa: BLE001 - it is told with the seed that runs it again
        outcome.seconds = outcome.seconds or time.monotonic() - began
        outcome.findings.append(f"{type(error).__name__}: {error}")
    return outcome


async def _turns(
    site: Site,
    plan: Plan,
    faults: Mapping[str, Fault],
    dice: random.Random,
    outcome: Outcome,
) -> None:
    began, bag = time.monotonic(), list[str]()
    clients = _load(site)
    for turn in range(plan.turns):
        clients.turn = turn
        await clients.reconnect()
        if not bag:
            bag = dice.sample(sorted(faults), len(faults))
        name = bag.pop()
        at = began + plan.every * (turn + dice.uniform(0.1, 0.4))
        if time.monotonic() > began + 60 * plan.minutes:
            _say(
                f"no time for {plan.turns - turn} more faults: some took longer than {plan.every:g} s"
            )
            break
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        _say(f"#{turn + 1} {name}: {faults[name].words}")
        row = await watched(site, name, faults[name], SERVED_SECONDS)
        row.findings = await _glance(site, turn)
        if (turn + 1) % JUDGED == 0:
            await settle_changes(site.gateway)
            row.findings += await _pause(site)
        outcome.audits += 1
        outcome.faults.append(row)
        outcome.findings += [f"after #{turn + 1} {name}: {one}" for one in row.findings]
        _say(f"#{turn + 1} {name}: {_line(row)}")
    await asyncio.sleep(max(0.0, began + 60 * plan.minutes - time.monotonic()))


def _line(row: Faults) -> str:
    told = [
        f"{what} failed: {', '.join(f'{count} {reason}' for reason, count in seen.items())}"
        for what, seen in (
            ("checks", row.checks),
            ("changes", row.changes),
            ("reports", row.reports),
        )
        if seen
    ]
    return "; ".join(
        [
            f"{row.answered} calls answered meanwhile",
            *told,
            f"longest wait {row.longest_wait:.1f} s",
            f"served again after {row.recovery:.1f} s",
            f"findings: {'; '.join(row.findings) or 'none'}",
        ]
    )


def _load(site: Site) -> Load:
    assert isinstance(site.clients, Load)
    return site.clients


@asynccontextmanager
async def _watching(outcome: Outcome) -> AsyncIterator[None]:
    """Note how much memory all processes together take at most."""

    async def look() -> None:
        me = psutil.Process()
        while True:
            used = 0
            for process in me.children(recursive=True):
                try:
                    used += process.memory_info().rss - process.memory_info().shared
                except psutil.NoSuchProcess:
                    continue
            outcome.peak_mb = max(outcome.peak_mb, used // 1_000_000)
            await asyncio.sleep(5)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _glance(site: Site, turn: int) -> list[str]:
    """What can be held against each other under load: an audit, and the counters against their limits."""
    found: list[str] = []
    audit = await site.gateway.call(
        report_pb2_grpc.ReportServiceStub, "Audit", report_pb2.AuditRequest(), at=1
    )
    found += [f"gap: {gap}" for gap in audit.gaps]
    found += [f"drift: {drift}" for drift in audit.drift]
    if audit.rollup_difference:
        found.append(f"rollups differ by {audit.rollup_difference}")
    for pair in [(load.account(turn), feature) for feature in load.LIMITS] + [
        (load.FIXED, feature) for feature in (*load.HOURLY, *load.SEATS)
    ]:
        for one in (await _balance(site, pair)).limits:
            past = one.used + one.held - one.limit
            if one.kind in COUNTING and not one.unlimited and past > 0:
                found.append(f"{pair}: {past} past a hard limit: {one}")
    return found


async def _pause(site: Site) -> list[str]:
    await site.gateway.all_up()
    await site.gateway.serving()
    verdict = await site.gateway.judge(site.clients)
    found = list(verdict.findings)
    if verdict.lost or verdict.repeated:
        found.append(f"{verdict.lost} lost, {verdict.repeated} repeated")
    return found


async def _balance(site: Site, pair: Pair) -> pb.GetBalanceResponse:
    request = pb.GetBalanceRequest(customer=pair[0], feature=pair[1])
    stub = enforcer_pb2_grpc.EnforcerServiceStub
    answer: pb.GetBalanceResponse = await site.gateway.call(stub, "GetBalance", request, at=1)
    return answer


# -- the judgement


async def _judge(site: Site, plan: Plan, outcome: Outcome) -> None:
    _say("the load ends; everything is held against the records")
    clients = _load(site)
    await clients.finish()
    await settle_changes(site.gateway)
    await _until(lambda: _nothing_held(site, plan))
    outcome.findings += [f"in the end: {one}" for one in await _pause(site)]
    outcome.findings += await _glance(site, clients.turn)
    outcome.audits += 2
    reported = await _reported(site)
    shown: dict[Pair, tuple[int, int]] = {}
    for pair in load.shown_pairs(plan.turns):
        limits = (await _balance(site, pair)).limits
        shown[pair] = sum(one.used for one in limits), sum(one.held for one in limits)
    reading = Reading(load.caps(plan.turns), load.rates(), load.seats())
    for bucket in range(BUCKETS):
        await _read(site, bucket, reading)
    reading.finish()
    books = clients.all_told()
    outcome.findings += differences(books, reading, reported, shown, CUSTOMERS)
    outcome.records = reading.records
    outcome.generations = sum(reading.generations.values())
    outcome.decisions = dict(clients.counted)
    outcome.allowed = sum(bool(told.granted) for told in books.told.values())
    outcome.denied = sum(told.granted == 0 for told in books.told.values())
    unknown = [key for key, told in books.told.items() if told.granted is None]
    outcome.unknown = len(unknown)
    outcome.unknown_counted = sum((Kind.USE, key) in reading.keys for key in unknown)
    for cap in load.caps(clients.turn + 1):
        some, all_ = outcome.caps.get(cap.feature, (0, 0))
        outcome.caps[cap.feature] = some + reading.reached(cap), all_ + 1


async def _until(holds: Callable[[], Awaitable[str]]) -> None:
    """Until nothing is said to be in the way."""
    give_up = time.monotonic() + AGREE_SECONDS
    while what := await holds():
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.5)


async def _nothing_held(site: Site, plan: Plan) -> str:
    for feature in load.SEATS:
        request = pb.ListLeasesRequest(customer=load.FIXED, feature=feature)
        stub = enforcer_pb2_grpc.EnforcerServiceStub
        found = await site.gateway.call(stub, "ListLeases", request, at=1)
        if found.leases:
            return f"leases that nobody holds do not end: {found}"
    for pair in load.shown_pairs(plan.turns):
        if any(one.held for one in (await _balance(site, pair)).limits):
            return f"what nobody holds does not end: {pair}"
    return ""


async def _reported(site: Site) -> dict[Pair, int]:
    """Quantities of all customers and features, with all until now."""
    now_ms = int(time.time() * 1000)
    give_up = time.monotonic() + AGREE_SECONDS
    while True:
        found: dict[Pair, int] = {}
        token, fresh = "", now_ms + 1
        while True:
            request = report_pb2.QueryUsageRequest(page_size=10_000, page_token=token)
            page = await site.gateway.call(
                report_pb2_grpc.ReportServiceStub, "QueryUsage", request, at=1
            )
            fresh = min(fresh, page.fresh_until.ToMilliseconds())
            for row in page.rows:
                found[row.customer, row.meter] = (
                    found.get((row.customer, row.meter), 0) + row.quantity
                )
            if not (token := page.next_page_token):
                break
        if fresh > now_ms:
            return found
        assert time.monotonic() < give_up, "reports do not become fresh"
        await asyncio.sleep(0.2)


async def _read(site: Site, bucket: int, reading: Reading) -> None:
    """Every record of a bucket, in the order of the decisions."""
    options = [*CHANNEL_OPTIONS]
    generation, sequence = 0, -1
    async with grpc.aio.insecure_channel(site.gateway.meter.listen, options=options) as channel:
        stub: Any = ledger_pb2_grpc.LedgerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        while True:
            request = ledger_pb2.RecallRequest(
                bucket=bucket,
                after_generation=generation,
                after_sequence=sequence,
                choice=ledger_pb2.CHOICE_ALL,
                most=AT_ONCE,
            )
            page = await stub.Recall(request, metadata=metadata("demo"), timeout=AGREE_SECONDS)
            for one in page.records:
                generation, sequence = one.generation, one.sequence
                place = bucket, generation, sequence
                reading.add(place, decode_body(one.body), decode_effects(one.effects))
            if len(page.records) < AT_ONCE:
                return


class _Interrupted(Exception):  # noqa: N818 - not an error
    """By Ctrl-C or SIGTERM."""


async def _command(plan: Plan, folder: Path) -> Outcome:
    """Run it; raise `_Interrupted` when it is told to end."""
    running = asyncio.create_task(soak(folder, plan))
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    ending = asyncio.create_task(told.wait())
    await asyncio.wait((running, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not told.is_set():
        return await running
    while not running.done():  # a library may take a cancellation for a time that is over
        running.cancel()
        await asyncio.wait((running,), timeout=END_SECONDS)
    raise _Interrupted


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from fault to fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--path", choices=PATHS, help="default: kafka where it is here, else embedded"
    )
    parser.add_argument("--only", action="append", default=[], metavar="FAULT")
    parser.add_argument("--json", type=Path, help="write the outcome to this file, too")
    options = parser.parse_args()
    path = options.path or ("embedded" if missing("kafka") else "kafka")
    if why := missing(path):
        parser.error(why)
    plan = Plan(path, options.minutes, options.every, options.seed, tuple(options.only))
    if unknown := set(plan.only) - set(faults_of(replace(plan, only=()), random.Random())):
        parser.error(f"no such fault on this path: {', '.join(sorted(unknown))}")
    folder = Path(tempfile.mkdtemp(prefix="metergate-soak-"))
    outcome = Outcome(plan)
    try:
        outcome = asyncio.run(_command(plan, folder))
    except _Interrupted:
        return 130
    finally:
        for left in psutil.Process().children(recursive=True):  # started by a thread as all ended
            with suppress(psutil.NoSuchProcess):
                left.kill()
        if outcome.findings:
            _say(f"data and logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for line in (*outcome.table(), *outcome.summary()):
        sys.stdout.write(f"{line}\n")
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome), indent=1, sort_keys=True) + "\n")
    if outcome.findings:
        sys.stdout.write(f"run it again: {plan.command()}\n")
    return int(bool(outcome.findings))


if __name__ == "__main__":
    sys.exit(main())
