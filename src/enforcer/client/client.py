"""The client for asyncio: what a product calls."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final, Self

import grpc
import grpc.aio

from enforcer.client.calls import Calls
from enforcer.client.channel import api_key_of, channel_options, target_of
from enforcer.client.coalesce import Coalescer
from enforcer.client.errors import (
    CODES,
    ClientError,
    ClosedError,
    ConfigurationError,
    call_error,
)
from enforcer.client.observer import Observers
from enforcer.client.options import MOST_ITEMS, Options
from enforcer.client.results import Balance, Check, Mode, Verdict, balance_of, verdict_of
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from enforcer.client.observer import Observer

__all__ = ["Client"]

_DEFAULT: Final = Options()


class Client:
    """Asks a gateway. Opened by `async with`; belongs to the event loop it was opened in.

    `endpoints` is HOST:PORT, or several addresses, over which calls are balanced; None: those in
    METERGATE_ENDPOINT. `api_key` None: the one in METERGATE_API_KEY. `credentials` is what gRPC needs
    for TLS (`grpc.ssl_channel_credentials()`); None: plain text. Nothing connects before the first
    call. In a process that forks, open it after the fork.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        api_key: str | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Options = _DEFAULT,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._target, self._api_key = target_of(endpoints), api_key_of(api_key)
        self._credentials, self._options = credentials, options
        self._observers = Observers(observers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: Calls
        self._coalescer: Coalescer
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
        channel = (
            grpc.aio.insecure_channel(self._target, arguments)
            if self._credentials is None
            else grpc.aio.secure_channel(self._target, self._credentials, arguments)
        )
        self._calls = Calls(channel, self._api_key, self._options, self._observers)
        self._coalescer = Coalescer(self._calls)

    async def close(self) -> None:
        """Refuse new calls, wait for checks that were sent, and close the connections."""
        if self._closed or self._loop is None:
            self._closed = True
            return
        self._closed = True
        await self._coalescer.close()
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

        Raises `CallError` where the question could not be decided, `OverloadedError` when too many
        checks wait. Cancelling does not call a check back that was sent: it may count.
        """
        request = _request(customer, feature, quantity, key, dimensions, mode, product_version)
        return await self._check(request, timeout)

    async def _check(self, request: pb.CheckRequest, timeout: float | None) -> Verdict:  # noqa: ASYNC109
        calls = self._opened()
        deadline = time.monotonic() + (self._options.timeout if timeout is None else timeout)
        answer = await calls.until(
            "Check", lambda: self._coalescer.attempt(request, deadline), deadline
        )
        verdict = verdict_of(answer)
        if self._observers:
            self._observers.decided(request.feature, verdict)
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
        found = await asyncio.gather(
            *(self._check(_of(one), timeout) for one in checks), return_exceptions=True
        )
        answers: list[Verdict | ClientError] = []
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
        request = pb.CheckBatchRequest(items=[_of(one) for one in checks], atomic=True)
        answer = await calls.call(
            "CheckBatch", calls.stub.CheckBatch, request, timeout, len(checks)
        )
        verdicts = []
        for one, item in zip(checks, answer.items, strict=True):
            if item.WhichOneof("outcome") != "response":
                fault = item.fault
                raise call_error(
                    CODES.get(fault.code, grpc.StatusCode.UNKNOWN),
                    fault.message,
                    reason=fault.reason,
                )
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


def new_key() -> str:
    """An idempotency key that nobody else has, also in a process that was forked."""
    return secrets.token_hex(16)


def _request(
    customer: str,
    feature: str,
    quantity: int,
    key: str | None,
    dimensions: Mapping[str, str] | None,
    mode: Mode,
    product_version: str,
) -> pb.CheckRequest:
    """A check as it travels. Raise `ConfigurationError` for what cannot."""
    try:
        return pb.CheckRequest(
            customer=customer,
            feature=feature,
            quantity=quantity,
            # A check that consumes nothing needs none.
            idempotency_key=key or ("" if mode is Mode.CHECK_ONLY else new_key()),
            dimensions=dimensions,
            mode=mode.value,
            product_version=product_version,
        )
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            "a check has texts for customer, feature, key, dimensions and product_version, and a "
            f"quantity from 1 to 2^53 - 1: {error}"
        ) from error


def _of(check: Check) -> pb.CheckRequest:
    return _request(
        check.customer,
        check.feature,
        check.quantity,
        check.key,
        check.dimensions,
        check.mode,
        check.product_version,
    )
