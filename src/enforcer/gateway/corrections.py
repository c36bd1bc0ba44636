"""Void and amend, the audit trail, and the sealing of months."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from enforcer.core.parcels import parcel, quantity_of
from enforcer.errors import InternalError, InvalidRequestError, NotFoundError, NotPossibleError
from enforcer.gateway.carrying import refusal
from enforcer.gateway.replies import set_ms
from enforcer.gateway.requests import key_of
from enforcer.gateway.requests import quantity_of as asked_quantity
from enforcer.ports.corrections import Intent, KeyTaken, Place, SealRule, State
from meter.core.records import RecordType, decode_body, decode_effects
from meter.core.windows import QUARTER
from meter.v1 import ledger_pb2, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from enforcer.gateway.carrying import Carrier
    from enforcer.ports.corrections import Corrections, Listed
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.definitions import Caller
    from enforcer.ports.usage import Records

__all__ = ["Correcting", "CorrectionRules", "check_reason", "ended", "fingerprint", "required_key"]

DAY = 86_400_000
SEALABLE_AFTER = DAY + 3_600_000
"""Reports take events of the last 24 hours: after that nothing but corrections concerns a month."""
MOST_LISTED = 1_000
LONGEST_REASON = 500
TRIES = 20
_SCOPE = "record"
_BY_DIFFERENCE = ("sum", "count")
_LONGEST_MONTH = 7
_CORRECTABLE = (
    RecordType.USAGE,
    RecordType.COMMIT,
    RecordType.BACKFILL,
    RecordType.ALLOWANCE_USE,
)
_KINDS = {
    RecordType.VOID: usage_pb2.CORRECTION_KIND_VOID,
    RecordType.AMEND: usage_pb2.CORRECTION_KIND_AMEND,
    RecordType.BACKFILL: usage_pb2.CORRECTION_KIND_BACKFILL,
}
_STATES = {
    State.PENDING: usage_pb2.CORRECTION_STATE_PENDING,
    State.APPLIED: usage_pb2.CORRECTION_STATE_APPLIED,
    State.REFUSED: usage_pb2.CORRECTION_STATE_REFUSED,
}


@dataclass(frozen=True, slots=True)
class CorrectionRules:
    """Bounds. `buckets` of the deployment; backfills reach `backfill_days` back; see `SealRule` for `seal_days`."""

    buckets: int
    backfill_days: int = 400
    seal_days: int = 0


class Correcting:
    """The use cases. `now_ms` is for the age of months; the store's own clock dates the records.

    `aggregations` says how features of a tenant add up, where that is not `sum`: see `Definitions`.
    """

    def __init__(
        self,
        corrections: Corrections,
        carrier: Carrier,
        counters: CounterStore,
        records: Records,
        rules: CorrectionRules,
        aggregations: Callable[[str, str], Awaitable[dict[str, tuple[str, str]]]],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._list, self._carrier, self._counters = corrections, carrier, counters
        self._records, self._rules, self._now_ms = records, rules, now_ms
        self._seals = SealRule(rules.seal_days)
        self._aggregations = aggregations

    async def void(self, caller: Caller, request: usage_pb2.VoidRequest) -> usage_pb2.VoidResponse:
        """`UsageService.Void`."""
        listed, replayed = await self._correct(
            caller, RecordType.VOID, request.record, 0, request.reason, request.idempotency_key
        )
        return usage_pb2.VoidResponse(correction=_message(listed), replayed=replayed)

    async def amend(
        self, caller: Caller, request: usage_pb2.AmendRequest
    ) -> usage_pb2.AmendResponse:
        """`UsageService.Amend`."""
        listed, replayed = await self._correct(
            caller,
            RecordType.AMEND,
            request.record,
            asked_quantity(request.quantity, least=0),
            request.reason,
            request.idempotency_key,
        )
        return usage_pb2.AmendResponse(correction=_message(listed), replayed=replayed)

    async def _correct(
        self,
        caller: Caller,
        kind: RecordType,
        record: usage_pb2.RecordPlace,
        quantity: int,
        reason: str,
        key: str,
    ) -> tuple[Listed, bool]:
        """The newest version wins: one that another call has listed meanwhile is what this one corrects."""
        check_reason(reason)
        required_key(key)
        bucket, target = await self._place(record)
        finger = fingerprint(kind.value, bucket, *target, quantity)
        for _ in range(TRIES):
            known = await self._list.by_keys(caller.tenant, [(_SCOPE, key)])
            if known:
                return await self._ended(known[0], finger), True
            version, latest = await self._list.latest(bucket, target)
            if latest is not None and latest.state is State.PENDING:
                await self._carrier.finish(bucket)
                continue
            base = await self._base(caller.tenant, bucket, target, latest)
            if kind is RecordType.VOID and not base.counts:
                raise NotPossibleError("RECORD_VOIDED", "the record is void already")
            intent = replace(
                base,
                kind=kind,
                key=key,
                fingerprint=finger,
                actor=caller.key_id,
                reason=reason,
                quantity=quantity,
                version=version + 1,
            )
            try:
                await self._list.add([intent], self._seals)
            except KeyTaken:
                continue
            (listed,) = await self._list.by_keys(caller.tenant, [(_SCOPE, key)])
            return await self._ended(listed, finger), False
        raise InternalError("the record is corrected by others all the time")

    async def _place(self, record: usage_pb2.RecordPlace) -> tuple[int, Place]:
        """A place that the bucket has reached."""
        bucket, place = record.bucket, Place(record.generation, record.sequence)
        if bucket >= self._rules.buckets or not place.generation:
            raise InvalidRequestError(
                "BAD_RECORD",
                f"record: bucket is below {self._rules.buckets}, generation is from 1",
            )
        shown = await self._counters.slots(bucket, [])
        if place > (shown.generation, shown.last):
            raise NotFoundError(
                "RECORD_NOT_FOUND",
                f"there is no record {place.generation}-{place.sequence} in bucket {bucket}",
            )
        return bucket, place

    async def _base(self, tenant: str, bucket: int, target: Place, latest: Listed | None) -> Intent:
        """What there is to correct: the record as it counts now."""
        if latest is not None:
            old = latest.intent
            if old.tenant != tenant:
                raise NotFoundError("RECORD_NOT_FOUND", "there is no such record")
            if await self._needs_raw(old):
                found = await self._find(tenant, bucket, target)
                _check_window(old.at_ms, found)
            counts = old.kind is not RecordType.VOID
            return replace(old, parcels=latest.after, counts=counts)
        found = await self._find(tenant, bucket, target)
        body, effects = decode_body(found.body), decode_effects(found.effects)
        if effects.type not in _CORRECTABLE:
            raise NotPossibleError(
                "NOT_CORRECTABLE",
                f"the record is a {effects.type.name}: usage can be corrected, of a check, report, "
                "commit or backfill",
            )
        entries = [(one.limit, one.period, one.used) for one in effects.entries]
        drawn = parcel(effects.granted, effects.overage, entries)
        base = Intent(
            tenant=tenant,
            bucket=bucket,
            kind=effects.type,
            scope=_SCOPE,
            key="",
            fingerprint="",
            actor="",
            reason="",
            account=body.a,
            customer=body.c,
            feature=body.f,
            meter=body.m,
            at_ms=body.at or effects.now,
            quantity=effects.granted,
            dimensions=body.d,
            target=target,
            parcels=(drawn,) if drawn.quantity else (),
            counts=True,
        )
        if await self._needs_raw(base):
            _check_window(base.at_ms, found)
        return base

    async def _find(self, tenant: str, bucket: int, target: Place) -> ledger_pb2.FindRecordResponse:
        """Raise `RAW_EXPIRED` when the record was dropped, whatever its meter: what it drew from is not known."""
        return await self._records.find_record(
            ledger_pb2.FindRecordRequest(
                tenant=tenant,
                bucket=bucket,
                generation=target.generation,
                sequence=target.sequence,
            )
        )

    async def _needs_raw(self, base: Intent) -> bool:
        """Sums and counts are corrected by the difference; the rest is worked out anew from a window's records."""
        way, _ = (await self._aggregations(base.tenant, base.feature)).get(
            base.feature, ("sum", "")
        )
        return way not in _BY_DIFFERENCE

    async def _ended(self, listed: Listed, finger: str) -> Listed:
        return await ended(self._list, self._carrier, listed, finger)

    # -- the audit trail

    async def page(
        self, caller: Caller, request: usage_pb2.ListCorrectionsRequest
    ) -> usage_pb2.ListCorrectionsResponse:
        """`UsageService.ListCorrections`."""
        most, before = page_of(request.page_size, request.page_token)
        record = None
        if request.HasField("record"):
            place = Place(request.record.generation, request.record.sequence)
            record = request.record.bucket, place
        found = await self._list.page(caller.tenant, request.customer, record, before, most)
        response = usage_pb2.ListCorrectionsResponse(corrections=[_message(one) for one in found])
        if len(found) == most:
            response.next_page_token = str(found[-1].id)
        return response

    # -- seals

    async def seal(
        self, caller: Caller, request: usage_pb2.SealPeriodRequest
    ) -> usage_pb2.SealPeriodResponse:
        """`UsageService.SealPeriod`. What was listed before is carried out before the answer."""
        start, end = _month(request.month)
        if end + SEALABLE_AFTER > self._now_ms():
            raise NotPossibleError(
                "PERIOD_OPEN",
                f"{request.month} can be sealed 25 hours after its end: reports may concern it",
            )
        sealed = await self._list.seal(caller.tenant, request.account, start, end, caller.key_id)
        await self._carrier.finish_all()
        response = usage_pb2.SealPeriodResponse(sealed=sealed)
        set_ms(response.start, start)
        set_ms(response.end, end)
        return response


