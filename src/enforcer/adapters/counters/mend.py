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
import struct
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import hiredis
import msgspec
import structlog

from enforcer.adapters.counters.connection import ConnectionLostError
from enforcer.adapters.counters.handshake import Generations, Site, look, open_generation
from enforcer.adapters.counters.scripts import script
from enforcer.core import rebuild
from enforcer.core.compile import SEAT_MODES, places_of
from enforcer.core.model import SeatMode
from enforcer.core.program import FIELDS, VERSION, Family
from enforcer.errors import MetergateError
from meter.core.keys import bucket_tag, outbox
from meter.core.records import SIDE, RecordType, decode_body, decode_effects
from meter.core.sequence import START, Entry, Position
from meter.errors import MeterError
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from enforcer.adapters.counters.connection import Connection
    from enforcer.core.model import Customer, Feature
    from enforcer.core.rules import Slots
    from enforcer.ports.ledger import Ledger
    from meter.core.records import Body, Effects

    class Truth(Generations, Protocol):
        """What is asked of the definitions."""

        async def resolve(self, tenant: str, customer: str) -> Customer | None:
            """A customer with all above it."""
            ...

        async def feature(self, tenant: str, key: str) -> Feature | None:
            """A feature."""
            ...

        async def last_generation(self, bucket: int) -> int:
            """The greatest generation given out."""
            ...

        async def accounts(self, bucket: int, after: int, most: int) -> list[rebuild.Account]:
            """Accounts of a bucket with their trees."""
            ...

    class Marks(Protocol):
        """How far the rollup has come: part of `meter.ports.marks.Marks`."""

        async def load(self, buckets: Iterable[int]) -> Mapping[int, Position]:
            """Each bucket's mark. Raise `MeterError` when they cannot be reached."""
            ...


__all__ = ["Marks", "Mender", "Process", "Truth"]

_log = structlog.get_logger(__name__)
ACCOUNTS, RECORDS, WRITES = 100, 2_000, 256
STALE_MS = 5_000
"""Whoever rebuilds and has not written for so long is taken for dead."""
SIGNS = 5
"""Of life, at least, in that time."""
_TAKEN = "another enforcer is at work on it"
_pack = msgspec.msgpack.encode
_LEASE_ENDS = (RecordType.LEASE_END, RecordType.LEASE_EXPIRED)
_CORRECTIONS = (RecordType.VOID, RecordType.AMEND, RecordType.BACKFILL)
_HOLDS = (RecordType.HOLD, RecordType.ALLOWANCE)
_HOLD_ENDS = (
    RecordType.COMMIT,
    RecordType.RELEASE,
    RecordType.HOLD_EXPIRED,
    RecordType.ALLOWANCE_USE,
    RecordType.UNACCOUNTED,
)

Command = tuple[Any, ...]


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


class _Read(NamedTuple):
    """A record that could be read."""

    entry: Entry
    body: Body
    effects: Effects


