"""What a client tells of itself to those who measure it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from enforcer.client.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.client.results import Verdict

__all__ = ["Observer", "Observers", "Propagator"]

_log: Final = logging.getLogger("enforcer.client")


class Observer(Protocol):
    """Is called in the client's event loop, so it must not block. What it raises is logged and changes no answer."""

    def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
        """One attempt has ended: `outcome` is "OK" or the reason of the fault, `items` how many checks travelled."""

    def retrying(self, method: str, reason: str, pause: float) -> None:
        """A call failed for `reason` and is tried again in `pause` seconds."""

    def decided(self, feature: str, verdict: Verdict) -> None:
        """A check was answered; `verdict.degraded` tells that it was without counters."""

    def lease_lost(self, feature: str, reason: str) -> None:
        """A seat is gone although its holder is not."""

    def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
        """A block of an allowance has ended: so many decisions used so much of it."""

    def allowance_refilled(self, feature: str, outcome: str, granted: int, seconds: float) -> None:
        """A block was asked for: `outcome` is the verdict's reason, or that of the fault."""

    def allowance_returned(self, feature: str, used: int, returned: int) -> None:
        """A gateway knows what was used of a block."""

    def allowance_unreported(self, feature: str, used: int) -> None:
        """No gateway could be told what was used of a block: it counts as used whole, and is reported as unaccounted."""


@runtime_checkable
class Propagator(Protocol):
    """An observer that is told also when an attempt begins, and says what travels with it. It too must not raise."""

    def place(self) -> object:
        """Where the code is that asks for a check, which may travel later and with others."""

    def calling(
        self, method: str, items: int, places: Sequence[object]
    ) -> Sequence[tuple[str, str]]:
        """An attempt begins, for those who asked at these places; return metadata to send.

        `called` tells of its end, in the same context (`contextvars`).
        """


class Observers:
    """Several as one. False when there are none, so that nothing is spent on them."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = tuple(observers)
        propagators = [one for one in self._all if isinstance(one, Propagator)]
        if len(propagators) > 1:
            raise ConfigurationError("of several observers that trace calls only one can be told")
        self.propagator = propagators[0] if propagators else None
        """The one of them that gives metadata to calls."""

    def __bool__(self) -> bool:
        return bool(self._all)

    def place(self) -> object:
        """See `Propagator`."""
        if self.propagator is None:
            return None
        try:
            return self.propagator.place()
        except Exception:  # noqa: BLE001 - as `_tell`
            _log.exception("an observer failed")
            return None

    def calling(
        self, method: str, items: int, places: Sequence[object]
    ) -> Sequence[tuple[str, str]]:
        """See `Propagator`."""
        if self.propagator is None:
            return ()
        try:
            return self.propagator.calling(method, items, places)
        except Exception:  # noqa: BLE001 - as `_tell`
            _log.exception("an observer failed")
            return ()

    def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.called(method, outcome, seconds, items))

    def retrying(self, method: str, reason: str, pause: float) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.retrying(method, reason, pause))

    def decided(self, feature: str, verdict: Verdict) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.decided(feature, verdict))

    def lease_lost(self, feature: str, reason: str) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.lease_lost(feature, reason))

    def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.decided_locally(feature, decisions, quantity))

    def allowance_refilled(self, feature: str, outcome: str, granted: int, seconds: float) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.allowance_refilled(feature, outcome, granted, seconds))

    def allowance_returned(self, feature: str, used: int, returned: int) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.allowance_returned(feature, used, returned))

    def allowance_unreported(self, feature: str, used: int) -> None:
        """See `Observer`."""
        self._tell(lambda one: one.allowance_unreported(feature, used))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        for one in self._all:
            try:
                what(one)
            except Exception:  # noqa: BLE001 - logged; who measures must not change what is measured
                _log.exception("an observer failed")
