"""The store on a real cluster: three primaries with a replica each, slots that move and primaries that die under load."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from enforcer.adapters.counters.cluster import ClusterCounters
from enforcer.adapters.counters.options import RedisOptions
from enforcer.adapters.counters.spans import StoreSpans
from enforcer.adapters.counters.stock import RedisStock
from enforcer.core.commands import NO_KEY, Ask, Decision, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.model import (
    Customer,
    Entitlement,
    Feature,
    Node,
    Period,
    PeriodUnit,
    QuotaTerms,
)
from enforcer.core.rules import Mode
from enforcer.errors import CountersRebuildingError, MetergateError, StoreUnavailableError
from meter.adapters.levels import Levels
from meter.core.keys import outbox
from meter.core.records import RecordType, decode_effects
from meter.core.traced import written
from meter.health import State
from tests.fixtures.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from enforcer.core.program import Program
    from tests.fixtures.valkey_cluster import ValkeyCluster

BUCKETS = 12
LIMIT = 1_000_000
FEATURE = Feature(1, "api.calls", "api.calls")
BODY = b'{"t":"demo","a":"acme","c":"acme","f":"api.calls","m":"api.calls","q":1}'


class Generations:
    """What the definitions' database knows: one account in each bucket."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.given: dict[int, int] = {}
        self.opened: set[int] = set()
        terms = QuotaTerms(limit, Period(PeriodUnit.YEAR))
        self.node = Node(1, "acme", False, (Entitlement(7, "e", "api.calls", terms),))

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
        assert (tenant, key) == ("demo", "api.calls")
        return FEATURE

    async def accounts(self, bucket: int, after: int, most: int) -> list[Any]:
        raise AssertionError("nothing is rebuilt here: data move, they are not lost")

    def program(self, bucket: int) -> Program:
        customer = Customer("demo", 1, "acme", bucket, 1, (self.node,))
        return compile_program(customer, FEATURE, int(time.time() * 1000))[0]


