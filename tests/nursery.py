"""The product's processes for tests, forked from one that has imported everything.

A process of ours costs a second or two of processor time before its first line: Python imports. Tests
start hundreds. What a fork runs is the same `main`, in a process of its own that can be killed, paused
and waited for; only the imports came before. What `metergate up` starts is executed anew, as a user's is, and so are
the one that most tests share, itself, and everything where there is no fork to rely on (not Linux), and where tables
are made that tell how long a recovery takes.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MEASURED", "Child", "spawn"]

IMPORTED: Final = (
    # The enforcer begins with its launch: what reads the environment once finds it as it does there.
    *("enforcer.launch", "enforcer.app", "meter.app", "enforcer.cli.app"),
    *("aiosqlite", "asyncpg", "uvloop", "sqlalchemy.dialects.sqlite.aiosqlite"),
    *("sqlalchemy.dialects.postgresql.asyncpg", "alembic.command"),
)
"""ClickHouse's engine is not among them: it starts threads, and those do not survive a fork."""
MEASURED: Final = "METERGATE_KEEP_MATRIX"
"""Set when what is seen goes into the tables of docs/guarantees.md: then a start takes as long as a user's."""
USUAL_FILES: Final = 1024
_MESSAGE: Final = 1 << 20
_STREAMS: Final = 3


class Child(Protocol):
    """What `subprocess.Popen` and a fork have in common."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Its exit status, or nothing while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raise `subprocess.TimeoutExpired` when it takes longer."""

    def send_signal(self, sig: int) -> None:
        """Nothing when it has ended."""


def spawn(
    module: str, *words: str, environment: Mapping[str, str], stdout: int, stderr: int
) -> Child:
    """Run the `main` of a module with these words as arguments; the streams are file descriptors."""
    if MEASURED in os.environ or not hasattr(os, "pidfd_open"):
        code = f"import sys; from {module} import main; sys.exit(main())"
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    return _nursery().spawn([module, *words], environment, stdout, stderr)


class _Fork:
    def __init__(self, nursery: _Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._handle = os.pidfd_open(pid)
        self._asking = threading.Lock()

    def __del__(self) -> None:
        os.close(self._handle)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._hears_of_it(timeout):
            # Until the nursery is asked the process remains as a zombie: its number is nobody else's. Asked once.
            with self._asking:
                if self.returncode is None:
                    self.returncode = self._nursery.ask({"ended": self.pid})
        return self.returncode

    def _hears_of_it(self, timeout: float | None) -> bool:
        ears = select.poll()  # unlike `select` without a greatest file number
        ears.register(self._handle, select.POLLIN)
        return bool(ears.poll(None if timeout is None else timeout * 1000))


class _Nursery:
    """This side of it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self._close)

    def spawn(
        self, words: list[str], environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Child:
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a stream, not a path
            return _Fork(
                self,
                self.ask(
                    {"words": words, "environment": dict(environment)},
                    [nothing.fileno(), stdout, stderr],
                ),
            )

    def ask(self, request: dict[str, Any], streams: list[int] | None = None) -> int:
        """Send a request; return the number that it answers."""
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], streams or [])
            answer = self._channel.recv(_MESSAGE)
        assert answer, "the process that forks the others has died"
        return int(answer)

    def _close(self) -> None:
        self._channel.close()
        self._process.wait(60)


_the_nursery: list[_Nursery] = []
_making = threading.Lock()


def _nursery() -> _Nursery:
    """One for each process of pytest, from the first use on."""
    with _making:
        if not _the_nursery:
            _the_nursery.append(_Nursery())
    return _the_nursery[0]


# -- the nursery itself


def _serve(channel: socket.socket) -> list[str]:
    """Fork for whoever asks. Return, in each fork, what it is to run."""
    children: set[int] = set()
    while True:
        message, streams, *_ = socket.recv_fds(channel, _MESSAGE, _STREAMS)
        if not message:  # the tests are over
            _end(children)
        request = json.loads(message)
        if pid := request.get("ended"):
            _, status = os.waitpid(pid, 0)
            children.discard(pid)
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        if pid := os.fork():
            children.add(pid)
            for stream in streams:
                os.close(stream)
            channel.send(str(pid).encode())
            continue
        channel.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        return list(request["words"])


def _end(children: set[int]) -> NoReturn:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _main() -> NoReturn:
    from enforcer.cli.app import COMMANDS  # noqa: PLC0415 - in the nursery only

    for module in IMPORTED:
        import_module(module)
    for place in COMMANDS.values():
        import_module(f"enforcer.cli.{place.partition('.')[0]}")
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - no paths wanted
    assert threads == 1, "something that was imported has started a thread: forks would lack it"
    gc.freeze()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # As many as a process gets on most machines: the tests' own may be allowed more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(USUAL_FILES, most), most))
    module, *words = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [module, *words]
    sys.exit(import_module(module).main())


if __name__ == "__main__":
    _main()
