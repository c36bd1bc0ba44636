"""`enforcer.v1.OperationsService`: what whoever runs a deployment changes while it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from enforcer.errors import InvalidRequestError, StoreUnavailableError
from enforcer.transport.services import Method, by_caller
from enforcer.v1 import operations_pb2 as pb
from meter.errors import LogUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from enforcer.ports.definitions import Caller, Definitions

__all__ = ["Levels", "operations_methods"]

USUAL_SECONDS: Final = 900.0
LONGEST_SECONDS: Final = 86_400.0
_PARTS: Final = {
    pb.PART_UNSPECIFIED: "",
    pb.PART_ENFORCER: "enforcer",
    pb.PART_RELAY: "relay",
    pb.PART_ROLLUP: "rollup",
}
_LEVELS: Final = {
    pb.LOG_LEVEL_UNSPECIFIED: "",
    pb.LOG_LEVEL_DEBUG: "debug",
    pb.LOG_LEVEL_INFO: "info",
    pb.LOG_LEVEL_WARNING: "warning",
    pb.LOG_LEVEL_ERROR: "error",
}
_PART_OF: Final = {name: number for number, name in _PARTS.items()}
_LEVEL_OF: Final = {name: number for number, name in _LEVELS.items()}


class Levels(Protocol):
    """Where levels are set for all processes: see `meter.adapters.levels.Levels`."""

    async def read(self) -> Sequence[tuple[str, str, float]]:
        """Part, level, and seconds left, of each that is set."""
        ...

    async def set(self, part: str, level: str, seconds: float) -> None:
        """Set one for so long; an empty level: not any more."""
        ...


class _Operations:
    def __init__(
        self, levels: Levels, definitions: Definitions, clock: Callable[[], float]
    ) -> None:
        self._levels, self._definitions, self._clock = levels, definitions, clock

    async def set_level(self, caller: Caller, request: pb.SetLogLevelRequest) -> Message:
        """The audit log is told first: what it does not know does not happen."""
        level, part = _LEVELS.get(request.level), _PARTS.get(request.part)
        if level is None or part is None:
            wrong = "level" if level is None else "part"
            raise InvalidRequestError("BAD_LOG_LEVEL", f"{wrong} is a number without a meaning")
        seconds = USUAL_SECONDS
        if request.HasField("lifetime"):
            seconds = request.lifetime.seconds + request.lifetime.nanos / 1e9
        if not 1 <= seconds <= LONGEST_SECONDS:
            raise InvalidRequestError(
                "BAD_TTL", f"lifetime is {seconds:g} s: 1 second to 24 hours is allowed"
            )
        what = f"{part or 'all'} {level} {seconds:g}s" if level else f"{part or 'all'} unset"
        await self._definitions.note(caller.tenant, caller.key_id, "set", "log_level", what)
        try:
            await self._levels.set(part, level, seconds)
        except LogUnavailableError as error:
            raise StoreUnavailableError(error.message) from error
        return pb.SetLogLevelResponse(until=self._until(seconds) if level else None)

    async def levels(self, caller: Caller, request: pb.ListLogLevelsRequest) -> Message:
        """As Redis has them."""
        try:
            found = await self._levels.read()
        except LogUnavailableError as error:
            raise StoreUnavailableError(error.message) from error
        return pb.ListLogLevelsResponse(
            levels=[
                pb.SetLevel(part=_PART_OF[part], level=_LEVEL_OF[level], until=self._until(left))
                for part, level, left in found
            ]
        )

    def _until(self, seconds: float) -> Timestamp:
        until = Timestamp()
        until.FromMilliseconds(int((self._clock() + seconds) * 1000))
        return until


def operations_methods(
    levels: Levels, definitions: Definitions, clock: Callable[[], float] = time.time
) -> list[Method]:
    """All of them, for admin keys. `clock`: seconds since 1970."""
    operations = _Operations(levels, definitions, clock)
    service = "enforcer.v1.OperationsService"
    answer: Callable[[Caller, pb.SetLogLevelRequest], Awaitable[Message]] = operations.set_level
    return [
        Method(
            service,
            "SetLogLevel",
            pb.SetLogLevelRequest,
            pb.SetLogLevelResponse,
            "admin",
            by_caller(answer),
        ),
        Method(
            service,
            "ListLogLevels",
            pb.ListLogLevelsRequest,
            pb.ListLogLevelsResponse,
            "admin",
            by_caller(operations.levels),
        ),
    ]
