"""The same client for threads: one event loop in a thread of its own, which all callers share."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from enforcer.client.allowances import FIRST, HORIZON, MOST
from enforcer.client.client import Client
from enforcer.client.errors import ClosedError, ConfigurationError
from enforcer.client.options import Options
from enforcer.client.results import Balance, Check, Mode, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    import grpc

    from enforcer.client.allowances import Allowance
    from enforcer.client.errors import ClientError
    from enforcer.client.leases import HeldLease, Lease, LeaseInfo
    from enforcer.client.observer import Observer
    from enforcer.client.policy import Policy
    from enforcer.client.reservations import HeldAmount, Reservation

__all__ = ["SyncAllowance", "SyncClient", "SyncHeldLease", "SyncLease", "SyncReservation"]

_T = TypeVar("_T")
_DEFAULT: Final = Options()


class SyncClient:
    """Asks a gateway from threads, any number of them: `with SyncClient() as client`.

    The arguments are those of `Client`, and so is what the methods do. Checks of different threads
    travel together. In a process that forks, open it after the fork.
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
        self._client = Client(
            endpoints,
            api_key,
            credentials=credentials,
            options=options,
            policies=policies,
            observers=observers,
        )
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._closed = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Start the thread, for those who cannot use `with`; `close` is owed then."""
        with self._lock:
            if self._closed or self._loop is not None:
                raise ClosedError("a client is opened once: make another one")
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(_quiet)
            self._thread = threading.Thread(
                target=_serve, args=(loop,), name="metergate-client", daemon=True
            )
            self._thread.start()
            self._loop, self._process = loop, os.getpid()
        self.run(self._open())

    async def _open(self) -> None:
        self._client.open()

    def close(self) -> None:
        """Refuse new calls, wait for what was sent, close the connections and end the thread."""
        with self._lock:
            if self._closed or self._loop is None or self._thread is None:
                self._closed = True
                return
            self._closed = True
        if self._process == os.getpid():
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run something in the client's event loop and wait for it. Not from that loop itself."""
        problem: Exception | None = None
        if self._closed or self._loop is None:
            problem = ClosedError("the client is not open: use it in `with client:`")
        elif self._process != os.getpid():
            problem = ConfigurationError(
                "the client was opened before this process was forked: open one after the fork"
            )
        elif threading.current_thread() is self._thread:
            problem = ConfigurationError("this would wait for itself: use Client in event loops")
        if problem is not None or self._loop is None:
            work.close()
            raise problem or AssertionError
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the waiting thread: nobody waits any more.
            future.cancel()
            raise

    @property
    def uncounted(self) -> int:
        """How many uses, allowed by `FailOpen`, still have to be counted."""
        return self._client.uncounted

    @property
    def unreported(self) -> int:
        """How much was used from allowances and no gateway could be told."""
        return self._client.unreported

    def check(  # noqa: PLR0913 - each is a field of the question
        self,
        customer: str,
        feature: str,
        quantity: int = 1,
        *,
        key: str | None = None,
        dimensions: Mapping[str, str] | None = None,
        mode: Mode = Mode.ENFORCE,
        product_version: str = "",
        timeout: float | None = None,
    ) -> Verdict:
        """See `Client.check`."""
        return self.run(
            self._client.check(
                customer,
                feature,
                quantity,
                key=key,
                dimensions=dimensions,
                mode=mode,
                product_version=product_version,
                timeout=timeout,
            )
        )

    def check_each(
        self, checks: Sequence[Check], *, timeout: float | None = None
    ) -> list[Verdict | ClientError]:
        """See `Client.check_each`."""
        return self.run(self._client.check_each(checks, timeout=timeout))

    def check_all(self, checks: Sequence[Check], *, timeout: float | None = None) -> list[Verdict]:
        """See `Client.check_all`."""
        return self.run(self._client.check_all(checks, timeout=timeout))

    def balance(
        self,
        customer: str,
        feature: str,
        *,
        product_version: str = "",
        timeout: float | None = None,
    ) -> Balance:
        """See `Client.balance`."""
        return self.run(
            self._client.balance(
                customer, feature, product_version=product_version, timeout=timeout
            )
        )

    def leases(
        self, customer: str, feature: str, *, timeout: float | None = None
    ) -> list[LeaseInfo]:
        """See `Client.leases`."""
        return self.run(self._client.leases(customer, feature, timeout=timeout))

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
        on_loss: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> SyncLease:
        """Hold a seat: `with client.lease(…) as held`. See `Client.lease`.

        A thread cannot be cancelled: it looks at `held.lost` or calls `held.ensure()`. `on_loss` is
        called with the reason in the client's thread, so it must not block. Leaving a block whose
        seat was lost raises `LeaseLostError`, unless it raised something itself.
        """

        async def make() -> Lease:
            return self._client.lease(
                customer,
                feature,
                holder=holder,
                ttl=ttl,
                key=key,
                dimensions=dimensions,
                product_version=product_version,
                cancel_on_loss=False,
                timeout=timeout,
            )

        return SyncLease(self, self.run(make()), on_loss)

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
    ) -> SyncReservation:
        """Hold an amount: `with client.reserve(…) as held`. See `Client.reserve`."""

        async def make() -> Reservation:
            return self._client.reserve(
                customer,
                feature,
                quantity,
                ttl=ttl,
                key=key,
                dimensions=dimensions,
                mode=mode,
                product_version=product_version,
                timeout=timeout,
            )

        return SyncReservation(self, self.run(make()))

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
    ) -> SyncAllowance:
        """Decide in this process: `with client.allowance(…) as allowance`. See `Client.allowance`."""

        async def make() -> Allowance:
            return self._client.allowance(
                customer,
                feature,
                first=first,
                most=most,
                horizon=horizon,
                ttl=ttl,
                dimensions=dimensions,
                product_version=product_version,
                timeout=timeout,
            )

        return SyncAllowance(self, self.run(make()))


