"""Keeps processes running: starts them in order, restarts what dies, stops them in reverse order.

Knows nothing of what the processes are; `up` says that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enforcer.cli import guard, leftovers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from enforcer.cli.terminal import Terminal

__all__ = ["Part", "PartFailedError", "Restarts", "Supervisor"]

QUICK_SECONDS: Final = 5.0
MOST_QUICK_DEATHS: Final = 3
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
LAST_LINES: Final = 15
PROBE_SECONDS: Final = 0.1
LONGEST_LINE: Final = 16_384


class PartFailedError(Exception):
    """A part died too often, or never got ready; `lines` are the last that it wrote."""

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep running.

    `ready` tells whether it does its work now; it may be asked at any time and must not raise.
    `stop_seconds`: how long it may take to end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    stop_seconds: float = 20.0


@dataclass(slots=True)
class Restarts:
    """Decides whether and when a part that died is started again."""

    quick_deaths: int = 0
    delay: float = FIRST_DELAY

    def after_death(self, lived: float, returncode: int) -> float | None:
        """Seconds to wait before the next start; None: give up.

        A death within seconds of its start is quick, and quick deaths in a row mean that the part
        cannot work. Wrong settings mean it at once, however slow the machine. A SIGKILL comes from
        outside and says nothing about the part.
        """
        if returncode == os.EX_CONFIG:
            return None
        if lived >= QUICK_SECONDS:
            self.quick_deaths, self.delay = 0, FIRST_DELAY
        elif returncode != -signal.SIGKILL:
            self.quick_deaths += 1
            if self.quick_deaths >= MOST_QUICK_DEATHS:
                return None
        delay, self.delay = self.delay, min(self.delay * 2, LONGEST_DELAY)
        return delay


@dataclass(slots=True)
class _Running:
    """A part, its present process and the task that watches over it."""

    part: Part
    restarts: Restarts = field(default_factory=Restarts)
    process: asyncio.subprocess.Process | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    task: asyncio.Task[None] | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Starts, watches and stops parts. `note` is the file where their pids are written down."""

    def __init__(self, terminal: Terminal, note: Path) -> None:
        self._terminal = terminal
        self._note = note
        self._running: dict[str, _Running] = {}
        self._failure: asyncio.Future[PartFailedError] = asyncio.get_running_loop().create_future()

    async def start(self, *parts: Part, within: float) -> None:
        """Start parts at once; return when all are ready, raise `PartFailedError` if one is not."""
        for part in parts:
            running = self._running[part.name] = _Running(part)
            running.task = asyncio.create_task(self._keep(running), name=part.name)
        ready = asyncio.create_task(self._until_ready(parts))
        failed = asyncio.create_task(self.failure())
        try:
            await asyncio.wait({ready, failed}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            if not ready.done():
                names = ", ".join(part.name for part in parts)
                raise PartFailedError(
                    f"{names}: not ready within {within:g} s", tuple(self._last_lines(*parts))
                )
        finally:
            for task in (ready, failed):
                task.cancel()

    async def failure(self) -> PartFailedError:
        """Wait until a part has died too often."""
        return await asyncio.shield(self._failure)

    async def stop(self, *names: str) -> None:
        """End parts with SIGTERM, later with SIGKILL; return when they are gone."""
        await asyncio.gather(*(self._stop(self._running.pop(name)) for name in names))

    def kill(self) -> None:
        """End everything at once."""
        for running in self._running.values():
            running.stopping.set()
            _signal(running.process, signal.SIGKILL)

    @property
    def names(self) -> list[str]:
        """The parts that are kept running, in the order of their start."""
        return list(self._running)

    async def _stop(self, running: _Running) -> None:
        running.stopping.set()
        task = running.task
        assert task is not None, "made by start()"
        process = running.process
        if process is None:
            task.cancel()  # It waits for its next start.
        else:
            _signal(process, signal.SIGTERM)
        _, pending = await asyncio.wait([task], timeout=running.part.stop_seconds)
        if pending:
            self._terminal.say(
                f"{running.part.name} did not end within {running.part.stop_seconds:g} s: killed"
            )
            _signal(process, signal.SIGKILL)
            await asyncio.wait([task])
        self._write_note()

    async def _until_ready(self, parts: Sequence[Part]) -> None:
        for part in parts:
            # Another process has to be asked: it cannot set an event of ours.
            while not await part.ready():  # noqa: ASYNC110
                await asyncio.sleep(PROBE_SECONDS)

    async def _keep(self, running: _Running) -> None:
        """Run a part again and again, until it is stopped or given up."""
        name = running.part.name
        while not running.stopping.is_set():
            started = time.monotonic()
            try:
                process = await self._spawn(running.part)
            except OSError as error:
                self._give_up(running, f"{name} cannot be started: {error}")
                return
            running.process = process
            self._write_note()
            await self._read(running, process)
            returncode = await process.wait()
            running.process = None
            if running.stopping.is_set():
                return
            delay = running.restarts.after_death(time.monotonic() - started, returncode)
            how = _death(returncode)
            if delay is None:
                often = f", {MOST_QUICK_DEATHS} times soon after its start"
                self._give_up(running, f"{name} {how}{often * (returncode != os.EX_CONFIG)}")
                return
            self._terminal.say(
                f"{name} {how}: starting it again in {delay:g} s",
                event="restart",
                part=name,
                returncode=returncode,
            )
            await asyncio.sleep(delay)

    async def _spawn(self, part: Part) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C in the terminal reaches this process only, which then stops
        # the parts in their order.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(Path(guard.__file__)), str(os.getpid())),
            *part.command,
            env=dict(part.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def _read(self, running: _Running, process: asyncio.subprocess.Process) -> None:
        """Pass on what the process writes, until it ends."""
        assert process.stdout is not None, "a pipe was asked for"
        rest = b""
        while chunk := await process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(running, line)
        if rest:
            self._pass_on(running, rest)

    def _pass_on(self, running: _Running, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            running.lines.append(text)
            self._terminal.log(running.part.name, text)

    def _give_up(self, running: _Running, message: str) -> None:
        if not self._failure.done():
            self._failure.set_result(PartFailedError(message, tuple(running.lines)))

    def _last_lines(self, *parts: Part) -> list[str]:
        return [line for part in parts for line in self._running[part.name].lines]

    def _write_note(self) -> None:
        leftovers.note(
            self._note,
            {
                name: running.process.pid
                for name, running in self._running.items()
                if running.process is not None
            },
        )


def _signal(process: asyncio.subprocess.Process | None, number: signal.Signals) -> None:
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _death(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with status {returncode}"
