"""`grpc.reflection`: lets tools ask for the protos. Its first version and the one that all servers have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

from enforcer.transport.services import Method

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

__all__ = ["reflection_methods"]

_SERVICES = "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"
"""Their messages are the same but for the package."""


def reflection_methods(services: Iterable[str]) -> list[Method]:
    """For everybody, without an API key: the protos are public."""
    aio: Any = reflection.aio  # type: ignore[attr-defined]  # the stubs lack it
    servicer = aio.ReflectionServicer([*sorted(services), *_SERVICES])

    def answer(_: object, requests: Any) -> AsyncIterator[pb.ServerReflectionResponse]:
        found: AsyncIterator[pb.ServerReflectionResponse] = servicer.ServerReflectionInfo(
            requests, None
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
