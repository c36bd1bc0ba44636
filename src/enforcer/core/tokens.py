"""Tokens of leases, reservations and allowances: what is needed to go on with them, signed by the deployment.

A token is `base64url(MessagePack array || MAC)`: the first 16 bytes of HMAC-SHA256 over the array. Since everything is
inside, a rebuild after a loss of data can learn live leases back from their own clients.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple

import msgspec

__all__ = ["Token", "read_token", "sign_token"]

VERSION = 1
_MAC = 16
_LONGEST = 4096


class Token(NamedTuple):
    """`kind` is "lease", "reservation" or "allowance"; `id` the name in the store; `ttl_ms` how long a lease was taken for."""

    kind: str
    tenant: str
    bucket: int
    id: str
    customer: str
    feature: str
    ttl_ms: int = 0


def _mac(secret: bytes, payload: bytes) -> bytes:
    return hmac.digest(secret, payload, "sha256")[:_MAC]


def sign_token(secret: bytes, token: Token) -> str:
    """The token as clients see it."""
    payload = msgspec.msgpack.encode((VERSION, *token))
    return urlsafe_b64encode(payload + _mac(secret, payload)).rstrip(b"=").decode()


def read_token(secret: bytes, text: str, kind: str) -> Token | None:
    """What was signed; None if this deployment has not signed it, or for something else."""
    if len(text) > _LONGEST:
        return None
    try:
        data = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        return None
    payload, mac = data[:-_MAC], data[-_MAC:]
    if not hmac.compare_digest(mac, _mac(secret, payload)):
        return None
    version, *parts = msgspec.msgpack.decode(payload)
    if version != VERSION or parts[0] != kind:
        return None
    return Token(*parts)
