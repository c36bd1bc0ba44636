"""One attempt at a call, and attempts until a deadline: the same for every method."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import cycle
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import grpc
import grpc.aio

from enforcer.client.errors import CallError, ClosedError, call_error, from_rpc
from enforcer.client.retry import Retries, Schedule
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from enforcer.client.observer import Observers
    from enforcer.client.options import Options
    from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceAsyncStub

__all__ = ["Calls"]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

SHORTEST: Final = 0.001
"""gRPC takes a deadline of 0 for one that has passed; so little is as good as none."""


_SERVICE: Final = "/enforcer.v1.EnforcerService"


class Connection(NamedTuple):
    """The methods of one connection; those of checks take requests that are bytes already."""

    stub: EnforcerServiceAsyncStub
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.CheckResponse]
    check_batch: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.CheckBatchResponse]


def _connection(channel: grpc.aio.Channel) -> Connection:
    return Connection(
        EnforcerServiceStub(channel),
        channel.unary_unary(
            f"{_SERVICE}/Check",
            request_serializer=bytes,
            response_deserializer=pb.CheckResponse.FromString,
        ),
        channel.unary_unary(
            f"{_SERVICE}/CheckBatch",
            request_serializer=bytes,
            response_deserializer=pb.CheckBatchResponse.FromString,
        ),
    )


class Calls:
    """Makes calls, over its channels in turns. Times are those of `time.monotonic`, which event loops run on, too."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        api_key: str,
        options: Options,
        observers: Observers,
    ) -> None:
        self._channels = channels
        self._connections = cycle([_connection(channel) for channel in channels])
        self.options, self.observers = options, observers
        self.retries = Retries()
        self._schedule = Schedule(options.first_pause, options.longest_pause, random.random)
        self._metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {api_key}"),)
        self._closed = False

    @property
    def connection(self) -> Connection:
        """The one whose turn it is."""
        return next(self._connections)

    @property
    def stub(self) -> EnforcerServiceAsyncStub:
        """Of the connection whose turn it is."""
        return next(self._connections).stub

    async def once(
        self,
        name: str,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
        items: int = 1,
        places: Sequence[object] | None = None,
    ) -> _Response:
        """One attempt, for those who asked at `places`; None: here. Raise `CallError`."""
        started = time.monotonic()
        outcome = "CANCELLED"
        metadata = self._metadata
        if self.observers.propagator is not None:
            if places is None:
                places = [self.observers.place()]
            metadata = *metadata, *self.observers.calling(name, items, places)
        try:
            answer = await method(request, timeout=max(timeout, SHORTEST), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            failed = from_rpc(error)
            outcome = failed.reason
            self.retries.failed(failed)
            raise failed from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise ClosedError("the client was closed while the call was running") from None
            raise
        else:
            outcome = "OK"
            self.retries.succeeded()
            return answer
        finally:
            if self.observers:
                self.observers.called(name, outcome, time.monotonic() - started, items)

    async def call(
        self,
        name: str,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None = None,  # noqa: ASYNC109 - for all attempts together
        items: int = 1,
    ) -> _Response:
        """Attempts until one succeeds, a retry cannot help, or the deadline would pass."""
        deadline = time.monotonic() + (self.options.timeout if timeout is None else timeout)

        async def attempt() -> _Response:
            left = deadline - time.monotonic()
            return await self.once(
                name, method, request, min(left, self.options.attempt_timeout), items
            )

        return await self.until(name, attempt, deadline)

    async def until(
        self,
        name: str,
        attempt: Callable[[], Awaitable[_Response]],
        deadline: float,
        *,
        failed: CallError | None = None,
    ) -> _Response:
        """Repeat `attempt`, which makes the same request under the same key each time.

        `failed`: it has been made once already, and that was its end.
        """
        failures = 0
        while True:
            if failed is not None:
                failures += 1
                pause = self._schedule.pause(failures, failed)
                if not self.retries.allow(failed) or time.monotonic() + pause >= deadline:
                    raise failed
                if self.observers:
                    self.observers.retrying(name, failed.reason, pause)
                await asyncio.sleep(pause)
            try:
                return await attempt()
            except CallError as error:
                failed = error

    async def close(self) -> None:
        """Close the connections; calls that still run end with `ClosedError`."""
        self._closed = True
        for channel in self._channels:
            await channel.close(None)


def out_of_time(what: str) -> CallError:
    """The deadline passed before there was an answer."""
    return call_error(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"{what} was not answered before its deadline"
    )
