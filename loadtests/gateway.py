"""The gateway under load: one started for the run in a folder that is removed again, or one that runs already."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from enforcer.cli import guard
from enforcer.cli.connection import Gateway, find_gateway
from enforcer.cli.exits import CommandError, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Target", "guarded", "named", "started"]

START_SECONDS: Final = 120
STOP_SECONDS: Final = 60
LAST_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway; with its data folder where that is known, which names its processes."""

    gateway: Gateway
    folder: Path | None = None

    def pids(self) -> dict[str, int]:
        """Its processes by name, such as `enforcer-1`; none where there is no folder."""
        if self.folder is None:
            return {}
        try:
            noted = json.loads((self.folder / "children.json").read_text())
        except FileNotFoundError:
            return {}
        return {str(one["name"]): int(one["pid"]) for one in noted}


def guarded(*command: str) -> list[str]:
    """A command that dies with this process, also when this one is killed (on Linux)."""
    return [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command]


@contextmanager
def started(options: Sequence[str], settings: Mapping[str, str] | None = None) -> Iterator[Target]:
    """`metergate up` on free ports with these further options and settings; ended and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="metergate-load-") as name:
        folder = Path(name) / "data"
        command = guarded(str(Path(sys.executable).with_name("metergate")), "up", "--json")
        command += ["--data-dir", str(folder), "--port", "0", "--http-port", "0", *options]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("METERGATE_")
        } | dict(settings or {})
        process = subprocess.Popen(  # noqa: S603 - the gateway of this environment
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C is for this process, which stops the gateway in order.
            start_new_session=True,
        )
        said = _Said(process)
        try:
            said.wait_for_ready()
            yield Target(find_gateway(folder), folder)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            said.end()


def named(endpoint: str | None, data_dir: Path | None, *, elsewhere: bool) -> Target:
    """One that runs already: by `endpoint` with the key in METERGATE_API_KEY, else by its data folder.

    An address that is not this machine's own needs `elsewhere`: load is not sent to others by mistake.
    """
    if endpoint is None:
        target = Target(find_gateway(data_dir), data_dir)
    else:
        key = os.environ.get("METERGATE_API_KEY", "").strip()
        if not key:
            raise CommandError(
                "--endpoint needs an API key with the role admin in METERGATE_API_KEY",
                Status.NO_ACCESS,
            )
        target = Target(Gateway(endpoint, key, "METERGATE_API_KEY"))
    if not elsewhere:
        _must_be_here(target.gateway.endpoint)
    return target


def _must_be_here(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise CommandError(
            f"--endpoint {endpoint!r}: HOST:PORT is expected, such as 127.0.0.1:50051"
        )
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host.strip("[]"), int(port))}
    except (OSError, OverflowError) as error:
        raise CommandError(f"--endpoint {endpoint!r}: {host} is not known: {error}") from error
    if not all(ip_address(str(address).partition("%")[0]).is_loopback for address in found):
        raise CommandError(
            f"{endpoint} is not on this machine's loopback addresses; a load test floods what it is "
            "sent to: --elsewhere says that this one may be"
        )


class _Said:
    """Reads what `up` prints, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for_ready(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while not self._ready.wait(0.1):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self._thread.join(5)
                told = "; ".join(self._lines[-LAST_LINES:])
                raise CommandError(f"metergate up did not start: {told}", Status.INTERNAL)

    def end(self) -> None:
        self._thread.join(5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.strip())
            del self._lines[: -10 * LAST_LINES]
            if not self._ready.is_set() and _event(line) == "ready":
                self._ready.set()
        self._process.stdout.close()


def _event(line: str) -> Any:
    if not line.startswith("{"):
        return None
    return json.loads(line).get("event")
