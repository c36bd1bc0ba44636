"""The Redis store against a real server: what breaks, and what may never happen when it does."""

from __future__ import annotations

import asyncio
import shutil
import signal
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hiredis
import pytest
import redis.asyncio

from enforcer.adapters.counters import mend
from enforcer.adapters.counters.connection import connect
from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.counters.scripts import library
from enforcer.core.commands import NO_KEY, Ask, Decision, EpochStale, SeatAsk, Settled, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.model import (
    ConcurrentTerms,
    Customer,
    Entitlement,
    Feature,
    Node,
    Period,
    PeriodUnit,
    QuotaTerms,
    RateTerms,
)
from enforcer.core.program import Reason
from enforcer.core.rebuild import Account
from enforcer.core.rules import Mode
from enforcer.errors import (
    CountersRebuildingError,
    OutcomeUnknownError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from meter.core.keys import bucket_tag, outbox
from meter.core.records import RecordType, decode_effects
from tests.fixtures.records import Records
from tests.fixtures.valkey import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from enforcer.core.program import Program
    from meter.v1 import ledger_pb2

FEATURE = Feature(1, "api.calls", "api.calls")
SEATS = Feature(2, "seats", "seats")
BODY = b'{"t":"demo","a":"acme","c":"acme","f":"api.calls","m":"api.calls","q":1}'


class Generations:
    """What the definitions' database knows; shared by every store of a test. `node` has the entitlements."""

    node = Node(
        1,
        "acme",
        False,
        (
            Entitlement(7, "e", "api.calls", QuotaTerms(1000, Period(PeriodUnit.YEAR))),
            Entitlement(8, "s", "seats", ConcurrentTerms(2)),
        ),
    )

    def __init__(self) -> None:
        self.given: dict[int, int] = {}
        self.opened: set[int] = set()

    async def next_generation(self, bucket: int, at_least: int) -> int:
        self.given[bucket] = max(self.given.get(bucket, 0), at_least) + 1
        return self.given[bucket]

    async def was_opened(self, bucket: int) -> bool:
        return bucket in self.opened

    async def confirm_opened(self, bucket: int) -> None:
        self.opened.add(bucket)

    async def last_generation(self, bucket: int) -> int:
        return self.given.get(bucket, 0)

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        assert (tenant, customer) == ("demo", "acme")
        return Customer("demo", 1, "acme", 0, 1, (self.node,))

    async def feature(self, tenant: str, key: str) -> Feature | None:
        assert tenant == "demo"
        return {"api.calls": FEATURE, "seats": SEATS}[key]

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        assert most > 0
        if bucket or after:
            return []
        return [Account(1, "demo", (self.node,), {"api.calls": 1, "seats": 2})]


def program(limit: int = 1000, *, hard: bool = True, feature: Feature = FEATURE) -> Program:
    terms = (
        ConcurrentTerms(2)
        if feature is SEATS
        else QuotaTerms(limit, Period(PeriodUnit.YEAR), hard=hard)
    )
    customer = Customer(
        "demo",
        1,
        "acme",
        0,
        1,
        (
            Node(
                1,
                "acme",
                False,
                (Entitlement(8 if feature is SEATS else 7, "e", feature.key, terms),),
            ),
        ),
    )
    return compile_program(customer, feature, int(time.time() * 1000))[0]


def ask(quantity: int = 1, key: str = "", limit: int = 1000, mode: Mode = Mode.ENFORCE) -> Ask:
    name = idempotency(1, 1, key, quantity) if key else NO_KEY
    body = BODY
    if key:
        body = BODY[:-1] + b',"k":"%s","p":"%s"}' % (key.encode(), name[16:].hex().encode())
    return Ask(program(limit), quantity, mode, body, name)


@asynccontextmanager
async def store(
    server: ValkeyProcess,
    generations: Generations,
    ledger: Records | None = None,
    **options: float,
) -> AsyncIterator[RedisCounters]:
    counters = RedisCounters(
        RedisOptions(server.url, 1, **options),  # type: ignore[arg-type]
        generations,
        ledger=ledger or Records(server.url),
    )
    counters.start()
    try:
        async with asyncio.timeout(20):
            await counters.ready.wait()
        await counters.project(0, 1, 1)
        yield counters
    finally:
        await counters.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A server of the test's own, to kill and pause."""
    process = ValkeyProcess(tmp_path / "valkey")
    process.start()
    yield process
    process.stop()


async def ids(url: str) -> list[tuple[int, int]]:
    client = redis.asyncio.Redis.from_url(url)
    entries: Any = await client.xrange(outbox(0))
    found = [tuple(int(part) for part in name.split(b"-")) for name, _ in entries]
    await client.aclose()
    return found  # type: ignore[return-value]


async def decided(counters: RedisCounters, one: Ask) -> Decision:
    (answer,) = await counters.decide([one])
    assert isinstance(answer, Decision), answer
    return answer


async def test_concurrent_checks_never_pass_a_hard_limit(server: ValkeyProcess) -> None:
    async with store(server, Generations()) as counters:
        asks = [decided(counters, ask(limit=1000)) for _ in range(3000)]
        answers = await asyncio.gather(*asks)
        state = await counters.counters(0)
    assert sum(answer.granted for answer in answers) == 1000
    assert {answer.reason for answer in answers} == {Reason.ALLOWED, Reason.QUOTA_EXCEEDED}
    assert [(one.limit, one.used, one.held) for one in state.counters] == [(7, 1000, 0)]


async def test_waiting_checks_travel_together(server: ValkeyProcess) -> None:
    sizes: list[int] = []
    counters = RedisCounters(
        RedisOptions(server.url, 1), Generations(), observe=lambda checks, _: sizes.append(checks)
    )
    counters.start()
    await counters.ready.wait()
    await counters.project(0, 1, 1)
    await asyncio.gather(*(counters.decide([ask()]) for _ in range(600)))
    await counters.close()
    assert sum(sizes) == 600
    assert max(sizes) <= 256
    assert len(sizes) < 20


async def test_a_restarted_server_gets_a_new_generation_and_keeps_its_counts(
    server: ValkeyProcess,
) -> None:
    generations = Generations()
    async with store(server, generations, patience=20) as counters:
        first = await decided(counters, ask(5))
        server.kill()
        server.start()
        second = await decided(counters, ask(5, key="k"))
        state = await counters.counters(0)
    assert (first.generation, second.generation) == (1, 2)
    assert second.sequence == 1
    assert state.counters[0].used == 10
    opened = await records_of(server)
    assert [effects.type for effects in opened] == [
        RecordType.GENERATION,
        RecordType.USAGE,
        RecordType.GENERATION,
        RecordType.USAGE,
    ]
    assert (opened[2].extra, opened[2].quantity) == (1, 1)


async def records_of(server: ValkeyProcess) -> list:  # type: ignore[type-arg]
    client = redis.asyncio.Redis.from_url(server.url)
    entries: Any = await client.xrange(outbox(0))
    found = [decode_effects(fields[b"e"]) for _, fields in entries]
    await client.aclose()
    return found


async def test_an_old_copy_of_the_data_never_repeats_a_sequence_number(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    generations = Generations()
    async with store(server, generations) as counters:
        await decided(counters, ask())
    server.stop()
    shutil.copytree(server.folder, tmp_path / "copy")
    server.start()
    async with store(server, generations) as counters:
        for _ in range(20):
            await decided(counters, ask())
    given_out = set(await ids(server.url))
    server.stop()
    old = ValkeyProcess(tmp_path / "copy")
    old.start()
    try:
        before = set(await ids(old.url))
        async with store(old, generations) as counters:
            for _ in range(20):
                await decided(counters, ask())
        again = set(await ids(old.url)) - before
    finally:
        old.stop()
    assert len(again) == 21
    assert not again & given_out


async def test_a_promoted_replica_never_repeats_a_sequence_number(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    generations = Generations()
    replica = ValkeyProcess(tmp_path / "replica")
    replica.start()
    client = redis.asyncio.Redis.from_url(replica.url)
    try:
        async with store(server, generations) as counters:
            await decided(counters, ask())
            await client.replicaof("127.0.0.1", server.port)
            deadline = time.monotonic() + 20
            while (await client.info("replication"))["master_link_status"] != "up":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            replica_paused = replica.pid
            assert replica_paused is not None
            # What the primary acknowledges while the replica hears nothing is what a failover loses.
            replica.signal(signal.SIGSTOP)
            for _ in range(20):
                await decided(counters, ask())
        primary = set(await ids(server.url))
        server.kill()
        replica.signal(signal.SIGCONT)
        await client.replicaof("NO", "ONE")
        before = set(await ids(replica.url))
        async with store(replica, generations) as counters:
            for _ in range(20):
                await decided(counters, ask())
        after = set(await ids(replica.url)) - before
    finally:
        await client.aclose()
        replica.stop()
    assert len(after) == 21
    assert not after & primary


async def test_enforcers_that_open_a_new_deployment_together_find_nothing_lost(
    server: ValkeyProcess,
) -> None:
    generations = Generations()
    options = RedisOptions(server.url, 8)
    stores = [RedisCounters(options, generations) for _ in range(4)]
    for one in stores:
        one.start()
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.ready.wait() for one in stores))
    states = [await one.counters(bucket) for one in stores for bucket in range(8)]
    await asyncio.gather(*(one.close() for one in stores))
    assert {state.last for state in states} == {0}


async def test_a_bucket_that_another_enforcer_opens_meanwhile_is_not_lost(
    server: ValkeyProcess,
) -> None:
    class Meanwhile(Generations):
        """While this enforcer asks whether the bucket was opened, another one opens it."""

        async def was_opened(self, bucket: int) -> bool:
            if bucket not in self.opened:
                other = Generations()
                async with store(server, other):
                    self.given, self.opened = other.given, other.opened
            return await super().was_opened(bucket)

    async with store(server, Meanwhile()) as counters:
        assert (await decided(counters, ask())).granted == 1


async def test_a_first_start_cut_short_before_opening_has_lost_nothing(
    server: ValkeyProcess,
) -> None:
    generations = Generations()
    await generations.next_generation(0, 0)
    async with store(server, generations) as counters:
        assert (await decided(counters, ask())).granted == 1


async def test_an_emptied_server_is_answered_from_again_when_its_counters_are_rebuilt(
    server: ValkeyProcess,
) -> None:
    records = Records(server.url)
    async with store(server, Generations(), records, patience=20) as counters:
        await decided(counters, ask(300, key="first"))
        await decided(counters, ask(5))
        records.read()
        client = redis.asyncio.Redis.from_url(server.url)
        await client.flushall()
        await client.aclose()
        after = await counters.decide([ask(1)])
        assert after == [EpochStale(0)]
        await counters.project(0, 1, 1)
        again = await decided(counters, ask(300, key="first"))
        assert (again.replayed, again.granted, again.generation, again.sequence) == (
            True,
            300,
            1,
            1,
        )
        last = await decided(counters, ask(695))
        none = await decided(counters, ask(1))
        state = await counters.counters(0)
    assert (last.granted, none.granted, last.generation) == (695, 0, 2)
    assert [(one.limit, one.used, one.held) for one in state.counters] == [(7, 1000, 0)]
    (opened, *_) = await records_of(server)
    assert (opened.type, opened.extra, opened.quantity) == (RecordType.GENERATION, 1, 2)


async def flush_all(server: ValkeyProcess) -> None:
    client = redis.asyncio.Redis.from_url(server.url)
    await client.flushall()
    await client.aclose()


async def test_two_enforcers_rebuild_a_bucket_once_however_slowly_the_meter_answers(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "STALE_MS", 300)
    generations, records = Generations(), Records(server.url)
    async with (
        store(server, generations, records, patience=20) as one,
        store(server, generations, records, patience=20) as other,
    ):
        await decided(one, ask(10))
        records.read()
        records.slow = 0.5
        await flush_all(server)
        await asyncio.gather(one.project(0, 1, 1), other.project(0, 1, 1))
        await decided(one, ask(1))
        await decided(other, ask(1))
        assert (await other.counters(0)).counters[0].used == 12
    assert records.calls.count("sums") == 1


async def test_what_any_enforcer_was_answered_is_named_whoever_opens_the_next_generation(
    server: ValkeyProcess,
) -> None:
    generations, records = Generations(), Records(server.url)
    async with (
        store(server, generations, records, patience=20) as one,
        store(server, generations, records, patience=20) as other,
    ):
        await decided(one, ask(1))
        records.read()
        await decided(one, ask(1))
        (*_, last) = await other.decide([ask(1), ask(1)])
        assert isinstance(last, Decision)
        await flush_all(server)
        await one.project(0, 1, 1)  # `one` opens it: the places that it knows of end with its own
        assert (await decided(other, ask(1))).generation == 2
        await one.counters(0)
        told = [r for r in await records_of(server) if r.type is RecordType.GENERATION]
        assert [(r.extra, r.quantity) for r in told] == [(1, 2), (1, last.sequence)]
        # Told once: neither a new connection nor a restart says it again.
        server.kill()
        server.start()
        # By a key: what is on its way when the server is killed may have run there or not.
        await decided(other, ask(1, key="other"))
        await decided(one, ask(1, key="one"))
    told = [r for r in await records_of(server) if r.type is RecordType.GENERATION]
    assert [r.extra for r in told] == [1, 1, 2]


async def test_an_enforcer_that_lost_its_connection_goes_on_with_its_rebuild_at_once(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mend, "STALE_MS", 60_000)
    records = Records(server.url)
    async with store(server, Generations(), records, patience=20) as counters:
        await decided(counters, ask(10))
        records.read()
        records.slow = 0.2
        await flush_all(server)
        waiting = asyncio.create_task(counters.project(0, 1, 1))
        while "sums" not in records.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        client = redis.asyncio.Redis.from_url(server.url)
        await client.client_kill_filter(_type="normal")
        await client.aclose()
        await waiting
        assert (await counters.counters(0)).counters[0].used == 10
    assert records.calls.count("sums") == 2


async def test_a_bucket_that_is_made_again_is_asked_before_the_others_are(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets = range(4)
    records, going_on = Records(server.url, buckets), asyncio.Event()
    recall, asked = records.recall, []

    async def slow(request: ledger_pb2.RecallRequest) -> ledger_pb2.RecallResponse:
        if request.bucket not in asked:
            asked.append(request.bucket)
        if len(asked) == len(buckets):
            await going_on.wait()
        return await recall(request)

    monkeypatch.setattr(records, "recall", slow)
    counters = RedisCounters(
        RedisOptions(server.url, len(buckets), patience=20), Generations(), ledger=records
    )
    counters.start()
    try:
        async with asyncio.timeout(20):
            for bucket in buckets:
                await counters.project(bucket, 1, 1)
            records.read()
            await flush_all(server)
            projecting = {
                bucket: asyncio.create_task(counters.project(bucket, 1, 1)) for bucket in buckets
            }
            while len(asked) < len(buckets):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            last = projecting.pop(asked[-1])
            await asyncio.gather(*projecting.values())
            assert not last.done()
            going_on.set()
            await last
    finally:
        await counters.close()


async def test_a_failure_that_nobody_thought_of_closes_no_bucket_for_ever(
    server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, failures = Records(server.url), iter([ValueError("once"), ValueError("twice")])
    sums = records.sums

    async def fails(request: ledger_pb2.SumsRequest) -> ledger_pb2.SumsResponse:
        for failure in failures:
            raise failure
        return await sums(request)

    monkeypatch.setattr(records, "sums", fails)
    async with store(server, Generations(), records, patience=20) as counters:
        await decided(counters, ask(10))
        records.read()
        await flush_all(server)
        await counters.project(0, 1, 1)
        assert (await counters.counters(0)).counters[0].used == 10


async def test_a_server_on_an_old_copy_catches_up_and_what_nobody_has_is_named(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    records = Records(server.url)
    async with store(server, Generations(), records, patience=20) as counters:
        await decided(counters, ask(1))
        shutil.copytree(server.folder, tmp_path / "copy")
        await decided(counters, ask(10, key="read"))
        records.read()
        await decided(counters, ask(100))
        await decided(counters, ask(100))
        server.kill()
        shutil.rmtree(server.folder)
        (tmp_path / "copy").rename(server.folder)
        server.start()
        again = await decided(counters, ask(10, key="read"))
        state = await counters.counters(0)
    assert again.replayed
    assert state.counters[0].used == 11
    found = await records_of(server)
    assert [one.type for one in found[-2:]] == [RecordType.USAGE, RecordType.GENERATION]
    assert (found[-1].extra, found[-1].quantity) == (1, 4)


async def test_a_copy_catches_up_in_limits_that_nobody_has_any_more(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    """What was held under a limit that has gone meanwhile was given back in its counter: also in the copy's."""
    records, generations = Records(server.url), Generations()
    async with store(server, generations, records, patience=20) as counters:
        held = replace(ask(10, key="held"), reservation="r1", ttl_ms=600_000)
        await decided(counters, held)
        shutil.copytree(server.folder, tmp_path / "copy")
        generations.node = replace(generations.node, entitlements=())
        settled = await counters.commit(0, "r1", 4)
        assert isinstance(settled, Settled)
        records.read()
        server.kill()
        shutil.rmtree(server.folder)
        (tmp_path / "copy").rename(server.folder)
        server.start()
        assert await counters.project(0, 1, 1) == 1
        (counter,) = (await counters.counters(0)).counters
    assert (counter.used, counter.held) == (4, 0)


async def test_nothing_is_answered_while_the_meter_is_away(server: ValkeyProcess) -> None:
    generations, records = Generations(), Records(server.url)
    async with store(server, generations, records) as counters:
        await decided(counters, ask())
        records.read()
        records.away = True
        client = redis.asyncio.Redis.from_url(server.url)
        await client.flushall()
        await client.aclose()
        with pytest.raises(CountersRebuildingError, match="the meter does not answer"):
            await counters.decide([ask()])
        with pytest.raises(CountersRebuildingError):
            await counters.tick(0)
        assert not counters.serving
        server.stop()
        server.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                await counters.decide([ask()])
            except CountersRebuildingError:
                break
            except StoreUnavailableError:
                continue
        else:
            pytest.fail("the loss was forgotten with the restart")
        records.away = False
        async with asyncio.timeout(20):
            while "buckets closed":
                try:
                    await counters.tick(0)
                except CountersRebuildingError:
                    continue
                break
        assert (await counters.counters(0)).counters[0].used == 1


async def test_a_server_that_may_evict_is_refused(server: ValkeyProcess) -> None:
    client = redis.asyncio.Redis.from_url(server.url)
    await client.config_set("maxmemory-policy", "allkeys-lru")
    await client.aclose()
    counters = RedisCounters(RedisOptions(server.url, 1, patience=0.5), Generations())
    counters.start()
    with pytest.raises(StoreUnavailableError, match="noeviction"):
        await counters.decide([ask()])
    await counters.close()
    assert issubclass(StoreMisconfiguredError, Exception)


async def test_out_of_memory_consumes_nothing_and_says_so(server: ValkeyProcess) -> None:
    async with store(server, Generations()) as counters:
        await decided(counters, ask(5))
        client = redis.asyncio.Redis.from_url(server.url)
        await client.config_set("maxmemory", 1)
        try:
            answers = await counters.decide([ask(5)])
            assert not isinstance(answers[0], Decision)
            assert "OOM" in str(answers[0])
        except StoreUnavailableError as error:
            assert "OOM" in str(error)  # noqa: PT017 - either is a clear refusal
        await client.config_set("maxmemory", 0)
        assert (await counters.counters(0)).counters[0].used == 5
        assert (await decided(counters, ask(5))).granted == 5
        await client.aclose()


async def test_a_batch_that_was_given_up_cannot_run_later(server: ValkeyProcess) -> None:
    """A paused server executes what is in its buffers when it wakes: it must count once, or not at all."""
    async with store(server, Generations(), reply_timeout=1, patience=1.5) as counters:
        await decided(counters, ask(1, key="before"))
        server.signal(signal.SIGSTOP)
        keyed = asyncio.create_task(decided(counters, ask(10, key="k")))
        bare = asyncio.create_task(decided(counters, ask(100)))
        results = await asyncio.gather(keyed, bare, return_exceptions=True)
        assert isinstance(results[0], StoreUnavailableError)
        assert isinstance(results[1], OutcomeUnknownError | StoreUnavailableError)
        server.signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            await counters.ready.wait()
        again = await decided(counters, ask(10, key="k"))
        assert again.granted == 10
        used = (await counters.counters(0)).counters[0].used
        ledger = sum(
            entry.used for effects in await records_of(server) for entry in effects.entries
        )
        assert used == ledger
        assert used in (11, 111)


async def test_a_killed_server_under_load_loses_and_repeats_nothing(server: ValkeyProcess) -> None:
    generations = Generations()
    granted: dict[str, int] = {}
    async with store(server, generations, patience=30) as counters:

        async def client(name: int) -> None:
            for number in range(40):
                key = f"{name}-{number}"
                granted[key] = (await decided(counters, ask(1, key=key, limit=10**6))).granted

        load = asyncio.gather(*(client(name) for name in range(16)))
        for _ in range(3):
            done = len(granted)
            while len(granted) < done + 80 and not load.done():  # noqa: ASYNC110 - a count, no event
                await asyncio.sleep(0.001)
            server.kill()
            server.start()
        await load
        state = await counters.counters(0)
    assert len(granted) == 640
    assert state.counters[0].used == 640
    places = await ids(server.url)
    assert len(places) == len(set(places)) == 640 + len({place[0] for place in places})


async def test_an_outage_prolongs_every_live_lease_by_its_length(server: ValkeyProcess) -> None:
    generations = Generations()
    seat = Ask(program(feature=SEATS), 1, Mode.ENFORCE, BODY, seat=SeatAsk("lease-1", "u", 10_000))
    async with store(server, generations, patience=20) as counters:
        taken = await decided(counters, seat)
        server.kill()
        await asyncio.sleep(1.5)  # the outage itself
        server.start()
        (live,) = await counters.leases(0, "1:2", (0, ""), 10)
    assert live.expires >= taken.expires + 1_000


async def test_a_definition_of_another_epoch_decides_nothing(server: ValkeyProcess) -> None:
    async with store(server, Generations()) as counters:
        await counters.project(0, 1, 5)
        (answer,) = await counters.decide([ask()])
        assert getattr(answer, "stored", None) == 5
        assert await counters.project(0, 1, 3) == 5
        assert (await counters.counters(0)).counters == ()


async def test_functions_are_of_one_server_process(server: ValkeyProcess) -> None:
    """A copy, as a replica gets it, decides nothing once its server is on its own, and the handshake deletes it."""
    link = await connect(server.url, lambda: None, 5)
    of_another = library("0" * 40)
    await link.call("FUNCTION", "LOAD", of_another.text)
    for function in (of_another.decide, of_another.hold):
        with pytest.raises(hiredis.ReplyError, match="NOSCRIPT"):
            await link.call("FCALL", function, 1, "{b0}:m")
    async with store(server, Generations()) as counters, store(server, Generations()) as more:
        await decided(counters, ask(1))
        await decided(more, ask(1))
        names = [one[1] for one in await link.call("FUNCTION", "LIST")]
        await link.call("FUNCTION", "FLUSH")
        assert (await decided(counters, ask(2, key="k"))).granted == 2
    info = (await link.call("INFO", "server")).decode()
    link.close()
    run_id = next(line[7:].strip() for line in info.splitlines() if line.startswith("run_id:"))
    assert names == [library(run_id).name.encode()]


async def test_one_bad_check_does_not_spoil_its_neighbours(server: ValkeyProcess) -> None:
    """A key of the wrong type makes the script fail in the middle of a batch."""
    async with store(server, Generations()) as counters:
        client = redis.asyncio.Redis.from_url(server.url)
        await client.lpush(f"{bucket_tag(0)}s:1:1", "not a state")
        rate = Customer(
            "demo",
            1,
            "acme",
            0,
            1,
            (Node(2, "other", False, (Entitlement(9, "r", "api.calls", RateTerms(100, 1000)),)),),
        )
        fine = Ask(
            compile_program(rate, FEATURE, int(time.time() * 1000))[0], 1, Mode.ENFORCE, BODY
        )
        bad, good = await asyncio.gather(counters.decide([ask()]), counters.decide([fine]))
        await client.aclose()
    assert "WRONGTYPE" in str(bad[0])
    assert isinstance(good[0], Decision)
    assert good[0].granted == 1


async def test_a_connection_that_somebody_fenced_off_is_replaced(server: ValkeyProcess) -> None:
    """As one does who counts the journal of an enforcer that it takes for dead."""
    async with store(server, Generations()) as counters:
        await decided(counters, ask(1))
        client = redis.asyncio.Redis.from_url(server.url)
        fence = struct.pack("<ddd", 2, -1, 0)
        await client.hset(f"{bucket_tag(0)}f", counters._line.enforcer, fence)
        await client.aclose()
        async with asyncio.timeout(20):
            assert (await decided(counters, ask(2, key="k"))).granted == 2
        assert (await counters.counters(0)).counters[0].used == 3
