"""What a record stands for in Redis beside its counters: the commands that write it there.

Leases, reservations and blocks of supply, bindings, remembered answers, and how far journals and corrections were
carried out.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from enforcer.core import rebuild
from enforcer.core.compile import SEAT_MODES
from enforcer.core.model import SeatMode
from meter.core.records import RecordType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Protocol

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.recall import Read
    from enforcer.core.model import Customer, Feature, Node
    from meter.core.records import Body

    class Known(Protocol):
        """Who knows customers and features."""

        async def resolve(self, tenant: str, customer: str) -> Customer | None:
            """A customer with all above it."""
            ...

        async def feature(self, tenant: str, key: str) -> Feature | None:
            """A feature."""
            ...


__all__ = ["LEASE_ENDS", "Command", "Writing", "counted", "ended_hold", "joined"]

_log = structlog.get_logger(__name__)
_pack = msgspec.msgpack.encode
LEASE_ENDS = (RecordType.LEASE_END, RecordType.LEASE_EXPIRED)
_CORRECTIONS = (RecordType.VOID, RecordType.AMEND, RecordType.BACKFILL)

Command = tuple[Any, ...]


class Writing:
    """Commands for one record. Whose it is is asked once, until it is told to `forget`."""

    def __init__(self, connection: Connection, known: Known, window_ms: int) -> None:
        self._connection, self._known, self._window_ms = connection, known, window_ms
        self._customers: dict[tuple[str, str], Customer | None] = {}
        self._features: dict[tuple[str, str], int] = {}

    def forget(self) -> None:
        """Definitions may have changed."""
        self._customers.clear()
        self._features.clear()

    async def start(
        self, tag: str, record: Read, now: int, ownerless: Mapping[int, Node] | None = None
    ) -> list[Command]:
        """A lease, reservation or block of supply has begun. `ownerless` as of `rebuild.hold_of`."""
        entry, body, effects = record
        customer, feature = await self.who(body)
        if customer is None:
            _log.error("nobody has this any more", customer=body.c, id=body.id)
            return []
        if effects.type is RecordType.LEASE_START:
            return _lease_commands(
                tag, rebuild.lease_of(customer, feature, body, entry.body, effects, now)
            )
        hold = rebuild.hold_of(customer, feature, body, entry.body, effects, ownerless or {})
        return [
            (
                "HSET",
                f"{tag}v",
                hold.id,
                _pack((hold.expires, hold.granted, hold.body.decode(), hold.chains, hold.block)),
            ),
            ("ZADD", f"{tag}q", hold.expires, f"R{hold.id}"),
        ]

    async def stood_up(self, tag: str, record: Read) -> list[Command]:
        """A lease that an old copy still has has ended."""
        raw = await self._connection.call("HGET", f"{tag}l", record.body.id)
        lease = record.body.id
        found: list[Command] = [("HDEL", f"{tag}l", lease), ("ZREM", f"{tag}q", f"L{lease}")]
        customer, feature = await self.who(record.body)
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

    async def bind(self, tag: str, record: Read) -> list[Command]:
        """A device is bound to a seat, or is so no more."""
        body, effects = record.body, record.effects
        unbinds = effects.type in LEASE_ENDS and effects.quantity == 1
        if not body.h or not (unbinds or effects.type is RecordType.LEASE_START):
            return []
        customer, feature = await self.who(body)
        if customer is None:
            return []
        if rebuild.seat_mode(customer, body.f) != SEAT_MODES[SeatMode.NODE_LOCKED]:
            return []
        keys = [f"{tag}n:{node.id}:{feature}" for node in customer.path]
        if unbinds:
            return [("HDEL", key, body.h) for key in keys]
        return [("HSETNX", key, body.h, effects.now) for key in keys]

    async def answer(self, tag: str, record: Read, now: int) -> list[Command]:
        """What a retry is answered, and how far journals and corrections are carried out."""
        body, effects = record.body, record.effects
        account, feature = 0, 0
        if body.k:
            customer, feature = await self.who(body)
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

    async def who(self, body: Body) -> tuple[Customer | None, int]:
        """The customer of a record and the number of its feature."""
        if (body.t, body.c) not in self._customers:
            self._customers[body.t, body.c] = await self._known.resolve(body.t, body.c)
        if (body.t, body.f) not in self._features:
            feature = await self._known.feature(body.t, body.f)
            self._features[body.t, body.f] = 0 if feature is None else feature.id
        number = self._features[body.t, body.f]
        return (self._customers[body.t, body.c] if number else None), number


def _lease_commands(tag: str, lease: rebuild.Lease) -> list[Command]:
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


def counted(tag: str, record: Read) -> Command:
    """How far a journal of emergency uses was counted."""
    return "HSET", f"{tag}j", record.body.j, record.body.jn


def joined(commands: Iterable[Command]) -> list[Command]:
    """The commands of many answers in a few: all fields of a hash are set at once, and its life once.

    What is only set where nothing is comes last: it gives way to what was set before it and to what is set behind it.
    """
    fields: dict[str, list[Any]] = {}
    rest: list[Command] = []
    lives: dict[str, Command] = {}
    for command in commands:
        name, key, *words = command
        if name == "HSET":
            fields.setdefault(key, ["HSET", key]).extend(words)
        elif name == "PEXPIRE":
            lives[key] = command
        else:
            rest.append(command)
    return [*map(tuple, fields.values()), *rest, *lives.values()]


def ended_hold(tag: str, reservation: str) -> list[Command]:
    """A reservation or block of supply has ended."""
    return [("HDEL", f"{tag}v", reservation), ("ZREM", f"{tag}q", f"R{reservation}")]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
