"""One process dies or stands still just before a named step, while clients are served by the rest."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Final

from meter.crash import POINTS
from tests.fixtures.enforcer_process import EnforcerProcess

if TYPE_CHECKING:
    import random

    from tests.chaos.clients import Clients
    from tests.chaos.deployment import Deployment
    from tests.fixtures.meter_process import MeterProcess

__all__ = ["DEEDS", "ELSEWHERE", "PATHS", "SERVER", "crash", "points"]

PATHS: Final = ("embedded", "kafka")
DEEDS: Final = ("kill", "stop")
SERVER: Final = {"valkey": "at any instant, under load"}
"""Valkey has no steps of ours: it is hit at random."""
ELSEWHERE: Final = {
    "rollup.expire": "integration/meter/test_retention.py",
    "rollup.drop": "integration/meter/test_retention.py",
}
"""Steps that no traffic of minutes comes to, and where they are tried instead."""
ANSWERS: Final = 10
"""So many checks are answered before one who stands still goes on: by then others have taken over."""
_OPENING: Final = ("allocate", "open", "confirm", "catch_up")
_REOPENING: Final = ("allocate", "open", "confirm")
"""Of a restarted server, and of one that is made again from the records."""
EMPTIED: Final = 0.5
MOST_PASSINGS: Final = {"send": 3, "answer": 3, "mend": 6}
"""A rebuild writes at least the beginning, the counts and the answers of both buckets."""
_JOURNAL: Final = ("journal", "journaled", "count", "discard")
_CHANGING: Final = ("project", "projected")


def points(path: str) -> list[str]:
    """All that is hit on a way of the records."""
    other = "relay." if path == "embedded" else "enforcer."
    named = (name for name in POINTS if not name.startswith(other) and name not in ELSEWHERE)
    return [*named, *SERVER]


async def crash(
    gateway: Deployment, clients: Clients, point: str, deed: str, dice: random.Random
) -> None:
    """Have it happen once. Who was killed stays dead: `gateway.all_up` starts it again."""
    part, _, step = point.partition(".")
    if part == "valkey":
        await _server(gateway, deed, dice)
    elif part == "enforcer":
        passing = dice.randint(1, MOST_PASSINGS.get(step, 1))
        emptied = step == "mend" or (step in _REOPENING and dice.random() < EMPTIED)
        await _enforcer(gateway, clients, step, f"{point}:{passing}:{deed}", emptied=emptied)
    else:
        await gateway.all_up(but=process_of(gateway, part))
        plan = f"{point}:{dice.randint(1, 3)}:{deed}"
        await gateway.restart(process_of(gateway, part), plan)
        await _strike(gateway, process_of(gateway, part), deed, clients)
    await clients.wait_for_answers(ANSWERS)


def process_of(gateway: Deployment, part: str) -> MeterProcess | EnforcerProcess:
    """The one that is hit."""
    if part == "enforcer":
        return gateway.enforcers[0]
    return gateway.relay if part == "relay" else gateway.meter


async def _strike(
    gateway: Deployment,
    process: MeterProcess | EnforcerProcess,
    deed: str,
    clients: Clients,
    paused: EnforcerProcess | None = None,
) -> None:
    """Wait until it is hit; let others take over; let it go on if it only stands still."""
    if deed == "kill":
        await gateway.ended(process)
    else:
        await gateway.stopped(process)
    if paused is not None:
        gateway.go_on(paused)
    await clients.wait_for_answers(ANSWERS)
    if deed == "stop":
        gateway.go_on(process)
        if isinstance(process, EnforcerProcess):
            await process.serving()


async def _enforcer(
    gateway: Deployment, clients: Clients, step: str, plan: str, *, emptied: bool
) -> None:
    first, second = gateway.enforcers
    deed = plan.rpartition(":")[2]
    await gateway.all_up(but=first)
    paused = None
    if step in _OPENING or step == "mend":
        # The other one must not be faster, and is to take over afterwards. Nobody asks at the instant when it is
        # stopped: SQLite's lock would stay with a process that stands still in the middle of a change.
        await clients.pause()
        await asyncio.to_thread(first.kill)
        assert second.process is not None
        os.kill(second.process.pid, signal.SIGSTOP)
        clients.go_on()
        paused = second
        if emptied:
            await gateway.rolled_up()
            await gateway.flush_all()
        else:
            await asyncio.to_thread(gateway.valkey.kill)
            await asyncio.to_thread(gateway.valkey.start)
    try:
        await gateway.restart(first, plan)
        if step in _JOURNAL:
            await first.serving()
            await _outage(gateway, clients, first, deed, step)
        elif step in _CHANGING:
            await first.serving()
            changing = asyncio.create_task(gateway.change(crash=True))
            await _strike(gateway, first, deed, clients)
            await changing
        else:
            await _strike(gateway, first, deed, clients, paused)
    finally:
        if paused is not None:
            gateway.go_on(paused)


async def _outage(
    gateway: Deployment, clients: Clients, hit: EnforcerProcess, deed: str, step: str
) -> None:
    """Valkey is away for a while, so that a feature is used by its failure policy."""
    await asyncio.to_thread(gateway.valkey.kill)
    if step in ("journal", "journaled"):
        await _strike(gateway, hit, deed, clients)
        await asyncio.to_thread(gateway.valkey.start)
    else:
        await clients.wait_for_answers(ANSWERS)
        await asyncio.to_thread(gateway.valkey.start)
        await _strike(gateway, hit, deed, clients)


async def _server(gateway: Deployment, deed: str, dice: random.Random) -> None:
    await gateway.all_up()
    await asyncio.sleep(dice.uniform(0, 0.3))  # the instant, not a wait
    if deed == "kill":
        await asyncio.to_thread(gateway.valkey.kill)
        await asyncio.to_thread(gateway.valkey.start)
    else:
        gateway.valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0, 3))  # how long it stands still
        gateway.valkey.signal(signal.SIGCONT)
