"""Exit statuses and the one exception by which a command ends with one. docs/cli.md lists them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CommandError", "Status"]


class Status(IntEnum):
    """What the exit status tells a script."""

    OK = 0
    """Done; a check was allowed."""
    REFUSED = 1
    """The question was answered with no: a denial, a taken seat, an audit finding."""
    BAD_INPUT = 2
    """The command or its input is wrong; repeating it unchanged cannot help."""
    UNAVAILABLE = 3
    """The gateway, or something behind it, is not reachable; repeating it later can help."""
    NO_ACCESS = 4
    """The API key is missing, unknown, or not allowed to do this."""
    INTERNAL = 5
    """A fault of Metergate itself."""
    INTERRUPTED = 130
    """Ended by Ctrl-C before it was done (128 + SIGINT, as shells have it)."""


class CommandError(Exception):
    """Ends the command: `message`, one line, says what is wrong and what is allowed."""

    def __init__(self, message: str, status: Status = Status.BAD_INPUT) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.status = status
