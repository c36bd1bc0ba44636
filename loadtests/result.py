"""The document that a run leaves: figures, conditions, and the final check. `result.json` of its folder."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from enforcer.cli.exits import CommandError
from loadtests.agreement import Agreement  # noqa: TC001 - msgspec reads annotations at run time
from loadtests.watch import Series  # noqa: TC001

__all__ = ["RESULTS", "Machine", "Moment", "Result", "folder_for", "load", "machine", "save"]

RESULTS: Final = Path(__file__).parent / "results"
FILE: Final = "result.json"
VERSION: Final = 1
_PACKAGES: Final = ("metergate", "grpcio", "uvloop", "hiredis", "chdb", "locust", "pyvoy")


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. `load` is the load average before anything was started."""

    system: str
    cores: int
    memory_mb: int
    python: str
    versions: dict[str, str]
    load: float


class Moment(msgspec.Struct, frozen=True):
    """One interval, from `at` seconds after the beginning. Rates a second, latencies in ms by name."""

    at: float
    calls: float
    allowed: float
    denied: float
    errors: float
    latency_ms: dict[str, float]


class Result(msgspec.Struct, frozen=True):
    """One run."""

    version: int
    scenario: str
    tool: str
    about: str
    started_at: datetime
    parameters: dict[str, str | int | float]
    machine: Machine
    seconds: float
    """From the first moment of the plan to the last."""
    calls: int
    """Answered, within the plan or after it."""
    allowed: int
    denied: int
    errors: dict[str, int]
    """Faults by code, and what was not sent."""
    latency_ms: dict[str, float]
    delay_ms: dict[str, float]
    latency: str
    """The histogram in microseconds, as HdrHistogram's text."""
    interval: float
    moments: list[Moment]
    processes: dict[str, Series]
    agreement: Agreement

    @property
    def agrees(self) -> bool:
        """Whether nothing was found."""
        return not self.agreement.findings_in_all

    @property
    def calls_a_second(self) -> float:
        """Answered calls over the length of the plan."""
        return self.calls / self.seconds


def machine() -> Machine:
    """This one."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(
        platform.platform(),
        cores or 1,
        pages // 1_000_000,
        platform.python_version(),
        found,
        round(os.getloadavg()[0], 2),
    )


def folder_for(scenario: str, results: Path = RESULTS) -> Path:
    """A new folder for a run of today: `2026-11-24-steady`, the next `2026-11-24-steady-2`."""
    first = f"{datetime.now(UTC):%Y-%m-%d}-{scenario}"
    number = 1
    while True:
        folder = results / (first if number == 1 else f"{first}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise CommandError(f"cannot make the folder {folder}: {error.strerror}") from error
        else:
            return folder


def save(result: Result, folder: Path) -> None:
    """Write it, readable for people too."""
    text = msgspec.json.format(msgspec.json.encode(result), indent=1)
    # A row of numbers is one line.
    flat = re.sub(rb"\[[\s\d.,-]+\]", lambda found: re.sub(rb"\s+", b"", found[0]), text)
    (folder / FILE).write_bytes(flat + b"\n")


def load(path: Path) -> Result:
    """The result of a run, by its folder or its file."""
    file = path / FILE if path.is_dir() else path
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Result)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise CommandError(f"{file} is no result of a load test: {error}") from error
    if found.version != VERSION:
        raise CommandError(f"{file} has version {found.version}; this program reads {VERSION}")
    return found
