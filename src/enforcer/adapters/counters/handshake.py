"""The handshake with a Redis server process that this enforcer has not met.

Before any answer, every bucket's sequence gets a new generation if it was opened on another process.

A restarted server may have lost its last writes, and a promoted replica may never have seen them. Were the old sequence
continued, a number could be given out twice for different records, and the loss could not be seen. The number of the
new generation comes from the definitions' database, so that not even a server started on an old copy of its data can
repeat one. Order matters: the scripts whose text names the server are loaded last, and nothing is decided without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import structlog

from enforcer.adapters.counters.scripts import script
from enforcer.errors import StoreMisconfiguredError, StoreUnavailableError
from meter.core.keys import bucket_tag

if TYPE_CHECKING:
    from enforcer.adapters.counters.connection import Connection

__all__ = ["Generations", "Handshake", "shake_hands"]

_log = structlog.get_logger(__name__)
_POLICY = b"noeviction"


class Generations(Protocol):
    """Who allocates generations durably."""

    async def next_generation(self, bucket: int, at_least: int) -> int:
        """A generation of the bucket greater than all before it and than `at_least`."""
        ...

    async def was_opened(self, bucket: int) -> bool:
        """Whether a generation of the bucket was ever confirmed to be in Redis."""
        ...

    async def confirm_opened(self, bucket: int) -> None:
        """Redis has the bucket: from now on its absence there is a loss."""
        ...


class Handshake:
    """What the handshake found: SHAs of the loaded scripts, and buckets whose data are missing."""

    def __init__(self, run_id: str, decide: bytes, hold: bytes, lost: frozenset[int]) -> None:
        self.run_id, self.decide, self.hold, self.lost = run_id, decide, hold, lost


async def shake_hands(
    connection: Connection, buckets: range, generations: Generations, clock: str
) -> Handshake:
    """See the module. Raise `StoreMisconfiguredError` if the server may evict keys."""
    info = bytes(await connection.call("INFO", "server")).decode()
    run_id = next(line for line in info.splitlines() if line.startswith("run_id:"))[7:].strip()
    policy = await connection.call("CONFIG", "GET", "maxmemory-policy")
    if policy[1] != _POLICY:
        message = (
            f"maxmemory-policy is {policy[1].decode()}: counters could be evicted; "
            "set it to noeviction"
        )
        raise StoreMisconfiguredError(message)
    text = script("open", run_id, clock)
    lost = [
        bucket
        for bucket in buckets
        if not await _open(connection, text, bucket, run_id, generations)
    ]
    decide = await connection.call("SCRIPT", "LOAD", script("decide", run_id, clock))
    hold = await connection.call("SCRIPT", "LOAD", script("hold", run_id, clock))
    return Handshake(run_id, decide, hold, frozenset(lost))


async def _open(
    connection: Connection, text: str, bucket: int, run_id: str, generations: Generations
) -> bool:
    """Open a generation of the bucket on this server process, unless that was done. False: its data are lost."""
    tag = bucket_tag(bucket)

    async def call(generation: int, *, create: bool) -> list[Any]:
        reply = await connection.call(
            "EVAL", text, 1, f"{tag}m", tag, run_id, generation, int(create)
        )
        return list(reply)

    for _ in range(8):
        # In this order: a bucket that Redis was seen to have before it is looked for, and lacks then, is lost. The other
        # way round one that another enforcer creates in between would be taken for lost.
        was_opened = await generations.was_opened(bucket)
        found, create = await call(0, create=False), False
        if found[0] == b"lost":
            if was_opened:
                _log.error("the bucket's data are missing in Redis", bucket=bucket)
                return False
            found, create = [b"0", b"", b"0", b"-1"], True
        if found[1] == run_id.encode():
            await _confirm(generations, bucket)
            return True
        at_least = max(int(found[0]), int(found[2]))
        generation = await generations.next_generation(bucket, at_least)
        opened = await call(generation, create=create)
        if opened[0] != b"used":
            _log.info("generation opened", bucket=bucket, generation=int(opened[0]))
            await _confirm(generations, bucket)
            return True
    message = f"no generation could be opened for bucket {bucket}"
    raise StoreUnavailableError(message)


async def _confirm(generations: Generations, bucket: int) -> None:
    """Before anything is answered. A first start that is cut short between allocating and opening has lost nothing."""
    if not await generations.was_opened(bucket):
        await generations.confirm_opened(bucket)
