"""The supervisor with real processes: what dies is started again, nothing outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from enforcer.cli.leftovers import end_leftovers, identity, leftovers
from enforcer.cli.supervisor import Part, PartFailedError, Supervisor
from enforcer.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
ORPHANS = """
import asyncio, sys
from pathlib import Path
from tests.e2e.test_supervisor import SLEEPER, part
from enforcer.cli.supervisor import Supervisor
from enforcer.cli.terminal import Terminal

async def main():
    supervisor = Supervisor(Terminal(), Path(sys.argv[1]))
    await supervisor.start(part("sleeper", SLEEPER), within=10)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def part(name: str, code: str, *, ready: bool = True, stop_seconds: float = 5) -> Part:
    async def is_ready() -> bool:
        return ready

    return Part(name, (sys.executable, "-c", code), dict(os.environ), is_ready, stop_seconds)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "children.json"


async def pid_of(note: Path, but: int = 0) -> int:
    async with asyncio.timeout(10):
        while True:
            for _, pid in leftovers(note):
                if pid != but:
                    return pid
            await asyncio.sleep(0.02)


async def test_a_killed_part_is_started_again(terminal: Terminal, note: Path) -> None:
    supervisor = Supervisor(terminal, note)
    await supervisor.start(part("sleeper", SLEEPER), within=10)
    first = await pid_of(note)
    os.kill(first, signal.SIGKILL)
    second = await pid_of(note, but=first)
    assert identity(second)
    await supervisor.stop("sleeper")
    assert not identity(second)
    assert not list(leftovers(note))


async def test_three_quick_deaths_give_up_with_the_last_lines(
    terminal: Terminal, note: Path
) -> None:
    supervisor = Supervisor(terminal, note)
    broken = part("broken", "print('no such setting'); raise SystemExit(7)", ready=False)
    with pytest.raises(PartFailedError, match="status 7, 3 times") as error:
        await supervisor.start(broken, within=30)
    assert "no such setting" in error.value.lines
    await supervisor.stop("broken")


async def test_a_part_that_never_gets_ready_is_named(terminal: Terminal, note: Path) -> None:
    supervisor = Supervisor(terminal, note)
    with pytest.raises(PartFailedError, match=r"sleeper: not ready within 0\.5 s"):
        await supervisor.start(part("sleeper", SLEEPER, ready=False), within=0.5)
    await supervisor.stop("sleeper")


async def test_a_part_that_does_not_end_is_killed(terminal: Terminal, note: Path) -> None:
    supervisor = Supervisor(terminal, note)
    await supervisor.start(part("stubborn", STUBBORN, stop_seconds=0.5), within=10)
    pid = await pid_of(note)
    await asyncio.sleep(0.5)  # Until it ignores the signal.
    await supervisor.stop("stubborn")
    assert not identity(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_parts_die_with_a_killed_supervisor(note: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, str(note)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    pid = 0
    give_up = time.monotonic() + 10
    while not pid and time.monotonic() < give_up:
        pid = next((number for _, number in leftovers(note)), 0)
    process.kill()
    process.wait()
    process.stdout.close()
    assert pid, "the part was never noted"
    give_up = time.monotonic() + 5
    while identity(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not identity(pid)


def test_what_is_left_over_is_ended_by_the_next_start(note: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER])
    try:
        leftover = {"name": "meter", "pid": process.pid, "identity": identity(process.pid)}
        note.write_text(json.dumps([leftover]))
        assert end_leftovers(note) == [("meter", process.pid)]
        assert process.wait() == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
