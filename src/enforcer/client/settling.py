"""Counts what was allowed while no gateway answered, as soon as one does."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from enforcer.client.errors import CallError, ClosedError

if TYPE_CHECKING:
    from enforcer.client.calls import Calls
    from enforcer.client.policy import Outages, Use
    from enforcer.v1 import enforcer_pb2 as pb

__all__ = ["Settling"]

_log: Final = logging.getLogger("enforcer.client")

PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 5.0


class Settling:
    """One task while there is something to count.

    Each use is first asked again as it was, under its key: if it ran after all, it is counted. What
    that does not grant is recorded past the limits under a key of its own. So a use counts once,
    however often this is interrupted and begun again within the gateway's replay window.
    """

    def __init__(self, calls: Calls, outages: Outages) -> None:
        self._calls, self._outages = calls, outages
        self._task: asyncio.Task[None] | None = None
        self._now = asyncio.Event()

    def wake(self) -> None:
        """There is something to count."""
        if self._outages.uncounted and (self._task is None or self._task.done()):
            self._now.clear()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Count what can be counted within a call's time; say what is left."""
        if self._task is not None and not self._task.done():
            self._now.set()
            await asyncio.wait([self._task], timeout=self._calls.options.timeout)
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._outages.uncounted:
            _log.error(
                "%d uses that were allowed while no gateway answered were not counted: %s",
                len(self._outages.uncounted),
                ", ".join(sorted({use.request.feature for use in self._outages.uncounted})),
            )

    async def _run(self) -> None:
        pause = PAUSE
        while self._outages.uncounted:
            use = self._outages.uncounted[0]
            try:
                await self._count(use)
            except CallError as error:
                if not error.retryable:
                    # It will not be counted by asking again; its weight must not stay for ever.
                    _log.error(
                        "a use of %d of %s by %s, allowed while no gateway answered, cannot be counted: %s",
                        use.quantity,
                        use.request.feature,
                        use.request.customer,
                        error,
                    )
                    self._outages.counted(use)
                    continue
            except ClosedError:
                return
            else:
                self._outages.counted(use)
                pause = PAUSE
                continue
            try:
                await asyncio.wait_for(self._now.wait(), pause)
                pause = PAUSE / 10  # the client is being closed: as often as may help
                await asyncio.sleep(pause)
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _count(self, use: Use) -> None:
        answer = await self._ask(use.request)
        rest = use.rest(answer.granted if answer.allowed else 0)
        if rest is not None and not (recorded := await self._ask(rest)).allowed:
            _log.error(
                "a use of %d of %s by %s, allowed while no gateway answered, was not recorded: reason %d",
                use.quantity,
                use.request.feature,
                use.request.customer,
                recorded.reason,
            )

    async def _ask(self, request: pb.CheckRequest) -> pb.CheckResponse:
        options = self._calls.options
        return await self._calls.once(
            "Check", self._calls.stub.Check, request, options.attempt_timeout
        )
