"""How many checks of batches are worked on at once.

What waits for the store costs more the more of it there is: its objects leave the processor's caches before the answers
come. As requests, batches wait at the price of their bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

__all__ = ["Room"]

MOST_CHECKS: Final = 1_024
"""As many as the store is asked for at once; with more it is no faster."""
STILL_SECONDS: Final = 0.25
"""When nobody has left for so long, who waits goes in: a store that stands still is for each call itself to wait for."""


class Room:
    """Room for so many checks; a batch that finds none waits its turn. One alone always finds room."""

    def __init__(self, most: int = MOST_CHECKS, still: float = STILL_SECONDS) -> None:
        self._most, self._still = most, still
        self._inside = self._gone = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, checks: int) -> None:
        """Wait for room. Who has entered must `leave` with the same number."""
        if not self._waiting and self._fits(checks):
            self._inside += checks
        else:
            await self._turn(checks)

    def leave(self, checks: int) -> None:
        """Make room for those who have waited longest."""
        self._inside -= checks
        self._gone += 1
        self._let_in()

    def _fits(self, checks: int) -> bool:
        return not self._inside or self._inside + checks <= self._most

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            turn, checks = self._waiting.popleft()
            turn.set_result(None)
            self._inside += checks

    async def _turn(self, checks: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = turn, checks
        self._waiting.append(place)
        try:
            still = False
            while not (turn.done() or still):
                gone = self._gone
                await asyncio.wait((turn,), timeout=self._still)
                still = gone == self._gone
        except asyncio.CancelledError:
            if turn.done():
                self.leave(checks)
            else:
                self._waiting.remove(place)
                self._let_in()
            raise
        if not turn.done():
            self._waiting.remove(place)
            self._inside += checks
