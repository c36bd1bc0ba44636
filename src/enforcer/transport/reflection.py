"""`grpc.reflection`: lets tools ask for the protos. Its first version and the one that all servers have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

from enforcer.transport.services import Method

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from enforcer.transport.dispatch import Call

__all__ = ["reflection_methods"]

_SERVICES = "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"
"""Their messages are the same but for the package."""


def reflection_methods(services: Iterable[str]) -> list[Method]:
    """For everybody, without an API key: the protos are public."""
    aio: Any = reflection.aio  # type: ignore[attr-defined]  # the stubs lack it
    servicer = aio.ReflectionServicer([*sorted(services), *_SERVICES])

    def answer(call: Call, requests: Any) -> AsyncIterator[pb.ServerReflectionResponse]:
        found: AsyncIterator[pb.ServerReflectionResponse] = servicer.ServerReflectionInfo(
            _until(call.ending, requests), None
        )
        return found

    return [
        Method(
            service,
            "ServerReflectionInfo",
            pb.ServerReflectionRequest,
            pb.ServerReflectionResponse,
            "",
            answer,
            stream=True,
        )
        for service in _SERVICES
    ]


async def _until(ending: asyncio.Event, requests: Any) -> AsyncIterator[Any]:
    """Requests, until the process takes no more: a tool that keeps its stream open does not hold up the end."""
    over = asyncio.ensure_future(ending.wait())
    try:
        while not over.done():
            coming = asyncio.ensure_future(anext(requests, None))
            try:
                await asyncio.wait({coming, over}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() or (request := coming.result()) is None:
                    return
            finally:
                coming.cancel()
                await asyncio.wait({coming})
            yield request
    finally:
        over.cancel()
