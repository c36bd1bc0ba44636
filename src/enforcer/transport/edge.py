"""What a port takes from strangers: TLS, how many connections and streams, and how slow a client may be.

See docs/security.md and decision 25.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from enforcer.errors import MisconfiguredError
from meter.tls import CertificateError, Certificates, TlsFiles

if TYPE_CHECKING:
    from enforcer.settings import Settings

__all__ = [
    "BODY_SECONDS",
    "HANDSHAKE_SECONDS",
    "HEADER_SECONDS",
    "LARGEST_HEADERS",
    "UNREAD_SECONDS",
    "Edge",
    "certificates_of",
    "edge_of",
]

HANDSHAKE_SECONDS: Final = 10.0
"""So long a TLS handshake may take."""
HEADER_SECONDS: Final = 10.0
"""So long the headers of a request may take, from their first byte on; over HTTP/1.1 also the silence before them."""
BODY_SECONDS: Final = 30.0
"""So long the body of a request with one message may take. Streams may last."""
UNREAD_SECONDS: Final = 30.0
"""So long a client may leave an answer unread."""
LARGEST_HEADERS: Final = 16 * 1024
"""Bytes of a request's headers. gRPC's own bound for metadata is half of it."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Bounds of a port. Without `tls` it is plain text."""

    tls: TlsFiles | None = None
    most_streams: int = 1_000
    """Calls at once on one connection; clients keep back what is more."""
    most_connections: int = 10_000
    """Of one process."""


def edge_of(settings: Settings) -> Edge:
    """As the settings have it."""
    return Edge(settings.tls, settings.most_streams, settings.most_connections)


def certificates_of(files: TlsFiles) -> Certificates:
    """Read them. Raise the enforcer's `MisconfiguredError`, which names the setting."""
    try:
        return Certificates(files)
    except CertificateError as error:
        raise MisconfiguredError(error.message) from error
