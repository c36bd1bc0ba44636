"""Seats of `concurrent` features: taken for a time, renewed, given back, listed."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING

from enforcer.core.commands import EpochStale, SeatAsk
from enforcer.core.compile import SEAT_MODES
from enforcer.core.model import SeatMode
from enforcer.core.program import Reason, Shape
from enforcer.core.rules import Mode
from enforcer.errors import InvalidRequestError, NotPossibleError
from enforcer.gateway.asked import Asked, Name
from enforcer.gateway.programs import Rounds
from enforcer.gateway.replies import check_response, has_seats, record_id, set_ms
from enforcer.gateway.requests import key_of, named, ttl_of
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.records import decode_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enforcer.core.commands import Decision, LeaseInfo
    from enforcer.core.program import Program
    from enforcer.core.tokens import Token
    from enforcer.gateway.programs import Programs
    from enforcer.gateway.tokens import Tokens
    from enforcer.ports.counters import CounterStore

__all__ = ["Leases"]

TTL, SHORTEST, LONGEST = 60_000, 10_000, 86_400_000
LONGEST_HOLDER = 256
MOST_LISTED = 1_000


class Leases:
    """The four operations. `decide` is the gateway's own, for checks."""

    def __init__(
        self,
        counters: CounterStore,
        programs: Programs,
        decide: Callable[[Asked], Awaitable[tuple[Program, Decision]]],
        tokens: Tokens,
    ) -> None:
        self._counters, self._programs = counters, programs
        self._decide, self._tokens = decide, tokens

    async def acquire(
        self, tenant: str, request: pb.AcquireLeaseRequest
    ) -> pb.AcquireLeaseResponse:
        """`EnforcerService.AcquireLease`."""
        named(request.customer, request.feature)
        holder = request.holder
        if len(holder.encode()) > LONGEST_HOLDER:
            raise InvalidRequestError(
                "HOLDER_REQUIRED", f"holder must have at most {LONGEST_HOLDER} bytes"
            )
        name = Name(tenant, request.customer, request.feature, request.product_version)
        program = await self._programs.current(name)
        if _seatless(program, holder):
            program = await self._programs.reread(name)
        error = _seatless(program, holder)
        if error is not None:
            raise error
        ttl_ms = ttl_of(
            request.ttl if request.HasField("ttl") else None,
            program.lease_ttl_ms or TTL,
            SHORTEST,
            LONGEST,
        )
        asked = Asked.of(name, 1, Mode.ENFORCE, key_of(request.idempotency_key), request.dimensions)
        lease = secrets.token_hex(12)
        # The time that the client asked for: the feature's own may change between a call and its retry.
        asked.op, asked.parameters = (
            "lease",
            (*asked.parameters, holder, request.ttl.ToMilliseconds()),
        )
        asked.seat = SeatAsk(lease, holder, ttl_ms)
        asked.id, asked.holder = lease, holder
        program, decision = await self._decide(asked)
        response = pb.AcquireLeaseResponse(check=check_response(program, decision, 1))
        if decision.granted:
            response.lease.CopyFrom(
                pb.Lease(
                    token=self._tokens.sign("lease", decision.id, name, program, ttl_ms),
                    customer=name.customer,
                    feature=name.feature,
                    holder=holder,
                    id=decision.id,
                )
            )
            set_ms(response.lease.started_at, decision.now)
            set_ms(response.lease.expires_at, decision.expires)
        return response

    async def renew(self, tenant: str, request: pb.RenewLeaseRequest) -> pb.RenewLeaseResponse:
        """`EnforcerService.RenewLease`."""
        token = self._tokens.read(tenant, request.token, "lease")
        name = Name(tenant, token.customer, token.feature)
        stale: EpochStale | None = None
        rounds = Rounds(token.customer, 4)
        while True:
            program = await self._program_of_lease(name, token, reread=stale is not None)
            ttl_ms = ttl_of(
                request.ttl if request.HasField("ttl") else None,
                token.ttl_ms,
                SHORTEST,
                LONGEST,
            )
            renewed = await self._counters.renew(
                token.bucket, token.id, ttl_ms, program.account_id, program.epoch
            )
            if renewed is None:
                raise NotPossibleError("LEASE_EXPIRED", "the lease has ended: acquire a new one")
            if isinstance(renewed, EpochStale):
                stale = renewed
                if stale.stored < program.epoch:
                    await self._counters.project(token.bucket, program.account_id, program.epoch)
                rounds.another(stale)
                continue
            return pb.RenewLeaseResponse(lease=_lease(renewed, request.token))

    async def _program_of_lease(self, name: Name, token: Token, *, reread: bool) -> Program:
        """The program that a lease lives by; one that denies ends the lease."""
        # Which product versions are covered was decided when the seat was taken.
        program = await self._programs.any_version(name, reread=reread)
        if program.verdict is not Reason.ALLOWED and not reread:
            program = await self._programs.any_version(name, reread=True)
        if program.verdict is not Reason.ALLOWED:
            await self._counters.release_lease(token.bucket, token.id, unbind=False)
            raise NotPossibleError(
                "LEASE_REVOKED",
                f"{name.customer!r} may not use {name.feature!r} any more: {program.verdict.name}",
                because=program.verdict.name,
            )
        return program

    async def release(
        self, tenant: str, request: pb.ReleaseLeaseRequest
    ) -> pb.ReleaseLeaseResponse:
        """`EnforcerService.ReleaseLease`."""
        token = self._tokens.read(tenant, request.token, "lease")
        ended = await self._counters.release_lease(token.bucket, token.id, unbind=request.unbind)
        if ended is None:
            return pb.ReleaseLeaseResponse(released=False)
        return pb.ReleaseLeaseResponse(released=True, record=record_id(token.bucket, *ended))

    async def list_live(self, tenant: str, request: pb.ListLeasesRequest) -> pb.ListLeasesResponse:
        """`EnforcerService.ListLeases`."""
        named(request.customer, request.feature)
        most = request.page_size or 100
        if not 0 < most <= MOST_LISTED:
            raise InvalidRequestError(
                "BAD_PAGE", f"page_size is {most}, must be from 1 to {MOST_LISTED}"
            )
        after = _read_page(request.page_token)
        program = await self._programs.any_version(Name(tenant, request.customer, request.feature))
        found = await self._counters.leases(program.bucket, program.suffix, after, most)
        response = pb.ListLeasesResponse(leases=[_lease(one, "") for one in found])
        if len(found) == most:
            last = found[-1]
            page = urlsafe_b64encode(f"{last.expires}:{last.id}".encode())
            response.next_page_token = page.decode()
        return response


