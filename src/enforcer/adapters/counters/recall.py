"""What the meter has of a bucket: its records page by page, and its sums."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from meter.core.records import SIDE, decode_body, decode_effects
from meter.core.sequence import Entry
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from enforcer.core import rebuild
    from enforcer.ports.ledger import Ledger
    from meter.core.records import Body, Effects
    from meter.core.sequence import Position

__all__ = ["Read", "read", "recall", "recall_entries", "recall_pages", "recall_sums"]

SUMS = 2_000
"""That are asked for at once."""
RECORDS = 5_000
"""Likewise: a page costs the meter what 3,000 records do, however few it has."""


class Read(NamedTuple):
    """A record that could be read."""

    entry: Entry
    body: Body
    effects: Effects


def read(entry: Entry) -> Read | None:
    """None for what cannot be read: it is in the review table, and counts nowhere."""
    try:
        return Read(entry, decode_body(entry.body), decode_effects(entry.effects))
    except ValueError:
        return None


async def recall(
    ledger: Ledger,
    bucket: int,
    after: Position,
    choice: ledger_pb2.Choice.ValueType,
    since_ms: int = 0,
) -> AsyncIterator[Read]:
    """Records that can be read."""
    async for entry in recall_entries(ledger, bucket, after, choice, since_ms):
        record = read(entry)
        if record is not None:
            yield record


async def recall_entries(
    ledger: Ledger,
    bucket: int,
    after: Position,
    choice: ledger_pb2.Choice.ValueType,
    since_ms: int = 0,
) -> AsyncIterator[Entry]:
    """Records in their order."""
    async with aclosing(recall_pages(ledger, bucket, after, choice, since_ms)) as pages:
        async for page in pages:
            for entry in page:
                yield entry


async def recall_pages(
    ledger: Ledger,
    bucket: int,
    after: Position,
    choice: ledger_pb2.Choice.ValueType,
    since_ms: int = 0,
) -> AsyncGenerator[list[Entry]]:
    """The same, many at a time; while they are looked at the meter is asked for the next."""

    def ask(after: Position) -> asyncio.Task[ledger_pb2.RecallResponse]:
        request = ledger_pb2.RecallRequest(
            bucket=bucket,
            after_generation=after.generation,
            after_sequence=after.sequence,
            choice=choice,
            since_ms=since_ms,
            most=RECORDS,
        )
        return asyncio.create_task(ledger.recall(request), name="recall")

    asked = ask(after)
    try:
        while True:
            response = await asked
            page = [
                Entry(one.generation, one.sequence, one.body, one.effects)
                for one in response.records
            ]
            last = len(page) < RECORDS
            if not last:
                asked = ask(page[-1].position)
            yield page
            if last:
                return
    finally:
        asked.cancel()
        await asyncio.wait({asked})
        if not asked.cancelled():
            asked.exception()  # who does not ask for the next page need not know


async def recall_sums(ledger: Ledger, bucket: int, limits: list[int]) -> rebuild.Sums:
    """The sums of counters."""
    sums: rebuild.Sums = defaultdict(dict)
    wanted = limits + [limit + SIDE for limit in limits]
    for at in range(0, len(wanted), SUMS):
        response = await ledger.sums(
            ledger_pb2.SumsRequest(bucket=bucket, limits=wanted[at : at + SUMS])
        )
        for one in response.counters:
            sums[one.limit][one.period_start] = one.used, one.held
    return sums
