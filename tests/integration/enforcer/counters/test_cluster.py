"""The store on a real cluster: three primaries with a replica each, slots that move and primaries that die under load."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from enforcer.adapters.counters.cluster import ClusterCounters
from enforcer.adapters.counters.options import RedisOptions
from enforcer.core.commands import NO_KEY, Ask, Decision, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.model import Customer, Entitlement, Feature, Node, QuotaTerms
from enforcer.core.periods import Period, PeriodUnit
from enforcer.core.rules import Mode
from enforcer.errors import MetergateError
from meter.core.keys import outbox
from meter.core.records import RecordType, decode_effects
from tests.fixtures.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
        self.done = asyncio.Event()

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

    async def client(self, bucket: int, number: int) -> None:
        """Checks, one after the other; one that fails is made again with its key, as clients are told to."""
        count = 0
        while not self.done.is_set():
            count += 1
            while True:
                try:
                    answer = await self.decide(bucket, f"{number}.{count}")
                    break
                except MetergateError as error:
                    self.faults.append(error.reason)
                    assert error.code.name == "UNAVAILABLE", error
                    await asyncio.sleep(0.02)
            self.note(bucket, answer)
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
        finally:
            self.done.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [one for one in ended if one is not None]

    async def answered(self, more: int = 20) -> None:
        """Wait until every bucket has granted so much more."""
        wanted = [one + more for one in self.granted]
        async with asyncio.timeout(30):
            while any(now < then for now, then in zip(self.granted, wanted, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def site(
    cluster: ValkeyCluster, generations: Generations | None = None, **options: Any
) -> AsyncIterator[Site]:
    generations = generations or Generations()
    records = Records(cluster.url, range(BUCKETS))
    store = ClusterCounters(
        RedisOptions(cluster.url, BUCKETS, **options), generations, ledger=records
    )
    store.start()
    try:
        async with asyncio.timeout(20):
            await store.ready.wait()
        for bucket in range(BUCKETS):
            await store.project(bucket, 1, 1)
        yield Site(store, generations, records)
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
        assert sorted(bucket for shard in held for bucket in shard) == [*range(BUCKETS)]
        for bucket in range(BUCKETS):
            state = await here.store.counters(bucket)
            assert [one.used for one in state.counters if one.limit == 7] == [5]
            assert cluster.call(bucket, "XLEN", outbox(bucket)) == state.last + 1
