"""Both transports, as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enforcer.transport.envoy import obstacle
from tests.conformance.served import SERVICE, SERVING
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

START_SECONDS = 60.0
KEY = (("authorization", "Bearer a-check-key"),)
MOST = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
KINDS: dict[str, tuple[Any, Any]] = {
    "Echo": (BytesValue, BytesValue),
    "Grow": (StringValue, BytesValue),
}
KINDS |= {"Flow": (BytesValue, BytesValue), "Count": (BytesValue, StringValue)}


class Process:
    """`tests.conformance.served`, or another module like it, at a port, which several may share."""

    def __init__(
        self,
        transport: str,
        log: Path,
        port: int | None = None,
        module: str = "tests.conformance.served",
        environment: dict[str, str] | None = None,
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ) -> None:
        self._credentials = credentials
        self.transport, self.port = transport, port or free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, transport, self.target],
                stderr=file,
                stdout=file,
                env={**os.environ, **(environment or {})},
            )

    def channel(self, **options: Any) -> grpc.aio.Channel:
        settings = [*MOST, ("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options=settings, **options)
        return grpc.aio.secure_channel(self.target, self._credentials(), settings, **options)

    async def serving(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while SERVING not in self.log.read_text() or not await self._healthy():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            await asyncio.sleep(0.05)

    async def _healthy(self) -> bool:
        async with self.channel() as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


def method(channel: grpc.aio.Channel, name: str, kind: str = "unary_unary") -> Any:
    """What calls a method of the service."""
    request, response = KINDS.get(name, (StringValue, StringValue))
    return getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


async def until(channel: grpc.aio.Channel, word: str, times: int = 1) -> None:
    """Wait until the service has seen it so often."""
    give_up = time.monotonic() + 20
    seen = method(channel, "Seen")
    while True:
        words = (await seen(StringValue(), metadata=KEY, timeout=20)).value.split(",")
        if words.count(word) >= times:
            return
        assert time.monotonic() < give_up, f"{word!r} only {words.count(word)} times"
        await asyncio.sleep(0.05)


def _needs(transport: str) -> None:
    if transport == "envoy" and (missing := obstacle()):
        pytest.skip(missing)


@pytest.fixture(scope="module", params=["grpcio", "envoy"])
def process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One for all tests of a file."""
    _needs(request.param)
    opened = Process(request.param, tmp_path_factory.mktemp("served") / "log")
    asyncio.run(opened.serving())
    yield opened
    opened.end()


@pytest.fixture
async def channel(process: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with process.channel() as opened:
        yield opened


@pytest.fixture(params=["grpcio", "envoy"])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes for one test."""
    _needs(request.param)
    started: list[Process] = []

    def start(port: int | None = None) -> Process:
        log = tmp_path / f"log-{len(started)}"
        started.append(Process(request.param, log, port))
        return started[-1]

    yield start
    for one in started:
        one.end(signal.SIGKILL)
