"""A seat that is held while a block runs: taken, kept by a heartbeat, given back."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from enforcer.client.ends import finish
from enforcer.client.errors import (
    CallError,
    ClosedError,
    DeniedError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
    NotPossibleError,
)
from enforcer.client.results import Verdict, moment, verdict_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from enforcer.client.calls import Calls
    from enforcer.client.ends import LooseEnds

__all__ = ["HeldLease", "Lease", "LeaseInfo"]

_log: Final = logging.getLogger("enforcer.client")

BEATS_PER_TTL: Final = 3
"""Two heartbeats may be lost before the seat is."""
RETRY_SECONDS: Final = 1.0
_DEFINITE: Final = (InvalidRequestError, NotFoundError, NotPossibleError)
"""What the gateway says of this lease, not of itself: it is gone."""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A live lease as others see it. `id` is its public name; the times are the gateway's."""

    id: str
    customer: str
    feature: str
    holder: str
    started_at: datetime
    expires_at: datetime


def info_of(lease: pb.Lease) -> LeaseInfo:
    """A lease as a value."""
    return LeaseInfo(
        lease.id,
        lease.customer,
        lease.feature,
        lease.holder,
        moment(lease.started_at),
        moment(lease.expires_at),
    )


class HeldLease:
    """The seat, as its holder sees it. `verdict` is the answer that granted it, `info` its public side."""

    def __init__(self, verdict: Verdict, lease: pb.Lease) -> None:
        self.verdict, self.info = verdict, info_of(lease)
        self.token: str = lease.token
        """Whoever has it may renew and release the lease."""
        self.lost_because = ""
        """Empty while it is held, else the reason: `LEASE_EXPIRED`, `LEASE_REVOKED`."""
        self.on_loss: Callable[[str], None] | None = None
        """Is called with the reason, in the client's event loop."""
        self._gone = asyncio.Event()

    @property
    def lost(self) -> bool:
        """The seat is gone: whatever needs it has to stop."""
        return bool(self.lost_because)

    def ensure(self) -> None:
        """Raise `LeaseLostError` if the seat is gone."""
        if self.lost_because:
            raise LeaseLostError(
                f"lease {self.info.id} on {self.info.feature!r} is lost: it "
                + ("was revoked" if self.lost_because == "LEASE_REVOKED" else "has expired"),
                reason=self.lost_because,
            )

    async def wait_lost(self) -> str:
        """Wait until the seat is gone; return why. For ever, if all goes well."""
        await self._gone.wait()
        return self.lost_because

    def lose(self, reason: str) -> None:
        """Note that the seat is gone."""
        self.lost_because = reason
        self._gone.set()
        if self.on_loss is not None:
            self.on_loss(reason)


