"""Usage that is older than reports take, and what becomes of events that are too old even for that."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.json_format import MessageToJson, Parse

from enforcer.core.program import Reason
from enforcer.errors import InternalError, InvalidRequestError, MetergateError, NotFoundError
from enforcer.gateway.asked import Name
from enforcer.gateway.corrections import check_reason, ended, fingerprint, page_of, required_key
from enforcer.gateway.replies import set_ms
from enforcer.gateway.requests import NANOS, dimensions_of, named, quantity_of
from enforcer.ports.corrections import Intent, KeyTaken, ReviewItem, SealRule
from meter.core.records import RecordType, decode_body
from meter.v1 import ledger_pb2, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from enforcer.core.program import Program
    from enforcer.gateway.carrying import Carrier
    from enforcer.gateway.corrections import CorrectionRules
    from enforcer.gateway.programs import Programs
    from enforcer.ports.corrections import Corrections, Listed
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.definitions import Caller
    from enforcer.ports.usage import Records
    from meter.core.records import Body

__all__ = ["Backfilling"]

DAY = 86_400_000
OLDEST_REPORT = DAY
STORED_EARLY, STORED_LATE = 600_000, 8 * DAY
"""A report's record is in raw at most so long after its event: a day, and a week for a meter that is behind."""
MOST_EVENTS = 1_000
LONGEST_REASON = 500
TRIES = 20
ASK_FIRST = (Reason.NOT_ENTITLED, Reason.SUSPENDED)


class _Event(NamedTuple):
    """One event, checked, with the terms of its customer at its time."""

    name: Name
    program: Program
    quantity: int
    key: str
    dimensions: Mapping[str, str]
    at_ms: int

    @property
    def id(self) -> tuple[str, str]:
        """Scope and key: a key names one event of an account's feature, as in reports."""
        return json.dumps([self.program.account_key, self.name.feature]), self.key

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            self.name.customer, self.quantity, self.at_ms, sorted(self.dimensions.items())
        )


_Outcome = usage_pb2.EventOutcome | MetergateError


