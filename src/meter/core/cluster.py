"""Addresses of a Redis Cluster, `redis+cluster://[user:password@]host:port,host:port`, and which node has a bucket.

`rediss+cluster://` is the same over TLS. The hosts are where to begin: any of them tells of all others.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from meter.core.keys import bucket_tag
from meter.core.sentinel import place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ELSEWHERE",
    "FORM",
    "Clustered",
    "Node",
    "clustered",
    "is_elsewhere",
    "owners",
    "slot_of",
]

FORM = "redis+cluster://[user:password@]host:port,host:port"
SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
SLOTS = 16_384

Node = tuple[str, int]
"""Host and port."""

ELSEWHERE = (
    "MOVED ",
    "ASK ",
    "TRYAGAIN ",
    "CLUSTERDOWN ",
    "non local key",
    "during rehashing",
    "cluster is down",
)
"""What is in the errors of a node that does not have a slot, or not all of it, now; the last three come from scripts."""


def is_elsewhere(error: str) -> bool:
    """Whether an error says that a slot has to be asked for at another node or later: nothing was done."""
    return any(words in error for words in ELSEWHERE)


class Clustered(NamedTuple):
    """Where to begin, and how to log in at every node. Empty: no login."""

    scheme: str
    seeds: tuple[Node, ...]
    user: str
    password: str

    def url(self, node: Node) -> str:
        """Address of one node, for Redis clients."""
        host, port = node
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@"
        where = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{login if self.password else ''}{where}:{port}"


def clustered(url: str) -> Clustered | None:
    """Read an address; None if it is of another kind. Raise `ValueError` with the form that it must have."""
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest:
        return None
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    try:
        seeds = tuple(place(one) for one in hosts.split(","))
    except ValueError:
        seeds = ()
    if not seeds or parts.path.strip("/") or parts.query:
        raise ValueError(f"must have the form {FORM}")
    return Clustered(SCHEMES[scheme], seeds, unquote(user), unquote(password))


def slot_of(key: str) -> int:
    """The slot of a key, or of what stands in its braces."""
    first = key.find("{")
    last = key.find("}", first + 1)
    if first >= 0 and last > first + 1:
        key = key[first + 1 : last]
    return crc_hqx(key.encode(), 0) % SLOTS


def owners(reply: Sequence[Any], asked: str, buckets: Iterable[int]) -> dict[int, Node]:
    """Where each bucket is, by the reply to CLUSTER SLOTS of the host `asked`. Left out: those whose slot nobody has."""
    ranges: list[tuple[int, int, Node]] = []
    for first, last, primary, *_ in reply:
        # A node that knows its own address by none means the one that it was asked under.
        host = (primary[0] or b"").decode()
        ranges.append((first, last, (asked if host in ("", "?") else host, int(primary[1]))))
    found: dict[int, Node] = {}
    for bucket in buckets:
        slot = slot_of(bucket_tag(bucket))
        for first, last, node in ranges:
            if first <= slot <= last:
                found[bucket] = node
                break
    return found
