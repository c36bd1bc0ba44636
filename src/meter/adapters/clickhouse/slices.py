"""What adding a slice to any rollup has in common.

Exactly once rests on two things. A slice is one INSERT of one block into an unpartitioned table, so
it becomes one part, whole or not at all; and the same part carries marker rows with the manifest's
number. Whoever runs a manifest again looks for the marker first. The deduplication token covers the
rest: two processes that run one manifest at the same time.

The token alone would not do: ClickHouse notes it before it renames the part into place, and a kill in
between leaves a token whose rows never come (see MergeTreeSink). The marker tells the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meter.core.records import RecordType
from meter.errors import WarehouseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meter.adapters.clickhouse.client import ClickHouse
    from meter.core.sequence import Position, Range
    from meter.ports.marks import Manifest

__all__ = ["ONE_BLOCK", "USAGE_TYPES", "add_once", "buckets_of", "covers", "upto"]

USAGE_TYPES = ", ".join(
    f"{kind:d}"
    for kind in (
        RecordType.USAGE,
        RecordType.COMMIT,
        RecordType.VOID,
        RecordType.AMEND,
        RecordType.BACKFILL,
    )
)
"""Records whose `granted` is usage, or a difference of it."""

ONE_BLOCK: dict[str, str | int] = {
    "max_insert_threads": 1,
    "min_insert_block_size_rows": 1_000_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 1_000_000_000,
    "deduplicate_insert_select": "force_enable",
}
"""However many rows a slice has, its insert is one block, hence one part."""


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


async def add_once(writer: ClickHouse, manifest: Manifest, marker: str, insert: str) -> None:
    """Run the insert unless its marker is there. See the module for why twice at most."""
    for token in (manifest.token, f"{manifest.token}/again"):
        if int((await writer.rows(marker))[0][0]) >= manifest.number:
            return
        await writer.command(insert, ONE_BLOCK | {"insert_deduplication_token": token})
    if int((await writer.rows(marker))[0][0]) < manifest.number:
        raise WarehouseUnavailableError(f"manifest {manifest.token} left no marker")
