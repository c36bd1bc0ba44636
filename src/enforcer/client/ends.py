"""Work that has to come to its end although the task that began it is cancelled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from enforcer.client.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LooseEnds", "finish"]

_log: Final = logging.getLogger("enforcer.client")
_T = TypeVar("_T")


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end whoever cancels meanwhile; then let the cancellation go on.

    `work` bounds its own time: nobody can cut it short.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failed := task.exception()) is not None:
            _log.error("a call failed after its task was cancelled: %s", failed)
        raise cancelled
    return task.result()


class LooseEnds:
    """Tasks that nobody waits for but the client's end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it on the side."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def take(
        self, work: Coroutine[Any, Any, _T], give_up: Callable[[_T], Coroutine[Any, Any, None]]
    ) -> _T:
        """What `work` gets; if the caller is cancelled meanwhile, `give_up` returns it afterwards."""
        task = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                self.add(self._return(task, give_up))
            raise

    @staticmethod
    async def _return(
        task: asyncio.Future[_T], give_up: Callable[[_T], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            got = await task
        except ClientError:
            return  # nothing was got: nothing is owed
        await give_up(got)

    async def close(self) -> None:
        """Wait until all have ended; each bounds its own time."""
        while self._tasks:
            await asyncio.wait(self._tasks)
