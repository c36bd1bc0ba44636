"""Events from elsewhere as usage: each is recorded once, however often it is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enforcer.core.events import Measured, Unmeasurable, measure
from enforcer.errors import Code, DefinitionsUnavailableError, MetergateError
from enforcer.gateway.cloudevents import Event, Unread, identity
from meter.v1 import usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.core.events import EventMeter
    from enforcer.gateway.gateway import Gateway
    from enforcer.ports.definitions import Definitions

__all__ = ["KEPT_SECONDS", "Events", "Refusal"]

KEPT_SECONDS = 1.0
"""A changed declaration of events counts after this long at the latest."""
MOST_TENANTS = 1_000
MOST_IN_REPORT = 1_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was not recorded, or not for one of its features. `index` is its place in the request."""

    index: int
    id: str
    source: str
    feature: str
    code: int
    reason: str
    message: str

    @property
    def retryable(self) -> bool:
        """Whether sending the same again may succeed."""
        return self.code in (Code.UNAVAILABLE, Code.DATA_LOSS)


class Events:
    """Records events past every limit, as `UsageService.Report` does: they have happened."""

    def __init__(
        self,
        definitions: Definitions,
        gateway: Gateway,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._definitions, self._gateway, self._clock = definitions, gateway, clock
        self._known: dict[str, tuple[float, dict[str, list[EventMeter]]]] = {}

    async def record(self, tenant: str, events: Sequence[Event | Unread]) -> list[Refusal]:
        """Record each event for every feature it feeds; return what was refused, in order. All else is durable."""
        meters = await self._meters(tenant)
        refused: list[Refusal] = []
        wanted: list[tuple[int, Event, usage_pb2.UsageEvent]] = []
        for index, event in enumerate(events):
            if isinstance(event, Unread):
                error = event.error
                refused.append(
                    Refusal(
                        index,
                        event.id,
                        event.source,
                        "",
                        error.code.value,
                        error.reason,
                        error.message,
                    )
                )
                continue
            try:
                found = measure(event.type, event.data, meters.get(event.type, ()))
            except Unmeasurable as error:
                refused.append(_refusal(index, event, error.feature, Code.INVALID_ARGUMENT, error))
                continue
            wanted += [(index, event, _usage(event, one)) for one in found if one.quantity]
        for start in range(0, len(wanted), MOST_IN_REPORT):
            refused += await self._report(tenant, wanted[start : start + MOST_IN_REPORT])
        return sorted(refused, key=lambda one: one.index)

    async def _report(
        self, tenant: str, part: list[tuple[int, Event, usage_pb2.UsageEvent]]
    ) -> list[Refusal]:
        request = usage_pb2.ReportRequest(events=[usage for _, _, usage in part])
        try:
            response = await self._gateway.report(tenant, request)
        except MetergateError as error:
            return [
                _refusal(index, event, usage.feature, error.code, error)
                for index, event, usage in part
            ]
        return [
            Refusal(
                index,
                event.id,
                event.source,
                usage.feature,
                outcome.code,
                outcome.reason,
                _explained(outcome.reason, outcome.message),
            )
            for (index, event, usage), outcome in zip(part, response.outcomes, strict=True)
            if not outcome.accepted
        ]

    async def _meters(self, tenant: str) -> dict[str, list[EventMeter]]:
        """By event type. While the definitions are away, what was known goes on counting."""
        known = self._known.get(tenant)
        if known is not None and self._clock() < known[0]:
            return known[1]
        try:
            found = await self._definitions.event_meters(tenant)
        except DefinitionsUnavailableError:
            if known is None:
                raise
            return known[1]
        by_type: dict[str, list[EventMeter]] = {}
        for meter in found:
            by_type.setdefault(meter.event_type, []).append(meter)
        if len(self._known) >= MOST_TENANTS:
            self._known.clear()
        self._known[tenant] = self._clock() + KEPT_SECONDS, by_type
        return by_type


def _usage(event: Event, measured: Measured) -> usage_pb2.UsageEvent:
    usage = usage_pb2.UsageEvent(
        customer=event.subject,
        feature=measured.feature,
        quantity=measured.quantity,
        idempotency_key=identity(event),
        dimensions=measured.dimensions,
    )
    if event.at_ms:
        usage.occurred_at.FromMilliseconds(event.at_ms)
    return usage


def _refusal(
    index: int, event: Event, feature: str, code: Code, error: Unmeasurable | MetergateError
) -> Refusal:
    return Refusal(index, event.id, event.source, feature, code.value, error.reason, error.message)


def _explained(reason: str, message: str) -> str:
    if reason != "BAD_TIME":
        return message
    return (
        f"{message.replace('occurred_at', 'time')}; older usage goes through `metergate backfill`"
    )
