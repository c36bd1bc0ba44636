"""Addresses of a Redis that Sentinels watch: `redis+sentinel://[user:password@]host:port,host:port/name[/database]`.

User and password are those of the Redis servers; the Sentinels are asked without.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["FORM", "SCHEME", "Watched", "place", "watched"]

SCHEME = "redis+sentinel://"
FORM = f"{SCHEME}[user:password@]host:port,host:port/name[/database]"
_LAST_PORT = 65535


class Watched(NamedTuple):
    """The Sentinels, what they call the primary, and how to log in there. Empty: no login."""

    sentinels: tuple[tuple[str, int], ...]
    name: str
    database: int
    user: str
    password: str


def watched(url: str) -> Watched | None:
    """Read an address; None if it is of another kind. Raise `ValueError` with the form that it must have."""
    if not url.startswith(SCHEME):
        return None
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    name, _, database = parts.path.strip("/").partition("/")
    try:
        sentinels = tuple(place(one) for one in hosts.split(","))
        number = int(database or 0)
    except ValueError:
        sentinels, number = (), -1
    if not sentinels or not name or number < 0:
        raise ValueError(f"must have the form {FORM}")
    return Watched(sentinels, name, number, unquote(user), unquote(password))


def place(text: str) -> tuple[str, int]:
    """Read `host:port`. Raise `ValueError` where it is none."""
    host, _, port = text.rpartition(":")
    if not host or not 0 < int(port) <= _LAST_PORT:
        raise ValueError
    return host.strip("[]"), int(port)
