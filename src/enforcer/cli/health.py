"""The command `health`: whether the process beside it serves. What a container's health check runs."""

from __future__ import annotations

import http.client
import os
import ssl
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from enforcer.cli.exits import CommandError, Status

__all__ = ["health"]

SECONDS: Final = 3.0
PROCESSES: Final = {
    "enforcer": ("METERGATE_HTTP_LISTEN", "127.0.0.1:8080"),
    "meter": ("METERGATE_METER_METRICS_LISTEN", ""),
}


def health(
    process: Annotated[
        str, typer.Argument(metavar="enforcer|meter", help="Whose HTTP port is asked.")
    ] = "enforcer",
    *,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Ask here instead: http://host:port/readyz.")
    ] = "",
) -> None:
    """Ask a process on this machine for /readyz. Exit status 0: it serves, 1: it says no, 3: no answer.

    Where it listens say METERGATE_HTTP_LISTEN and METERGATE_METER_METRICS_LISTEN.
    """
    parts = urlsplit(url or _place(process))
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise CommandError("--url has to be like http://127.0.0.1:8080/readyz")
    path = parts.path or "/readyz"
    try:
        status, said = _asked(http.client.HTTPConnection(parts.netloc, timeout=SECONDS), path)
    except ConnectionRefusedError as error:
        raise CommandError(f"{parts.netloc}: {error.strerror}", Status.UNAVAILABLE) from error
    except (OSError, http.client.HTTPException):
        # It may speak TLS. Its name is not asked for: whatever answers on this machine is told nothing.
        unverified = ssl._create_unverified_context()  # noqa: S323, SLF001
        speaking = http.client.HTTPSConnection(parts.netloc, timeout=SECONDS, context=unverified)
        try:
            status, said = _asked(speaking, path)
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"{parts.netloc}: {error}", Status.UNAVAILABLE) from error
    fine = status == http.client.OK
    typer.echo("serving" if fine else f"not serving: {said}")
    raise typer.Exit(Status.OK if fine else Status.REFUSED)


def _asked(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    """Status and what was said."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(200).decode(errors="replace").strip()
    finally:
        connection.close()


def _place(process: str) -> str:
    if process not in PROCESSES:
        raise CommandError(f"{process!r}: enforcer or meter is expected")
    name, default = PROCESSES[process]
    listen = os.environ.get(name, default)
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise CommandError(f"{name} is not set to host:port: this {process} has no HTTP port")
    # All addresses include the loopback one.
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104
    return f"http://{reached}:{port}/readyz"
