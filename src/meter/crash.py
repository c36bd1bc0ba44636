"""For tests only: makes a process die or stop just before a step that has a name.

METERGATE_CRASH_AT="rollup.claim:3:kill" ends this process as `kill -9` does when it comes to the rollup's claim for the
third time; with `stop` it stands still as SIGSTOP does, until SIGCONT. Several are separated by commas. Read once, at the
start; unset, a step costs the call of an empty function, and the hot path has two of them per batch.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import TYPE_CHECKING

import structlog

from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["POINTS", "SETTING", "crash_points"]

_log = structlog.get_logger(__name__)

SETTING = "METERGATE_CRASH_AT"
_DEEDS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

POINTS = {
    "enforcer.send": "a batch of checks is about to go to Redis",
    "enforcer.answer": "Redis has decided a batch, no client was told",
    "enforcer.allocate": "a bucket is about to get the number of a generation in SQL",
    "enforcer.open": "the number is in SQL, Redis does not have the generation",
    "enforcer.confirm": "Redis has the generation, SQL was not told that the bucket exists",
    "enforcer.load": "all buckets were looked at, the scripts are not loaded",
    "enforcer.fence": "the buckets are open, what older connections sent can still run",
    "enforcer.catch_up": "closed buckets, the meter was not asked how far its records go",
    "enforcer.mend": "what Redis lacks is about to be written, part by part",
    "enforcer.journal": "uses are allowed by failure policy, the journal does not have them",
    "enforcer.journaled": "the journal has uses, no client was told",
    "enforcer.count": "uses were read from a journal, the counters do not have them",
    "enforcer.discard": "all of a journal is counted, its file is still there",
    "enforcer.correct": "a correction is listed in SQL, the counters do not have it",
    "enforcer.corrected": "the counters and the outbox have a correction, SQL does not know that they do",
    "enforcer.project": "a change is in SQL, the counters do not have it",
    "enforcer.projected": "the counters have a change, SQL does not know that they do",
    "rollup.read": "the log is about to be read",
    "rollup.store": "records were read and are in no table",
    "rollup.claim": "records are in raw and in no slice",
    "rollup.review": "a slice is claimed, nothing of it is rolled up",
    "rollup.usage": "as before, and what cannot be decoded is in the review table",
    "rollup.ledger": "a slice is in usage and not in the ledger",
    "rollup.aggregates": "a slice is in usage and ledger and not in the aggregates",
    "rollup.recompute": "a slice with corrections is in, the windows that they concern are as before",
    "rollup.seats": "as before, and leases are not in the series of seats",
    "rollup.denials": "as before, and denials are not in their series",
    "rollup.applied": "a slice is rolled up, SQL still holds it in doubt",
    "rollup.commit": "a slice is done, the log still has its records",
    "rollup.expire": "a day of raw is over its keeping, audits have no sums of it",
    "rollup.drop": "audits have the day's sums, its raw records are still there",
    "relay.read": "the outboxes are about to be read",
    "relay.publish": "records were read from the outboxes, Kafka has none of them",
    "relay.trim": "Kafka has acknowledged records, the outboxes still have them",
}
"""Every named step: how things are just before it."""


def crash_points(part: str) -> Callable[[str], None]:
    """What the steps of `part` call with their names, as the environment says.

    Raise `MisconfiguredError` when it names no step, or in no way that can be read.
    """
    plan = {
        point: (passing, deed)
        for point, passing, deed in map(_read, os.environ.get(SETTING, "").split(","))
        if point.startswith(f"{part}.")
    }
    if not plan:
        return lambda _: None
    _log.warning("this process is going to crash on purpose", setting=SETTING, points=list(plan))
    passed: defaultdict[str, int] = defaultdict(int)

    def pass_by(step: str) -> None:
        point = f"{part}.{step}"
        passed[point] += 1
        passing, deed = plan.get(point, (0, 0))
        if passed[point] == passing:
            os.kill(os.getpid(), deed)

    return pass_by


def _read(text: str) -> tuple[str, int, int]:
    """One point, at which passing, and the signal; an empty name for an empty text."""
    if not text:
        return "", 0, 0
    point, _, rest = text.partition(":")
    passing, _, deed = rest.partition(":")
    if point not in POINTS or not passing.isdigit() or int(passing) < 1 or deed not in _DEEDS:
        raise MisconfiguredError(
            f"{SETTING}: {text!r} must be POINT:PASSING:DEED, such as rollup.claim:3:kill; a deed is "
            f"kill or stop, a point one of {', '.join(POINTS)}"
        )
    return point, int(passing), _DEEDS[deed]