class SyncAllowance:
    """`with client.allowance(…) as allowance`. Made by `SyncClient.allowance`, entered once; threads share it."""

    def __init__(self, client: SyncClient, allowance: Allowance) -> None:
        self._client, self._allowance = client, allowance
        allowance.share()

    def __enter__(self) -> Self:
        self._client.run(self._allowance.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._client.run(self._allowance.close())

    @property
    def left(self) -> int:
        """How much can be decided here, in the feature's own unit."""
        return self._allowance.left

    def take(self, quantity: int = 1) -> bool:
        """See `Allowance.take`."""
        allowance = self._allowance
        with allowance.lock:
            return allowance.take(quantity)

    def check(self, quantity: int = 1) -> Verdict:
        """See `Allowance.check`."""
        if self.take(quantity):
            return Verdict(allowed=True, granted=quantity)
        return self._client.run(self._allowance.check(quantity))


class SyncHeldLease:
    """The seat, as a thread sees it."""

    def __init__(self, client: SyncClient, held: HeldLease) -> None:
        self._client, self._held = client, held
        self.verdict, self.info, self.token = held.verdict, held.info, held.token

    @property
    def lost(self) -> bool:
        """The seat is gone: whatever needs it has to stop."""
        return self._held.lost

    @property
    def lost_because(self) -> str:
        """Empty while it is held, else the reason."""
        return self._held.lost_because

    def ensure(self) -> None:
        """Raise `LeaseLostError` if the seat is gone."""
        self._held.ensure()

    def wait_lost(self, timeout: float | None = None) -> str:
        """Wait until the seat is gone, at most `timeout` seconds; return why, or "" if it is held."""

        async def wait() -> str:
            try:
                return await asyncio.wait_for(self._held.wait_lost(), timeout)
            except TimeoutError:
                return self._held.lost_because

        return self._client.run(wait())


class SyncLease:
    """`with client.lease(…) as held`. Made by `SyncClient.lease`, entered once."""

    def __init__(
        self, client: SyncClient, lease: Lease, on_loss: Callable[[str], None] | None
    ) -> None:
        self._client, self._lease, self._on_loss = client, lease, on_loss
        self._held: HeldLease

    def __enter__(self) -> SyncHeldLease:
        self._held = self._client.run(self._lease.__aenter__())
        if self._on_loss is not None:
            self._held.on_loss = self._on_loss
        return SyncHeldLease(self._client, self._held)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._client.run(self._lease.__aexit__(kind, error, trace))
        if error is None:
            self._held.ensure()


class SyncReservation:
    """`with client.reserve(…) as held`. Made by `SyncClient.reserve`, entered once."""

    def __init__(self, client: SyncClient, reservation: Reservation) -> None:
        self._client, self._reservation = client, reservation

    def __enter__(self) -> HeldAmount:
        return self._client.run(self._reservation.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._client.run(self._reservation.__aexit__(kind, error, trace))


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out what grpc.aio throws, harmlessly, when several loops of a process share its poller."""
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
