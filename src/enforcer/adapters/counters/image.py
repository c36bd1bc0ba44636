"""States of a bucket as they are packed in Redis, to be changed there."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from enforcer.core.compile import Place
from enforcer.core.program import FIELDS, VERSION, Family
from meter.core.keys import bucket_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.adapters.counters.connection import Connection
    from enforcer.adapters.counters.writing import Command
    from enforcer.core.rules import Slots

__all__ = ["Image", "packed"]


class Image:
    """States of a bucket that is behind: as Redis has them, and as they are to be."""

    def __init__(self, connection: Connection, bucket: int) -> None:
        self._connection, self._tag = connection, bucket_tag(bucket)
        self._states: dict[str, Slots] = {}
        self._touched: set[str] = set()

    async def of(self, suffix: str) -> Slots:
        """The slots of a state, to be changed."""
        self._touched.add(suffix)
        return await self._read(suffix)

    async def _read(self, suffix: str) -> Slots:
        if suffix not in self._states:
            raw = await self._connection.call("GET", f"{self._tag}s:{suffix}")
            self._states[suffix] = dict(_slots(raw or b""))
        return self._states[suffix]

    async def left_over(self, suffix: str, limit: int) -> tuple[Slots, Place] | None:
        """The slots of a state that still has a counter of this limit, whether or not anybody's terms have it; and its place."""
        slots = await self._read(suffix)
        for code in slots:
            family = Family(code & 7)
            if code >> 3 == limit and family in (Family.COUNT, Family.RING24):
                self._touched.add(suffix)
                return slots, Place(limit, family)
        return None

    def changed(self) -> Iterator[Command]:
        """What to write of what was asked for since the last call."""
        for suffix in sorted(self._touched):
            yield "SET", f"{self._tag}s:{suffix}", packed(self._states[suffix])
            yield "SADD", f"{self._tag}k", suffix
        self._touched.clear()


def packed(slots: Slots) -> bytes:
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
