"""Addresses of servers, as settings have them: what is wrong with one is told without showing it."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["check_server", "check_url"]

_LAST_PORT = 65535


def check_url(url: str) -> None:
    """Raise `ValueError` unless host and port can be read. The text says nothing of the URL, which may have a password."""
    try:
        port = urlsplit(url).port
    except ValueError:
        port = -1
    if port is not None and not 0 < port <= _LAST_PORT:
        raise ValueError(
            "the port must be a number from 1 to 65535; write /, ?, #, @ and : of a password as %2F, %3F, %23, %40, %3A"
        )


def check_server(text: str) -> None:
    """Raise `ValueError` unless it is `host:port`."""
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= _LAST_PORT:
        raise ValueError("must be host:port, or several with commas between them")
