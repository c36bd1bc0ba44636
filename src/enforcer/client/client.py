"""The client for asyncio: what a product calls."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from enforcer.client.allowances import FIRST, HORIZON, MOST, Allowance, Sizes
from enforcer.client.calls import Calls
from enforcer.client.channel import api_key_of, channel_options, target_of, wants_tls
from enforcer.client.coalesce import Coalescer
from enforcer.client.ends import LooseEnds
from enforcer.client.errors import (
    CallError,
    ClientError,
    ClosedError,
    ConfigurationError,
    InternalError,
    from_fault,
)
from enforcer.client.leases import Lease, LeaseInfo, info_of
from enforcer.client.observer import Observers
from enforcer.client.options import MOST_ITEMS, Options
from enforcer.client.policy import Outages
from enforcer.client.questions import Questions
from enforcer.client.reservations import Reservation
from enforcer.client.results import Balance, Mode, Verdict, balance_of, verdict_of
from enforcer.client.returns import Returns
from enforcer.client.settling import Settling
from enforcer.client.tls import credentials_from
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enforcer.client.observer import Observer
    from enforcer.client.policy import Policy
    from enforcer.client.questions import Question
    from enforcer.client.results import Check

__all__ = ["Client"]

_DEFAULT: Final = Options()
MOST_LEASES: Final = 1000
"""On one page."""


class Client:
    """Asks a gateway. Opened by `async with`; belongs to the event loop it was opened in.

    `endpoints` is HOST:PORT, or several addresses, over which calls are balanced; None: those in
    METERGATE_ENDPOINT. `api_key` None: the one in METERGATE_API_KEY. Before an endpoint, `grpcs://` says
    TLS. `credentials` is what gRPC needs for it (`credentials_from` makes it of files); None: as the
    environment has it, see `enforcer.client.tls`. `policies` says by feature what a
    check does while no gateway answers, `"*"` for all others; without one it raises. Nothing connects
    before the first call. In a process that forks, open it after the fork.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        api_key: str | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Options = _DEFAULT,
        policies: Mapping[str, Policy] | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._target, self._api_key = target_of(endpoints), api_key_of(api_key)
        if credentials is None and wants_tls(endpoints):
            credentials = credentials_from()
        self._credentials, self._options = credentials, options
        self._timeout, self._policies = options.timeout, bool(policies)
        self._outages = Outages(policies or {})
        self._questions = Questions()
        self._observers, self._observed = Observers(observers), bool(observers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: Calls
        self._coalescer: Coalescer
        self._ends: LooseEnds
        self._settling: Settling
        self._returns: Returns
        self._allowances: WeakSet[Allowance] = WeakSet()
        self._closed = False

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self) -> None:
        """Belong to the running event loop, for those who cannot use `async with`; `close` is owed then."""
        if self._closed or self._loop is not None:
            raise ClosedError("a client is opened once: make another one")
        self._loop = asyncio.get_running_loop()
        arguments = channel_options(self._options)
        channels = [
            grpc.aio.insecure_channel(self._target, arguments)
            if self._credentials is None
            else grpc.aio.secure_channel(self._target, self._credentials, arguments)
            for _ in range(self._options.connections)
        ]
        self._calls = Calls(channels, self._api_key, self._options, self._observers)
        self._coalescer = Coalescer(self._calls)
        self._settling = Settling(self._calls, self._outages)
        self._ends, self._returns = LooseEnds(), Returns(self._calls)

    @property
    def options(self) -> Options:
        """What it was made with."""
        return self._options

    @property
    def uncounted(self) -> int:
        """How many uses, allowed by `FailOpen`, still have to be counted."""
        return len(self._outages.uncounted)

    @property
    def unreported(self) -> int:
        """How much was used from allowances and no gateway could be told, in the features' own units."""
        return self._returns.unreported if self._loop is not None else 0

    async def close(self) -> None:
        """Refuse new calls, return what is held, wait for what was sent, and close the connections."""
        if self._closed or self._loop is None:
            self._closed = True
            return
        self._closed = True
        try:
            await asyncio.gather(*(allowance.close() for allowance in list(self._allowances)))
            await self._coalescer.close()
            await self._ends.close()
            await self._returns.close()
            await self._settling.close()
        finally:
            await self._calls.close()

    def _opened(self) -> Calls:
        if self._closed or self._loop is None:
            raise ClosedError(
                "the client is closed"
                if self._closed
                else "the client is not open: use it in `async with client:`"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "a client belongs to the event loop that it was opened in: make one for each loop, "
                "or use SyncClient"
            )
        return self._calls

    async def check(  # noqa: PLR0913 - each is a field of the question
        self,
        customer: str,
        feature: str,
        quantity: int = 1,
        *,
        key: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        mode: Mode = Mode.ENFORCE,
        product_version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
    ) -> Verdict:
        """Decide and consume in one step. A denial is data: `if await client.check(…)`.

        `quantity` is in the feature's own unit, from 1 to 2^53 - 1. `key` is the idempotency key, up
        to 256 bytes: pass one that is yours (an order's number) where your own call may be repeated;
        else the client makes one, which its retries keep. `timeout` in seconds is for all attempts.

        Raises `CallError` where the question could not be decided, unless the feature has a policy
        for that (the verdict is `degraded` then), and `OverloadedError` when too many checks wait.
        Cancelling does not call a check back that was sent: it may count.
        """
        question = self._questions.ask(
            customer, feature, quantity, key, dimensions, mode, product_version
        )
        return await self._check(question, customer, feature, timeout)

    async def _check(
        self,
        question: Question,
        customer: str,
        feature: str,
        timeout: float | None,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
    ) -> Verdict:
        if self._closed or asyncio.get_running_loop() is not self._loop:
            self._opened()
        seconds = self._timeout if timeout is None else timeout
        outages, policy = self._outages, None
        if self._policies:
            policy = outages.of(feature)
        if policy is not None:
            seconds = min(seconds, policy.patience)
        deadline = time.monotonic() + seconds
        try:
            try:
                answer = await self._coalescer.ask(question, deadline)
            except CallError as error:
                if policy is not None and outages.out:
                    raise
                answer = await self._calls.until(
                    "Check",
                    lambda: self._coalescer.ask(question, deadline),
                    deadline,
                    failed=error,
                )
        except CallError as error:
            if policy is None:
                raise
            verdict = outages.decide(question.message, error)
            self._settling.wake()
        else:
            verdict = verdict_of(answer)
            if policy is not None:
                outages.saw(customer, feature, verdict)
        if self._observed:
            self._observers.decided(feature, verdict)
        return verdict

    async def check_each(
        self,
        checks: Sequence[Check],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
    ) -> list[Verdict | ClientError]:
        """Several checks that do not depend on each other, any number, in few calls.

        Answers come in the order of the checks; one that could not be decided is an error in its
        place, and the others are not touched by it.
        """
        self._opened()
        # Half of what may wait at a time: more of them than there is room for are no reason to refuse any.
        together = max(1, self._options.most_waiting // 2)
        answers: list[Verdict | ClientError] = []
        for first in range(0, len(checks), together):
            found = await asyncio.gather(
                *(
                    self._check(self._questions.of(one), one.customer, one.feature, timeout)
                    for one in checks[first : first + together]
                ),
                return_exceptions=True,
            )
            for one in found:
                if not isinstance(one, Verdict | ClientError):
                    raise one
                answers.append(one)
        return answers

    async def check_all(
        self,
        checks: Sequence[Check],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
    ) -> list[Verdict]:
        """All or none, in one atomic step: 1 to 256 checks of one account; if one is denied, none consumes.

        The others are then denied with `Reason.BATCH_DENIED`. Raises `CallError` for the whole.
        """
        calls = self._opened()
        if not 0 < len(checks) <= MOST_ITEMS:
            raise ConfigurationError(f"{len(checks)} checks: an atomic batch has 1 to {MOST_ITEMS}")
        request = pb.CheckBatchRequest(
            items=[self._questions.of(one).message for one in checks], atomic=True
        )
        answer = await calls.call(
            "CheckBatch", calls.stub.CheckBatch, request, timeout, len(checks)
        )
        if len(answer.items) != len(checks):
            raise InternalError(
                f"{len(answer.items)} answers came to a batch of {len(checks)} checks",
                code=grpc.StatusCode.INTERNAL,
            )
        verdicts = []
        for one, item in zip(checks, answer.items, strict=True):
            if item.WhichOneof("outcome") != "response":
                raise from_fault(item.fault)
            verdict = verdict_of(item.response)
            verdicts.append(verdict)
            if self._observers:
                self._observers.decided(one.feature, verdict)
        return verdicts

    async def balance(
        self,
        customer: str,
        feature: str,
        *,
        product_version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline that the gateway sees
    ) -> Balance:
        """Every limit as it stands now. Consumes and records nothing."""
        calls = self._opened()
        request = pb.GetBalanceRequest(
            customer=customer, feature=feature, product_version=product_version
        )
        return balance_of(await calls.call("GetBalance", calls.stub.GetBalance, request, timeout))

    def lease(  # noqa: PLR0913 - each is a field of the question
        self,
        customer: str,
        feature: str,
        *,
        holder: str = "",
        ttl: float | None = None,
        key: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        product_version: str = "",
        cancel_on_loss: bool = True,
        timeout: float | None = None,
    ) -> Lease:
        """Hold a seat of a `concurrent` feature: `async with client.lease(…) as held`.

        `holder` is the user of a named seat or the device of a locked one; `ttl` in seconds from 10
        to 86,400, None: the feature's own. Entering raises `DeniedError` when no seat is free. A
        heartbeat renews the lease, three times in its time to live, also while the holder is being
        cancelled; leaving gives the seat back, whatever happens to the task.

        When the seat is lost (revoked, or not renewed in time), the holder is told: `held.lost`,
        `held.wait_lost()`, and with `cancel_on_loss` the block is cancelled as by a timeout, and
        `async with` raises `LeaseLostError`.
        """
        calls = self._opened()
        try:
            request = pb.AcquireLeaseRequest(
                customer=customer,
                feature=feature,
                holder=holder,
                ttl=_duration(ttl),
                idempotency_key=key or new_key(),
                dimensions=dimensions,
                product_version=product_version,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"a lease cannot be asked for so: {error}") from error
        return Lease(
            calls,
            self._ends,
            request,
            own_key=key is None,
            cancel_on_loss=cancel_on_loss,
            timeout=timeout,
        )

    async def leases(
        self,
        customer: str,
        feature: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - of each page
    ) -> list[LeaseInfo]:
        """The live leases of a customer and of those below it, oldest expiry first."""
        calls = self._opened()
        request = pb.ListLeasesRequest(customer=customer, feature=feature, page_size=MOST_LEASES)
        found: list[LeaseInfo] = []
        while True:
            page = await calls.call("ListLeases", calls.stub.ListLeases, request, timeout)
            found += [info_of(lease) for lease in page.leases]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def reserve(  # noqa: PLR0913 - each is a field of the question
        self,
        customer: str,
        feature: str,
        quantity: int = 1,
        *,
        ttl: float | None = None,
        key: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        mode: Mode = Mode.ENFORCE,
        product_version: str = "",
        timeout: float | None = None,
    ) -> Reservation:
        """Hold an amount while the real one is not known yet: `async with client.reserve(…) as held`.

        `held.use(n)` says what was used, any number of times; leaving commits it, and gives the rest
        back. Where nothing was said, all that is held is committed, and released if the block raised.
        What was used beyond what is held, or after the reservation had expired, is recorded past the
        limits. `ttl` in seconds from 1 to 86,400, None: 60; `mode` `ENFORCE` or `BEST_EFFORT`.
        Entering raises `DeniedError` when the amount is not there.
        """
        calls = self._opened()
        try:
            request = pb.ReserveRequest(
                customer=customer,
                feature=feature,
                quantity=quantity,
                idempotency_key=key or new_key(),
                dimensions=dimensions,
                mode=mode.value,
                ttl=_duration(ttl),
                product_version=product_version,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"an amount cannot be reserved so: {error}") from error
        return Reservation(calls, self._ends, request, timeout)

    def allowance(  # noqa: PLR0913 - each is a field of the question
        self,
        customer: str,
        feature: str,
        *,
        first: int = FIRST,
        most: int = MOST,
        horizon: float = HORIZON,
        ttl: float | None = None,
        dimensions: Mapping[str, str] | None = None,
        product_version: str = "",
        timeout: float | None = None,
    ) -> Allowance:
        """Decide in this process, from blocks of supply: `async with client.allowance(…) as allowance`.

        `allowance.take(n)` is a plain function, `await allowance.check(n)` asks the gateway where this
        process cannot decide. The first block is to have `first`, each further one what is used in
        `horizon` seconds, up to `most`; `ttl`, from 1 to 3,600 seconds, None: 60, is how long one may
        be used. A process that dies loses what it has not used of its block: that counts until the
        period ends. Entering raises `CallError` where the question itself is wrong.
        """
        calls, policy = self._opened(), self._outages.of(feature)
        try:
            request = pb.TakeAllowanceRequest(
                customer=customer,
                feature=feature,
                dimensions=dimensions,
                product_version=product_version,
                ttl=_duration(ttl),
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"an allowance cannot be asked for so: {error}") from error

        async def ask(quantity: int) -> Verdict:
            return await self.check(
                customer,
                feature,
                quantity,
                dimensions=dimensions,
                product_version=product_version,
                timeout=timeout,
            )

        allowance = Allowance(
            calls,
            self._ends,
            self._returns,
            ask,
            request,
            Sizes(first, most, horizon),
            patience=self._options.attempt_timeout if policy is None else policy.patience,
            timeout=timeout,
        )
        self._allowances.add(allowance)
        return allowance


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e9))
    return found


def new_key() -> str:
    """An idempotency key that nobody else has, also in a process that was forked."""
    return os.urandom(16).hex()
