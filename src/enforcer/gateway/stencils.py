"""What all checks of one customer and feature have in common, made once for each program.

The common check (no dimensions, no product version, nothing held) differs from its neighbours in quantity, mode and
idempotency key alone. Everything else of its record and of its key's name stands ready here. `Asked.ask` is the rule:
a stencil gives the same bytes.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from enforcer.core.commands import NO_KEY, Ask, fingerprint
from enforcer.gateway.asked import Asked, misfit_of
from meter.core.records import Body, encode_body

if TYPE_CHECKING:
    from enforcer.core.program import Program
    from enforcer.core.rules import Mode
    from enforcer.gateway.asked import Name

__all__ = ["Stencil"]

MOST_KINDS = 256
"""Quantities and modes of which the ready parts are kept."""

_text = msgspec.json.Encoder().encode


class Stencil:
    """Makes asks for `program`, which `name` stands for at the moment."""

    __slots__ = ("_body", "_kinds", "_named_by", "name", "program")

    def __init__(self, name: Name, program: Program) -> None:
        self.name, self.program = name, program
        body = Body(name.tenant, program.account_key, name.customer, name.feature, program.meter)
        self._body = encode_body(body)[:-1] + b',"q":'
        self._named_by = blake2b(
            b"%d:%d:" % (program.account_id, program.feature_id), digest_size=16
        )
        self._kinds: dict[int, tuple[bytes, bytes, bytes]] = {}

    def ask(self, quantity: int, mode: Mode, key: str) -> Ask | None:
        """What to ask the store; None where the mode has no meaning for the feature, by this program."""
        # One number, as the hash of an enum is a call.
        kind = self._kinds.get(quantity << 3 | mode) or self._kind(quantity, mode)
        if kind is None:
            return None
        start, finger, end = kind
        if not key:
            return Ask(self.program, quantity, mode, start + b"}", NO_KEY)
        named_by = self._named_by.copy()
        named_by.update(key.encode())
        body = start + b',"k":' + _text(key) + end
        return Ask(self.program, quantity, mode, body, named_by.digest() + finger)

    def _kind(self, quantity: int, mode: Mode) -> tuple[bytes, bytes, bytes] | None:
        """The body up to the key, the fingerprint, and the body behind the key."""
        if misfit_of(Asked(self.name, quantity, mode, ""), self.program):
            return None
        finger = fingerprint("check", self.name.customer, quantity, int(mode))
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds[quantity << 3 | mode] = (
            self._body + b"%d" % quantity,
            finger,
            b',"p":"%b"}' % finger.hex().encode(),
        )
        return kind
