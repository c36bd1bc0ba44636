"""Blocks of supply for clients that decide by themselves: handed out, and taken back. See docs/modes.md."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from enforcer.core.commands import HoldGone, KeyReused, Settled, TooMuch
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError, NotPossibleError
from enforcer.gateway.asked import Asked, Name
from enforcer.gateway.replies import check_response, record_id, set_ms
from enforcer.gateway.requests import dimensions_of, key_of, named, quantity_of, ttl_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enforcer.core.commands import Decision
    from enforcer.core.program import Program
    from enforcer.gateway.tokens import Tokens
    from enforcer.ports.counters import CounterStore

__all__ = ["Allowances"]

KIND = "allowance"
TTL, SHORTEST, LONGEST = 60_000, 1_000, 3_600_000


class Allowances:
    """The two operations. `decide` is the gateway's own, for checks."""

    def __init__(
        self,
        counters: CounterStore,
        decide: Callable[[Asked], Awaitable[tuple[Program, Decision]]],
        tokens: Tokens,
    ) -> None:
        self._counters, self._decide, self._tokens = counters, decide, tokens

    async def take(self, tenant: str, request: pb.TakeAllowanceRequest) -> pb.TakeAllowanceResponse:
        """`EnforcerService.TakeAllowance`."""
        named(request.customer, request.feature)
        name = Name(tenant, request.customer, request.feature, request.product_version)
        # Absent is 0 here, and refused: a block of one would be of no use to anybody.
        wanted, key = quantity_of(request.quantity), key_of(request.idempotency_key)
        asked = Asked(name, wanted, Mode.ALLOWANCE, key)
        ttl = request.ttl if request.HasField("ttl") else None
        asked.op, asked.ttl_ms = KIND, ttl_of(ttl, TTL, SHORTEST, LONGEST)
        asked.dimensions = dimensions_of(request.dimensions)
        asked.parameters = asked.dimensions, name.version, asked.ttl_ms
        asked.id = asked.reservation = secrets.token_hex(12)
        program, decision = await self._decide(asked)
        response = pb.TakeAllowanceResponse(check=check_response(program, decision, wanted))
        if decision.granted:
            response.allowance = self._tokens.sign(KIND, decision.id, name, program)
            response.lifetime.FromMilliseconds(decision.expires - decision.now)
            set_ms(response.expires_at, decision.expires)
        return response

    async def give_back(
        self, tenant: str, request: pb.ReturnAllowanceRequest
    ) -> pb.ReturnAllowanceResponse:
        """`EnforcerService.ReturnAllowance`."""
        token = self._tokens.read(tenant, request.allowance, KIND)
        used = quantity_of(request.used, least=0)
        settled = _settled(await self._counters.give_back(token.bucket, token.id, used), used)
        return pb.ReturnAllowanceResponse(
            used=settled.used,
            returned=settled.released,
            record=record_id(token.bucket, settled.generation, settled.sequence),
            replayed=settled.replayed,
        )


def _settled(answer: Settled | HoldGone | TooMuch | KeyReused, used: int) -> Settled:
    match answer:
        case Settled():
            return answer
        case HoldGone():
            raise NotPossibleError(
                "ALLOWANCE_EXPIRED",
                "the block was not returned in time and counts as used, unaccounted: send what was "
                "used as a Check in MODE_RECORD_ONLY, so that it is reported",
            )
        case KeyReused():
            raise NotPossibleError(
                "ALLOWANCE_RETURNED", f"the block was returned before, with another use than {used}"
            )
        case TooMuch(held):
            raise InvalidRequestError(
                "ALLOWANCE_EXCEEDED",
                f"{used} were used of a block of {held}: return {held}, and send the rest as a Check "
                "in MODE_RECORD_ONLY",
                used=str(used),
                held=str(held),
            )
