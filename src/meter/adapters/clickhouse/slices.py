"""What adding a slice to any rollup has in common.

Exactly once rests on four things, since a process may die, or pause for any time, before any of them,
and another may run its manifest meanwhile:

- A slice is one INSERT of one block into an unpartitioned table, so it becomes one part, whole or not at
  all; and the same part carries marker rows with the manifest's number.
- The INSERT adds nothing where its marker is. The server decides that while it runs the statement, so a
  process that wakes up after an hour adds nothing.
- Two that run at the same time both find no marker. They have the same deduplication token, and the
  server takes one of them. They also have the same `query_id`, and it refuses to run the second at all.
- ClickHouse notes a token before it renames the part into place, and a kill in between leaves a token
  whose rows never come (see MergeTreeSink). Then the marker stays away, though the INSERT succeeded. The
  next token is tried only when no INSERT of the manifest runs any more: one that runs may be the one that
  noted the token, with its rows still to come. One that arrives later has a token that is noted.

`system.processes` is the server's own: the writers of a deployment use one server, or replicas that `cluster` names.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from meter.adapters.clickhouse.replicas import everywhere
from meter.core.records import RecordType
from meter.errors import WarehouseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meter.adapters.clickhouse.client import ClickHouse
    from meter.core.sequence import Position, Range
    from meter.ports.marks import Manifest

__all__ = [
    "ONE_BLOCK",
    "USAGE_TYPES",
    "add_once",
    "buckets_of",
    "clause",
    "covers",
    "upto",
    "window_marker",
]

USAGE_TYPES = ", ".join(
    f"{kind:d}"
    for kind in (
        RecordType.USAGE,
        RecordType.COMMIT,
        RecordType.VOID,
        RecordType.AMEND,
        RecordType.BACKFILL,
        RecordType.ALLOWANCE_USE,
    )
)
"""Records whose `granted` is usage, or a difference of it."""

MOST_ATTEMPTS = 5
"""Each but the last was cut off by a kill of the server at the worst instant."""
PATIENCE, POLL = 60.0, 0.02
"""Seconds."""

ONE_BLOCK: dict[str, str | int] = {
    "max_insert_threads": 1,
    "min_insert_block_size_rows": 1_000_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 1_000_000_000,
    "deduplicate_insert_select": "force_enable",
}
"""However many rows a slice has, its insert is one block, hence one part."""


def clause(settings: Mapping[str, str | int]) -> str:
    """Settings of one statement. Their words are ours."""
    return "SETTINGS " + ", ".join(f"{name} = {value!r}" for name, value in settings.items())


def covers(ranges: Iterable[Range]) -> str:
    """A condition on raw that the primary key answers. Numbers only: nothing of a user's is in it."""
    return (
        " OR ".join(
            f"(bucket = {bucket:d} AND generation = {generation:d}"
            f" AND seq >= {first:d} AND seq < {last:d})"
            for bucket, generation, first, last in ranges
        )
        or "false"
    )


def upto(marks: Mapping[int, Position]) -> str:
    """A condition on raw: up to each bucket's place. Numbers only."""
    return (
        " OR ".join(
            f"(bucket = {bucket:d} AND (generation < {generation:d}"
            f" OR (generation = {generation:d} AND seq < {sequence + 1:d})))"
            for bucket, (generation, sequence) in marks.items()
        )
        or "false"
    )


def buckets_of(manifest: Manifest) -> list[int]:
    """The buckets that the slice has records of."""
    return sorted({part.bucket for part in manifest.ranges})


def window_marker(manifest: Manifest) -> str:
    """A condition on a table by tenant, grain, meter, window and customer: the marker of the manifest's first bucket."""
    return (
        "tenant = '' AND grain = 0 AND meter = '' AND window = toDateTime(0, 'UTC')"
        f" AND customer = '{manifest.ranges[0].bucket:d}'"
    )


async def add_once(  # what one insert is made of
    writer: ClickHouse, manifest: Manifest, table: str, columns: str, marker: str, rows: str
) -> None:
    """Add `rows`, a query, to the table, unless its `marker`, a condition, is there. See the module for why once."""
    seek = f"SELECT max(manifest) FROM {table} WHERE {marker}"  # noqa: S608 - no user's words
    for attempt in range(1, MOST_ATTEMPTS + 1):
        token = manifest.token if attempt == 1 else f"{manifest.token}/{attempt}"
        # In the statement: beside it, the driver of the engine asks for each setting and sets it back.
        settings = clause(ONE_BLOCK | {"insert_deduplication_token": token})
        insert = (
            f"INSERT INTO {table} ({columns}) {settings} SELECT * FROM ({rows})"  # noqa: S608
            f" WHERE ({seek}) < {manifest.number:d} ORDER BY ALL"
        )
        await writer.command(insert, {"query_id": f"{token}-{table}"})
        if await _there(writer, seek, manifest):
            return
        await _until_ended(writer, manifest)
        if await _there(writer, seek, manifest):
            return
    raise WarehouseUnavailableError(f"manifest {manifest.token} left no marker in {table}")


async def _there(writer: ClickHouse, seek: str, manifest: Manifest) -> bool:
    return int((await writer.rows(seek))[0][0]) >= manifest.number


async def _until_ended(writer: ClickHouse, manifest: Manifest) -> None:
    """Wait until no server runs an insert of this manifest, whoever sent it."""
    processes = everywhere("system.processes", writer.cluster)
    # The token is of our own making. In this process's own engine statements have other names, and run one by one.
    running = f"SELECT count() FROM {processes} WHERE startsWith(query_id, '{manifest.token}')"  # noqa: S608
    give_up = time.monotonic() + PATIENCE
    while (await writer.rows(running))[0][0]:
        if time.monotonic() > give_up:
            raise WarehouseUnavailableError(f"an insert of manifest {manifest.token} does not end")
        await asyncio.sleep(POLL)
