"""How a process begins and ends: no call that it has begun is lost, and clients learn where else to go."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import psutil
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conformance.conftest import KEY, method, until

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.conformance.conftest import Process

    Launch = Callable[..., Process]

STATUS = health_pb2.HealthCheckResponse


async def test_calls_in_flight_are_answered_after_sigterm(launch: Launch) -> None:
    served = launch()
    await served.serving()
    async with served.channel() as channel:
        calls = [
            method(channel, "Wait")(StringValue(value=str(2 + 0.1 * place)), metadata=KEY)
            for place in range(20)
        ]
        await until(channel, "begun", 20)
        served.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*calls)
        assert [float(answer.value) for answer in answers] == [
            2 + 0.1 * place for place in range(20)
        ]
    assert await asyncio.to_thread(served.end) == 0, served.log.read_text()


async def test_nobody_notices_that_one_of_two_processes_ends(launch: Launch) -> None:
    """Busy clients, and clients that say nothing for a while."""
    ending = launch()
    staying = launch(ending.port)
    await ending.serving()
    await staying.serving()
    stop = time.monotonic() + 5

    async def busy(pause: float) -> int:
        calls = 0
        async with staying.channel() as channel:
            while time.monotonic() < stop:
                await method(channel, "Echo")(BytesValue(value=b"a"), metadata=KEY, timeout=20)
                calls += 1
                await asyncio.sleep(pause)
        return calls

    clients = [asyncio.create_task(busy(pause)) for pause in [0.0] * 6 + [0.01] * 6 + [1.0] * 12]
    await asyncio.sleep(1)
    ended = asyncio.create_task(asyncio.to_thread(ending.end))
    counts = await asyncio.gather(*clients)
    assert min(counts) >= 2
    assert await ended == 0, ending.log.read_text()
    assert staying.process.poll() is None


async def test_who_watches_health_is_told_and_sent_away(launch: Launch) -> None:
    """And a tool that keeps a stream open, by which it has asked for the protos."""
    served = launch()
    await served.serving()
    async with served.channel() as channel:
        tool = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await tool.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await tool.read()).list_services_response.service
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watched.read()).status == STATUS.SERVING
        begun = time.monotonic()
        ended = asyncio.create_task(asyncio.to_thread(served.end))
        assert (await watched.read()).status == STATUS.NOT_SERVING
        assert await watched.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        assert await tool.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        assert await ended == 0, served.log.read_text()
        # Whose streams do not end is cut off after 13 seconds or 20.
        assert time.monotonic() - begun < 12, "a watcher does not hold up the end"


async def test_kill_9_leaves_nothing_behind(launch: Launch) -> None:
    served = launch()
    await served.serving()
    await asyncio.to_thread(served.end, signal.SIGKILL)
    give_up = time.monotonic() + 10
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        except ConnectionRefusedError:
            break
        writer.close()
        assert time.monotonic() < give_up, "something still listens"
        await asyncio.sleep(0.05)


def folders_in(place: str) -> set[Path]:
    return set(Path(place).iterdir())


async def test_the_next_one_clears_away_what_a_killed_one_has_left(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as short:  # a socket's path has at most 107 characters
        monkeypatch.setenv("TMPDIR", short)
        running, killed = launch(), launch()
        for one in (running, killed):
            await one.serving()
        before = folders_in(short)
        await asyncio.to_thread(killed.end, signal.SIGKILL)
        await launch().serving()
        after = folders_in(short)
        owned = 1 if running.transport == "envoy" else 0
        assert (len(before), len(after), len(before & after)) == (2 * owned, 2 * owned, owned)


async def test_sigterm_before_the_start_is_over_ends_it(launch: Launch) -> None:
    served = launch()
    await asyncio.sleep(0.2)
    assert await asyncio.to_thread(served.end) in {0, -signal.SIGTERM}


async def test_when_envoy_dies_its_process_dies_in_the_same_way(launch: Launch) -> None:
    """So that whoever watches over the process starts it again."""
    served = launch()
    await served.serving()
    children = psutil.Process(served.process.pid).children()
    assert len(children) == (served.transport == "envoy")
    for child in children:
        child.kill()
        assert await asyncio.to_thread(served.process.wait, 20) == -signal.SIGKILL