def _check_window(at_ms: int, found: ledger_pb2.FindRecordResponse) -> None:
    start = at_ms // 1000 // QUARTER * QUARTER
    if start < found.retained_since:
        raise NotPossibleError(
            "RAW_EXPIRED",
            f"the window from {datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%MZ} cannot be worked out "
            "anew: raw records of it were dropped, which are kept for METERGATE_METER_RAW_DAYS days",
        )


async def ended(corrections: Corrections, carrier: Carrier, listed: Listed, finger: str) -> Listed:
    """The entry once it is carried out. Raise why it was not, or that its key came with other parameters."""
    intent = listed.intent
    if intent.fingerprint != finger:
        raise InvalidRequestError(
            "IDEMPOTENCY_MISMATCH",
            f"idempotency key {intent.key!r} was used with other parameters",
            idempotency_key=intent.key,
        )
    if listed.state is State.PENDING:
        await carrier.finish(intent.bucket)
        (listed,) = await corrections.by_keys(intent.tenant, [(intent.scope, intent.key)])
    if listed.state is State.REFUSED:
        raise refusal(listed.refused)
    return listed


def fingerprint(*parameters: object) -> str:
    """Of a call's parameters, length-safe."""
    finger = hashlib.blake2b(digest_size=16)
    for parameter in parameters:
        part = str(parameter).encode()
        finger.update(b"%d:" % len(part))
        finger.update(part)
    return finger.hexdigest()