class Backfilling:
    """The use cases. `now_ms` bounds the age of events; the store's own clock dates the records."""

    def __init__(
        self,
        corrections: Corrections,
        carrier: Carrier,
        counters: CounterStore,
        programs: Programs,
        records: Records,
        rules: CorrectionRules,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._list, self._carrier, self._counters = corrections, carrier, counters
        self._programs, self._records, self._rules = programs, records, rules
        self._now_ms, self._seals = now_ms, SealRule(rules.seal_days)

    async def backfill(
        self, caller: Caller, request: usage_pb2.BackfillRequest
    ) -> usage_pb2.BackfillResponse:
        """`UsageService.Backfill`."""
        if not 0 < len(request.events) <= MOST_EVENTS:
            raise InvalidRequestError(
                "BAD_BATCH", f"a backfill has 1 to {MOST_EVENTS} events, not {len(request.events)}"
            )
        if len(request.reason) > LONGEST_REASON:
            check_reason(request.reason)
        outcomes: list[_Outcome | None] = []
        events: dict[int, _Event] = {}
        old: dict[int, _Event] = {}
        for place, event in enumerate(request.events):
            outcome: _Outcome | None = None
            try:
                checked = await self._event(caller.tenant, event)
            except MetergateError as error:
                outcome = error
            else:
                far = self._now_ms() - checked.at_ms > self._rules.backfill_days * DAY
                (old if far else events)[place] = checked
            outcomes.append(outcome)
        if old:
            known = await self._known(caller.tenant, old)  # accepted by a person before
            events |= {place: event for place, event in old.items() if event.id in known}
            waiting = {
                place: _waiting(caller, request.events[place], self._rules.backfill_days)
                for place in old.keys() - events.keys()
            }
            kept = await self._list.put_in_review(caller.tenant, list(waiting.values()))
            for place, item in waiting.items():
                outcomes[place] = _held(waits=item.key in kept)
        for place, outcome in (await self._book(caller, events, request.reason)).items():
            outcomes[place] = outcome
        return usage_pb2.BackfillResponse(outcomes=[_told(outcome) for outcome in outcomes])

    async def _event(self, tenant: str, event: usage_pb2.UsageEvent) -> _Event:
        named(event.customer, event.feature)
        key = required_key(event.idempotency_key)
        if not event.HasField("occurred_at"):
            raise InvalidRequestError("BAD_TIME", "occurred_at says when it happened")
        stamp = event.occurred_at
        at = stamp.seconds * 1000 + stamp.nanos // 1_000_000
        age = self._now_ms() - at
        if at < 0 or not 0 <= stamp.nanos < NANOS or age < OLDEST_REPORT:
            raise InvalidRequestError(
                "BAD_TIME",
                "occurred_at must be more than 24 h ago and after 1970: report what is newer",
            )
        quantity = quantity_of(event.quantity if event.HasField("quantity") else None)
        dimensions = dimensions_of(event.dimensions)
        name = Name(tenant, event.customer, event.feature)
        program = await self._programs.at(name, at)
        if program.lease_ttl_ms:
            raise InvalidRequestError(
                "MODE_NOT_SUPPORTED", f"{event.feature!r} has seats: leases leave no usage"
            )
        if not program.countable and program.verdict not in ASK_FIRST:
            raise InvalidRequestError(
                "MODE_NOT_SUPPORTED", f"{event.feature!r} has no quantity to record"
            )
        return _Event(name, program, quantity, key, dimensions, at)

    async def _book(
        self, caller: Caller, events: dict[int, _Event], reason: str
    ) -> dict[int, _Outcome]:
        """List what is new, carry it out, and tell of each what became of it."""
        outcomes: dict[int, _Outcome] = {}
        left: dict[int, _Event] = {}
        for place, event in events.items():
            verdict = event.program.verdict
            if verdict is Reason.ALLOWED:
                left[place] = event
            else:
                outcomes[place] = usage_pb2.EventOutcome(
                    code=9,
                    reason=verdict.name,
                    message="the customer might not use this feature at that time",
                )
        made: set[tuple[str, str]] = set()
        for _ in range(TRIES):
            known = await self._known(caller.tenant, left)
            reported = await self._reported(
                caller.tenant, {p: e for p, e in left.items() if e.id not in known}
            )
            outcomes |= reported
            new = {
                event.id: event
                for place, event in left.items()
                if event.id not in known and place not in reported
            }
            if not new:
                break
            try:
                await self._list.add(
                    [_intent(caller, event, reason) for event in new.values()], self._seals
                )
                made |= new.keys()
            except KeyTaken:
                continue
        else:
            raise InternalError("others list the same events all the time")
        for bucket in {event.program.bucket for event in left.values()}:
            await self._carrier.finish(bucket)
        known = await self._known(caller.tenant, left)
        for place, event in left.items():
            if place in reported:
                continue
            try:
                listed = await ended(self._list, self._carrier, known[event.id], event.fingerprint)
                outcomes[place] = _accepted(listed, replayed=event.id not in made)
            except MetergateError as error:
                outcomes[place] = error
            made.discard(event.id)
        return outcomes

    async def _known(
        self, tenant: str, events: Mapping[int, _Event]
    ) -> dict[tuple[str, str], Listed]:
        ids = list({event.id: None for event in events.values()})
        found = await self._list.by_keys(tenant, ids) if ids else ()
        return {(one.intent.scope, one.intent.key): one for one in found}

    async def _reported(self, tenant: str, events: Mapping[int, _Event]) -> dict[int, _Outcome]:
        """Events whose key a report has used: they were counted then."""
        buckets: dict[int, dict[int, _Event]] = defaultdict(dict)
        for place, event in events.items():
            buckets[event.program.bucket][place] = event
        outcomes: dict[int, _Outcome] = {}
        for bucket, here in buckets.items():
            last = await self._counters.slots(bucket, [])
            times = [event.at_ms for event in here.values()]
            found = await self._records.find_keys(
                ledger_pb2.FindKeysRequest(
                    tenant=tenant,
                    bucket=bucket,
                    keys=sorted({event.key for event in here.values()}),
                    stored_from_ms=max(0, min(times) - STORED_EARLY),
                    stored_to_ms=max(times) + STORED_LATE,
                    generation=last.generation,
                    last_sequence=last.last,
                )
            )
            bodies = [(one, decode_body(one.body)) for one in found.records]
            used = {(body.a, body.f, body.k): (one, body) for one, body in bodies}
            for place, event in here.items():
                record = used.get((event.program.account_key, event.name.feature, event.key))
                if record is not None:
                    outcomes[place] = _was_reported(event, bucket, *record)
        return outcomes

    # -- the review

    async def review(
        self, caller: Caller, request: usage_pb2.ListReviewRequest
    ) -> usage_pb2.ListReviewResponse:
        """`UsageService.ListReview`."""
        most, after = page_of(request.page_size, request.page_token)
        found = await self._list.review(caller.tenant, after, most)
        response = usage_pb2.ListReviewResponse(items=[_item(one) for one in found])
        if len(found) == most:
            response.next_page_token = str(found[-1].id)
        return response

    async def resolve(
        self, caller: Caller, request: usage_pb2.ResolveReviewRequest
    ) -> usage_pb2.ResolveReviewResponse:
        """`UsageService.ResolveReview`. An event that cannot be backfilled stays in the review."""
        check_reason(request.reason)
        item = await self._list.review_item(caller.tenant, request.id)
        if item is None:
            raise NotFoundError("REVIEW_NOT_FOUND", f"no event {request.id} waits for a review")
        response = usage_pb2.ResolveReviewResponse()
        if request.accept:
            event = await self._event(caller.tenant, Parse(item.event, usage_pb2.UsageEvent()))
            outcome = (await self._book(caller, {0: event}, request.reason))[0]
            if isinstance(outcome, MetergateError):
                raise outcome
            response.outcome.CopyFrom(outcome)
            if not outcome.accepted:
                return response
        await self._list.resolve(
            caller.tenant,
            request.id,
            accepted=request.accept,
            reason=request.reason,
            actor=caller.key_id,
        )
        return response


def _held(*, waits: bool) -> usage_pb2.EventOutcome:
    if waits:
        return usage_pb2.EventOutcome(in_review=True)
    return usage_pb2.EventOutcome(
        code=9, reason="REVIEW_DISCARDED", message="a person has discarded this event"
    )


def _intent(caller: Caller, event: _Event, reason: str) -> Intent:
    scope, key = event.id
    return Intent(
        tenant=caller.tenant,
        bucket=event.program.bucket,
        kind=RecordType.BACKFILL,
        scope=scope,
        key=key,
        fingerprint=event.fingerprint,
        actor=caller.key_id,
        reason=reason,
        account=event.program.account_key,
        customer=event.name.customer,
        feature=event.name.feature,
        meter=event.program.meter,
        at_ms=event.at_ms,
        quantity=event.quantity,
        dimensions=event.dimensions,
    )


def _accepted(listed: Listed, *, replayed: bool) -> usage_pb2.EventOutcome:
    assert listed.place is not None, "carried out"
    return usage_pb2.EventOutcome(
        accepted=True,
        replayed=replayed,
        overage=listed.overage,
        bucket=listed.intent.bucket,
        generation=listed.place.generation,
        sequence=listed.place.sequence,
    )


def _was_reported(
    event: _Event, bucket: int, record: ledger_pb2.KeyedRecord, body: Body
) -> _Outcome:
    if (body.c, body.q) != (event.name.customer, event.quantity):
        return InvalidRequestError(
            "IDEMPOTENCY_MISMATCH",
            f"idempotency key {event.key!r} was used with other parameters",
            idempotency_key=event.key,
        )
    return usage_pb2.EventOutcome(
        accepted=True,
        replayed=True,
        bucket=bucket,
        generation=record.generation,
        sequence=record.sequence,
    )


def _told(outcome: _Outcome | None) -> usage_pb2.EventOutcome:
    assert outcome is not None, "every event has one"
    if isinstance(outcome, MetergateError):
        return usage_pb2.EventOutcome(
            code=outcome.code.value, reason=outcome.reason, message=outcome.message
        )
    return outcome


def _waiting(caller: Caller, event: usage_pb2.UsageEvent, days: int) -> ReviewItem:
    key = json.dumps([event.customer, event.feature, event.idempotency_key])
    why = f"older than {days} days"
    return ReviewItem(0, key, MessageToJson(event, indent=None), why, caller.key_id, 0)


def _item(one: ReviewItem) -> usage_pb2.ReviewItem:
    message = usage_pb2.ReviewItem(id=one.id, why=one.why, actor=one.actor)
    Parse(one.event, message.event)
    set_ms(message.at, one.at_ms)
    return message