def _seatless(program: Program, holder: str) -> InvalidRequestError | None:
    """Why nobody can sit here, or not without a name."""
    if program.verdict is not Reason.ALLOWED:
        return None  # the decision says why
    if not has_seats(program):
        return InvalidRequestError(
            "MODE_NOT_SUPPORTED", f"{program.feature!r} has no seats: use Check"
        )
    mode = _seat_mode(program)
    if mode == SEAT_MODES[SeatMode.FLOATING] or holder:
        return None
    who = "user" if mode == SEAT_MODES[SeatMode.NAMED] else "device fingerprint"
    return InvalidRequestError("HOLDER_REQUIRED", f"these seats need the {who} in holder")


def _seat_mode(program: Program) -> int:
    for view in program.views:
        if view.shape is Shape.SEATS:
            return int(view.extra[0])
    return SEAT_MODES[SeatMode.FLOATING]


def _lease(info: LeaseInfo, token: str) -> pb.Lease:
    body = decode_body(info.body)
    lease = pb.Lease(token=token, customer=body.c, feature=body.f, holder=info.holder, id=info.id)
    set_ms(lease.started_at, info.started)
    set_ms(lease.expires_at, info.expires)
    return lease


def _read_page(token: str) -> tuple[int, str]:
    if not token:
        return 0, ""
    try:
        expires, _, name = urlsafe_b64decode(token.encode()).decode().partition(":")
        return int(expires), name
    except ValueError as error:
        raise InvalidRequestError("BAD_PAGE", "this is no page token of this list") from error