def check_reason(reason: str) -> None:
    """Nobody can tell later why, unless it was said."""
    if not 0 < len(reason) <= LONGEST_REASON or "\0" in reason:
        raise InvalidRequestError(
            "BAD_REASON", f"reason must have 1 to {LONGEST_REASON} characters"
        )


def required_key(key: str) -> str:
    """A correction is made once: its key says which one it is."""
    if not key or "\0" in key:
        raise InvalidRequestError(
            "BAD_IDEMPOTENCY_KEY", "a correction needs an idempotency_key to be made once"
        )
    return key_of(key)


def page_of(size: int, token: str) -> tuple[int, int]:
    """How many entries, and the id where the page before ended; 0 for the first page."""
    most = size or 100
    if not 0 < most <= MOST_LISTED:
        raise InvalidRequestError(
            "BAD_PAGE", f"page_size is {most}, must be from 1 to {MOST_LISTED}"
        )
    if token and not (token.isascii() and token.isdigit() and len(token) < 19):  # noqa: PLR2004
        raise InvalidRequestError("BAD_PAGE", "this is no page token of this list")
    return most, int(token or 0)


def _month(text: str) -> tuple[int, int]:
    """[start, end) of a calendar month in UTC, in ms."""
    try:
        start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRequestError(
            "BAD_MONTH", f"month is {text!r}, must be like 2026-10"
        ) from error
    if len(text) != _LONGEST_MONTH or start.year < 1970:  # noqa: PLR2004 - where times begin
        raise InvalidRequestError("BAD_MONTH", f"month is {text!r}, must be like 2026-10")
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp()) * 1000, int(end.timestamp()) * 1000


def _message(one: Listed) -> usage_pb2.Correction:
    intent = one.intent
    message = usage_pb2.Correction(
        kind=_KINDS[intent.kind],
        state=_STATES[one.state],
        version=intent.version,
        customer=intent.customer,
        feature=intent.feature,
        previous_quantity=quantity_of(intent.parcels),
        quantity=intent.quantity,
        adjustment=one.sealed,
        actor=intent.actor,
        reason=intent.reason,
        idempotency_key=intent.key,
        refused=one.refused,
    )
    for field, place in ((message.target, intent.target), (message.record, one.place)):
        if place is not None:
            field.bucket, field.generation, field.sequence = intent.bucket, *place
    set_ms(message.occurred_at, intent.at_ms)
    set_ms(message.at, one.listed_ms)
    return message
