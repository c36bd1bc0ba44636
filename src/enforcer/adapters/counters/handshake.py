"""The handshake with a Redis server process that this enforcer has not met.

Before any answer, every bucket's sequence gets a new generation if it was opened on another process.

A restarted server may have lost its last writes, a promoted replica may never have seen them, and an emptied one has
nothing. So a bucket that was opened before is closed until the meter has said how far its records go: what Redis lacks
of them is made good first (`mend`). Until then the scripts refuse it, whoever asks, since its meta names another process.

Were the old sequence continued, a number could be given out twice for different records, and the loss could not be seen.
The number of the new generation comes from the definitions' database, so that not even a server started on an old copy
of its data can repeat one. Order matters: proof, then what is missing, then the generation, which opens the bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import hiredis
import structlog

from enforcer.adapters.counters.connection import ConnectionLostError
from enforcer.adapters.counters.scripts import LIBRARIES, library, prefix_of, script
from enforcer.errors import StoreMisconfiguredError, StoreUnavailableError
from meter.core.cluster import is_elsewhere
from meter.core.keys import bucket_tag
from meter.core.sequence import START, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.scripts import Library

    Steps = Callable[[str], None]

__all__ = [
    "Found",
    "Generations",
    "Handshake",
    "Site",
    "look",
    "open_generation",
    "reign_of",
    "shake_hands",
]

_log = structlog.get_logger(__name__)
_POLICY = b"noeviction"
_NOBODY, _FIRST = "", "new"


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


class Found(NamedTuple):
    """A bucket as Redis has it: the process it was opened on (empty: its data are missing), and its last record."""

    run: str
    generation: int
    last: Position


class Site(NamedTuple):
    """Where generations are opened: a server process and its script, and who gives out numbers.

    `steps` is called with the name of each step before it begins.
    """

    connection: Connection
    text: str
    run_id: str
    generations: Generations
    steps: Steps


class Handshake:
    """Names of the loaded functions, and buckets that are closed, each with what it waits for.

    `reign`: since when the server is a primary, as of `reign_of`.
    """

    def __init__(
        self, run_id: str, decide: str, hold: str, closed: dict[int, str], reign: str = ""
    ) -> None:
        self.run_id, self.decide, self.hold, self.closed = run_id, decide, hold, closed
        self.reign = reign


async def shake_hands(
    connection: Connection,
    buckets: Iterable[int],
    generations: Generations,
    clock: str,
    steps: Steps = lambda _: None,
    *,
    cluster: bool = False,
) -> Handshake:
    """See the module. Raise `StoreMisconfiguredError` if the server may evict keys.

    `steps` is called with the name of each step before it begins. Buckets that this node of a `cluster` does not have,
    or not as a whole, stay closed; and a bucket belongs to the process for as long as that is a primary without a break.
    """
    info = bytes(await connection.call("INFO", "server")).decode()
    run_id = next(line for line in info.splitlines() if line.startswith("run_id:"))[7:].strip()
    policy = await connection.call("CONFIG", "GET", "maxmemory-policy")
    if policy[1] != _POLICY:
        message = (
            f"maxmemory-policy is {policy[1].decode()}: counters could be evicted; "
            "set it to noeviction"
        )
        raise StoreMisconfiguredError(message)
    reign = await reign_of(connection) if cluster else ""
    if cluster and not reign:
        raise ConnectionLostError("the node is no primary")
    # A process may follow another and be primary again: what it has then is that one's.
    run_id += reign
    text = script("open", run_id, clock)
    site = Site(connection, text, run_id, generations, steps)
    closed: dict[int, str] = {}
    for bucket in buckets:
        # In this order: a bucket that Redis was seen to have before it is looked for, and lacks then, is lost. The other
        # way round one that another enforcer creates in between would be taken for lost.
        was_opened = await generations.was_opened(bucket)
        try:
            found = await look(connection, text, bucket, run_id)
            if found.run == run_id:
                await _confirm(generations, bucket)
            elif found.run or was_opened:
                closed[bucket] = "the meter was not asked yet"
            else:
                await open_generation(site, bucket, create=_FIRST)
        except hiredis.ReplyError as error:
            if not is_elsewhere(str(error)):
                raise
            closed[bucket] = str(error)
    steps("load")
    functions = library(run_id, clock, cluster=cluster)
    await _load(connection, functions, prefix_of(run_id))
    return Handshake(run_id, functions.decide, functions.hold, closed, reign)


async def reign_of(connection: Connection) -> str:
    """Something that changes when a server becomes a primary, or takes over another's data. Empty: it is none."""
    info = bytes(await connection.call("INFO", "replication")).decode()
    known = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return known["master_replid"] if known["role"] == "master" else ""


async def _load(connection: Connection, functions: Library, ours: str) -> None:
    """Load the library unless it is there, and delete those of processes that the server once was or copied."""
    found = await connection.call("FUNCTION", "LIST", "LIBRARYNAME", f"{LIBRARIES}*")
    names = [one[1].decode() for one in found]
    for name in names:
        if not name.startswith(ours):
            await _unless(connection, "not found", "FUNCTION", "DELETE", name)
    if functions.name not in names:
        await _unless(connection, "already exists", "FUNCTION", "LOAD", functions.text)


async def _unless(connection: Connection, done: str, *command: str) -> None:
    """Another enforcer may have been faster."""
    try:
        await connection.call(*command)
    except hiredis.ReplyError as error:
        if done not in str(error):
            raise


async def look(connection: Connection, text: str, bucket: int, run_id: str) -> Found:
    """What Redis has of the bucket."""
    tag = bucket_tag(bucket)
    reply = await connection.call("EVAL", text, 1, f"{tag}m", tag, run_id, 0, _NOBODY, 0, -1)
    last = Position(int(reply[2]), int(reply[3]))
    if reply[0] == b"lost":
        return Found("", 0, last)
    return Found(reply[1].decode(), int(reply[0]), last)


async def open_generation(
    site: Site, bucket: int, create: str = _NOBODY, known: Position = START
) -> bool:
    """Open a generation of the bucket on this server process, unless that was done. False: its data are missing.

    `known` is the furthest place that is known to have existed: the generation says so, and whoever follows the sequence
    finds out what is missing before it.
    """
    connection, text, run_id, generations, steps = site
    tag = bucket_tag(bucket)
    for _ in range(8):
        found = await look(connection, text, bucket, run_id)
        at_least = max(found.generation, found.last.generation, known.generation)
        steps("allocate")
        generation = await generations.next_generation(bucket, at_least)
        steps("open")
        opened = await connection.call(
            "EVAL", text, 1, f"{tag}m", tag, run_id, generation, create, *known
        )
        if opened[0] == b"lost":
            return False
        if opened[0] != b"used":
            _log.info("generation opened", bucket=bucket, generation=int(opened[0]))
            steps("confirm")
            await _confirm(generations, bucket)
            return True
    message = f"no generation could be opened for bucket {bucket}"
    raise StoreUnavailableError(message)


async def _confirm(generations: Generations, bucket: int) -> None:
    """Before anything is answered. A first start that is cut short between allocating and opening has lost nothing."""
    if not await generations.was_opened(bucket):
        await generations.confirm_opened(bucket)
