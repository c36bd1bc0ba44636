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
    "node_of",
    "nodes_of",
    "owners",
    "primaries_of",
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


def _node(told: Sequence[Any], asked: str) -> Node:
    """A node that does not know its own address means the one that it was asked under."""
    host = (told[0] or b"").decode()
    return asked if host in ("", "?") else host, int(told[1])


def nodes_of(reply: Sequence[Any], asked: str) -> list[Node]:
    """All nodes, replicas too, by the reply to CLUSTER SLOTS of the host `asked`."""
    return list(dict.fromkeys(_node(one, asked) for row in reply for one in row[2:]))


def primaries_of(reply: Sequence[Any], asked: str) -> list[Node]:
    """Those that have a slot."""
    return list(dict.fromkeys(_node(row[2], asked) for row in reply))


def node_of(reply: Sequence[Any], asked: str, key: str) -> Node | None:
    """The primary that has a key's slot. None: nobody has."""
    slot = slot_of(key)
    for first, last, primary, *_ in reply:
        if first <= slot <= last:
            return _node(primary, asked)
    return None


def owners(reply: Sequence[Any], asked: str, buckets: Iterable[int]) -> dict[int, Node]:
    """The primary of each bucket. Left out: those whose slot nobody has."""
    found = {bucket: node_of(reply, asked, bucket_tag(bucket)) for bucket in buckets}
    return {bucket: node for bucket, node in found.items() if node is not None}
