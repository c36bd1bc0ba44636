"""Answers an Envoy: descriptors become checks, decided together, and their limits become statuses and headers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.core.commands import ENTRIES_AT, NOW, WIDTH
from enforcer.core.descriptors import UnusableError
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import DENIED, Reason, Shape
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError, NotFoundError
from enforcer.gateway.forms import Forms
from enforcer.gateway.replies import wait_ms
from enforcer.gateway.requests import parsed
from enforcer.gateway.wire import VARINTS, embedded, varint
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from enforcer.core.commands import Decision
    from enforcer.core.descriptors import Domain, Rule
    from enforcer.core.program import Program, View
    from enforcer.gateway.gateway import Gateway
    from enforcer.ports.definitions import Caller
    from enforcer.ratelimit.descriptor_pb2 import RateLimitDescriptor

__all__ = ["RateLimits"]

MOST_DESCRIPTORS: Final = 256
LARGEST: Final = 2**32 - 1
"""What a status can say; larger limits are told as this."""
_OK, _OVER = b"\x08\x01", b"\x08\x02"
"""The first field of an answer, and of a status: the code."""
_STATUS = b"\x12"
_LIMIT, _REMAINING, _RESET = 1, 4, 6
"""Places in the numbers of an entry."""
_POLICY = 3
"""Where in a bound limit, window and name stand."""
_Unit = rls.RateLimitResponse.RateLimit.Unit
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS: Final = (
    (1, 1, _Unit.SECOND),
    (_MINUTE, _MINUTE, _Unit.MINUTE),
    (_HOUR, _HOUR, _Unit.HOUR),
    (_DAY - _HOUR, _DAY + _HOUR, _Unit.DAY),
    (7 * _DAY - _HOUR, 7 * _DAY + _HOUR, _Unit.WEEK),
    (28 * _DAY - _HOUR, 31 * _DAY + _HOUR, _Unit.MONTH),
    (365 * _DAY - _HOUR, 366 * _DAY + _HOUR, _Unit.YEAR),
)
"""Seconds from, to: a day in which clocks are changed is an hour shorter or longer."""
_UNKNOWN: Final = {"UNKNOWN_CUSTOMER": "customer", "UNKNOWN_FEATURE": "feature"}
_UNUSABLE: Final = {
    "BAD_CUSTOMER",
    "BAD_FEATURE",
    "BAD_DIMENSIONS",
    "BAD_IDEMPOTENCY_KEY",
    "IDEMPOTENCY_MISMATCH",
    "QUANTITY_OVERFLOW",
}
"""What the sender of a request can bring about by a header: refused, as a fault might let it pass."""
_PERHAPS: Final = {"BAD_BATCH", "MODE_NOT_SUPPORTED", "PRODUCT_VERSION_REQUIRED"}
"""The same where the sender chose the customer or the feature; else whoever wrote rules or catalog did it."""


class _Asked(NamedTuple):
    """A descriptor with its rule and its check."""

    rule: Rule
    request: pb.CheckRequest


class _Bound(NamedTuple):
    """The limit of a chain that is told. `window_ms` 0: without end or of several lengths."""

    free: bool
    remaining: int
    reset_ms: int
    limit: int
    window_ms: int
    name: str

    @property
    def seconds(self) -> int:
        return _seconds(self.window_ms)


class RateLimits:
    """`envoy.service.ratelimit.v3.RateLimitService`, for domains by tenant and name.

    All descriptors of a request are one group: it consumes what all of them ask for, or nothing. `observe` is told
    what became of each: `decided`, `unmapped`, `unknown` (customer or feature), `unusable`.
    """

    def __init__(
        self,
        gateway: Gateway,
        domains: Mapping[tuple[str, str], Domain],
        observe: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._gateway, self._domains, self._observe = gateway, domains, observe
        self._forms = Forms(domains.values())

    async def should_rate_limit(self, caller: Caller, message: bytes) -> bytes:
        """`RateLimitService.ShouldRateLimit`: a `RateLimitRequest` and a `RateLimitResponse` as they travel.

        A refusal is an answer; a fault says that nothing was decided.
        """
        tenant = caller.tenant
        known = self._forms.find(tenant, message)
        if known is not None:
            domain, checks = known
            try:
                decided = await self._gateway.decide_together(tenant, checks)
            except NotFoundError:
                self._forms.forget(tenant, message)
            except InvalidRequestError:
                pass  # whose fault that is, the long way finds out
            else:
                return _Request(self._gateway, tenant, domain, self._observe).told(decided)
        request = parsed(rls.RateLimitRequest, message)
        found = self._domains.get((tenant, request.domain))
        if found is None:
            raise NotFoundError(
                "UNKNOWN_DOMAIN",
                f"the mapping file has no domain {request.domain!r} of this API key's tenant",
                domain=request.domain,
            )
        if not 0 < len(request.descriptors) <= MOST_DESCRIPTORS:
            raise InvalidRequestError(
                "BAD_DESCRIPTOR",
                f"a request has 1 to {MOST_DESCRIPTORS} descriptors, not {len(request.descriptors)}",
            )
        one = _Request(self._gateway, tenant, found, self._observe)
        asked = one.asked(request)
        answer = await one.answer()
        if asked is not None and not one.settled:
            self._forms.learn(found, message, request, asked)
        return answer


class _Request:
    """One request on its way."""

    def __init__(
        self, gateway: Gateway, tenant: str, domain: Domain, observe: Callable[[str], None]
    ) -> None:
        self._gateway, self._tenant, self._domain = gateway, tenant, domain
        self._observe = observe
        self._statuses: list[bytes] = []
        self._bounds: list[_Bound] = []
        self.settled = False
        """Whether a descriptor was answered without the counters."""
        self._refused = False
        self._waits: list[int] | None = []
        """Seconds until each refusal may be over; None: waiting does not help."""

    _peeks: dict[int, _Asked]
    _group: dict[int, _Asked]
    """By the places of their descriptors: what consumes nothing, and what does."""

    def asked(self, request: rls.RateLimitRequest) -> list[_Asked] | None:
        """What is to be checked for each descriptor; None where that is not one group of all of them."""
        self._peeks, self._group = {}, {}
        for place, descriptor in enumerate(request.descriptors):
            self._statuses.append(b"")
            asked = self._asked(place, descriptor, request.hits_addend or 1)
            if asked is not None:
                checks = asked.request.mode == pb.MODE_CHECK_ONLY
                (self._peeks if checks else self._group)[place] = asked
        for part in (self._peeks, self._group):
            if len(part) == len(self._statuses):
                return list(part.values())
        return None

    async def answer(self) -> bytes:
        """Decide what was `asked`."""
        # What consumes nothing comes first: it may refuse all.
        for part in (self._peeks, self._group):
            if not self._refused:
                await self._decide(part)
        return self._response()

    def told(self, decided: Iterable[tuple[Program, Decision, int]]) -> bytes:
        """The answer, when all its checks are decided already."""
        self._statuses = [self._tell(*one) for one in decided]
        return self._response()

    def _asked(
        self, place: int, descriptor: RateLimitDescriptor, default_hits: int
    ) -> _Asked | None:
        """What to check for a descriptor; None if that is settled without."""
        _sound(place, descriptor)
        found = self._domain.find([(entry.key, entry.value) for entry in descriptor.entries])
        if found is None:
            self._settle(place, "unmapped", allowed=not self._domain.refuse_unmapped)
            return None
        rule, values = found
        hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else default_hits
        try:
            wanted = rule.wanted(values, hits)
        except UnusableError:
            self._settle(place, "unusable", allowed=False)
            return None
        mode = wanted.mode if wanted.quantity else Mode.CHECK_ONLY
        return _Asked(
            rule,
            pb.CheckRequest(
                customer=wanted.customer,
                feature=wanted.feature,
                quantity=wanted.quantity or 1,
                mode=mode.value,  # type: ignore[arg-type]  # the numbers of the enum
                idempotency_key=wanted.key if mode is not Mode.CHECK_ONLY else "",
                dimensions=wanted.dimensions,
            ),
        )

    def _settle(self, place: int, outcome: str, *, allowed: bool) -> None:
        """Answer a descriptor without asking the counters."""
        self._observe(outcome)
        self.settled = True
        self._statuses[place] = _OK if allowed else _OVER
        if not allowed:
            self._refused, self._waits = True, None

    async def _decide(self, group: dict[int, _Asked]) -> None:
        """Decide all or none; without those that turn out to be let through anyway."""
        while group and not self._refused:
            try:
                decided = await self._gateway.decide_together(
                    self._tenant, [asked.request.SerializeToString() for asked in group.values()]
                )
            except (InvalidRequestError, NotFoundError) as error:
                places = _at_fault(error, group)
                if not places:
                    raise
                unknown = error.reason in _UNKNOWN
                for place in places:
                    rule = group.pop(place).rule
                    self._settle(
                        place,
                        "unknown" if unknown else "unusable",
                        allowed=unknown and rule.allow_unknown,
                    )
            else:
                for place, outcome in zip(group, decided, strict=True):
                    self._statuses[place] = self._tell(*outcome)
                return

    def _tell(self, program: Program, decision: Decision, quantity: int) -> bytes:
        """A `DescriptorStatus`."""
        self._observe("decided")
        # One that was denied for another's sake is not over its own limits.
        over = not decision.granted and decision.reason != Reason.BATCH_DENIED
        if over:
            self._refused = True
            wait = wait_ms(program, decision, quantity)
            if wait is None:
                self._waits = None
            elif self._waits is not None:
                self._waits.append(_seconds(wait))
        status = _OVER if over else _OK
        bounds = _bounds(program, decision)
        if not bounds:
            return status
        bound = min(bounds) if len(bounds) > 1 else bounds[0]
        self._bounds.append(bound)
        return status + _limit(bound.limit, bound.seconds, bound.name) + _left(bound)

    def _response(self) -> bytes:
        parts = [_OVER if self._refused else _OK]
        parts += [embedded(_STATUS, status) for status in self._statuses]
        if self._domain.headers:
            parts += self._headers()
        return b"".join(parts)

    def _headers(self) -> Iterable[bytes]:
        """As in draft-polli-ratelimit-headers-03: the nearest limit, then all of them as policies."""
        if self._bounds:
            nearest = min(self._bounds)
            yield _limits_header(nearest.limit, *[bound[_POLICY:] for bound in self._bounds])
            yield _header("x-ratelimit-remaining", nearest.remaining)
            if nearest.reset_ms:
                yield _header("x-ratelimit-reset", _seconds(nearest.reset_ms))
        if self._refused and self._waits:
            yield _header("retry-after", max(self._waits))


def _sound(place: int, descriptor: RateLimitDescriptor) -> None:
    """Raise `InvalidRequestError` for what nobody may think was honoured."""
    what = ""
    if not descriptor.entries:
        what = "has no entries"
    elif descriptor.HasField("limit"):
        what = "brings a limit of its own: limits are the catalog's"
    elif descriptor.is_negative_hits:
        what = "gives hits back: usage is given back by amending or voiding its record"
    if what:
        raise InvalidRequestError(
            "BAD_DESCRIPTOR", f"descriptor {place + 1} {what}", item=str(place)
        )


def _at_fault(
    error: InvalidRequestError | NotFoundError, group: Mapping[int, _Asked]
) -> Sequence[int]:
    """The descriptors that the sender of the request made wrong; none if whoever wrote the rules did."""
    field = _UNKNOWN.get(error.reason)
    if field:
        name = error.metadata.get(field)
        return [
            place
            for place, asked in group.items()
            if getattr(asked.request, field) == name and not getattr(asked.rule, field).fixed
        ]
    places = list(group)
    if error.reason in _PERHAPS:
        if len({asked.request.mode for asked in group.values()}) > 1:
            return ()
        rules = {place: asked.rule for place, asked in group.items()}
        return [
            place
            for place in places
            if not (rules[place].customer.fixed and rules[place].feature.fixed)
        ]
    if error.reason not in _UNUSABLE:
        return ()
    return [places[int(error.metadata["item"])]] if "item" in error.metadata else places


def _bounds(program: Program, decision: Decision) -> list[_Bound]:
    """What each chain that may deny leaves: all its views together, named by the one that is drawn from."""
    numbers, bounds = decision.numbers, []
    places = {int(numbers[at]) & ~0xF: at for at in range(ENTRIES_AT, len(numbers), WIDTH)}
    for chain in program.bounds or _chains(program):
        limit = remaining = drawn = window_ms = 0
        name, free = "", True
        for place, (code, called, views_ms, refill) in enumerate(chain):
            at = places.get(code)
            if at is None:  # a replayed answer may be of earlier terms
                break
            has, left = int(numbers[at + _LIMIT]), int(numbers[at + _REMAINING])
            for_ms = round(has / refill) if refill else views_ms
            window_ms = for_ms if not place or for_ms == window_ms else 0
            if not remaining:
                drawn, name = at, called
            free = free and not int(numbers[at]) & DENIED
            limit, remaining = limit + has, remaining + left
        else:
            if limit < MAX_QUANTITY:
                reset = int(numbers[drawn + _RESET])
                reset_ms = max(reset - int(numbers[NOW]), 0) if reset else 0
                bounds.append(_Bound(free, remaining, reset_ms, limit, window_ms, name))
    return bounds


def _chains(program: Program) -> list[tuple[tuple[int, str, int, float], ...]]:
    """Of each chain that may deny, its views: code, name, and the time that the limit is for in ms (0: it has none).

    That of a bucket depends on its limit: the last number is what comes back into it in a ms.
    """
    for chain in program.chains:
        if chain.views and not chain.shadow:
            views = []
            for view in chain.views:
                label = program.labels.get(view.code)
                refill = label.refill if label and view.shape is Shape.BUCKET else 0.0
                name = label.id if label else ""
                views.append((view.code, name, _window_ms(view), refill))
            program.bounds.append(tuple(views))
    return program.bounds


def _window_ms(view: View) -> int:
    if view.shape is Shape.BUCKET:
        return 0
    if view.shape is Shape.RING10:
        return round(view.extra[0] * 10)
    if view.shape is Shape.RING24:
        return round(view.extra[0] * 24)
    return view.end - view.start if view.end else 0


# Answers are written by hand, as those to checks: `wire.py`. What is the same in many is kept.


@lru_cache(4096)
def _limit(limit: int, seconds: int, name: str) -> bytes:
    """The field `current_limit`."""
    told = rls.RateLimitResponse.RateLimit(
        requests_per_unit=min(limit, LARGEST), unit=_unit(seconds), name=name
    )
    return embedded(b"\x12", told.SerializeToString())


def _left(bound: _Bound) -> bytes:
    """The fields `limit_remaining` and `duration_until_reset`."""
    told = b"\x18" + varint(min(bound.remaining, LARGEST))
    if not bound.reset_ms:
        return told
    seconds, ms = divmod(bound.reset_ms, 1000)
    duration = b"\x08" + varint(seconds) + b"\x10" + varint(ms * 1_000_000)
    return told + b"\x22" + VARINTS[len(duration)] + duration


@lru_cache(1024)
def _limits_header(nearest: int, *bounds: tuple[int, int, str]) -> bytes:
    """The header of limits: the nearest one, then limit, window in ms and name of each that has a window."""
    policies = [
        f'{limit};w={_seconds(window_ms)};name="{name}"'
        for limit, window_ms, name in bounds
        if window_ms
    ]
    return _header("x-ratelimit-limit", ", ".join([str(nearest), *policies]))


@lru_cache(4096)
def _header(key: str, value: object) -> bytes:
    """One of `response_headers_to_add`."""
    told = embedded(b"\x0a", key.encode()) + embedded(b"\x12", str(value).encode())
    return embedded(b"\x1a", told)


def _seconds(ms: int) -> int:
    return -(-ms // 1000)


def _unit(seconds: int) -> rls.RateLimitResponse.RateLimit.Unit.ValueType:
    """The unit of a window; UNKNOWN where none fits."""
    for least, most, unit in _UNITS:
        if least <= seconds <= most:
            return unit
    return _Unit.UNKNOWN
