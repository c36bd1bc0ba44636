"""A service that does what the tests ask for, on either transport, as a process: `python served.py TRANSPORT HOST:PORT`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from enforcer.errors import InvalidRequestError, MetergateError
from enforcer.metrics import Metrics
from enforcer.ports.definitions import Caller
from enforcer.transport.callers import Callers
from enforcer.transport.dispatch import Dispatch
from enforcer.transport.edge import Edge
from enforcer.transport.envoy import run_envoy
from enforcer.transport.grpcio import GrpcServer, end_for_sure
from enforcer.transport.lifespan import Application
from enforcer.transport.services import Method
from meter.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enforcer.app import Server
    from enforcer.transport.dispatch import Call
    from enforcer.transport.lifespan import Carry

SERVING = "serving"
MOST_CALLS = 200
TLS_FOLDER = "TEST_TLS_FOLDER"
"""Names a folder with `own.pem` and `own.key`, and with `clients.pem` where clients show certificates."""
MOST_STREAMS, MOST_CONNECTIONS = 20, 100
"""With that."""
AGE_SECONDS = 1.0
"""Of grpcio's connections: shorter than in a real process, so that tests need not wait."""
SERVICE = "enforcer.v1.EnforcerService"  # a name that reflection knows
KEYS = {
    "a-check-key": Caller("demo", "k1", "check"),
    "an-admin-key": Caller("demo", "k2", "admin"),
}


class _Definitions:
    async def caller(self, key: str) -> Caller | None:
        return KEYS.get(key)


class _Service:
    """`ended`: how the calls of `Wait` and `Flow` began and ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def echo(self, _: Call, request: BytesValue) -> BytesValue:
        return request

    async def grow(self, _: Call, request: StringValue) -> BytesValue:
        """As many bytes as asked for, that compress well."""
        return BytesValue(value=b"x" * int(request.value))

    async def whom(self, call: Call, _: StringValue) -> StringValue:
        return StringValue(value=call.caller.key_id)

    async def wait(self, _: Call, request: StringValue) -> StringValue:
        self.ended.append("begun")
        try:
            await asyncio.sleep(float(request.value))
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return request

    async def block(self, _: Call, request: StringValue) -> StringValue:
        """Nothing else is done meanwhile."""
        time.sleep(float(request.value))  # noqa: ASYNC251 - that is the point
        return request

    async def seen(self, _: Call, __: StringValue) -> StringValue:
        return StringValue(value=",".join(self.ended))

    async def fail(self, _: Call, request: StringValue) -> StringValue:
        if request.value == "bug":
            raise ZeroDivisionError("a secret")
        raise InvalidRequestError("BAD_FEATURE", request.value, field="feature")

    async def about(self, call: Call, _: StringValue) -> StringValue:
        """What the call knows."""
        left = call.time_left()
        call.trailing = (("x-count", "2"),)
        return StringValue(
            value=f"{'no limit' if left is None else f'{left:.3f}'},{call.metadata.get('x-colour')}"
        )

    async def abouts(self, call: Call, requests: Any) -> AsyncIterator[StringValue]:
        """The same of a stream."""
        async for request in requests:
            yield await self.about(call, request)

    async def flow(self, _: Call, requests: Any) -> AsyncIterator[BytesValue]:
        """Answers each message before the next has come."""
        try:
            async for request in requests:
                if request.value == b"fail":
                    raise InvalidRequestError("BAD_FEATURE", "as asked")  # noqa: TRY301
                yield request
        except MetergateError:
            raise
        except BaseException:
            self.ended.append("flow cancelled")
            raise
        self.ended.append("flow done")

    async def together(self, _: Call, requests: Any) -> AsyncIterator[list[bytes]]:
        """Answers 64 messages at once, with 20 bytes each."""
        some: list[bytes] = []
        async for _request in requests:
            some.append(BytesValue(value=bytes(20)).SerializeToString())
            if len(some) == 64:
                yield some
                some = []

    async def count(self, _: Call, requests: Any) -> AsyncIterator[StringValue]:
        """One answer for all messages."""
        total = 0
        async for request in requests:
            total += len(request.value)
        yield StringValue(value=str(total))

    def methods(self) -> list[Method]:
        found = [
            ("Echo", BytesValue, BytesValue, "check", self.echo, False),
            ("Grow", StringValue, BytesValue, "check", self.grow, False),
            ("Whom", StringValue, StringValue, "check", self.whom, False),
            ("Admin", StringValue, StringValue, "admin", self.whom, False),
            ("Wait", StringValue, StringValue, "check", self.wait, False),
            ("Block", StringValue, StringValue, "check", self.block, False),
            ("Seen", StringValue, StringValue, "check", self.seen, False),
            ("Fail", StringValue, StringValue, "check", self.fail, False),
            ("About", StringValue, StringValue, "check", self.about, False),
            ("Abouts", StringValue, StringValue, "check", self.abouts, True),
            ("Flow", BytesValue, BytesValue, "check", self.flow, True),
            ("Together", BytesValue, BytesValue, "check", self.together, True),
            ("Count", BytesValue, StringValue, "check", self.count, True),
        ]
        return [Method(SERVICE, *fields) for fields in found]  # type: ignore[arg-type]


async def _serve(stop: asyncio.Event, carry: Carry | partial[GrpcServer], listen: str = "") -> None:
    callers = Callers(_Definitions())  # type: ignore[arg-type]  # all that it asks them
    dispatch = Dispatch(_Service().methods(), callers, Metrics(), MOST_CALLS)
    server: Server = carry(dispatch)
    await server.start(listen)
    await server.ready(serving=True)
    print(SERVING, flush=True)  # noqa: T201 - of several at one port, this one
    await stop.wait()
    await server.stop()


application = Application(_serve)


def _edge() -> Edge:
    """Plain text, or TLS with the certificates of a folder."""
    if not (folder := os.environ.get(TLS_FOLDER)):
        return Edge()
    place = Path(folder)
    clients = place / "clients.pem"
    files = TlsFiles(place / "own.pem", place / "own.key", clients if clients.exists() else None)
    return Edge(files, MOST_STREAMS, MOST_CONNECTIONS)


async def _grpcio(listen: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await _serve(stop, partial(GrpcServer, age=AGE_SECONDS, edge=_edge()), listen)
    end_for_sure()


if __name__ == "__main__":
    if sys.argv[1] == "envoy":
        sys.exit(run_envoy(sys.argv[2], "tests.conformance.served:application", _edge()))
    asyncio.run(_grpcio(sys.argv[2]))
