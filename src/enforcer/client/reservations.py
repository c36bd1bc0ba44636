"""An amount that is held while a block runs, and turned into what was really used at its end."""

from __future__ import annotations

import logging
from hashlib import sha256
from operator import index
from typing import TYPE_CHECKING, Final

from enforcer.client.ends import finish
from enforcer.client.errors import (
    CallError,
    ClientError,
    ClosedError,
    ConfigurationError,
    DeniedError,
    NotFoundError,
)
from enforcer.client.results import Verdict, moment, verdict_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from datetime import datetime

    from enforcer.client.calls import Calls
    from enforcer.client.ends import LooseEnds

__all__ = ["HeldAmount", "Reservation"]

_log: Final = logging.getLogger("enforcer.client")


class HeldAmount:
    """What is held, as the block sees it; quantities are in the feature's own unit.

    Tell it what was used, as often as you like: `held.use(120)`. `committed` and `released` are set
    when the block has ended; `late` is what was used beyond what was held, or after it had expired,
    and went past every limit.
    """

    def __init__(self, verdict: Verdict, answer: pb.ReserveResponse) -> None:
        self.verdict, self.id = verdict, answer.reservation
        self.granted: int = verdict.granted
        self.expires_at: datetime = moment(answer.expires_at)
        self.used: int | None = None
        """None until `use` is called: then all that is held counts as used."""
        self.committed = self.released = self.late = 0

    def use(self, quantity: int) -> None:
        """So much more was used; 0 says that nothing was, unless more follows."""
        try:
            more = index(quantity)
        except TypeError:
            more = -1
        if more < 0:
            raise ConfigurationError(f"used is {quantity!r}: a whole number from 0 is expected")
        self.used = (self.used or 0) + more


class Reservation:
    """`async with client.reserve(…) as held`. Made by `Client.reserve`, entered once."""

    def __init__(
        self, calls: Calls, ends: LooseEnds, request: pb.ReserveRequest, timeout: float | None
    ) -> None:
        self._calls, self._ends, self._request, self._timeout = calls, ends, request, timeout
        self._entered = False
        self._held: HeldAmount

    async def __aenter__(self) -> HeldAmount:
        if self._entered:
            raise ClosedError("an amount is reserved once: call client.reserve again")
        self._entered = True
        answer = await self._ends.take(self._reserve(), self._give_up)
        verdict = verdict_of(answer.check)
        if self._calls.observers:
            self._calls.observers.decided(self._request.feature, verdict)
        if not verdict.allowed:
            raise DeniedError(self._request.customer, self._request.feature, verdict)
        self._held = HeldAmount(verdict, answer)
        return self._held

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: object
    ) -> None:
        used = self._held.used
        if used is None:
            used = self._held.granted if error is None else 0
        try:
            await finish(self._settle(used))
        except ClientError as failed:
            if error is None:
                raise
            # What the block raised is what its caller has to hear.
            error.add_note(f"and {used} of {self._request.feature!r} was not counted: {failed}")
            _log.error("%d of %s was used and not counted: %s", used, self._request.feature, failed)

    async def _reserve(self) -> pb.ReserveResponse:
        stub = self._calls.stub
        return await self._calls.call("Reserve", stub.Reserve, self._request, self._timeout)

    async def _give_up(self, answer: pb.ReserveResponse) -> None:
        """The block was cancelled before it began."""
        if not answer.reservation:
            return
        try:
            await self._release(answer.reservation)
        except (CallError, ClosedError) as error:
            _log.warning(
                "what was reserved of %s stays held until it expires: %s",
                self._request.feature,
                error,
            )

    async def _release(self, reservation: str) -> int:
        stub, request = self._calls.stub, pb.ReleaseRequest(reservation=reservation)
        try:
            return (await self._calls.call("Release", stub.Release, request)).released
        except NotFoundError:
            return 0  # it has expired, which releases it, too

    async def _settle(self, used: int) -> None:
        held = self._held
        if used == 0:
            held.released = await self._release(held.id)
            return
        stub = self._calls.stub
        request = pb.CommitRequest(reservation=held.id, quantity=min(used, held.granted))
        try:
            answer = await self._calls.call("Commit", stub.Commit, request)
        except NotFoundError:
            # It expired under the block. What was used was used all the same.
            await self._record(used)
            return
        held.committed, held.released = answer.committed, answer.released
        if used > held.granted:
            await self._record(used - held.granted)

    async def _record(self, quantity: int) -> None:
        """Count what no reservation covers any more, past every limit, once."""
        request = pb.CheckRequest(
            customer=self._request.customer,
            feature=self._request.feature,
            quantity=quantity,
            # Of the reservation's own key, which may be as long as a key can be.
            idempotency_key=f"late-{sha256(self._request.idempotency_key.encode()).hexdigest()}",
            dimensions=self._request.dimensions,
            mode=pb.MODE_RECORD_ONLY,
            product_version=self._request.product_version,
        )
        answer = await self._calls.call("Check", self._calls.stub.Check, request)
        if not answer.allowed:
            raise DeniedError(self._request.customer, self._request.feature, verdict_of(answer))
        self._held.late = answer.granted