class Lease:
    """`async with client.lease(…) as held`. Made by `Client.lease`, entered once."""

    def __init__(
        self,
        calls: Calls,
        ends: LooseEnds,
        request: pb.AcquireLeaseRequest,
        *,
        own_key: bool,
        cancel_on_loss: bool,
        timeout: float | None,
    ) -> None:
        self._calls, self._ends, self._request = calls, ends, request
        self._own_key, self._cancel_on_loss, self._timeout = own_key, cancel_on_loss, timeout
        self._task: asyncio.Task[Any] | None = None
        self._heart: asyncio.Task[None] | None = None
        self._held: HeldLease
        self._cancelling = 0
        self._cancelled_holder = False
        self._length = self._until = self._offset = 0.0

    async def __aenter__(self) -> HeldLease:
        if self._task is not None:
            raise ClosedError("a lease is taken once: call client.lease again")
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        # The time to live is counted from before the question: the gateway's clock starts later.
        before = time.monotonic()
        answer = await self._ends.take(self._acquire(), self._give_up)
        verdict = verdict_of(answer.check)
        if self._calls.observers:
            self._calls.observers.decided(self._request.feature, verdict)
        if not verdict.allowed:
            raise DeniedError(self._request.customer, self._request.feature, verdict)
        lease = answer.lease
        self._held = HeldLease(verdict, lease)
        expires = lease.expires_at.ToNanoseconds() / 1e9
        self._length = expires - lease.started_at.ToNanoseconds() / 1e9
        self._until = before + self._length
        self._offset = self._until - expires
        if verdict.replayed and not self._own_key:
            # The answer to a call of long ago, perhaps: only the gateway knows how the lease is now.
            self._offset = float("inf")
            await self._ask_again()
        self._heart = asyncio.create_task(self._beat())
        return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        assert self._heart is not None
        self._heart.cancel()
        held = self._held
        if not held.lost:
            await finish(self._give_back())
            return
        # Its end came from here, perhaps, while the gateway was away: it should not keep the seat longer.
        self._ends.add(self._give_back())
        if not self._cancelled_holder:
            return
        assert self._task is not None
        if kind is None:
            # The block ended before the cancellation reached it: take it here.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as cancelled:
                kind, error = asyncio.CancelledError, cancelled
        # As in asyncio.timeout: a cancellation by somebody else goes on as such.
        if self._task.uncancel() <= self._cancelling and (
            kind is None or issubclass(kind, asyncio.CancelledError)
        ):
            try:
                held.ensure()
            except LeaseLostError as lost:
                raise lost from error

    async def _acquire(self) -> pb.AcquireLeaseResponse:
        stub = self._calls.stub
        return await self._calls.call(
            "AcquireLease", stub.AcquireLease, self._request, self._timeout
        )

    async def _give_up(self, answer: pb.AcquireLeaseResponse) -> None:
        """The holder was cancelled while the seat was being taken."""
        if answer.HasField("lease"):
            await self._release(answer.lease.token)

    async def _give_back(self) -> None:
        await self._release(self._held.token)

    async def _release(self, token: str) -> None:
        stub, request = self._calls.stub, pb.ReleaseLeaseRequest(token=token)
        try:
            await self._calls.call("ReleaseLease", stub.ReleaseLease, request)
        except (CallError, ClosedError) as error:
            _log.warning(
                "a seat of %s was not given back and stays taken until its lease ends: %s",
                self._request.feature,
                error,
            )

    async def _ask_again(self) -> None:
        before = time.monotonic()
        stub = self._calls.stub
        request = pb.RenewLeaseRequest(token=self._held.token, ttl=self._ttl())
        try:
            answer = await self._calls.call("RenewLease", stub.RenewLease, request, self._timeout)
        except NotPossibleError as error:
            raise LeaseLostError(
                f"the lease that this key stands for is lost: {error.message}", reason=error.reason
            ) from error
        self._renewed(answer.lease, before)

    def _ttl(self) -> Any:
        return self._request.ttl if self._request.HasField("ttl") else None

    def _renewed(self, lease: pb.Lease, before: float) -> None:
        expires = lease.expires_at.ToNanoseconds() / 1e9
        self._until = min(before + self._length, expires + self._offset)

    async def _beat(self) -> None:
        """Renew until cancelled or lost. Runs beside the holder, so that cancelling that does not stop it."""
        beat = self._length / BEATS_PER_TTL
        pause = beat
        while True:
            await asyncio.sleep(max(0.0, min(pause, self._until - time.monotonic())))
            before = time.monotonic()
            if before >= self._until:
                self._lose("LEASE_EXPIRED")
                return
            stub = self._calls.stub
            request = pb.RenewLeaseRequest(token=self._held.token, ttl=self._ttl())
            # A gateway that hangs must not take the time in which another one would answer.
            longest = min(beat, self._calls.options.attempt_timeout, self._until - before)
            try:
                answer = await self._calls.once("RenewLease", stub.RenewLease, request, longest)
            except _DEFINITE as error:
                self._lose(error.reason)
                return
            except ClosedError:
                self._lose("CLIENT_CLOSED")
                return
            except CallError as error:
                # An outage is waited out: the lease itself says when it was too long.
                pause = min(beat, RETRY_SECONDS)
                _log.warning(
                    "the lease on %s was not renewed, trying again: %s",
                    self._request.feature,
                    error,
                )
                continue
            self._renewed(answer.lease, before)
            pause = beat

    def _lose(self, reason: str) -> None:
        _log.warning("the lease on %s is lost: %s", self._request.feature, reason)
        try:
            self._held.lose(reason)
        except Exception:  # noqa: BLE001 - logged; the holder is told in the other ways
            _log.exception("on_loss of a lease on %s failed", self._request.feature)
        if self._calls.observers:
            self._calls.observers.lease_lost(self._request.feature, reason)
        if self._cancel_on_loss:
            assert self._task is not None
            self._cancelled_holder = True
            self._task.cancel()