class Site:
    """A store, and what it has answered."""

    def __init__(self, store: ClusterCounters, generations: Generations, records: Records) -> None:
        self.store, self.generations, self.records = store, generations, records
        self.programs = [generations.program(bucket) for bucket in range(BUCKETS)]
        self.granted = [0] * BUCKETS
        self.denied = [0] * BUCKETS
        self.places: list[set[tuple[int, int]]] = [set() for _ in range(BUCKETS)]
        self.faults: list[str] = []
        self.batches: list[int] = []
        self.done, self.given_up = asyncio.Event(), asyncio.Event()

    def ask(self, bucket: int, key: str = "", quantity: int = 1) -> Ask:
        name = idempotency(1, 1, key, quantity) if key else NO_KEY
        body = BODY
        if key:
            body = BODY[:-1] + b',"k":"%s","p":"%s"}' % (key.encode(), name[16:].hex().encode())
        return Ask(self.programs[bucket], quantity, Mode.ENFORCE, body, name)

    async def decide(self, bucket: int, key: str = "") -> Decision:
        (answer,) = await self.store.decide([self.ask(bucket, key)])
        assert isinstance(answer, Decision), answer
        return answer

    async def tried(self, bucket: int) -> Decision | None:
        """None while it is refused."""
        try:
            return await self.decide(bucket)
        except MetergateError:
            return None

    async def proven(self, bucket: int, within: float = 10) -> Decision:
        """Decide, or raise why that is not possible: once the store has met the present primary."""
        begun = time.monotonic()
        while True:
            try:
                return await self.decide(bucket)
            except CountersRebuildingError as error:
                if "the meter does not answer" in error.message:
                    raise
            except StoreUnavailableError:
                pass
            assert time.monotonic() - begun < within

    async def client(self, bucket: int, number: int) -> None:
        """Checks, one after the other; one that fails is made again with its key, as clients are told to."""
        count = 0
        while not self.done.is_set():
            count += 1
            while not self.given_up.is_set():
                try:
                    self.note(bucket, await self.decide(bucket, f"{number}.{count}"))
                    break
                except MetergateError as error:
                    self.faults.append(f"{bucket} {error.code.name} {error.reason}")
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.004)

    def note(self, bucket: int, answer: Decision) -> None:
        if not answer.granted:
            self.denied[bucket] += 1
            return
        self.granted[bucket] += 1
        place = answer.generation, answer.sequence
        assert place not in self.places[bucket], "one place for two answers"
        self.places[bucket].add(place)

    @asynccontextmanager
    async def load(self, clients: int = 2) -> AsyncIterator[None]:
        """Clients of every bucket at work."""
        self.done.clear()
        tasks = [
            asyncio.create_task(self.client(bucket, number))
            for bucket in range(BUCKETS)
            for number in range(clients)
        ]
        try:
            yield
        except BaseException:
            self.given_up.set()
            raise
        finally:
            self.done.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [one for one in ended if one is not None]

    async def audit(self, cluster: ValkeyCluster, *, lag: bool = False) -> None:
        """Counters, records and what was answered say the same.

        With `lag` a replica may have missed what its primary answered last: then the next generation names it.
        """
        for bucket in range(BUCKETS):
            entries = cluster.call(bucket, "XRANGE", outbox(bucket), "-", "+")
            places = [tuple(int(part) for part in name.split(b"-")) for name, _ in entries]
            for before, after in pairwise(places):
                assert after in ((before[0], before[1] + 1), (after[0], 0)), "not dense"
            records = [decode_effects(fields[3]) for _, fields in entries]
            used = {
                place
                for place, effects in zip(places, records, strict=True)
                if effects.type is RecordType.USAGE
            }
            lost = self.places[bucket] - used
            assert used <= self.places[bucket], bucket
            named = {
                effects.extra: effects.quantity
                for effects in records
                if effects.type is RecordType.GENERATION
            }
            assert not lost or (lag and all(named[one] >= two for one, two in lost)), lost
            state = await self.store.counters(bucket)
            (counter,) = [one for one in state.counters if one.limit == 7]
            assert counter.used == self.granted[bucket] - len(lost) == len(used)
            assert places[-1] == (state.generation, state.last)

    async def answered(self, more: int = 20, buckets: Iterable[int] = range(BUCKETS)) -> None:
        """Wait until every bucket has granted so much more."""
        wanted = {one: self.granted[one] + more for one in buckets}
        async with asyncio.timeout(30):
            while any(self.granted[one] < then for one, then in wanted.items()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def site(
    cluster: ValkeyCluster,
    generations: Generations | None = None,
    spans: StoreSpans | None = None,
    **options: Any,
) -> AsyncIterator[Site]:
    generations = generations or Generations()
    records = Records(cluster.url, range(BUCKETS))
    batches: list[int] = []
    store = ClusterCounters(
        RedisOptions(cluster.url, BUCKETS, **options),
        generations,
        lambda checks, _: batches.append(checks),
        ledger=records,
    )
    if spans is not None:
        store.trace(spans)
    store.start()
    try:
        async with asyncio.timeout(20):
            await store.ready.wait()
        for bucket in range(BUCKETS):
            await store.project(bucket, 1, 1)
        made = Site(store, generations, records)
        made.batches = batches
        yield made
    finally:
        await store.close()


async def test_every_bucket_is_decided_at_its_node_and_one_call_asks_many(
    cluster: ValkeyCluster,
) -> None:
    async with site(cluster) as here:
        groups = [[here.ask(bucket, f"k{n}")] for n in range(5) for bucket in range(BUCKETS)]
        answers = await here.store.decide_all(groups)
        found = [answer[0] for answer in answers if not isinstance(answer, MetergateError)]
        assert [one.bucket for one in found if isinstance(one, Decision)] == [*range(BUCKETS)] * 5
        held = [shard for shard in here.store.shards() if shard]
        assert len(held) == 3
        assert sorted(here.batches) == sorted(5 * len(shard) for shard in held), (
            "a call for each node"
        )
        assert sorted(bucket for shard in held for bucket in shard) == [*range(BUCKETS)]
        for bucket in range(BUCKETS):
            state = await here.store.counters(bucket)
            assert [one.used for one in state.counters if one.limit == 7] == [5]
            assert cluster.call(bucket, "XLEN", outbox(bucket)) == state.last + 1


def at_one_node(cluster: ValkeyCluster, count: int = 2) -> list[int]:
    """Some buckets that share a primary."""
    primary = cluster.primary_of(0)
    return [one for one in range(BUCKETS) if cluster.primary_of(one) is primary][:count]


async def test_buckets_that_move_under_load_are_answered_and_nothing_is_lost_or_repeated(
    cluster: ValkeyCluster,
) -> None:
    async with site(cluster, patience=5.0) as here:
        moving = at_one_node(cluster)
        here.records.away = True  # what only moves needs no proof by its records
        async with here.load():
            await here.answered()
            for _ in range(3):
                target = cluster.another(moving[0])
                await asyncio.to_thread(cluster.move, moving, target)
                await here.answered()
            await asyncio.to_thread(cluster.move_by_key, moving[0], cluster.another(moving[0]))
            await here.answered()
        assert here.faults == []
        await here.audit(cluster)
        generations = [(await here.store.counters(bucket)).generation for bucket in range(BUCKETS)]
        stayed = [one for bucket, one in enumerate(generations) if bucket not in moving]
        assert set(stayed) == {1}, "who does not move notices nothing"
        assert [generations[bucket] for bucket in moving] == [5, 4]


async def test_a_bucket_of_which_only_a_part_is_at_a_node_waits_and_no_step_begins_on_it(
    cluster: ValkeyCluster,
) -> None:
    generations = Generations(limit=3)
    async with site(cluster, generations, patience=20.0) as here:
        bucket = 0
        for number in range(2):
            await here.decide(bucket, f"k{number}")
        begun, go_on = threading.Event(), threading.Event()

        def before() -> None:
            begun.set()
            assert go_on.wait(30)

        # No key has gone yet: all that a granted check needs is there, what the first denial writes is not.
        moving = asyncio.create_task(
            asyncio.to_thread(cluster.move_by_key, bucket, cluster.another(bucket), before)
        )
        await asyncio.to_thread(begun.wait, 30)
        waiting = asyncio.create_task(
            here.store.decide_all([[here.ask(bucket)], [here.ask(bucket)]])
        )
        other = next(
            one
            for one in range(1, BUCKETS)
            if cluster.primary_of(one) is cluster.primary_of(bucket)
        )
        assert (await here.decide(other)).granted == 1, "its neighbour at the node is answered"
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
        go_on.set()
        await moving
        granted = [
            answer[0].granted
            for answer in await waiting
            if isinstance(answer, list) and isinstance(answer[0], Decision)
        ]
        assert granted == [1, 0]
        state = await here.store.counters(bucket)
        assert [one.used for one in state.counters if one.limit == 7] == [3]
        entries = cluster.call(bucket, "XRANGE", outbox(bucket), "-", "+")
        kinds = [decode_effects(fields[3]).type for _, fields in entries]
        assert kinds.count(RecordType.USAGE) == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_primary_that_is_killed_or_paused_under_load_costs_a_retry_and_nothing_else(
    cluster: ValkeyCluster, how: signal.Signals
) -> None:
    async with site(cluster) as here:
        async with here.load():
            await here.answered()
            dead = cluster.primary_of(0)
            theirs = {one for one in range(BUCKETS) if cluster.primary_of(one) is dead}
            begun = time.perf_counter()
            await asyncio.to_thread(cluster.fail_over, 0, how)
            await here.answered()
            away = time.perf_counter() - begun
            await asyncio.to_thread(cluster.whole)
            await here.answered()
        print(f"answered again after {away:.2f} s, {Counter(here.faults)}")  # noqa: T201
        assert {fault.partition(" ")[2] for fault in here.faults} <= {
            "UNAVAILABLE STORE_UNAVAILABLE",
            "UNAVAILABLE COUNTERS_REBUILDING",
        }
        assert {int(fault.split()[0]) for fault in here.faults} <= theirs
        await here.audit(cluster, lag=True)
        await asyncio.to_thread(cluster.whole)


async def test_a_primary_that_has_followed_another_is_not_trusted_when_it_is_one_again(
    cluster: ValkeyCluster,
) -> None:
    async with site(cluster, patience=0.2) as here:
        bucket, first = 0, cluster.primary_of(0)
        assert (await here.decide(bucket, "k")).generation == 1
        here.records.away = True
        await asyncio.to_thread(cluster.switch, bucket)
        with pytest.raises(CountersRebuildingError):
            await here.proven(bucket)
        await asyncio.to_thread(cluster.switch, bucket)
        assert cluster.primary_of(bucket) is first, "the process that the bucket was opened on"
        with pytest.raises(CountersRebuildingError):
            await here.proven(bucket)
        here.records.away = False
        async with asyncio.timeout(20):
            while (await here.tried(bucket)) is None:
                pass
        again = await here.decide(bucket, "k")
        assert (again.generation, again.replayed) == (1, True), "nothing was lost this time"
        assert (await here.decide(bucket, "another")).generation > 1


async def test_while_a_node_and_its_replica_are_away_the_buckets_of_the_others_are_served(
    cluster: ValkeyCluster,
) -> None:
    async with site(cluster, patience=0.3) as here:
        dead = cluster.primary_of(0)
        theirs = {one for one in range(BUCKETS) if cluster.primary_of(one) is dead}
        gone = [dead, *cluster.replicas_of(dead)]
        async with here.load():
            await here.answered()
            for server in gone:
                server.kill()
            others = [one for one in range(BUCKETS) if one not in theirs]
            await here.answered(100, others)
            assert here.store.serving
            async with asyncio.timeout(10):
                while True:
                    with pytest.raises(StoreUnavailableError) as told:
                        await here.decide(next(iter(theirs)))
                    if "held back" in told.value.message:
                        break  # its breaker is open, those of the others are not
            for server in gone:
                await asyncio.to_thread(server.start)
            await here.answered()
        assert {int(fault.split()[0]) for fault in here.faults} <= theirs
        await here.audit(cluster)
        await asyncio.to_thread(cluster.whole)


async def test_stock_levels_and_standing_are_of_all_nodes(cluster: ValkeyCluster) -> None:
    async with site(cluster) as made:
        for bucket in range(BUCKETS):
            await made.decide(bucket)
        assert made.store.standing() == (State.UP, "")
        stock = RedisStock(cluster.url, BUCKETS, 20)
        levels = Levels(cluster.url)
        try:
            assert (await stock.look()).outbox >= 2 * BUCKETS  # the opening and the use of each
            await levels.set("relay", "debug", 60)
            (found,) = await levels.read()
            assert (found.part, found.level, found.left > 50) == ("relay", "debug", True)
        finally:
            stock.close()
            await levels.close()


async def test_each_traced_call_has_a_span_of_the_node_that_decided_it(
    cluster: ValkeyCluster,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # Before there is a line: those that come have it.
    spans = StoreSpans(provider.get_tracer("test"), cluster.url)
    async with site(cluster, spans=spans) as here:
        plain = [here.ask(bucket) for bucket in range(BUCKETS)]
        traced = [
            replace(ask, body=b'%s,"tp":"%s"}' % (BODY[:-1], written(bucket + 1, 7).encode()))
            for bucket, ask in enumerate(plain)
        ]
        answers = await here.store.decide_all([[one] for one in (*traced, *plain)])
        assert not [one for one in answers if isinstance(one, MetergateError)]
        nodes = {bucket: shard for shard in here.store.shards() for bucket in shard}
    provider.shutdown()
    found: dict[int, Any] = {}
    for span in exporter.get_finished_spans():
        assert span.attributes is not None
        found[int(str(span.attributes["metergate.bucket"]))] = span
    assert sorted(found) == list(range(BUCKETS)) == sorted(nodes)
    assert len(exporter.get_finished_spans()) == BUCKETS, "of the traced ones only"
    for bucket, span in found.items():
        assert (span.context.trace_id, span.parent.span_id) == (bucket + 1, 7)
        assert (span.name, span.kind) == ("FCALL decide", SpanKind.CLIENT)
        # Each node was asked once for all of its buckets, with and without a trace.
        assert span.attributes["db.operation.batch.size"] == 2 * len(nodes[bucket])
