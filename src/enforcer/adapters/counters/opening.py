"""Opening closed buckets, again and again until they are open."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import hiredis
import structlog

from enforcer.adapters.counters.connection import ConnectionLostError
from enforcer.errors import MetergateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from enforcer.adapters.counters.mend import Mender

__all__ = ["LONGEST_PAUSE", "keep_open"]

_log = structlog.get_logger(__name__)
LONGEST_PAUSE = 0.25
"""Between two attempts to connect, or to open buckets, in seconds."""


async def keep_open(
    closed: dict[int, str],
    mender: Mender | None,
    closing: asyncio.Event,
    fence: Callable[[Mapping[int, bool]], Awaitable[None]],
    serve: Callable[[Mapping[int, bool]], None],
) -> None:
    """Open what is `closed`, now and when `closing` is set. Cancelled with its connection.

    What was opened is first `fence`d off from older connections, then taken from `closed` and given to `serve`.
    """
    if mender is None:
        closed.update(dict.fromkeys(closed, "there is no meter to ask"))
        return
    pause, said = 0.05, ""
    while True:
        if not closed:
            closing.clear()
            await closing.wait()
            pause = 0.05
        try:
            async with aclosing(mender.mend(closed)) as opening:
                async for opened in opening:
                    await fence(opened)
                    for bucket in opened:
                        closed.pop(bucket, None)
                    if opened:
                        serve(opened)
                        pause = 0.05
        except (ConnectionLostError, hiredis.HiredisError, MetergateError) as error:
            closed.update(dict.fromkeys(closed, str(error)))
        except Exception:  # noqa: BLE001 - logged here, and done again
            # Buckets are never left closed without another attempt, nor without a word.
            _log.exception("opening buckets failed")
            closed.update(dict.fromkeys(closed, "an internal error: see the log"))
        if closed:
            if (why := str(sorted(closed.items()))) != said:
                said = why
                _log.warning("buckets are closed", buckets=closed)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
