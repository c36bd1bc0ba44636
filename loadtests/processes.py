"""A process that sends: started with its job, let go when all are ready, heard at its end."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import msgspec

from enforcer.cli.exits import CommandError, Status
from loadtests.gateway import guarded
from loadtests.outcome import Outcome
from loadtests.scenarios import Options  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["READY", "Job", "Sender"]

READY: Final = b"ready\n"
START_SECONDS: Final = 60.0
"""How long it may take to start and to connect."""


class Job(msgspec.Struct, frozen=True):
    """What one process is to do. The open loop heeds shares and most_in_flight, Locust users and ui."""

    endpoint: str
    api_key: str
    scenario: str
    options: Options
    share: int
    shares: int
    connections: int
    deadline: float
    most_in_flight: int
    interval: float
    users: int = 0
    ui: int | None = None
    """The port of Locust's own page."""


class Sender:
    """`python -m MODULE`, killed on exit if it is still there.

    It reads its job as a line of JSON from stdin, writes `READY` when it could send, reads the moment of the
    machine's monotonic clock at which the plan begins, and writes its outcome as JSON at the end.
    """

    def __init__(self, name: str, module: str, job: Job) -> None:
        self.name = name
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            guarded(sys.executable, "-m", module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            # Ctrl-C is for the process that started it.
            start_new_session=True,
        )
        self._tell(msgspec.json.encode(job) + b"\n")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def until_ready(self) -> None:
        """Wait until it could send; raise `CommandError` when it cannot."""
        with self._at_most(START_SECONDS):
            said = self._out.readline()
        if said != READY:
            raise CommandError(f"the {self.name} did not start", Status.INTERNAL)

    def begin(self, moment: float) -> None:
        """Let it go."""
        self._tell(f"{moment}\n".encode())

    def outcome(self, within: float) -> Outcome:
        """Wait for its end; raise `CommandError` when it fails or does not end."""
        with self._at_most(within):
            said = self._out.read()
        if status := self._process.wait():
            raise CommandError(f"the {self.name} ended with status {status}", Status.INTERNAL)
        return msgspec.json.decode(said, type=Outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def _out(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise CommandError(f"the {self.name} has ended already", Status.INTERNAL) from error

    @contextmanager
    def _at_most(self, seconds: float) -> Iterator[None]:
        """Kill it when it takes longer: who reads from it finds the end then."""
        give_up = threading.Timer(seconds, self._process.kill)
        give_up.start()
        try:
            yield
        finally:
            give_up.cancel()
