"""What rollup processes tell each other through SQL, and how one of them keeps all still.

A process has one row with all its buckets, whatever their number: telling costs one small write.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, literal_column, select, update

from meter.adapters.sql.tables import manifests, marks, members, stillness
from meter.core.sequence import START, Gap, Position, Range
from meter.ports.marks import Standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["is_still", "keep_on", "keep_still", "let_go", "read_standing", "write_report"]

OLD_MS = 600_000
"""A row that nobody has renewed for so long goes when others know as much."""


def _now(connection: AsyncConnection) -> Any:
    """The database's own clock, in ms: the processes' clocks may differ."""
    if connection.dialect.name == "postgresql":
        return literal_column("CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)")
    return literal_column("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")


async def is_still(connection: AsyncConnection) -> bool:
    """Whether no slice may be claimed now. PostgreSQL keeps it so until this transaction ends."""
    kept = select(stillness.c.until_ms > _now(connection)).with_for_update(read=True)
    return bool(await connection.scalar(kept))


async def keep_still(connection: AsyncConnection, holder: str, seconds: float) -> bool:
    """Take the row, if nobody has it. Waits for the claims that are under way."""
    now = _now(connection)
    done = await connection.execute(
        update(stillness)
        .where(stillness.c.until_ms <= now, stillness.c.free_ms <= now)
        .values(holder=holder, until_ms=now + int(seconds * 1000))
    )
    return bool(done.rowcount)


async def keep_on(connection: AsyncConnection, holder: str, seconds: float) -> bool:
    """Have it longer, if it is still had."""
    now = _now(connection)
    done = await connection.execute(
        update(stillness)
        .where(stillness.c.holder == holder, stillness.c.until_ms > now)
        .values(until_ms=now + int(seconds * 1000))
    )
    return bool(done.rowcount)


async def let_go(connection: AsyncConnection, holder: str, rest: float) -> None:
    """Give it back."""
    now = _now(connection)
    await connection.execute(
        update(stillness)
        .where(stillness.c.holder == holder)
        .values(holder="", until_ms=0, free_ms=now + int(rest * 1000))
    )


async def write_report(connection: AsyncConnection, member: str, standing: Standing) -> None:
    """Replace the member's row; with its first one, rows of the dead go that say nothing more."""
    values = {"said": _packed(standing), "said_ms": _now(connection)}
    done = await connection.execute(
        update(members).where(members.c.member == member).values(values)
    )
    if done.rowcount:
        return
    await connection.execute(insert(members).values(member=member, **values))
    rows = (
        await connection.execute(
            select(
                members.c.member,
                members.c.said,
                (members.c.said_ms < _now(connection) - OLD_MS).label("old"),
            )
        )
    ).all()
    known: dict[int, int] = defaultdict(lambda: -1)
    for row in rows:
        if not row.old:
            for bucket, ms in _fresh(json.loads(row.said)).items():
                known[bucket] = max(ms, known[bucket])
    gone = [
        row.member
        for row in rows
        if row.old and all(known[b] >= ms for b, ms in _fresh(json.loads(row.said)).items())
    ]
    if gone:
        await connection.execute(delete(members).where(members.c.member.in_(gone)))


async def read_standing(connection: AsyncConnection, buckets: Iterable[int] | None) -> Standing:
    """See the port. In this order: what is told of was in the marks before, a slice in doubt after its claim."""
    chosen = None if buckets is None else set(buckets)
    said = [json.loads(text) for text in await connection.scalars(select(members.c.said))]
    found = select(marks.c.bucket, marks.c.generation, marks.c.sequence)
    if chosen is not None:
        found = found.where(marks.c.bucket.in_(chosen))
    claimed = {
        row.bucket: Position(row.generation, row.sequence)
        for row in await connection.execute(found)
    }
    reached = dict(claimed)
    doubtful = select(manifests.c.ranges).where(manifests.c.applied.is_(False))
    for text in await connection.scalars(doubtful):
        for part in (Range(*one) for one in json.loads(text)):
            if part.bucket in reached:
                before = Position(part.generation, part.first - 1)
                reached[part.bucket] = min(reached[part.bucket], before)
    fresh: dict[int, int] = {}
    held: dict[int, Gap] = {}
    seen: dict[int, Position] = {}
    for one in said:
        for bucket, ms in _fresh(one).items():
            if chosen is None or bucket in chosen:
                fresh[bucket] = max(ms, fresh.get(bucket, 0))
        for bucket, generation, sequence in one["seen"]:
            place = Position(generation, sequence)
            if (chosen is None or bucket in chosen) and place > reached.get(bucket, START):
                seen[bucket] = max(place, seen.get(bucket, START))
        for *gap, generation, sequence in one["held"]:
            # Whoever has said so: it is so until the mark moves.
            if claimed.get(gap[0], START) == Position(generation, sequence) and (
                chosen is None or gap[0] in chosen
            ):
                held[gap[0]] = Gap(*gap)
    return Standing(reached, held, seen, fresh)


def _packed(standing: Standing) -> str:
    """Most buckets are as fresh as others: they are told together."""
    fresh: dict[int, list[int]] = defaultdict(list)
    for bucket, ms in standing.fresh_ms.items():
        fresh[ms].append(bucket)
    place: Mapping[int, Position] = standing.marks
    seen: Sequence[object] = [
        (bucket, *at) for bucket, at in standing.seen.items() if at > place.get(bucket, START)
    ]
    held = [(*gap, *place.get(bucket, START)) for bucket, gap in standing.held.items()]
    said = {"fresh": list(fresh.items()), "seen": seen, "held": held}
    return json.dumps(said, separators=(",", ":"))


def _fresh(said: Any) -> dict[int, int]:
    return {bucket: ms for ms, buckets in said["fresh"] for bucket in buckets}
