"""What all checks of one customer and feature have in common, made once for each program.

The common check (nothing held, a key that is not long) differs from its neighbours in quantity and idempotency key
alone. Everything else of its record and of its key's name stands ready here. `Asked.ask` is the rule: a stencil gives
the same bytes.

Such a check is not even parsed: its message without quantity and key, a skeleton, is looked up as bytes.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import DecodeError

from enforcer.core.commands import NO_KEY, Ask, fingerprinted
from enforcer.core.model import MAX_QUANTITY
from enforcer.errors import InvalidRequestError
from enforcer.gateway.asked import Asked, misfit_of
from enforcer.gateway.requests import MODES, dimensions_of
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.records import Body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from enforcer.core.program import Program
    from enforcer.core.rules import Mode
    from enforcer.gateway.asked import Name

__all__ = ["Skeletons", "Stencil"]

MOST_KINDS = 256
"""Quantities and modes of which the ready parts are kept."""
MOST_SKELETONS = 64
"""Of one program: one for each mode, and each set of dimensions that it is reported by."""
MOST_DIMENSIONED = 20_000
"""Skeletons with dimensions of all programs: each has a stencil of its own, of a few kB."""
LARGEST_SKELETON = 1024
"""Bytes."""
MOST_SEEN = 10_000
"""Skeletons that were seen once. Only what comes again is learnt: a dimension may be another one in every check."""
LONGEST_KEY = 64
"""Characters of a key that are not too many bytes, whatever they are."""

_CUSTOMER, _FEATURE, _QUANTITY, _KEY = 1 << 3 | 2, 2 << 3 | 2, 3 << 3, 4 << 3 | 2
_DIMENSION, _MODE, _VERSION = 5 << 3 | 2, 6 << 3, 7 << 3 | 2
"""Tags of the fields of `CheckRequest`."""
_ONE = 0x7F
"""The largest length or number of one byte."""
_SHIFTS = 56
"""Bits behind which a number is too large, whatever follows."""
_text = msgspec.json.Encoder().encode


class Stencil:
    """Makes asks for `program`, which `name` stands for at the moment, with these dimensions."""

    __slots__ = (
        "_behind",
        "_body",
        "_fingers",
        "_kinds",
        "_named_by",
        "dimensions",
        "name",
        "program",
        "skeletons",
    )

    def __init__(
        self, name: Name, program: Program, dimensions: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.program, self.dimensions = name, program, dimensions or {}
        self.skeletons: list[bytes] = []
        body = Body(name.tenant, program.account_key, name.customer, name.feature, program.meter)
        self._body = encode_body(body)[:-1] + b',"q":'
        self._behind = b',"d":' + _text(dimensions) if dimensions else b""
        self._named_by = blake2b(
            b"%d:%d:" % (program.account_id, program.feature_id), digest_size=16
        )
        self._fingers: dict[Mode, Callable[[int], bytes] | None] = {}
        self._kinds: dict[int, tuple[bytes, bytes, bytes]] = {}

    def ask(self, quantity: int, mode: Mode, key: bytes) -> Ask | None:
        """What to ask the store; None where the mode has no meaning for the feature, by this program.

        Raise `UnicodeDecodeError` for a key that is no text.
        """
        # One number, as the hash of an enum is a call.
        kind = self._kinds.get(quantity << 3 | mode) or self._kind(quantity, mode)
        if kind is None:
            return None
        start, finger, end = kind
        if not key:
            return Ask(self.program, quantity, mode, start + self._behind + b"}", NO_KEY)
        named_by = self._named_by.copy()
        named_by.update(key)
        body = start + b',"k":' + _text(key.decode()) + end
        return Ask(self.program, quantity, mode, body, named_by.digest() + finger)

    def _kind(self, quantity: int, mode: Mode) -> tuple[bytes, bytes, bytes] | None:
        """The body up to the key, the fingerprint, and the body behind the key."""
        try:
            fingers = self._fingers[mode]
        except KeyError:
            fingers = self._fingers[mode] = self._fingers_of(mode)
        if fingers is None:
            return None
        finger = fingers(quantity)
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds[quantity << 3 | mode] = (
            self._body + b"%d" % quantity,
            finger,
            b'%b,"p":"%b"}' % (self._behind, finger.hex().encode()),
        )
        return kind

    def _fingers_of(self, mode: Mode) -> Callable[[int], bytes] | None:
        """Fingerprints by quantity; None where the mode has no meaning."""
        asked = Asked.of(self.name, 1, mode, "", self.dimensions)
        if misfit_of(asked, self.program):
            return None
        return fingerprinted(("check", self.name.customer), (int(mode), *asked.parameters))


class Skeletons:
    """Stencils by the messages that they answer. `stencil` finds those of a `Name`, or of what is equal to one."""

    def __init__(self, stencil: Callable[[tuple[str, str, str, str]], Stencil | None]) -> None:
        self._stencil = stencil
        self._known: dict[str, dict[bytes, tuple[Stencil, Mode]]] = {}
        self._dimensioned: dict[tuple[str, bytes], Stencil] = {}
        """Of those with dimensions, the longest known first: whose program they are for."""
        self._seen: set[int] = set()

    def ask(  # noqa: C901, PLR0911, PLR0912 - a function more is time for every check
        self, tenant: str, message: bytes
    ) -> Ask | None:
        """The ask of a `CheckRequest` like most; None for one that has to be looked at, in whichever way it is wrong.

        By hand, as parsing takes longer than all the rest: customer, feature, then perhaps quantity and key, in the order
        in which every protobuf library writes them; or the key behind all else, as `enforcer.client` writes it.
        """
        try:
            feature = message[1] + 2
            at = end = feature + message[feature + 1] + 2
            if message[feature] != _FEATURE or message[1] > _ONE or message[feature + 1] > _ONE:
                return None
            size, quantity, key = len(message), 1, NO_KEY
            if at < size and message[at] == _QUANTITY:
                quantity, at = message[at + 1], at + 2
                if quantity > _ONE:
                    quantity, shift = quantity & _ONE, 7
                    while (part := message[at]) > _ONE and shift < _SHIFTS:
                        quantity |= (part & _ONE) << shift
                        at, shift = at + 1, shift + 7
                    quantity, at = quantity | part << shift, at + 1
                if not 0 < quantity <= MAX_QUANTITY:
                    return None
            skeleton = message[:end]
            if at < size and message[at] != _KEY:
                begin = at
                while at < size and (tag := message[at]) != _KEY:
                    length, at = message[at + 1], at + 2
                    if tag in (_DIMENSION, _VERSION):
                        at += length
                    elif tag != _MODE:
                        return None
                    if length > _ONE:
                        return None
                skeleton += message[begin:at]
            if at < size:
                length, at = message[at + 1], at + 2
                key, at = message[at : at + length], at + length
                if length > LONGEST_KEY or at > size:
                    return None
                if at < size:
                    skeleton += message[at:]
            known = self._known[tenant].get(skeleton)
        except (IndexError, KeyError):
            if not message or tenant in self._known:
                return None
            self._known[tenant] = {}
            return self.ask(tenant, message)
        if known is None:
            known = self._learn(tenant, skeleton)
            if known is None:
                return None
        stencil, mode = known
        try:
            return stencil.ask(quantity, mode, key)
        except UnicodeDecodeError:
            return None

    def _learn(self, tenant: str, skeleton: bytes) -> tuple[Stencil, Mode] | None:
        """Whose message it is, which quantity and key were cut out of; None if it may say more than its stencil would.

        What was cut out were whole fields, and what is left has none like them: it does not matter where they stood.
        """
        if len(skeleton) > LARGEST_SKELETON:
            return None
        seen = hash((tenant, skeleton))
        if seen not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(seen)
            return None
        try:
            request = pb.CheckRequest.FromString(skeleton)
            dimensions = dimensions_of(request.dimensions)
        except (DecodeError, InvalidRequestError):
            return None
        mode = MODES.get(request.mode)
        # Nothing is said twice or is unknown here: else there would be a skeleton for each way of padding a check.
        request.DiscardUnknownFields()
        if (
            mode is None
            or request.ByteSize() != len(skeleton)
            or skeleton[0] != _CUSTOMER
            or request.HasField("quantity")
            or request.idempotency_key
        ):
            return None
        stencil = self._stencil(
            (tenant, request.customer, request.feature, request.product_version)
        )
        if stencil is None:
            return None
        if len(stencil.skeletons) >= MOST_SKELETONS:
            self.forget(stencil)
        known = stencil, mode
        if dimensions:
            if len(self._dimensioned) >= MOST_DIMENSIONED:
                self.forget(next(iter(self._dimensioned.values())))
            self._dimensioned[tenant, skeleton] = stencil
            known = Stencil(stencil.name, stencil.program, dimensions), mode
        stencil.skeletons.append(skeleton)
        self._known.setdefault(tenant, {})[skeleton] = known
        return known

    def forget(self, stencil: Stencil) -> None:
        """Another takes its place, or none."""
        tenant = stencil.name.tenant
        of_tenant = self._known.get(tenant)
        if of_tenant is None:
            return
        for skeleton in stencil.skeletons:
            of_tenant.pop(skeleton, None)
            self._dimensioned.pop((tenant, skeleton), None)
        stencil.skeletons.clear()
        if not of_tenant:
            del self._known[tenant]
