"""Amounts held while the real ones are not known yet: made, committed, released."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from enforcer.core.commands import HoldGone, KeyReused, Settled, TooMuch
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError, NotFoundError, NotPossibleError
from enforcer.gateway.asked import Asked, Name
from enforcer.gateway.replies import check_response, record_id, set_ms
from enforcer.gateway.requests import key_of, mode_of, named, quantity_of, ttl_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enforcer.core.commands import Decision
    from enforcer.core.program import Program
    from enforcer.gateway.tokens import Tokens
    from enforcer.ports.counters import CounterStore

__all__ = ["Reservations"]

TTL, SHORTEST, LONGEST = 60_000, 1_000, 86_400_000


class Reservations:
    """The three operations. `decide` is the gateway's own, for checks."""

    def __init__(
        self,
        counters: CounterStore,
        decide: Callable[[Asked], Awaitable[tuple[Program, Decision]]],
        tokens: Tokens,
    ) -> None:
        self._counters, self._decide, self._tokens = counters, decide, tokens

    async def reserve(self, tenant: str, request: pb.ReserveRequest) -> pb.ReserveResponse:
        """`EnforcerService.Reserve`."""
        named(request.customer, request.feature)
        mode = mode_of(request.mode)
        if mode not in (Mode.ENFORCE, Mode.BEST_EFFORT):
            raise InvalidRequestError(
                "MODE_NOT_SUPPORTED", "a reservation is made in MODE_ENFORCE or MODE_BEST_EFFORT"
            )
        ttl_ms = ttl_of(request.ttl if request.HasField("ttl") else None, TTL, SHORTEST, LONGEST)
        asked = Asked.of(
            Name(tenant, request.customer, request.feature, request.product_version),
            quantity_of(request.quantity if request.HasField("quantity") else None),
            mode,
            key_of(request.idempotency_key),
            request.dimensions,
        )
        asked.op, asked.ttl_ms, asked.reservation = "reserve", ttl_ms, secrets.token_hex(12)
        asked.parameters += (request.ttl.ToMilliseconds(),)
        asked.id = asked.reservation
        program, decision = await self._decide(asked)
        response = pb.ReserveResponse(check=check_response(program, decision, asked.quantity))
        if decision.granted:
            response.reservation = self._tokens.sign(
                "reservation", decision.id, asked.name, program
            )
            set_ms(response.expires_at, decision.expires)
        return response

    async def commit(self, tenant: str, request: pb.CommitRequest) -> pb.CommitResponse:
        """`EnforcerService.Commit`."""
        token = self._tokens.read(tenant, request.reservation, "reservation")
        quantity = None
        if request.HasField("quantity"):
            quantity = quantity_of(request.quantity, least=0)
        settled = _settled(await self._counters.commit(token.bucket, token.id, quantity))
        return pb.CommitResponse(
            committed=settled.used,
            released=settled.released,
            record=record_id(token.bucket, settled.generation, settled.sequence),
            replayed=settled.replayed,
        )

    async def release(self, tenant: str, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        """`EnforcerService.Release`."""
        token = self._tokens.read(tenant, request.reservation, "reservation")
        settled = _settled(await self._counters.release(token.bucket, token.id))
        return pb.ReleaseResponse(
            released=settled.released,
            record=record_id(token.bucket, settled.generation, settled.sequence),
            replayed=settled.replayed,
        )


def _settled(answer: Settled | HoldGone | TooMuch | KeyReused) -> Settled:
    match answer:
        case Settled():
            return answer
        case HoldGone():
            raise NotFoundError("RESERVATION_NOT_FOUND", "the reservation has expired or never was")
        case KeyReused():
            raise NotPossibleError(
                "RESERVATION_SETTLED", "the reservation was settled before, in another way"
            )
        case TooMuch(held):
            raise InvalidRequestError(
                "COMMIT_EXCEEDS_RESERVATION",
                f"the reservation holds {held}: commit at most that, and record the rest with "
                "MODE_RECORD_ONLY",
                held=str(held),
            )
