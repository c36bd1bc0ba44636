"""The counter store on a Redis Cluster: a line to each primary, and what is known of who has which bucket.

A bucket is one slot, so one primary has all of it, or none where it is on its way. A node refuses what it does not have
as a whole (see `scripts`): nothing was done, and what asked waits on its line while the cluster is asked who has the slot
now. Then the bucket goes over to that node's line with all that waits for it, and is closed there until it is proven,
as after a failover: the new primary may be a replica that lacks records. Where both ends of a move were there all the
time it was resharding, which loses nothing: then no question to the meter is needed, and a generation is opened at once.

Redirections are not followed. The half of a bucket that has arrived would let a step begin that finds no counters.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import hiredis
import structlog

from enforcer.adapters.counters.connection import ConnectionLostError, connect
from enforcer.adapters.counters.handshake import reign_of
from enforcer.adapters.counters.line import ENDS, Line
from enforcer.adapters.counters.places import Places
from enforcer.adapters.counters.redis import Operations, standing_of
from enforcer.core.breaker import BreakerState
from enforcer.errors import StoreUnavailableError
from meter.core.cluster import clustered, nodes_of, owners, primaries_of
from meter.health import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.handshake import Found, Handshake
    from enforcer.adapters.counters.mend import Marks, Truth
    from enforcer.adapters.counters.options import RedisOptions
    from enforcer.adapters.counters.waiting import Batch
    from enforcer.core.commands import Answer, Ask
    from enforcer.errors import MetergateError
    from enforcer.ports.ledger import Ledger
    from meter.core.cluster import Node

__all__ = ["ClusterCounters"]

_log = structlog.get_logger(__name__)
TICK = 0.05
"""Seconds between two looks at what the lines lack."""
FIRST_PAUSE, LONGEST_PAUSE, CALM_PAUSE = 0.05, 0.25, 10.0
"""Seconds between two questions to the cluster: while something is not where it was, and while all is well."""
IDLE = 30.0
"""Seconds after which the line to a server that is no primary any more is ended."""
HOPS = 4
"""Of a bucket that moves on before it was proven anywhere."""
_COVERAGE = "cluster-require-full-coverage"
_BY_WEIGHT = (State.WAITING, State.REFUSED, State.AWAY, State.UNKNOWN)
"""What is told of nodes that differ: what is furthest on its way."""


class _Nowhere(Line):
    """What waits for buckets whose node is not known."""

    async def _stay_connected(self) -> None:
        await asyncio.Event().wait()


class _End(NamedTuple):
    """One end of a move: a line with its connection and handshake of that time."""

    line: Line
    link: Connection | None
    hands: Handshake | None

    @property
    def stands(self) -> bool:
        """Whether it was connected then and is so without a break."""
        return self.link is not None and self.line.link is self.link

    async def reigns(self) -> bool:
        """Whether the server has been the same primary all the time."""
        if not self.stands or self.link is None or self.hands is None:
            return False
        try:
            async with asyncio.timeout(self.line.options.connect_timeout):
                reign = await reign_of(self.link)
        except (TimeoutError, ConnectionLostError, hiredis.HiredisError):
            return False
        return reign != "" and reign == self.hands.reign


def _end(line: Line) -> _End:
    return _End(line, line.link, line.hands)


class ClusterCounters(Operations):
    """Implements `enforcer.ports.counters.CounterStore`. `start` it, then wait for `ready` or just ask.

    Parameters as of `RedisCounters`. `ready` is set while any node can be asked. `on_breaker` is told the worst state of
    all nodes: each has a breaker of its own.
    """

    def __init__(
        self,
        options: RedisOptions,
        truth: Truth,
        observe: Callable[[int, float], None] = lambda _checks, _seconds: None,
        *,
        ledger: Ledger | None = None,
        marks: Marks | None = None,
        steps: Callable[[str], None] = lambda _: None,
        on_breaker: Callable[[BreakerState], None] = lambda _state: None,
    ) -> None:
        found = clustered(options.url)
        if found is None:
            raise ValueError(f"no address of a cluster: {options.url.partition('://')[0]}://…")
        self._clustered, self._on_breaker = found, on_breaker
        self._answered: Callable[[Batch, float], None] = lambda _batch, _now: None
        self.options = replace(options, cluster=True)
        self._places = Places(ENDS * options.buckets, self._tell)
        enforcer = secrets.token_hex(8)

        def line(node: Node | None) -> Line:
            made = (Line if node else _Nowhere)(
                replace(self.options, url=found.url(node) if node else ""),
                truth,
                observe,
                ledger=ledger,
                marks=marks,
                steps=steps,
                on_breaker=lambda _: self._breaker_turned(),
            )
            made.join(enforcer, self._places, self._vouch)
            made.answered = self._answered
            return made

        self._make = line
        self._nowhere = line(None)
        self._nowhere.last_error = "no node of the cluster has answered yet"
        self._nowhere.come(range(options.buckets), (), (), (0, 0))
        self._lines: dict[Node, Line] = {}
        self._owner = [self._nowhere] * options.buckets
        self._newest = (0, 0)
        self._thinned: dict[Line, int] = {}
        """Lines that have given up buckets, and the last batch that may have been on its way to those."""
        self._idle: dict[Node, float] = {}
        self._primaries: set[Node] = set()
        self._moves: dict[int, tuple[_End, ...]] = {}
        """Buckets that primaries have given to each other: these in their order, as each was when it got the bucket."""
        self._turn = 0
        self._asked: list[Node] = list(found.seeds)
        self._warned = False
        self.ready = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    # -- life

    def start(self) -> None:
        """Find the nodes and connect in the background, again and again."""
        self._nowhere.start()
        self._following = asyncio.create_task(self._follow(), name="redis cluster")

    async def close(self) -> None:
        """End all connections."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await asyncio.gather(*(line.close() for line in (self._nowhere, *self._lines.values())))

    @property
    def connected(self) -> bool:
        """Whether a bucket can be asked."""
        return any(line.connected for line in self._lines.values())

    @property
    def met(self) -> bool:
        """Whether a bucket could ever be asked."""
        return any(line.met for line in self._lines.values())

    @property
    def serving(self) -> bool:
        """Whether a bucket can be asked at a node to which calls pass."""
        return any(line.connected and line.breaker.closed for line in self._lines.values())

    @property
    def last_error(self) -> str:
        """Why buckets cannot be asked."""
        found: set[str] = set()
        for line in (self._nowhere, *self._lines.values()):
            if line.ready.is_set() and line.hands is not None:
                found |= {why for one, why in line.hands.closed.items() if one in line.buckets}
            elif line.buckets:
                found.add(line.last_error)
        return "; ".join(sorted(found))

    def trace(self, told: Callable[[Batch, float], None]) -> None:
        """Of all lines, those to come included."""
        self._answered = told
        for line in (self._nowhere, *self._lines.values()):
            line.answered = told

    def standing(self) -> tuple[State, str]:
        """It is up while any node can be asked: what the others have is answered as it is then."""
        if self.serving:
            return State.UP, ""
        lines = [line for line in self._lines.values() if line.buckets] or [self._nowhere]
        found = {standing_of(line)[0] for line in lines}
        state = next((one for one in _BY_WEIGHT if one in found), State.AWAY)
        return state, self.last_error

    def shards(self) -> list[list[int]]:
        """The buckets, those together that one server has."""
        return [sorted(line.buckets) for line in (self._nowhere, *self._lines.values())]

    def _breaker_turned(self) -> None:
        lines = [line for line in (self._nowhere, *self._lines.values()) if line.buckets]
        self._on_breaker(max((line.breaker.state for line in lines), default=BreakerState.CLOSED))

    def _tell(self) -> None:
        for line in self._lines.values():
            line.tell()

    # -- checks, and where they go

    def _line_of(self, bucket: int) -> Line:
        return self._owner[bucket]

    def decide(self, group: Sequence[Ask]) -> Awaitable[list[Answer]]:
        """See `CounterStore`. No coroutine between the caller and the line."""
        return self._owner[group[0].program.bucket].decide(group)

    async def decide_all(
        self, groups: Sequence[Sequence[Ask]]
    ) -> list[list[Answer] | MetergateError]:
        parts: dict[Line, list[int]] = {}
        for place, group in enumerate(groups):
            parts.setdefault(self._owner[group[0].program.bucket], []).append(place)
        if len(parts) == 1:
            return await next(iter(parts)).decide_all(groups)
        answers = await asyncio.gather(
            *(line.decide_all([groups[one] for one in places]) for line, places in parts.items())
        )
        found = {
            place: answer
            for places, part in zip(parts.values(), answers, strict=True)
            for place, answer in zip(places, part, strict=True)
        }
        return [found[place] for place in range(len(groups))]

    # -- who has which bucket

    async def _follow(self) -> None:
        """Keep to what the cluster says: asked when something is not where it was, and now and then."""
        asked, pause = -CALM_PAUSE, FIRST_PAUSE
        while True:
            try:
                await self._sweep()
                lines = (self._nowhere, *self._lines.values())
                troubled = any(line.troubled for line in lines)
                if time.monotonic() - asked >= (pause if troubled else CALM_PAUSE):
                    moved = self._deal(await self._ask())
                    asked = time.monotonic()
                    pause = FIRST_PAUSE if moved else min(pause * 2, LONGEST_PAUSE)
                if not troubled:
                    pause = FIRST_PAUSE
            except StoreUnavailableError as error:
                self._nowhere.last_error = error.message
                _log.warning("nobody tells of the cluster", error=error.message)
                asked, pause = time.monotonic(), min(pause * 2, LONGEST_PAUSE)
            except Exception:  # noqa: BLE001 - logged here, and done again
                # Buckets would stay where they are for ever.
                _log.exception("following the cluster failed")
                asked, pause = time.monotonic(), LONGEST_PAUSE
            if any(line.ready.is_set() for line in self._lines.values()):
                self.ready.set()
            else:
                self.ready.clear()
            await asyncio.sleep(TICK)

    async def _ask(self) -> dict[int, Node]:
        """Where the buckets are, as the first node says that answers; another one is asked first each time.

        One that is cut off from the others may tell what is over; then the next one is asked when it shows.
        """
        self._turn += 1
        up = [node for node, line in self._lines.items() if line.ready.is_set()]
        up = up[self._turn % len(up) :] + up[: self._turn % len(up)] if up else []
        told = ""
        for node in dict.fromkeys((*up, *self._asked, *self._clustered.seeds)):
            try:
                async with asyncio.timeout(self.options.connect_timeout):
                    return await self._ask_at(node)
            except (OSError, TimeoutError, ConnectionLostError, hiredis.HiredisError) as error:
                told = f"{node[0]}:{node[1]}: {str(error) or type(error).__name__}"
        raise StoreUnavailableError(f"no node of the cluster answers; {told}")

    async def _ask_at(self, node: Node) -> dict[int, Node]:
        line = self._lines.get(node)
        if line is not None and line.link is not None:
            return await self._read(line.link, node)
        url, timeout = self._clustered.url(node), self.options.connect_timeout
        connection = await connect(url, lambda: None, timeout)
        try:
            return await self._read(connection, node)
        finally:
            connection.close()

    async def _read(self, connection: Connection, node: Node) -> dict[int, Node]:
        reply = await connection.call("CLUSTER", "SLOTS")
        if not self._warned:
            self._warned = True
            setting = await connection.call("CONFIG", "GET", _COVERAGE)
            if setting and setting[1] == b"yes":
                _log.warning(f"{_COVERAGE} is yes: while one primary is away no bucket is served")
        # Replicas know of the others as well, when all primaries are away at once.
        self._asked = nodes_of(reply, node[0]) or self._asked
        self._primaries = set(primaries_of(reply, node[0]))
        return owners(reply, node[0], range(self.options.buckets))

    def _deal(self, told: Mapping[int, Node]) -> bool:
        """Let every bucket go over to the line of the node that has it. Whether any did."""
        nodes = {line: node for node, line in self._lines.items()}
        moves: dict[Node, set[int]] = {}
        for bucket, node in told.items():
            if nodes.get(self._owner[bucket]) != node:
                moves.setdefault(node, set()).add(bucket)
        if self._nowhere.buckets.difference(told):
            self._nowhere.last_error = "no node of the cluster has the bucket's slot"
        for node in self._primaries - self._lines.keys():
            # One that has no buckets yet may get some.
            self._lines[node] = self._make(node)
            self._lines[node].start()
        for node, buckets in moves.items():
            target = self._lines[node]
            for source in {self._owner[bucket] for bucket in buckets}:
                self._hand_over(buckets & source.buckets, source, target)
            _log.info(
                "buckets are at another node", node=f"{node[0]}:{node[1]}", buckets=sorted(buckets)
            )
        if moves:
            self._breaker_turned()  # of the lines that have buckets now
        return bool(moves)

    def _hand_over(self, buckets: set[int], source: Line, target: Line) -> None:
        left, reached = _end(source), _end(target)
        waiting, doubt = source.leave(buckets)
        for bucket in buckets:
            self._owner[bucket] = target
            path = self._moves.get(bucket, (left,))
            self._moves[bucket] = (*path[-HOPS:], reached) if path[-1] == left else (left, reached)
        target.come(buckets, waiting, doubt, self._note_numbers())
        _, last, _ = source.numbers
        self._thinned[source] = last

    async def _vouch(self, bucket: int, found: Found) -> bool:
        """Whether a bucket has moved as it was: what it was opened on is a primary all along, and so is where it is now.

        Steps run on the process alone that a bucket was opened on. While that has neither ended nor followed another, it
        has them all; and cannot have given the slot away but by moving every key of it.
        """
        path = self._moves.get(bucket, ())
        runs = [end.hands.run_id if end.hands else "" for end in path]
        if found.run not in runs or found.last < self._places.furthest(bucket):
            return False
        opened_at = len(runs) - 1 - runs[::-1].index(found.run)
        return all([await end.reigns() for end in path[opened_at:]])

    def _note_numbers(self) -> tuple[int, int]:
        """The newest connection and batch of any line that there is or was."""
        for line in self._lines.values():
            connection, batch, _ = line.numbers
            self._newest = max(self._newest[0], connection), max(self._newest[1], batch)
        return self._newest

    async def _sweep(self) -> None:
        """Take along what came back to a line that has given its bucket up, and end lines that have none."""
        everything = set(range(self.options.buckets))
        for line in self._lines.values():
            if line.hands is not None and not line.hands.closed.keys() <= line.buckets:
                self._thinned.setdefault(line, 0)
        for line, last in list(self._thinned.items()):
            _, _, oldest = line.numbers
            waiting, doubt = line.leave(everything - line.buckets)
            for bucket in {one.bucket for one in waiting}:
                theirs = [one for one in waiting if one.bucket == bucket]
                self._owner[bucket].come((), theirs, (), self._note_numbers())
            for batch in doubt:
                for bucket in {one.bucket for one in batch.waiting}:
                    theirs = [one for one in batch.waiting if one.bucket == bucket]
                    part = replace(batch, waiting=theirs, order=[])
                    # What ran there last is asked for once more.
                    self._owner[bucket].come((bucket,), (), (part,), self._note_numbers())
            if not 0 < oldest <= last:
                del self._thinned[line]
        self._note_numbers()
        now = time.monotonic()
        for node, line in list(self._lines.items()):
            if line.buckets or line in self._thinned or node in self._primaries:
                self._idle.pop(node, None)
            elif now - self._idle.setdefault(node, now) > IDLE or not line.ready.is_set():
                # Not at once: what has left it may need its word.
                del self._idle[node]
                await self._lines.pop(node).close()
