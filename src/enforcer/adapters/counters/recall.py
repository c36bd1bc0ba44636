"""What the meter has of a bucket: its records page by page, and its sums."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from meter.core.records import SIDE, decode_body, decode_effects
from meter.core.sequence import Entry
from meter.v1 import ledger_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from enforcer.core import rebuild
    from enforcer.ports.ledger import Ledger
    from meter.core.records import Body, Effects
    from meter.core.sequence import Position

__all__ = ["Read", "read", "recall", "recall_entries", "recall_sums"]

RECORDS = 2_000
"""Records, or sums, that are asked for at once."""


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
    while True:
        response = await ledger.recall(
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


async def recall_sums(ledger: Ledger, bucket: int, limits: list[int]) -> rebuild.Sums:
    """The sums of counters."""
    sums: rebuild.Sums = defaultdict(dict)
    wanted = limits + [limit + SIDE for limit in limits]
    for at in range(0, len(wanted), RECORDS):
        response = await ledger.sums(
            ledger_pb2.SumsRequest(bucket=bucket, limits=wanted[at : at + RECORDS])
        )
        for one in response.counters:
            sums[one.limit][one.period_start] = one.used, one.held
    return sums
