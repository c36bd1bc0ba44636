"""Makes good what a Redis server lacks of the records that the meter has, before its buckets are opened.

A bucket is in one of three states, by what Redis shows and what the meter has, which first reads its log to the end:

- Redis is as far as the records: it is opened as it is.
- Redis is behind (an old copy, a promoted replica): the very records that it lacks are written again at their own places,
  each together with its effects, chunk after chunk. After a kill the next one goes on at the place that Redis shows then.
- Redis lacks the bucket: it is made again from the sums of the ledger, from open leases and reservations, and from
  answers that may still be asked for. The meta key, without which nobody is answered, comes last; so a rebuild that was
  cut short begins again. One token owns a rebuild at a time, and writes of any other are refused. Its owner gives a
  sign of life however slowly the meter answers; when there is none any more, another begins again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import hiredis
import structlog

from enforcer.adapters.counters.connection import ConnectionLostError
from enforcer.adapters.counters.handshake import (
    Generations,
    Site,
    look,
    open_generation,
    reign_of,
)
from enforcer.adapters.counters.image import Image, packed
from enforcer.adapters.counters.recall import (
    read,
    recall,
    recall_entries,
    recall_pages,
    recall_sums,
)
from enforcer.adapters.counters.scripts import script
from enforcer.adapters.counters.writing import LEASE_ENDS, Writing, counted, ended_hold, joined
from enforcer.core import rebuild
from enforcer.core.compile import places_of
from enforcer.core.program import Family
from enforcer.errors import MetergateError
from meter.core.cluster import is_elsewhere
from meter.core.keys import bucket_tag, outbox
from meter.core.records import SIDE, RecordType
from meter.core.sequence import START, Entry, Position
from meter.errors import MeterError
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
    )

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.handshake import Found
    from enforcer.adapters.counters.recall import Read
    from enforcer.adapters.counters.writing import Command, Known
    from enforcer.core.model import Node
    from enforcer.ports.ledger import Ledger

    class Truth(Generations, Known, Protocol):
        """What is asked of the definitions."""

        async def last_generation(self, bucket: int) -> int:
            """The greatest generation given out."""
            ...

        async def accounts(self, bucket: int, after: int, most: int) -> list[rebuild.Account]:
            """Accounts of a bucket with their trees."""
            ...

    Vouch = Callable[[int, Found], Awaitable[bool]]

    class Marks(Protocol):
        """How far the rollup has come: part of `meter.ports.marks.Marks`."""

        async def load(self, buckets: Iterable[int]) -> Mapping[int, Position]:
            """Each bucket's mark. Raise `MeterError` when they cannot be reached."""
            ...


__all__ = ["Marks", "Mender", "Process", "Truth"]

_log = structlog.get_logger(__name__)
ACCOUNTS, WRITES = 100, 256
ANSWERS = 1_000
"""Records of which the answers are written in one step, which takes Redis some milliseconds."""
STALE_MS = 5_000
"""Whoever rebuilds and has not written for so long is taken for dead."""
SIGNS = 5
"""Of life, at least, in that time."""
TELL_SECONDS, ROUND_SECONDS = 0.05, 1.0
"""After so long buckets that are open are told of; and those that are closed are looked at afresh, at the earliest."""
LOOKS = 0.1
"""What looking at them may take of the time: there may be very many."""
_TAKEN = "another enforcer is at work on it"
_HOLDS = (RecordType.HOLD, RecordType.ALLOWANCE)
_HOLD_ENDS = (
    RecordType.COMMIT,
    RecordType.RELEASE,
    RecordType.HOLD_EXPIRED,
    RecordType.ALLOWANCE_USE,
    RecordType.UNACCOUNTED,
)


class _Elsewhere(Exception):  # noqa: N818 - no error: somebody else is at work, or was faster
    """The bucket is not as it was believed to be."""


class _Waits(Exception):  # noqa: N818 - no error
    """The bucket cannot be opened now; the message says what it waits for."""


class Process(NamedTuple):
    """The server process, its clock for scripts, how long answers are remembered at least, and who writes: 16 letters."""

    run_id: str
    clock: str
    window_ms: int
    writer: str


