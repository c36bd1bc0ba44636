"""Processes of an earlier `up` that outlived it: found by a note in the data folder, ended with proof.

A pid alone proves nothing, since it is given again. A process is ours when it also started at the
very moment noted, in the very boot noted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["end_leftovers", "identity", "leftovers", "note"]

PATIENCE: Final = 5.0
_PROC: Final = Path("/proc")
_PROC_WORKS: Final = (_PROC / "sys/kernel/random/boot_id").exists()
"""On Linux; elsewhere `ps` is asked."""


def identity(pid: int) -> str:
    """What tells this process from any other that had or will have its pid; empty if it is gone."""
    if _PROC_WORKS:
        try:
            stat = (_PROC / str(pid) / "stat").read_text()
        except OSError:
            return ""
        # The command's name, in brackets, may contain anything.
        fields = stat.rpartition(")")[2].split()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"
    asked = subprocess.run(  # noqa: S603 - the pid is a number
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def note(file: Path, pids: Mapping[str, int]) -> None:
    """Write down what runs: name → pid. Whole or not at all."""
    text = json.dumps(
        [{"name": name, "pid": pid, "identity": identity(pid)} for name, pid in pids.items()]
    )
    draft = file.with_name(f".{file.name}")
    draft.write_text(text + "\n")
    draft.replace(file)


def leftovers(file: Path) -> Iterator[tuple[str, int]]:
    """Names and pids of noted processes that still run."""
    try:
        noted = json.loads(file.read_text())
        found = [(str(one["name"]), int(one["pid"]), str(one["identity"])) for one in noted]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, pid, proof in found:
        if proof and pid > 1 and identity(pid) == proof:
            yield name, pid


def end_leftovers(file: Path) -> list[tuple[str, int]]:
    """End them, politely first; return what was ended."""
    ended = list(leftovers(file))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _, pid in leftovers(file):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        give_up = time.monotonic() + PATIENCE
        while any(leftovers(file)) and time.monotonic() < give_up:
            time.sleep(0.05)
    return ended
