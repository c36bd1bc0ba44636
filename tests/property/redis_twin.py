"""The Redis store behind the synchronous face that the twin machine drives, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import redis
from redis.cluster import ClusterNode

from enforcer.adapters.counters.cluster import ClusterCounters
from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.core.memory import Record
from meter.core.cluster import clustered
from meter.core.keys import bucket_tag, outbox
from meter.core.records import decode_effects

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from enforcer.adapters.counters.mend import Truth
    from enforcer.core.commands import Answer, Ask, Counter
    from enforcer.core.corrections import Correction
    from enforcer.core.model import Customer, Feature
    from enforcer.core.rebuild import Account
    from enforcer.ports.ledger import Ledger

CLOCK_KEY = "test:clock"
TEST_CLOCK = f"local CLOCK = tonumber(redis.call('GET', '{CLOCK_KEY}'))"

FINGER = 8
"""Bytes that are kept of a denied key: the fingerprint of its parameters."""


class _Generations:
    """Hands out the generation that the test asks for."""

    async def next_generation(self, bucket: int, at_least: int) -> int:
        return at_least + 1

    async def was_opened(self, bucket: int) -> bool:
        return False

    async def confirm_opened(self, bucket: int) -> None:
        pass

    async def last_generation(self, bucket: int) -> int:
        raise AssertionError(bucket)

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        raise AssertionError(tenant, customer)

    async def feature(self, tenant: str, key: str) -> Feature | None:
        raise AssertionError(tenant, key)

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        raise AssertionError(bucket, after, most)


class RedisTwin:
    """Counters of `buckets` buckets on the server at `url`, which is flushed first."""

    store: type[RedisCounters | ClusterCounters] = RedisCounters
    clock = TEST_CLOCK

    def __init__(
        self,
        url: str,
        clock: Callable[[], int],
        buckets: int,
        window_ms: int = 86_400_000,
        truth: Truth | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._clock, self._buckets = clock, buckets
        self._truth, self._ledger = truth or _Generations(), ledger
        self._begin(url)
        self._loop = asyncio.new_event_loop()
        self._options = RedisOptions(
            url, buckets, window_ms=window_ms, clock=self.clock, reply_timeout=10, patience=10
        )
        self._set_clock()
        self._store = self._loop.run_until_complete(self._start())

    def _begin(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._redis.flushall()
        # What is compared here does not survive anything: waiting for the disk would be most of the time.
        self._sync = str(self._redis.config_get("appendfsync")["appendfsync"])
        self._redis.config_set("appendfsync", "no")

    async def _start(self) -> RedisCounters | ClusterCounters:
        store = self.store(self._options, self._truth, ledger=self._ledger)
        store.start()
        async with asyncio.timeout(10):
            await store.ready.wait()
        return store

    def _set_clock(self) -> None:
        self._redis.set(CLOCK_KEY, self._clock())

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        self._set_clock()
        return self._loop.run_until_complete(call)

    def close(self) -> None:
        self._loop.run_until_complete(self._store.close())
        self._loop.close()
        self._end()

    def _end(self) -> None:
        self._redis.config_set("appendfsync", self._sync)
        self._redis.close()

    def open(self, bucket: int, generation: int) -> None:
        """Opened by the handshake, as generation 1."""
        assert bucket < self._buckets
        assert generation == 1

    def project(self, bucket: int, account_id: int, epoch: int) -> int:
        return int(self._run(self._store.project(bucket, account_id, epoch)))

    def decide(self, group: Sequence[Ask]) -> list[Answer]:
        async def decide() -> list[Answer]:
            return await self._store.decide(group)

        answers: list[Answer] = self._run(decide())
        return answers

    def decide_all(self, groups: Sequence[Sequence[Ask]]) -> Any:
        """All of them in one batch."""

        async def decide() -> Any:
            return await self._store.decide_all(groups)

        return self._run(decide())

    def commit(self, bucket: int, reservation: str, quantity: int | None) -> Any:
        return self._run(self._store.commit(bucket, reservation, quantity))

    def release(self, bucket: int, reservation: str) -> Any:
        return self._run(self._store.release(bucket, reservation))

    def give_back(self, bucket: int, allowance: str, used: int) -> Any:
        return self._run(self._store.give_back(bucket, allowance, used))

    def renew(self, bucket: int, lease: str, ttl_ms: int, account_id: int, epoch: int) -> Any:
        return self._run(self._store.renew(bucket, lease, ttl_ms, account_id, epoch))

    def release_lease(self, bucket: int, lease: str, *, unbind: bool) -> Any:
        return self._run(self._store.release_lease(bucket, lease, unbind=unbind))

    def leases(self, bucket: int, suffix: str, after: tuple[int, str], most: int) -> Any:
        return self._run(self._store.leases(bucket, suffix, after, most))

    def tick(self, bucket: int) -> int:
        return int(self._run(self._store.tick(bucket)))

    def slots(self, bucket: int, suffixes: Sequence[str]) -> Any:
        return self._run(self._store.slots(bucket, suffixes))

    def correct(
        self,
        bucket: int,
        acknowledged: int,
        corrections: Sequence[Correction],
        *,
        certain: bool = False,
    ) -> Any:
        return self._run(self._store.correct(bucket, acknowledged, corrections, certain=certain))

    def repair(self, bucket: int, body: bytes, changes: Sequence[Counter]) -> Any:
        return self._run(self._store.repair(bucket, body, changes))

    def adjust_seats(
        self, bucket: int, compared: tuple[int, int], body: bytes, changes: Sequence[Counter]
    ) -> Any:
        return self._run(self._store.adjust_seats(bucket, compared, body, changes))

    def counters(self, bucket: int) -> Any:
        return self._run(self._store.counters(bucket))

    def copy(self) -> dict[bytes, bytes]:
        """All data as they are."""
        found: Any = self._redis.keys()
        return {key: bytes(self._redis.dump(key) or b"") for key in found}

    def lose(self, copy: dict[bytes, bytes]) -> None:
        """Go back to a copy, as if it had been started on another server process; an empty one is an empty server."""
        pipe = self._redis.pipeline()
        pipe.flushall()
        for key, value in copy.items():
            pipe.restore(key, 0, value)
        pipe.execute()
        for bucket in range(self._buckets):
            meta = f"{bucket_tag(bucket)}m"
            raw: Any = self._redis.get(meta)
            if raw is not None:
                self._redis.set(meta, raw[:32] + b"another process")
        self._set_clock()

    def lease_ends(self, bucket: int) -> dict[str, int]:
        """When each lease that is kept ends."""
        raw: Any = self._redis.hgetall(f"{bucket_tag(bucket)}l")
        return {
            name.decode(): int(msgspec.msgpack.decode(lease, strict=False)[4])
            for name, lease in raw.items()
        }

    def last_now(self, bucket: int) -> int:
        """The latest time that the bucket has seen; 0 where there is none."""
        raw: Any = self._redis.get(f"{bucket_tag(bucket)}m")
        return 0 if raw is None else int(struct.unpack_from("<d", raw, 16)[0])

    def denied(self, bucket: int) -> list[tuple[int, bytes, bytes]]:
        """Keys that are remembered of denials: window, name, fingerprint."""
        found: list[tuple[int, bytes, bytes]] = []
        start = f"{bucket_tag(bucket)}r:".encode()
        keys: Any = self._redis.keys()
        for key in keys:
            if key.startswith(start):
                answers: Any = self._redis.hgetall(key)
                found += [
                    (int(key[len(start) :]), name, finger)
                    for name, finger in answers.items()
                    if len(finger) == FINGER
                ]
        return found

    def records(self, bucket: int) -> list[Record]:
        found = []
        entries: Any = self._redis.xrange(outbox(bucket))
        for name, fields in entries:
            generation, sequence = (int(part) for part in name.split(b"-"))
            found.append(Record(generation, sequence, fields[b"b"], decode_effects(fields[b"e"])))
        return found


CLOCK_KEYS = [f"{CLOCK_KEY}:{number}" for number in range(32)]
"""So many that every node has one."""


class ClusterTwin(RedisTwin):
    """The same on a cluster."""

    store = ClusterCounters
    clock = f"""
      local CLOCK
      for number = 0, {len(CLOCK_KEYS) - 1} do
        local found = redis.pcall('GET', '{CLOCK_KEY}:' .. number)
        if type(found) == 'string' then CLOCK = tonumber(found) break end
      end
    """

    def _begin(self, url: str) -> None:
        found = clustered(url)
        assert found is not None
        nodes = [ClusterNode(*node) for node in found.seeds]  # type: ignore[no-untyped-call, unused-ignore]
        self._redis: Any = redis.RedisCluster(startup_nodes=nodes, password=found.password or None)
        self._redis.flushall()

    def _set_clock(self) -> None:
        self._redis.mset_nonatomic(dict.fromkeys(CLOCK_KEYS, self._clock()))

    def _end(self) -> None:
        self._redis.close()