class Mender:
    """On one connection, for one server process. `known` tells the furthest place of a bucket that was ever seen.

    `vouch` tells whether a bucket has come here from another primary as it was there. `reign` of the handshake: nothing
    is opened by what was agreed on with an earlier one; empty where there is none.
    """

    def __init__(
        self,
        connection: Connection,
        process: Process,
        truth: Truth,
        ledger: Ledger,
        known: Callable[[int], Position],
        marks: Marks | None = None,
        steps: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.vouch: Vouch | None = None
        self.reign = ""
        run_id, clock = process.run_id, process.clock
        self._steps = steps
        self._connection, self._run_id, self._window_ms = connection, run_id, process.window_ms
        self._writer = process.writer
        self._truth, self._ledger, self._known, self._marks = truth, ledger, known, marks
        self._open = script("open", run_id, clock)
        self._site = Site(connection, self._open, run_id, truth, steps)
        self._mend = script("mend", run_id, clock)
        self._now = f"{clock} return string.format('%.0f', CLOCK)"
        self._writing = Writing(connection, truth, process.window_ms)

    async def mend(self, closed: dict[int, str]) -> AsyncGenerator[dict[int, bool]]:
        """Open all of `closed` that can be opened; note with the others what they wait for.

        Tell of those that are open now as soon as they are, and whether each lacked nothing: another one may take
        minutes. What is still closed after some time is left to the next call, which sees what others have opened.
        """
        if self.reign and await reign_of(self._connection) != self.reign:
            self._connection.close()
            raise ConnectionLostError("the server has followed another one since the handshake")
        self._writing.forget()
        looking = time.monotonic()
        opened, there, lacking = await self._look(closed)
        if opened:
            yield opened
        if not (wanted := there + lacking):
            return
        self._steps("catch_up")
        try:
            reached = await self._ledger.catch_up(
                ledger_pb2.CatchUpRequest(buckets=wanted, decided_before_ms=await self.now())
            )
        except MetergateError as error:
            closed.update(dict.fromkeys(wanted, error.message))
            if self._marks is not None:
                yield await self._by_marks(wanted)
            return
        marks = {one.bucket: one for one in reached.reached}
        now = time.monotonic()
        until = now + max(ROUND_SECONDS, (now - looking) / LOOKS)
        async with aclosing(self._each(closed, there, lacking, marks, until)) as each:
            async for opened in each:
                yield opened

    async def _each(
        self,
        closed: dict[int, str],
        there: list[int],
        lacking: list[int],
        marks: Mapping[int, ledger_pb2.Reached],
        until: float,
    ) -> AsyncGenerator[dict[int, bool]]:
        """One bucket after the other; first those that are there."""
        told = time.monotonic()
        fresh: dict[int, bool] = {}
        some = False
        for place, bucket in enumerate(there + lacking):
            now = time.monotonic()
            if fresh and (place >= len(there) or now > told + TELL_SECONDS):
                yield fresh
                fresh, told = {}, time.monotonic()
            if bucket not in marks:
                continue
            if some and now > until:
                break
            try:
                fresh[bucket] = await self._bucket(marks[bucket])
            except (_Waits, MetergateError) as error:
                closed[bucket] = str(error)
            except _Elsewhere:
                closed[bucket] = _TAKEN
            except hiredis.ReplyError as error:
                closed[bucket] = _elsewhere(error)
            else:
                some = True
        yield fresh

    async def _look(self, closed: dict[int, str]) -> tuple[dict[int, bool], list[int], list[int]]:
        """Those that are open already; and those that the meter has to be asked about: which are there, and which are not.

        What another enforcer has opened or rebuilds needs no question, nor what has moved here and lacks nothing.
        """
        opened: dict[int, bool] = {}
        there: list[int] = []
        lacking: list[int] = []
        for bucket in list(closed):
            try:
                found = await look(self._connection, self._open, bucket, self._run_id)
                if found.run == self._run_id:
                    opened[bucket] = False
                elif not found.run and await self._taken(bucket):
                    closed[bucket] = _TAKEN
                elif await self._came_whole(bucket, found):
                    opened[bucket] = True
                else:
                    (there if found.run else lacking).append(bucket)
            except hiredis.ReplyError as error:
                closed[bucket] = _elsewhere(error)
        return opened, there, lacking

    async def _came_whole(self, bucket: int, found: Found) -> bool:
        """Open it if it has moved here and lacks nothing."""
        if self.vouch is None or not found.run or not await self.vouch(bucket, found):
            return False
        return await open_generation(self._site, bucket, known=self._known(bucket))

    async def _by_marks(self, closed: Iterable[int]) -> dict[int, bool]:
        """Open what the meter's own marks show to be complete.

        They do not tell of records that a meter had stored and not yet claimed when it died: should Redis lack those as
        well, the meter claims them when it is back, and the audit names the difference.
        """
        assert self._marks is not None
        opened: dict[int, bool] = {}
        try:
            marks = await self._marks.load(closed)
        except MeterError as error:
            _log.warning("no marks", error=error.message)
            return opened
        for bucket, mark in marks.items():
            try:
                found = await look(self._connection, self._open, bucket, self._run_id)
                if not found.run or found.last < max(mark, self._known(bucket)):
                    continue
                if found.run == self._run_id or await open_generation(self._site, bucket):
                    opened[bucket] = True
            except hiredis.ReplyError as error:
                _elsewhere(error)
        return opened

    async def _taken(self, bucket: int) -> bool:
        """Whether another enforcer that lives rebuilds it."""
        mark = f"{bucket_tag(bucket)}w"
        token, seen = await self._connection.call("HMGET", mark, "token", "seen")
        if token is None or token.startswith(self._writer.encode()):
            return False
        return await self.now() - int(seen) < STALE_MS

    async def now(self) -> int:
        """The time of the counters."""
        return int(await self._connection.call("EVAL", self._now, 0))

    # -- one bucket

    async def _bucket(self, reached: ledger_pb2.Reached) -> bool:
        """Open it; return whether it lacked nothing."""
        bucket, intact = reached.bucket, True
        mark = Position(reached.generation, reached.sequence) if reached.generation else START
        seen = Position(reached.seen_generation, reached.seen_sequence)
        known = max(mark, seen, self._known(bucket))
        for _ in range(3):
            found = await look(self._connection, self._open, bucket, self._run_id)
            if found.run == self._run_id:
                return False
            if found.run and found.last >= max(mark, seen):
                break
            intact = False
            if reached.held:
                raise _Waits("its sequence has a gap: see `metergate gap accept`")
            if found.run:
                await self._follow(bucket, found.run, found.last, mark)
            else:
                await self._rebuild(bucket, mark, known)
                return False
        if not await open_generation(self._site, bucket, known=known):
            raise _Elsewhere
        return intact

    async def _write(
        self, bucket: int, guard: tuple[str, Any, Any], commands: Iterable[Command]
    ) -> None:
        """One step of the work."""
        self._steps("mend")
        await self._send(bucket, guard, commands)

    async def _send(
        self, bucket: int, guard: tuple[str, Any, Any], commands: Iterable[Command]
    ) -> None:
        """Write atomically. Raise `_Elsewhere` when the guard refuses it."""
        tag = bucket_tag(bucket)
        words: list[Any] = []
        for command in commands:
            words += (len(command), *command)
        reply = await self._connection.call("EVAL", self._mend, 1, f"{tag}m", tag, *guard, *words)
        if reply != b"done":
            raise _Elsewhere

    # -- Redis lacks the bucket

    async def _rebuild(self, bucket: int, mark: Position, known: Position) -> None:
        token = self._writer + secrets.token_hex(8)
        await self._write(bucket, ("begin", token, STALE_MS), ())
        own = ("own", token, "")
        _log.warning("counters are missing: rebuilding", bucket=bucket, records_to=str(mark))
        async with self._alive(bucket, own):
            await self._clear(bucket, own)
            now = await self.now()
            for commands in [
                self._counts(bucket, now),
                self._open_starts(bucket, now),
                self._bindings(bucket),
                self._journals(bucket),
            ]:
                async for some in _chunks(commands):
                    await self._write(bucket, own, some)
            async with aclosing(self._answers(bucket, now)) as answers:
                async for some in answers:
                    await self._write(bucket, own, some)
            if not known.generation:
                # Something was there: at the least the opening of the generation that nobody has.
                known = Position(await self._truth.last_generation(bucket), 0)
            if not await open_generation(self._site, bucket, token, known):
                raise _Elsewhere
        _log.warning(
            "counters are rebuilt",
            bucket=bucket,
            known_to=str(known),
            rolled_to=str(mark),
            seconds=(await self.now() - now) / 1000,
        )

    @asynccontextmanager
    async def _alive(self, bucket: int, own: tuple[str, Any, Any]) -> AsyncIterator[None]:
        """Give signs of life: answers of a busy meter may take longer than one is waited for that says nothing."""

        async def give() -> None:
            # Where it is refused or the connection is lost, the next write is as well, and tells.
            with suppress(_Elsewhere, ConnectionLostError, hiredis.ReplyError):
                while True:
                    await asyncio.sleep(STALE_MS / 1000 / SIGNS)
                    await self._send(bucket, own, ())

        giving = asyncio.create_task(give(), name="signs of life")
        try:
            yield
        finally:
            giving.cancel()
            await asyncio.wait({giving})

    async def _clear(self, bucket: int, own: tuple[str, Any, Any]) -> None:
        """Remove what is left of the bucket but its outbox, whose records may not have been read."""
        tag = bucket_tag(bucket)
        kept = {f"{tag}{name}".encode() for name in ("o", "w", "f", "j", "c")}
        cursor: Any = b"0"
        while True:
            cursor, keys = await self._connection.call(
                "SCAN", cursor, "MATCH", f"{tag}*", "COUNT", 1000
            )
            gone = [("UNLINK", key) for key in keys if key not in kept]
            for at in range(0, len(gone), WRITES):
                await self._write(bucket, own, gone[at : at + WRITES])
            if cursor == b"0":
                return

    async def _counts(self, bucket: int, now: int) -> AsyncIterator[Command]:
        tag, after = bucket_tag(bucket), 0
        while accounts := await self._truth.accounts(bucket, after, ACCOUNTS):
            after = accounts[-1].account_id
            limits = [
                place.limit
                for account in accounts
                for node in account.nodes
                for entitlement in node.entitlements
                for place in places_of(entitlement)
                if place.rate is None
            ]
            sums = await recall_sums(self._ledger, bucket, limits)
            for account in accounts:
                for suffix, slots in rebuild.slots_of(account, sums, now):
                    yield "SET", f"{tag}s:{suffix}", packed(slots)
                    yield "SADD", f"{tag}k", suffix

    async def _open_starts(self, bucket: int, now: int) -> AsyncIterator[Command]:
        """Leases, reservations and blocks of supply without an end."""
        tag = bucket_tag(bucket)
        async for record in recall(self._ledger, bucket, START, ledger_pb2.CHOICE_OPEN):
            for command in await self._writing.start(tag, record, now):
                yield command

    async def _bindings(self, bucket: int) -> AsyncIterator[Command]:
        """Devices that are bound to seats."""
        tag = bucket_tag(bucket)
        async for record in recall(self._ledger, bucket, START, ledger_pb2.CHOICE_BOUND):
            for command in await self._writing.bind(tag, record):
                yield command

    async def _journals(self, bucket: int) -> AsyncIterator[Command]:
        """How far each journal of emergency uses was counted."""
        tag = bucket_tag(bucket)
        async for record in recall(self._ledger, bucket, START, ledger_pb2.CHOICE_JOURNALED):
            yield counted(tag, record)

    async def _answers(self, bucket: int, now: int) -> AsyncGenerator[list[Command]]:
        """By far the most: those of many records in a few commands."""
        tag = bucket_tag(bucket)
        since = (now // self._window_ms - 1) * self._window_ms
        keyed = recall_pages(self._ledger, bucket, START, ledger_pb2.CHOICE_KEYED, since)
        async with aclosing(keyed) as pages:
            async for page in pages:
                for at in range(0, len(page), ANSWERS):
                    commands: list[Command] = []
                    for entry in page[at : at + ANSWERS]:
                        record = read(entry)
                        if record is not None:
                            commands += await self._writing.answer(tag, record, now)
                    if commands:
                        yield joined(commands)

    # -- Redis is behind

    async def _follow(self, bucket: int, run: str, last: Position, mark: Position) -> None:
        """Write the records that Redis lacks again, with their effects, at their places."""
        _log.warning("counters are behind", bucket=bucket, at=str(last), records_to=str(mark))
        image = Image(self._connection, bucket)
        now = await self.now()
        records: list[Entry] = []
        async for entry in recall_entries(self._ledger, bucket, last, ledger_pb2.CHOICE_ALL):
            if entry.position > mark:
                break
            records.append(entry)
            if len(records) == WRITES:
                last = await self._again(bucket, run, last, records, image, now)
                records = []
        if records:
            last = await self._again(bucket, run, last, records, image, now)
        if last != mark:
            # Raw has not all of them any more: everything is made again from the ledger.
            await self._write(
                bucket, ("after", _place(last), run), [("DEL", f"{bucket_tag(bucket)}m")]
            )

    async def _again(
        self,
        bucket: int,
        run: str,
        last: Position,
        records: list[Entry],
        image: Image,
        now: int,
    ) -> Position:
        tag = bucket_tag(bucket)
        commands: list[Command] = []
        before = last
        for entry in records:
            dense = entry.position == (last.generation, last.sequence + 1)
            if not dense and (entry.generation == last.generation or entry.sequence):
                break
            last = entry.position
            commands.append(
                ("XADD", outbox(bucket), _place(last), "b", entry.body, "e", entry.effects)
            )
            record = read(entry)
            if record is None:
                continue
            ownerless = await self._effects(image, record, now)
            kind = record.effects.type
            if kind in (*_HOLDS, RecordType.LEASE_START):
                commands += await self._writing.start(tag, record, now, ownerless)
            if kind in _HOLD_ENDS:
                commands += ended_hold(tag, record.body.id)
            if kind in LEASE_ENDS:
                commands += await self._writing.stood_up(tag, record)
            if record.body.j:
                commands.append(counted(tag, record))
            if kind is RecordType.DENIAL:
                commands.append(("DEL", f"{tag}d"))
            commands += await self._writing.bind(tag, record)
            commands += await self._writing.answer(tag, record, now)
        if commands:
            guard = ("after", _place(before), run)
            await self._write(bucket, guard, [*commands, *image.changed()])
        return last

    async def _effects(self, image: Image, record: Read, now: int) -> dict[int, Node]:
        """Of one record, on the states of its customer's path; rates that it may have used are spent.

        Return where those of its limits are counted that no terms have any more.
        """
        ownerless: dict[int, Node] = {}
        body, effects = record.body, record.effects
        entries = [entry for entry in effects.entries if entry.limit]
        uses = effects.type in (RecordType.USAGE, *_HOLDS, RecordType.LEASE_START)
        if not entries and not uses:
            return ownerless
        customer, feature = await self._writing.who(body)
        if customer is None:
            return ownerless
        known = rebuild.place_by_limit(customer.path, body.f)
        for entry in entries:
            limit = entry.limit % SIDE
            if limit in known:
                node, place = known[limit]
                if place.family in (Family.COUNT, Family.RING24):
                    slots = await image.of(f"{node.id}:{feature}")
                    rebuild.apply_entry(slots, place, entry)
                    if place.throttled and uses:
                        slots[place.slot][4:6] = [0, now]
                continue
            for node in customer.path:
                found = await image.left_over(f"{node.id}:{feature}", limit)
                if found is not None:
                    rebuild.apply_rest(*found, entry)
                    ownerless[limit] = node
        for node, place in known.values():
            if place.rate is not None and uses:
                slots = await image.of(f"{node.id}:{feature}")
                slots[place.slot] = rebuild.spent(place, now)
        return ownerless


def _elsewhere(error: hiredis.ReplyError) -> str:
    """What a bucket waits for that this node of a cluster does not have now. Raise any other error."""
    if not is_elsewhere(str(error)):
        raise error
    return str(error)


def _place(position: Position) -> str:
    return f"{position.generation}-{position.sequence}" if position.sequence >= 0 else "0-0"


async def _chunks(commands: AsyncIterator[Command]) -> AsyncIterator[list[Command]]:
    some: list[Command] = []
    async for command in commands:
        some.append(command)
        if len(some) == WRITES:
            yield some
            some = []
    if some:
        yield some
