"""What a process depends on and what it can therefore do: the one truth behind every probe and every line about it.

Liveness is not in here: a process that waits for a server is alive, and to kill it would help nobody. It answers its
`/healthz` on the event loop, and that is all.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import structlog

from meter.core.redact import redacted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

__all__ = [
    "ASK_EVERY",
    "FIRST_PAUSE",
    "Complaint",
    "Dependency",
    "Health",
    "Need",
    "State",
    "backoff",
    "watch",
]

_log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
ASK_EVERY: Final = 2.0
"""Seconds between two questions to a server that answered the last one."""
ASK_SECONDS: Final = 5.0
"""A server that has not answered after so long is away."""
LONGEST_WHY: Final = 300


class State(StrEnum):
    """Of a dependency, as it was found last."""

    UNKNOWN = "unknown"
    """Not asked yet."""
    UP = "up"
    AWAY = "away"
    """It does not answer: whoever waits long enough may find it."""
    REFUSED = "refused"
    """It answers, and does not let this process work: a matter of settings (a password, a schema, a topic)."""
    WAITING = "waiting"
    """It answers, and cannot be used before something else is there."""


class Need(StrEnum):
    """When a process is not ready without it."""

    ALWAYS = "always"
    START = "to start"
    """Until it was met once: a new process does not take the place of one that works. Later the others are no better off."""
    NEVER = "never"


class Dependency:
    """A server that a process works with. `without` says what does not work while it is not up."""

    def __init__(
        self, name: str, need: Need, without: str, told: Collection[Callable[[str, bool], None]]
    ) -> None:
        self.name, self.need, self.without = name, need, without
        self._told = told
        self.state, self.why = State.UNKNOWN, ""
        self.since = time.time()
        self.met = False

    @property
    def up(self) -> bool:
        """Whether it was found in order."""
        return self.state is State.UP

    @property
    def suffices(self) -> bool:
        """Whether the process may be ready, as far as this goes."""
        return self.need is Need.NEVER or (
            self.met if self.need is Need.START else self.state is State.UP
        )

    def tell(self, state: State, why: str = "") -> None:
        """Note how it was found. A change of state is one line in the log."""
        why = "" if state is State.UP else " ".join(why.split())[:LONGEST_WHY]
        before, self.why = self.state, why
        self.met = self.met or state is State.UP
        if state is before:
            return
        now = time.time()
        lasted = round(now - self.since, 1)
        self.state, self.since = state, now
        for told in self._told:
            told(self.name, self.up)
        if state is State.UP:
            after = {} if before is State.UNKNOWN else {"after_seconds": lasted}
            _log.info("dependency is up", dependency=self.name, **after)
        elif state is State.REFUSED:
            _log.error("dependency refuses", dependency=self.name, error=why, without=self.without)
        else:
            _log.warning(
                f"dependency is {state.value}",
                dependency=self.name,
                error=why,
                without=self.without,
            )

    def failed(self, error: BaseException) -> None:
        """Note what it failed with: errors of ours know whether it refused."""
        refused = getattr(error, "refused", False)
        self.tell(State.REFUSED if refused else State.AWAY, str(error) or type(error).__name__)


class Health:
    """Whether calls should be sent to this process, and what is missing if not."""

    def __init__(self) -> None:
        self.dependencies: list[Dependency] = []
        self.started = False
        """Set when the process does its work."""
        self.stopping = False
        self._told: list[Callable[[str, bool], None]] = []

    def add(self, name: str, need: Need, without: str) -> Dependency:
        """A further dependency."""
        self.dependencies.append(Dependency(name, need, without, self._told))
        for told in self._told:
            told(name, self.dependencies[-1].up)
        return self.dependencies[-1]

    def observe(self, told: Callable[[str, bool], None]) -> None:
        """Tell of each dependency, those to come included, whether it is up: now, and when that changes."""
        for one in self.dependencies:
            told(one.name, one.up)
        self._told.append(told)

    @property
    def missing(self) -> list[str]:
        """Names of the dependencies without which it is not ready."""
        return [one.name for one in self.dependencies if not one.suffices]

    @property
    def ready(self) -> bool:
        """Whether to send calls here."""
        return self.started and not self.stopping and not self.missing

    @property
    def state(self) -> str:
        """In one word: stopping, waiting (not ready), degraded (ready, and something does not work) or ready."""
        if self.stopping:
            return "stopping"
        if not self.ready:
            return "waiting"
        whole = all(one.state in {State.UP, State.UNKNOWN} for one in self.dependencies)
        return "ready" if whole else "degraded"

    def page(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is ready, and what `/readyz` shows."""
        ready = self.ready
        shown = {
            one.name: {
                "state": one.state.value,
                "since": f"{datetime.fromtimestamp(one.since, UTC):%Y-%m-%dT%H:%M:%SZ}",
                "needed": one.need.value,
                **({"error": redacted(one.why)} if one.why else {}),
                **({} if one.state is State.UP else {"without": one.without}),
            }
            for one in self.dependencies
        }
        return ready, {
            "ready": ready,
            "state": self.state,
            "missing": self.missing,
            "dependencies": shown,
        }


class Complaint:
    """Says once that something does not work, again when it fails otherwise, and once that it works again."""

    def __init__(self, event: str) -> None:
        self._event, self._said = event, ""

    def say(self, reason: str, **more: Any) -> None:
        """It failed, for this reason."""
        if reason != self._said:
            self._said = reason
            _log.warning(self._event, reason=reason, **more)

    def over(self) -> None:
        """It worked."""
        if self._said:
            self._said = ""
            _log.info(f"{self._event}: no longer")


async def backoff(stop: asyncio.Event, pause: float) -> float:
    """Wait for `pause` seconds or until `stop`; return how long to wait the next time."""
    try:
        async with asyncio.timeout(pause):
            await stop.wait()
    except TimeoutError:
        return min(pause * 2, LONGEST_PAUSE)
    return pause


async def watch(
    dependency: Dependency, ask: Callable[[], Awaitable[object]], every: float = ASK_EVERY
) -> None:
    """Ask the server now and then, for ever, and tell how it was found. One that is up is asked `every` so many seconds."""
    while True:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await ask()
        except TimeoutError:
            dependency.tell(State.AWAY, f"no answer within {ASK_SECONDS:g} s")
        except Exception as error:  # noqa: BLE001 - told, whatever it is
            dependency.failed(error)
        else:
            dependency.tell(State.UP)
        await asyncio.sleep(every if dependency.state is State.UP else min(every, ASK_EVERY))
