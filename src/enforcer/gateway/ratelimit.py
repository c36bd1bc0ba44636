"""Answers an Envoy: descriptors become checks, decided together, and their limits become statuses and headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.core.descriptors import UnusableError
from enforcer.core.model import MAX_QUANTITY
from enforcer.core.program import DENIED, Reason, Shape
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError, NotFoundError
from enforcer.gateway.replies import check_response
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from enforcer.core.commands import Decision
    from enforcer.core.descriptors import Domain, Rule
    from enforcer.core.program import Program, View
    from enforcer.core.rules import Entry
    from enforcer.gateway.gateway import Gateway
    from enforcer.ports.definitions import Caller
    from enforcer.ratelimit.descriptor_pb2 import RateLimitDescriptor

__all__ = ["RateLimits"]

MOST_DESCRIPTORS: Final = 256
LARGEST: Final = 2**32 - 1
"""What a status can say; larger limits are told as this."""
_Code = rls.RateLimitResponse.Code
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
        return -(-self.window_ms // 1000)


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

    async def should_rate_limit(
        self, caller: Caller, request: rls.RateLimitRequest
    ) -> rls.RateLimitResponse:
        """`RateLimitService.ShouldRateLimit`. A refusal is an answer; a fault says that nothing was decided."""
        domain = self._domains.get((caller.tenant, request.domain))
        if domain is None:
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
        one = _Request(self._gateway, caller.tenant, domain, self._observe)
        return await one.answer(request)


class _Request:
    """One request on its way."""

    def __init__(
        self, gateway: Gateway, tenant: str, domain: Domain, observe: Callable[[str], None]
    ) -> None:
        self._gateway, self._tenant, self._domain = gateway, tenant, domain
        self._observe = observe
        self._statuses: list[rls.RateLimitResponse.DescriptorStatus] = []
        self._bounds: list[_Bound] = []
        self._refused = False
        self._waits: list[int] | None = []
        """Seconds until each refusal may be over; None: waiting does not help."""

    async def answer(self, request: rls.RateLimitRequest) -> rls.RateLimitResponse:
        peeks: dict[int, _Asked] = {}
        group: dict[int, _Asked] = {}
        for place, descriptor in enumerate(request.descriptors):
            self._statuses.append(rls.RateLimitResponse.DescriptorStatus())
            asked = self._asked(place, descriptor, request.hits_addend or 1)
            if asked is not None:
                checks = asked.request.mode == pb.MODE_CHECK_ONLY
                (peeks if checks else group)[place] = asked
        # What consumes nothing comes first: it may refuse all.
        for part in (peeks, group):
            if not self._refused:
                await self._decide(part)
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
        self._statuses[place].code = _Code.OK if allowed else _Code.OVER_LIMIT
        if not allowed:
            self._refused, self._waits = True, None

    async def _decide(self, group: dict[int, _Asked]) -> None:
        """Decide all or none; without those that turn out to be let through anyway."""
        while group and not self._refused:
            try:
                decided = await self._gateway.decide_together(
                    self._tenant, [asked.request for asked in group.values()]
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
                    self._tell(self._statuses[place], *outcome)
                return

    def _tell(
        self,
        status: rls.RateLimitResponse.DescriptorStatus,
        program: Program,
        decision: Decision,
        quantity: int,
    ) -> None:
        self._observe("decided")
        # One that was denied for another's sake is not over its own limits.
        over = not decision.granted and decision.reason != Reason.BATCH_DENIED
        status.code = _Code.OVER_LIMIT if over else _Code.OK
        if over:
            self._refused = True
            response = check_response(program, decision, quantity)
            if not response.HasField("retry_after"):
                self._waits = None
            elif self._waits is not None:
                self._waits.append(-(-response.retry_after.ToMilliseconds() // 1000))
        bound = min(_bounds(program, decision), default=None)
        if bound is None:
            return
        self._bounds.append(bound)
        status.limit_remaining = min(bound.remaining, LARGEST)
        status.current_limit.requests_per_unit = min(bound.limit, LARGEST)
        status.current_limit.unit = _unit(bound.seconds)
        status.current_limit.name = bound.name
        if bound.reset_ms:
            status.duration_until_reset.FromMilliseconds(bound.reset_ms)

    def _response(self) -> rls.RateLimitResponse:
        response = rls.RateLimitResponse(
            overall_code=_Code.OVER_LIMIT if self._refused else _Code.OK, statuses=self._statuses
        )
        if self._domain.headers:
            for key, value in self._headers():
                response.response_headers_to_add.add(key=key, value=value)
        return response

    def _headers(self) -> Iterable[tuple[str, str]]:
        """As in draft-polli-ratelimit-headers-03: the nearest limit, then all of them as policies."""
        if self._bounds:
            nearest = min(self._bounds)
            policies = [
                f'{bound.limit};w={bound.seconds};name="{bound.name}"'
                for bound in self._bounds
                if bound.window_ms
            ]
            yield "x-ratelimit-limit", ", ".join([str(nearest.limit), *policies])
            yield "x-ratelimit-remaining", str(nearest.remaining)
            if nearest.reset_ms:
                yield "x-ratelimit-reset", str(-(-nearest.reset_ms // 1000))
        if self._refused and self._waits:
            yield "retry-after", str(max(self._waits))


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


def _bounds(program: Program, decision: Decision) -> Iterable[_Bound]:
    """What each chain that may deny leaves: all its views together, named by the one that is drawn from."""
    entries = {entry.code & ~0xF: entry for entry in decision.entries}
    for chain in program.chains:
        views = [(view, entries[view.code]) for view in chain.views if view.code in entries]
        # A replayed answer may be of earlier terms.
        if chain.shadow or len(views) < len(chain.views):
            continue
        limit = sum(entry.limit for _, entry in views)
        if not views or limit >= MAX_QUANTITY:
            continue
        view, drawn = next((pair for pair in views if pair[1].remaining), views[-1])
        windows = {_window_ms(program, *pair) for pair in views}
        label = program.labels.get(view.code)
        yield _Bound(
            not any(entry.code & DENIED for _, entry in views),
            sum(entry.remaining for _, entry in views),
            max(drawn.reset - decision.now, 0) if drawn.reset else 0,
            limit,
            windows.pop() if len(windows) == 1 else 0,
            label.id if label else "",
        )


def _window_ms(program: Program, view: View, entry: Entry) -> int:
    """The time that the limit is for; 0: it has none."""
    if view.shape is Shape.BUCKET:
        label = program.labels.get(view.code)
        return round(entry.limit / label.refill) if label and label.refill else 0
    if view.shape is Shape.RING10:
        return round(view.extra[0] * 10)
    if view.shape is Shape.RING24:
        return round(view.extra[0] * 24)
    return view.end - view.start if view.end else 0


def _unit(seconds: int) -> rls.RateLimitResponse.RateLimit.Unit.ValueType:
    """The unit of a window; UNKNOWN where none fits."""
    for least, most, unit in _UNITS:
        if least <= seconds <= most:
            return unit
    return _Unit.UNKNOWN
