"""One shard of several replicas: how statements that were written for one server say so.

Every table is on every replica (`ON CLUSTER`) and replicates through Keeper, by the paths and macros of the servers'
configuration (`default_replica_path`, `{shard}`, `{replica}`). Slices stay added once: the marker and the rows are one
block, hence one part, and Keeper takes one of two blocks with one deduplication token, on whichever replica they come.
What one replica has acknowledged the next one has to show, so `SETTINGS` demands a quorum of what is written and of what
is read. Several shards are no use here: a slice is added from raw by the server that has it.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["SETTINGS", "everywhere", "on_cluster"]

SETTINGS: Final[dict[str, str | int]] = {
    "insert_quorum": "auto",
    # Without it a read cannot ask for all that was acknowledged.
    "insert_quorum_parallel": 0,
    "select_sequential_consistency": 1,
    # Until the last replica has done it; one that is away for long makes it fail, and it is done again.
    "distributed_ddl_task_timeout": 120,
    "distributed_ddl_output_mode": "throw",
}
"""Of every statement of this process, where there is a cluster."""

_TABLE: Final = re.compile(r"^((?:CREATE TABLE IF NOT EXISTS|ALTER TABLE)\s+\w+)", re.MULTILINE)
_ENGINE: Final = re.compile(r"^(ENGINE\s*=\s*)(\w*MergeTree)", re.MULTILINE)


def on_cluster(statement: str, cluster: str) -> str:
    """The same statement for all replicas; unchanged when `cluster` is empty.

    Raise `ValueError` for one that is neither `CREATE TABLE IF NOT EXISTS … ENGINE = …MergeTree` nor `ALTER TABLE`.
    """
    if not cluster:
        return statement
    found, tables = _TABLE.subn(rf"\1 ON CLUSTER '{cluster}'", statement)
    found, engines = _ENGINE.subn(r"\1Replicated\2", found)
    if tables != 1 or engines != ("CREATE TABLE" in statement):
        raise ValueError(f"not known how to run on a cluster: {statement[:200]}")
    return found


def everywhere(table: str, cluster: str) -> str:
    """A system table of all replicas, to select from; of this server alone when `cluster` is empty."""
    return f"clusterAllReplicas('{cluster}', {table})" if cluster else table
