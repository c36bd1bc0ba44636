"""`grpc.health.v1.Health`: whether to send calls here, asked once or watched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2 as pb

from enforcer.errors import NotFoundError
from enforcer.transport.services import Method

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["SERVICE", "Health"]

SERVICE = "grpc.health.v1.Health"


class Health:
    """One state for the process and all of its `services`."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = {"", *services}
        self._serving = False
        self.ended = asyncio.Event()
        """Set when this process takes no more calls: streams come to their ends."""
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether to send calls here."""
        return self._serving

    def turn(self, *, serving: bool) -> None:
        """Tell everybody who watches."""
        if serving != self._serving and not self.ended.is_set():
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def leave(self) -> None:
        """No longer serving, for good, to all who ask from now on. Those who watch already are told by `end`.

        gRPC's clients send no call to where they hear NOT_SERVING, and look for no other process behind the same
        address before their connection ends: until then they are to go on.
        """
        self.ended.set()
        self._serving = False

    def end(self) -> None:
        """No longer serving, for good: those who watch are told, and are to watch another process."""
        self.leave()
        self._changed.set()

    def methods(self) -> list[Method]:
        """For everybody, without an API key."""
        messages = pb.HealthCheckRequest, pb.HealthCheckResponse
        return [
            Method(SERVICE, "Check", *messages, "", self._check),
            Method(SERVICE, "Watch", *messages, "", self._watch, stream=True),
        ]

    async def _check(self, _: object, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        if request.service not in self._services:
            raise NotFoundError("SERVICE_UNKNOWN", f"no service {request.service[:100]!r} is here")
        return pb.HealthCheckResponse(status=self._state(request.service))

    async def _watch(self, _: object, requests: Any) -> AsyncIterator[pb.HealthCheckResponse]:
        async for request in requests:
            told = None
            while True:
                changed = self._changed
                state = self._state(request.service)
                if state != told:
                    yield pb.HealthCheckResponse(status=state)
                    told = state
                    continue  # it may have changed while that was sent
                if self.ended.is_set():
                    # Ends well: gRPC's clients throw away what they have not read yet when a status is an error.
                    return
                await changed.wait()

    def _state(self, service: str) -> pb.HealthCheckResponse.ServingStatus.ValueType:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        state = pb.HealthCheckResponse
        return state.SERVING if self._serving else state.NOT_SERVING
