"""What one tenant may take of a process: so many calls at once, so many in a second. Decision 26 says why so.

A tenant that floods is refused before anything is read or decided for it, so that others go on being served. It hears of
it a little later: who asks again as soon as it is refused would be refused thousands of times a second, which takes more
from the others than what it has.
"""

from __future__ import annotations

import asyncio
import random
from math import inf
from typing import TYPE_CHECKING, Final

from enforcer.errors import TenantOverShareError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HEAVY", "Share", "Tenants", "weight_of"]

HEAVY: Final = 4096
"""Bytes of a request from which it counts however few calls there are: it has many checks in it."""
STREAM_PAUSE_SECONDS: Final = 0.005
RETRY_MS: Final = 100
HOLD_SECONDS: Final = 1.0
"""A refusal is told after a fifth of it to all of it, at random: those that came together must not come again together."""
MOST_HELD: Final = 1_000
"""Refusals of a tenant that it does not know of yet; more are told at once. Each takes some kilobytes."""
SILENT_SECONDS: Final = 1.0
"""Between two refusals of a tenant that are logged."""
BURST_SECONDS: Final = 1.0
"""A tenant may ask for what it has in so long at once."""


class Share:
    """What one tenant has now.

    `running`: the weight of its calls that count; `due`: when its rate is used up until; `held`: refusals not told yet;
    `spoken`: when one was logged.
    """

    __slots__ = ("due", "held", "running", "spoken")

    def __init__(self) -> None:
        self.running = self.held = 0
        self.due = 0.0
        self.spoken = -inf


class Tenants:
    """The shares of all tenants.

    `most` calls at once for each, 0: as many as there are; `rate` calls in a second, 0: as many as come. `refused` is
    told of each refusal: `concurrency` or `rate`. A call weighs more by the size of its request, see `weight_of`.

    While no more than `calm` calls run in the whole process, nobody can have more than that, and nothing is counted:
    a call compares one number. Beyond it every call is counted that begins, up to `most` less `calm` for each tenant:
    with those that were not counted it has `most`.
    """

    def __init__(
        self, most: int = 0, rate: int = 0, refused: Callable[[str], None] | None = None
    ) -> None:
        self._interval = 1.0 / rate if rate else 0.0
        self.calm: float = -1.0 if rate else most // 2 if most else float("inf")
        self._most: float = most - max(self.calm, 0) if most else float("inf")
        self._refused = refused or (lambda _: None)
        self._of: dict[str, Share] = {}

    def enter(self, tenant: str, weight: int, now: float) -> Share:
        """Count a call of this weight; whoever calls takes it off `running` again. Raise `TenantOverShareError`.

        `now` is on the clock of `time.monotonic`. What is heavier than a whole share passes when nothing else runs.
        """
        share = self._share(tenant)
        over = self._over(share, weight, now)
        if over is not None:
            self._refused(over.metadata["limit"])
            raise over
        self._take(share, weight, now)
        return share

    async def hold(self, tenant: str, left: float | None) -> None:
        """Wait before a refusal is told: half of the seconds that its client has `left` at most, so that it hears of it."""
        share = self._share(tenant)
        if share.held >= MOST_HELD:
            return
        share.held += 1
        try:
            held = HOLD_SECONDS * random.uniform(0.2, 1)  # noqa: S311 - no secret
            await asyncio.sleep(held if left is None else min(held, left / 2))
        finally:
            share.held -= 1

    def speaks_of(self, tenant: str, now: float) -> bool:
        """Whether a refusal is to be logged: one in a second is, as a flood has thousands. All are counted."""
        share = self._share(tenant)
        if now - share.spoken < SILENT_SECONDS:
            return False
        share.spoken = now
        return True

    async def turn(self, tenant: str, weight: int) -> Share:
        """As `enter`, for the questions of a stream: they wait, and so does who asks them."""
        share, now = self._share(tenant), asyncio.get_running_loop().time
        while self._over(share, weight, now()) is not None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(STREAM_PAUSE_SECONDS)
        self._take(share, weight, now())
        return share

    def _share(self, tenant: str) -> Share:
        share = self._of.get(tenant)
        if share is None:
            share = self._of[tenant] = Share()
        return share

    def _over(self, share: Share, weight: int, now: float) -> TenantOverShareError | None:
        if share.running and share.running + weight > self._most:
            return TenantOverShareError("concurrency", RETRY_MS)
        wait = share.due - BURST_SECONDS - now
        return TenantOverShareError("rate", max(int(wait * 1000), 1)) if wait > 0 else None

    def _take(self, share: Share, weight: int, now: float) -> None:
        share.running += weight
        if self._interval:
            share.due = max(share.due, now) + weight * self._interval


def weight_of(size: int) -> int:
    """Of a call whose request has so many bytes: one, and one more for each KiB, which some ten checks have."""
    return 1 + (size >> 10)
