"""What an enforcer sees of what lies in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from enforcer.adapters.counters.stock import AT_ONCE, RedisStock
from enforcer.core.commands import Stock
from enforcer.errors import StoreUnavailableError
from meter.core.keys import bucket_tag, outbox
from meter.core.records import Effects, RecordType, encode_effects
from tests.fixtures.valkey import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKETS = AT_ONCE + 3
LAST = BUCKETS - 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    found = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    found.start()
    try:
        yield found
    finally:
        found.kill()


def add(client: redis.Redis, bucket: int, sequence: int, at: int) -> None:
    effects = encode_effects(Effects(RecordType.USAGE, at))
    client.xadd(outbox(bucket), {"b": b"{}", "e": effects}, id=f"1-{sequence}")


async def test_all_buckets_are_looked_at_and_the_oldest_record_is_found(
    server: ValkeyProcess,
) -> None:
    stock = RedisStock(server.url, BUCKETS, 20)
    try:
        assert await stock.look() == Stock(0, None, 0, 0)
        with redis.Redis.from_url(server.url) as client:
            add(client, 0, 1, 7_000)
            add(client, 0, 2, 8_000)
            add(client, LAST, 1, 5_000)
            client.xadd(outbox(1), {"x": b"not a record"}, id="1-1")
            client.xadd(outbox(2), {"b": b"{}", "e": b"short"}, id="1-1")
            client.hset(f"{bucket_tag(LAST)}l", mapping={"a": "1", "b": "2"})
            client.hset(f"{bucket_tag(0)}v", "r", "1")
        assert await stock.look() == Stock(5, 5_000, 2, 1)
    finally:
        stock.close()


async def test_a_server_that_is_away_is_told_and_looked_at_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    stock = RedisStock(server.url, 1, 20)
    try:
        await stock.look()
        server.kill()
        with pytest.raises(StoreUnavailableError):
            await stock.look()
        server.start()
        assert await stock.look() == Stock(0, None, 0, 0)
    finally:
        stock.close()
        server.kill()