class Mender:
    """On one connection, for one server process. `known` tells the furthest place of a bucket that was ever seen."""

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
        run_id, clock = process.run_id, process.clock
        self._steps = steps
        self._connection, self._run_id, self._window_ms = connection, run_id, process.window_ms
        self._writer = process.writer
        self._truth, self._ledger, self._known, self._marks = truth, ledger, known, marks
        self._open = script("open", run_id, clock)
        self._site = Site(connection, self._open, run_id, truth, steps)
        self._mend = script("mend", run_id, clock)
        self._now = f"{clock} return string.format('%.0f', CLOCK)"
        self._customers: dict[tuple[str, str], Customer | None] = {}
        self._features: dict[tuple[str, str], int] = {}

    async def mend(self, closed: dict[int, str]) -> dict[int, bool]:
        """Open all of `closed` that can be opened; note with the others what they wait for.

        Return those that are open now, and whether each lacked nothing.
        """
        self._customers.clear()
        self._features.clear()
        opened: dict[int, bool] = {}
        wanted: list[int] = []
        # What another enforcer has opened or rebuilds needs no question to the meter.
        for bucket in list(closed):
            found = await look(self._connection, self._open, bucket, self._run_id)
            if found.run == self._run_id:
                opened[bucket] = False
            elif not found.run and await self._taken(bucket):
                closed[bucket] = _TAKEN
            else:
                wanted.append(bucket)
        if not wanted:
            return opened
        self._steps("catch_up")
        try:
            reached = await self._ledger.catch_up(
                ledger_pb2.CatchUpRequest(buckets=wanted, decided_before_ms=await self.now())
            )
        except MetergateError as error:
            closed.update(dict.fromkeys(wanted, error.message))
            if self._marks is not None:
                opened |= await self._by_marks(wanted)
            return opened
        for one in reached.reached:
            try:
                intact = await self._bucket(one)
            except (_Waits, MetergateError) as error:
                closed[one.bucket] = str(error)
            except _Elsewhere:
                closed[one.bucket] = _TAKEN
            else:
                opened[one.bucket] = intact
        return opened

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
            found = await look(self._connection, self._open, bucket, self._run_id)
            if not found.run or found.last < max(mark, self._known(bucket)):
                continue
            if found.run == self._run_id or await open_generation(self._site, bucket):
                opened[bucket] = True
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
                self._answers(bucket, now),
            ]:
                async for some in _chunks(commands):
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
            sums = await self._sums(bucket, limits)
            for account in accounts:
                for suffix, slots in rebuild.slots_of(account, sums, now):
                    yield "SET", f"{tag}s:{suffix}", _state(slots)
                    yield "SADD", f"{tag}k", suffix

    async def _sums(self, bucket: int, limits: list[int]) -> rebuild.Sums:
        sums: rebuild.Sums = defaultdict(dict)
        wanted = limits + [limit + SIDE for limit in limits]
        for at in range(0, len(wanted), RECORDS):
            response = await self._ledger.sums(
                ledger_pb2.SumsRequest(bucket=bucket, limits=wanted[at : at + RECORDS])
            )
            for one in response.counters:
                sums[one.limit][one.period_start] = one.used, one.held
        return sums

    async def _open_starts(self, bucket: int, now: int) -> AsyncIterator[Command]:
        """Leases, reservations and blocks of supply without an end."""
        tag = bucket_tag(bucket)
        async for record in self._recall(bucket, START, ledger_pb2.CHOICE_OPEN):
            for command in await self._start(tag, record, now):
                yield command

    async def _bindings(self, bucket: int) -> AsyncIterator[Command]:
        """Devices that are bound to seats."""
        tag = bucket_tag(bucket)
        async for record in self._recall(bucket, START, ledger_pb2.CHOICE_BOUND):
            for command in await self._bind(tag, record):
                yield command

    async def _journals(self, bucket: int) -> AsyncIterator[Command]:
        """How far each journal of emergency uses was counted."""
        tag = bucket_tag(bucket)
        async for record in self._recall(bucket, START, ledger_pb2.CHOICE_JOURNALED):
            yield _counted(tag, record)

    async def _answers(self, bucket: int, now: int) -> AsyncIterator[Command]:
        tag = bucket_tag(bucket)
        since = (now // self._window_ms - 1) * self._window_ms
        async for record in self._recall(bucket, START, ledger_pb2.CHOICE_KEYED, since):
            for command in await self._answer(tag, record, now):
                yield command

    # -- Redis is behind

    async def _follow(self, bucket: int, run: str, last: Position, mark: Position) -> None:
        """Write the records that Redis lacks again, with their effects, at their places."""
        _log.warning("counters are behind", bucket=bucket, at=str(last), records_to=str(mark))
        image = _Image(self._connection, bucket)
        now = await self.now()
        records: list[Entry] = []
        async for entry in self._entries(bucket, last, ledger_pb2.CHOICE_ALL):
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
        image: _Image,
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
            record = _read(entry)
            if record is None:
                continue
            await self._effects(image, record, now)
            kind = record.effects.type
            if kind in (*_HOLDS, RecordType.LEASE_START):
                commands += await self._start(tag, record, now)
            if kind in _HOLD_ENDS:
                commands += _ended_hold(tag, record.body.id)
            if kind in _LEASE_ENDS:
                commands += await self._stood_up(tag, record)
            if record.body.j:
                commands.append(_counted(tag, record))
            if kind is RecordType.DENIAL:
                commands.append(("DEL", f"{tag}d"))
            commands += await self._bind(tag, record)
            commands += await self._answer(tag, record, now)
        if commands:
            guard = ("after", _place(before), run)
            await self._write(bucket, guard, [*commands, *image.changed()])
        return last

    async def _effects(self, image: _Image, record: _Read, now: int) -> None:
        """Of one record, on the states of its customer's path; rates that it may have used are spent."""
        body, effects = record.body, record.effects
        entries = [entry for entry in effects.entries if entry.limit]
        uses = effects.type in (RecordType.USAGE, *_HOLDS, RecordType.LEASE_START)
        if not entries and not uses:
            return
        customer, feature = await self._who(body)
        if customer is None:
            return
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
        for node, place in known.values():
            if place.rate is not None and uses:
                slots = await image.of(f"{node.id}:{feature}")
                slots[place.slot] = rebuild.spent(place, now)

    # -- commands for one record

    async def _start(self, tag: str, record: _Read, now: int) -> list[Command]:
        entry, body, effects = record
        customer, feature = await self._who(body)
        if customer is None:
            _log.error("nobody has this any more", customer=body.c, id=body.id)
            return []
        if effects.type is RecordType.LEASE_START:
            return lease_commands(
                tag, rebuild.lease_of(customer, feature, body, entry.body, effects, now)
            )
        hold = rebuild.hold_of(customer, feature, body, entry.body, effects)
        return [
            (
                "HSET",
                f"{tag}v",
                hold.id,
                _pack((hold.expires, hold.granted, hold.body.decode(), hold.chains, hold.block)),
            ),
            ("ZADD", f"{tag}q", hold.expires, f"R{hold.id}"),
        ]

    async def _stood_up(self, tag: str, record: _Read) -> list[Command]:
        """A lease that an old copy still has has ended."""
        raw = await self._connection.call("HGET", f"{tag}l", record.body.id)
        lease = record.body.id
        found: list[Command] = [("HDEL", f"{tag}l", lease), ("ZREM", f"{tag}q", f"L{lease}")]
        customer, feature = await self._who(record.body)
        suffixes = [] if customer is None else [f"{node.id}:{feature}" for node in customer.path]
        if raw is not None:
            suffixes = [_text(one) for one in msgspec.msgpack.decode(raw, strict=False)[0]]
        for suffix in suffixes:
            found.append(("ZREM", f"{tag}i:{suffix}", lease))
            holder = record.body.h
            if holder:
                own = f"{tag}u:{suffix}:{holder}"
                found += [("ZREM", own, lease), ("HOLDER", own, f"{tag}h:{suffix}", holder)]
        return found

    async def _bind(self, tag: str, record: _Read) -> list[Command]:
        body, effects = record.body, record.effects
        unbinds = effects.type in _LEASE_ENDS and effects.quantity == 1
        if not body.h or not (unbinds or effects.type is RecordType.LEASE_START):
            return []
        customer, feature = await self._who(body)
        if customer is None:
            return []
        if rebuild.seat_mode(customer, body.f) != SEAT_MODES[SeatMode.NODE_LOCKED]:
            return []
        keys = [f"{tag}n:{node.id}:{feature}" for node in customer.path]
        if unbinds:
            return [("HDEL", key, body.h) for key in keys]
        return [("HSETNX", key, body.h, effects.now) for key in keys]

    async def _answer(self, tag: str, record: _Read, now: int) -> list[Command]:
        body, effects = record.body, record.effects
        account, feature = 0, 0
        if body.k:
            customer, feature = await self._who(body)
            account = 0 if customer is None else customer.account_id
        # How far journals of emergency uses and the list of corrections are carried out: nothing is done twice.
        journal: list[Command] = [("HSET", f"{tag}j", body.j, body.jn)] if body.j else []
        if effects.type in _CORRECTIONS and body.n:
            journal.append(("HSET", f"{tag}c", "n", body.n))
        found = rebuild.remembered(account, feature, body, effects, record.entry.position)
        if found is None or found.at // self._window_ms < now // self._window_ms - 1:
            return journal
        key = f"{tag}r:{found.at // self._window_ms}"
        packed = struct.pack(f"<{len(found.numbers)}d", *found.numbers)
        value = found.key[16:] + packed + found.id.encode()
        return [
            *journal,
            # A journaled use counts what its check had not counted: the check's own answer stays.
            ("HSETNX" if body.j else "HSET", key, found.key[:16], value),
            ("PEXPIRE", key, 3 * self._window_ms),
        ]

    async def _who(self, body: Body) -> tuple[Customer | None, int]:
        """The customer of a record and the number of its feature."""
        if (body.t, body.c) not in self._customers:
            self._customers[body.t, body.c] = await self._truth.resolve(body.t, body.c)
        if (body.t, body.f) not in self._features:
            feature = await self._truth.feature(body.t, body.f)
            self._features[body.t, body.f] = 0 if feature is None else feature.id
        number = self._features[body.t, body.f]
        return (self._customers[body.t, body.c] if number else None), number

    # -- records

    async def _recall(
        self, bucket: int, after: Position, choice: ledger_pb2.Choice.ValueType, since_ms: int = 0
    ) -> AsyncIterator[_Read]:
        async for entry in self._entries(bucket, after, choice, since_ms):
            record = _read(entry)
            if record is not None:
                yield record

    async def _entries(
        self, bucket: int, after: Position, choice: ledger_pb2.Choice.ValueType, since_ms: int = 0
    ) -> AsyncIterator[Entry]:
        while True:
            response = await self._ledger.recall(
                ledger_pb2.RecallRequest(
                    bucket=bucket,
                    after_generation=after.generation,
                    after_sequence=after.sequence,
                    choice=choice,
                    since_ms=since_ms,
                    most=RECORDS,
                )
            )
            for one in response.records:
                entry = Entry(one.generation, one.sequence, one.body, one.effects)
                after = entry.position
                yield entry
            if len(response.records) < RECORDS:
                return


class _Image:
    """States of a bucket that is behind: as Redis has them, and as they are to be."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection, self._tag = connection, bucket_tag(bucket)
        self._states: dict[str, Slots] = {}
        self._touched: set[str] = set()

    async def of(self, suffix: str) -> Slots:
        """The slots of a state, to be changed."""
        self._touched.add(suffix)
        if suffix not in self._states:
            raw = await self._connection.call("GET", f"{self._tag}s:{suffix}")
            self._states[suffix] = dict(_slots(raw or b""))
        return self._states[suffix]

    def changed(self) -> Iterator[Command]:
        """What to write of what was asked for since the last call."""
        for suffix in sorted(self._touched):
            yield "SET", f"{self._tag}s:{suffix}", _state(self._states[suffix])
            yield "SADD", f"{self._tag}k", suffix
        self._touched.clear()


def lease_commands(tag: str, lease: rebuild.Lease) -> list[Command]:
    """Keys of a live lease."""
    packed = _pack(
        (
            lease.suffixes,
            lease.mode,
            lease.holder,
            lease.started,
            lease.expires,
            lease.body.decode(),  # scripts know no binary type
            lease.seats,
        )
    )
    found: list[Command] = [
        ("HSET", f"{tag}l", lease.id, packed),
        ("ZADD", f"{tag}q", lease.expires, f"L{lease.id}"),
    ]
    for suffix in lease.suffixes:
        found.append(("ZADD", f"{tag}i:{suffix}", lease.expires, lease.id))
        if lease.mode != SEAT_MODES[SeatMode.FLOATING]:
            own = f"{tag}u:{suffix}:{lease.holder}"
            found.append(("ZADD", own, lease.expires, lease.id))
            found.append(("HOLDER", own, f"{tag}h:{suffix}", lease.holder))
    return found


def _counted(tag: str, record: _Read) -> Command:
    return "HSET", f"{tag}j", record.body.j, record.body.jn


def _ended_hold(tag: str, reservation: str) -> list[Command]:
    return [("HDEL", f"{tag}v", reservation), ("ZREM", f"{tag}q", f"R{reservation}")]


def _state(slots: Slots) -> bytes:
    """Of no epoch: the script lays it out for the one that asks first."""
    values: list[float] = [VERSION, 0]
    for code, slot in sorted(slots.items()):
        values += (code, *slot)
    return struct.pack(f"<{len(values)}d", *values)


def _slots(raw: bytes) -> Iterator[tuple[int, list[float]]]:
    values = list(struct.unpack(f"<{len(raw) // 8}d", raw))
    at = 2
    while at < len(values):
        code = int(values[at])
        width = FIELDS[Family(code & 7)]
        yield code, values[at + 1 : at + 1 + width]
        at += 1 + width


def _read(entry: Entry) -> _Read | None:
    """None for what cannot be read: it is in the review table, and counts nowhere."""
    try:
        return _Read(entry, decode_body(entry.body), decode_effects(entry.effects))
    except ValueError:
        return None


def _place(position: Position) -> str:
    return f"{position.generation}-{position.sequence}" if position.sequence >= 0 else "0-0"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def _chunks(commands: AsyncIterator[Command]) -> AsyncIterator[list[Command]]:
    some: list[Command] = []
    async for command in commands:
        some.append(command)
        if len(some) == WRITES:
            yield some
            some = []
    if some:
        yield some
