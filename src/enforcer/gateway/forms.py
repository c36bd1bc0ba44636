"""Requests of Envoys by what they have in common: most differ from their neighbours in one value, the request's id.

What is left of a message without the values that only become idempotency keys, its form, is looked up as bytes, and
leads to the domain and the checks that it asks for: nothing is parsed, no rule is tried. `RateLimitRequest`s whose
entries all come again, such as those without an id, are their own form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from enforcer.gateway.wire import embedded
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from enforcer.core.descriptors import Domain, Rule

__all__ = ["Forms"]

MOST_FORMS = 10_000
MOST_SEEN = 10_000
"""Forms that were seen once: only what comes again is learnt, as a value may be another one in every request."""
LARGEST_FORM = 1024
"""Bytes."""
_KEY = b"\x22"
"""The tag of `CheckRequest.idempotency_key`."""


class _Form(NamedTuple):
    """What a request asks for: `CheckRequest`s, and with each what stands around the value in its key, if it does."""

    domain: Domain
    checks: tuple[tuple[bytes, tuple[bytes, bytes] | None], ...]


class Forms:
    """What requests of each tenant have asked for before."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        self._markers: dict[str, set[bytes]] = {}
        self._identifying: dict[tuple[str, str], dict[str, bytes]] = {}
        """Of each domain, with their markers."""
        for domain in domains:
            markers = {name: _marker(name) for name in domain.identifying}
            self._identifying[domain.tenant, domain.name] = markers
            self._markers.setdefault(domain.tenant, set()).update(markers.values())
        self._known: dict[tuple[str, tuple[bytes, ...]], _Form] = {}
        self._seen: set[int] = set()

    def find(self, tenant: str, message: bytes) -> tuple[Domain, list[bytes]] | None:
        """The domain and the `CheckRequest`s of a message like earlier ones, to be decided together; else None."""
        for pieces, value in self._cuts(tenant, message):
            form = self._known.get((tenant, pieces))
            if form is not None:
                return form.domain, [
                    check
                    if around is None
                    else check + embedded(_KEY, around[0] + value + around[1])
                    for check, around in form.checks
                ]
        return None

    def forget(self, tenant: str, message: bytes) -> None:
        """What it asks for is not there any more."""
        for pieces, _ in self._cuts(tenant, message):
            self._known.pop((tenant, pieces), None)

    def _cuts(self, tenant: str, message: bytes) -> Iterable[tuple[tuple[bytes, ...], bytes]]:
        """By each entry that may be an id, and whole."""
        for marker in self._markers.get(tenant, ()):
            yield _cut(message, marker)
        yield (message,), b""

    def learn(
        self,
        domain: Domain,
        message: bytes,
        request: rls.RateLimitRequest,
        asked: Iterable[tuple[Rule, pb.CheckRequest]],
    ) -> None:
        """What `request`, read from `message`, asks for in this domain: a check for each descriptor."""
        keys = [rule.key for rule, check in asked if rule.key and check.idempotency_key]
        markers = self._identifying[domain.tenant, domain.name]
        names = {name for key in keys for name in key.names if name in markers}
        if len(message) > LARGEST_FORM or len(names) > 1:
            return
        name = names.pop() if names else ""
        marker = markers[name] if name else b""
        pieces, value = _cut(message, marker) if name else ((message,), b"")
        seen = hash((domain.tenant, pieces))
        if seen not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(seen)
        elif not name or _is_there(name, marker, pieces, value, request):
            if len(self._known) >= MOST_FORMS:
                self._known.clear()
            checks = tuple([_without_key(name, *one) for one in asked])
            self._known[domain.tenant, pieces] = _Form(domain, checks)


def _marker(name: str) -> bytes:
    """How an entry of this name begins, up to the length of its value."""
    return embedded(b"\x0a", name.encode()) + b"\x12"


def _cut(message: bytes, marker: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The pieces between the entries' values, each but the first from a value's length on; and their value.

    The message in one piece where there is no entry, or where they have several values.
    """
    first, *others = message.split(marker)
    pieces, value = [first], None
    for piece in others:
        end = piece[0] + 1 if piece else 0
        found = piece[1:end]
        if value is None:
            value = found
        if not 0 < end <= len(piece) or found != value:
            return (message,), b""
        pieces.append(piece[:1] + piece[end:])
    return tuple(pieces), value or b""


def _is_there(
    name: str, marker: bytes, pieces: Sequence[bytes], value: bytes, request: rls.RateLimitRequest
) -> bool:
    """Whether what was cut out is what these entries say, and nothing else of the request.

    So it is for every other value of this length then: no length that is written in the message changes with it.
    """
    other = b"b" * len(value) if value.startswith(b"a") else b"a" * len(value)
    changed = pieces[0] + b"".join([marker + one[:1] + other + one[1:] for one in pieces[1:]])
    try:
        found = rls.RateLimitRequest.FromString(changed)
    except DecodeError:
        return False
    for descriptor in found.descriptors:
        for entry in descriptor.entries:
            if entry.key == name:
                if entry.value != other.decode():
                    return False
                entry.value = value.decode()
    return found == request


def _without_key(
    name: str, rule: Rule, check: pb.CheckRequest
) -> tuple[bytes, tuple[bytes, bytes] | None]:
    """A check of a form: without its key, if that has this entry's value in it."""
    if not (name and rule.key and check.idempotency_key and name in rule.key.names):
        return check.SerializeToString(deterministic=True), None
    bare = pb.CheckRequest()
    bare.CopyFrom(check)
    bare.ClearField("idempotency_key")
    before, _, behind = rule.key.parts
    return bare.SerializeToString(deterministic=True), (before.encode(), behind.encode())
