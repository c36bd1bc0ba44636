"""Signed names of what is held: who has one may settle, renew or end it, within the tenant that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enforcer.core.tokens import Token, read_token, sign_token
from enforcer.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.core.program import Program
    from enforcer.gateway.asked import Name

__all__ = ["Tokens"]


class Tokens:
    """Signs with `secret`, known by the first call. `kind`: reservation, allowance or lease."""

    def __init__(self, secret: bytes | Callable[[], bytes]) -> None:
        self._secret = secret

    @property
    def _key(self) -> bytes:
        return self._secret if isinstance(self._secret, bytes) else self._secret()

    def sign(self, kind: str, number: str, name: Name, program: Program, ttl_ms: int = 0) -> str:
        """A token for `number`, which is held in the program's bucket."""
        token = Token(
            kind, name.tenant, program.bucket, number, name.customer, name.feature, ttl_ms
        )
        return sign_token(self._key, token)

    def read(self, tenant: str, text: str, kind: str) -> Token:
        """What it names. Raise `InvalidRequestError` for one that was not signed here for this tenant."""
        token = read_token(self._key, text, kind)
        if token is None or token.tenant != tenant:
            raise InvalidRequestError("BAD_TOKEN", f"this is no {kind} token of this tenant")
        return token
