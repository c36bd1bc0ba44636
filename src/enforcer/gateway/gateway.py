"""What products ask for: checks, balances, reports of usage from elsewhere, and beside them what is held."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enforcer.core.commands import (
    Ask,
    Decision,
    EpochStale,
    Failed,
    KeyReused,
    SliceStale,
)
from enforcer.core.rules import Mode
from enforcer.errors import (
    InternalError,
    InvalidRequestError,
    MetergateError,
    StoreUnavailableError,
)
from enforcer.gateway.allowances import Allowances
from enforcer.gateway.asked import Asked, Name, misfit_of
from enforcer.gateway.emergency import AWAY
from enforcer.gateway.leases import Leases
from enforcer.gateway.programs import Programs, Rounds
from enforcer.gateway.replies import (
    answered,
    check_bytes,
    fault_of,
    has_seats,
    limits_of,
)
from enforcer.gateway.requests import (
    key_of,
    mode_of,
    named,
    parsed,
    quantity_of,
    time_of,
)
from enforcer.gateway.reservations import Reservations
from enforcer.gateway.room import Room
from enforcer.gateway.tokens import Tokens
from enforcer.gateway.wire import embedded, items_of
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.traced import current
from meter.v1 import usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from enforcer.core.commands import Answer
    from enforcer.core.program import Program
    from enforcer.gateway.emergency import Emergency
    from enforcer.ports.counters import CounterStore

__all__ = ["Gateway"]

MOST_ITEMS = 256
MOST_EVENTS = 1_000
LATEST_EVENT = 5 * 60_000
OLDEST_EVENT = 86_400_000
_UNDECIDED = InternalError("not decided")
_ATOMIC = b"\x10\x01"
"""The field `atomic` of a `CheckBatchRequest`, behind its items."""
_ATOMIC_MODES = (Mode.ENFORCE, Mode.CHECK_ONLY, Mode.RECORD_ONLY)


class Gateway:
    """Every operation takes the caller's tenant and a message, and gives a message or raises a `MetergateError`.

    `observe(program, mode, decision)` is told of every decision, `failed(code)` of each check in a batch that failed by
    itself. `secret` signs the tokens of leases and reservations. `emergency` answers checks while the counters are away;
    without it every feature fails closed. `traced`: calls may be, and their records say so. What is held for a time has
    its own objects: `reservations`, `allowances`, `leases`.
    """

    def __init__(
        self,
        counters: CounterStore,
        programs: Programs,
        secret: bytes | Callable[[], bytes],
        observe: Callable[[Program, Mode, Decision], None] = lambda _program, _mode, _decision: (
            None
        ),
        emergency: Emergency | None = None,
        *,
        failed: Callable[[str], None] = lambda _code: None,
        traced: bool = False,
    ) -> None:
        self._counters, self._programs = counters, programs
        self._common = self._common_untraced if traced else programs.skeletons.ask
        """The ask of a check like most, without a detour; None for one that `_asked` has to look at."""
        self._emergency = emergency
        self._room = Room()
        self._observe, self._failed = observe, failed
        tokens = Tokens(secret)
        self.reservations = Reservations(counters, self._decide_one, tokens)
        self.allowances = Allowances(counters, self._decide_one, tokens)
        self.leases = Leases(counters, programs, self._decide_one, tokens)

    # -- checks

    async def check(self, tenant: str, message: bytes) -> bytes:
        """`EnforcerService.Check`: a `CheckRequest` and a `CheckResponse` as they travel."""
        ask = self._common(tenant, message)
        if ask is not None:
            try:
                (answer,) = await self._counters.decide((ask,))
            except AWAY as error:
                asked = self._asked(tenant, parsed(pb.CheckRequest, message))
                return check_bytes(*(await self._without_store(asked, error)), asked.quantity)
            if isinstance(answer, Decision):
                self._observe(ask.program, ask.mode, answer)
                return check_bytes(ask.program, answer, ask.quantity)
            await self._mend(self._asked(tenant, parsed(pb.CheckRequest, message)), answer)
        asked = self._asked(tenant, parsed(pb.CheckRequest, message))
        try:
            program, decision = await self._decide_one(asked)
        except AWAY as error:
            program, decision = await self._without_store(asked, error)
        return check_bytes(program, decision, asked.quantity)

    def _common_untraced(self, tenant: str, message: bytes) -> Ask | None:
        """The record of a traced check says so, and is not made from a stencil."""
        return None if current.get() else self._programs.skeletons.ask(tenant, message)

    async def _without_store(self, asked: Asked, error: MetergateError) -> tuple[Program, Decision]:
        """What the feature's failure policy says to a check that the store could not decide; or raise `error`."""
        if self._emergency is None:
            raise error
        program = await self._programs.current(asked.name)
        if has_seats(program):
            raise error
        ask, version = asked.ask(program), asked.name.version
        decision = await self._emergency.decide(program, ask, version, error)
        self._observe(program, asked.mode, decision)
        return program, decision

    async def check_batch(self, tenant: str, message: bytes) -> bytes:
        """`EnforcerService.CheckBatch`: a `CheckBatchRequest` and a `CheckBatchResponse` as they travel."""
        atomic = message.endswith(_ATOMIC)
        items = items_of(message[: -len(_ATOMIC)] if atomic else message)
        if items is None:
            request = parsed(pb.CheckBatchRequest, message)
            items, atomic = [item.SerializeToString() for item in request.items], request.atomic
        if not 0 < len(items) <= MOST_ITEMS:
            raise InvalidRequestError(
                "BAD_BATCH", f"a batch has 1 to {MOST_ITEMS} items, not {len(items)}"
            )
        if atomic:
            decided = await self.decide_together(tenant, items)
            outcomes: Sequence[bytes | pb.CheckFault] = [check_bytes(*one) for one in decided]
        else:
            outcomes = await self.check_each(tenant, items)
        # `items` is field 1; there `response` is field 1, `fault` field 2
        return b"".join([embedded(b"\x0a", answered(b"\x0a", b"\x12", one)) for one in outcomes])

    async def check_each(
        self, tenant: str, messages: Sequence[bytes]
    ) -> list[bytes | pb.CheckFault]:
        """Independent `CheckRequest`s, decided in their order: what a unary call would answer to each, or fail with."""
        await self._room.enter(len(messages))
        try:
            return await self._check_each(tenant, messages)
        finally:
            self._room.leave(len(messages))

    async def _check_each(
        self, tenant: str, messages: Sequence[bytes]
    ) -> list[bytes | pb.CheckFault]:
        def whole(place: int) -> Asked:
            return self._asked(tenant, parsed(pb.CheckRequest, messages[place]))

        common = self._common
        asked: list[Asked | Ask | MetergateError] = []
        for place, message in enumerate(messages):
            try:
                asked.append(common(tenant, message) or whole(place))
            except MetergateError as error:
                asked.append(error)
        outcomes = await self._decide_each(asked, whole)
        away = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, AWAY)]
        # Side by side: what is journaled at the same time is synced once.
        opened = await asyncio.gather(*(self._opened(whole(at), outcomes[at]) for at in away))
        for place, outcome in zip(away, opened, strict=True):
            outcomes[place] = outcome
        for outcome in outcomes:
            if isinstance(outcome, MetergateError):
                self._failed(outcome.code.name)
        return [
            fault_of(outcome) if isinstance(outcome, MetergateError) else check_bytes(*outcome)
            for outcome in outcomes
        ]

    async def _opened(
        self, asked: Asked, outcome: tuple[Program, Decision, int] | MetergateError
    ) -> tuple[Program, Decision, int] | MetergateError:
        """What an item's failure policy says, when the store said nothing."""
        assert isinstance(outcome, AWAY)
        try:
            return *(await self._without_store(asked, outcome)), asked.quantity
        except MetergateError as error:
            return error

    async def decide_together(
        self, tenant: str, messages: Sequence[bytes]
    ) -> list[tuple[Program, Decision, int]]:
        """All `CheckRequest`s or none, for customers of one account: each with its program and quantity.

        What is wrong with one item fails them all, and names it as `item`. One item alone follows its feature's
        failure policy while the counters are away.
        """
        asks = self._common_group(tenant, messages)
        if asks is not None:
            try:
                answers: Sequence[Answer] = await self._counters.decide(asks)
            except AWAY as error:
                return await self._opened_group(self._asked_group(tenant, messages), error)
            if self._not_decided(answers) is None:
                return self._told([(ask.program, ask.mode, ask.quantity) for ask in asks], answers)
        group = self._asked_group(tenant, messages)
        try:
            programs, answers = await self._decide(group)
        except AWAY as error:
            return await self._opened_group(group, error)
        kinds = [
            (program, one.mode, one.quantity) for program, one in zip(programs, group, strict=True)
        ]
        return self._told(kinds, answers)

    def _common_group(self, tenant: str, messages: Sequence[bytes]) -> list[Ask] | None:
        """The asks of checks like most that may be decided together; None for what has to be looked at."""
        asks = []
        for message in messages:
            ask = self._common(tenant, message)
            if ask is None:
                return None
            asks.append(ask)
        first = asks[0]
        account, mode = first.program.account_id, first.mode
        if mode not in _ATOMIC_MODES:
            return None
        for ask in asks:
            if ask.mode is not mode or ask.program.account_id != account:
                return None
        return asks

    def _asked_group(self, tenant: str, messages: Sequence[bytes]) -> list[Asked]:
        """The same, looked at: raise what is wrong with it."""
        group = []
        for place, message in enumerate(messages):
            try:
                group.append(self._asked(tenant, parsed(pb.CheckRequest, message)))
            except MetergateError as error:
                error.metadata["item"] = str(place)
                raise
        if len({one.mode for one in group}) > 1 or group[0].mode not in _ATOMIC_MODES:
            raise InvalidRequestError(
                "BAD_BATCH",
                "the items of an atomic batch have one mode: ENFORCE, CHECK_ONLY or RECORD_ONLY",
            )
        return group

    async def _opened_group(
        self, group: Sequence[Asked], error: MetergateError
    ) -> list[tuple[Program, Decision, int]]:
        """What the failure policy says to one item alone; raise `error` for several."""
        if len(group) > 1:
            raise error
        (asked,) = group
        return [(*(await self._without_store(asked, error)), asked.quantity)]

    def _told(
        self, kinds: Iterable[tuple[Program, Mode, int]], answers: Sequence[Answer]
    ) -> list[tuple[Program, Decision, int]]:
        """Decisions as they are told to whoever asked, and to whoever observes."""
        outcomes = []
        for (program, mode, quantity), answer in zip(kinds, answers, strict=True):
            assert isinstance(answer, Decision)
            self._observe(program, mode, answer)
            outcomes.append((program, answer, quantity))
        return outcomes

    def _asked(self, tenant: str, request: pb.CheckRequest) -> Asked:
        named(request.customer, request.feature)
        quantity = quantity_of(request.quantity if request.HasField("quantity") else None)
        return Asked.of(
            Name(tenant, request.customer, request.feature, request.product_version),
            quantity,
            mode_of(request.mode),
            key_of(request.idempotency_key),
            request.dimensions,
        )

    async def _decide_one(self, asked: Asked) -> tuple[Program, Decision]:
        """Decide one check by itself."""
        rounds: Rounds | None = None
        while True:
            program = await self._program_of(asked)
            (answer,) = await self._counters.decide((asked.ask(program),))
            if isinstance(answer, Decision):
                self._observe(program, asked.mode, answer)
                return program, answer
            rounds = rounds or Rounds(asked.name.customer, 5)
            rounds.another(await self._mend(asked, answer))

    async def _program_of(self, asked: Asked) -> Program:
        """The program of this moment, which the mode has a meaning for."""
        program = self._programs.known(asked.name) or await self._programs.get(asked.name)
        if misfit_of(asked, program):
            program = await self._programs.reread(asked.name)
            misfit = misfit_of(asked, program)
            if misfit:
                raise InvalidRequestError("MODE_NOT_SUPPORTED", misfit)
        return program

    async def _programs_of(self, group: Sequence[Asked]) -> tuple[list[Program], list[Ask]]:
        """The programs of this moment, and what to ask with them."""
        programs = [await self._program_of(asked) for asked in group]
        asks = [asked.ask(program) for asked, program in zip(group, programs, strict=True)]
        if len(group) > 1 and len({program.account_id for program in programs}) > 1:
            raise InvalidRequestError(
                "BAD_BATCH", "the items of an atomic batch are of one account's tree"
            )
        return programs, asks

    async def _decide(self, group: Sequence[Asked]) -> tuple[list[Program], Sequence[Answer]]:
        """Decide a group; what the store finds stale is mended and asked again."""
        rounds = Rounds(group[0].name.customer, 4 + len(group))
        while True:
            programs, asks = await self._programs_of(group)
            answers = await self._counters.decide(asks)
            place = self._not_decided(answers)
            if place is None:
                return programs, answers
            rounds.another(await self._mend(group[place], answers[place]))

    async def _decide_each(
        self,
        asked: Sequence[Asked | Ask | MetergateError],
        whole: Callable[[int], Asked] | None = None,
    ) -> list[tuple[Program, Decision, int] | MetergateError]:
        """Decide independent checks, in their order; those that are stale are asked again by themselves.

        `whole` makes what was asked at a place where there is only its `Ask`.
        """
        outcomes: list[tuple[Program, Decision, int] | MetergateError] = []
        places: list[int] = []
        asks: list[Ask] = []
        for place, one in enumerate(asked):
            if isinstance(one, MetergateError):
                outcomes.append(one)
                continue
            outcomes.append(_UNDECIDED)
            if isinstance(one, Asked):
                try:
                    ask = one.ask(await self._program_of(one))
                except MetergateError as error:
                    outcomes[place] = error
                    continue
            else:
                ask = one
            places.append(place)
            asks.append(ask)
        replies = await self._counters.decide_all([(ask,) for ask in asks])
        for place, ask, reply in zip(places, asks, replies, strict=True):
            if isinstance(reply, MetergateError):
                outcomes[place] = reply
            elif isinstance(answer := reply[0], Decision):
                self._observe(ask.program, ask.mode, answer)
                outcomes[place] = ask.program, answer, ask.quantity
            else:
                one = asked[place]
                if not isinstance(one, Asked):
                    assert whole is not None
                    one = whole(place)
                outcomes[place] = await self._once_more(one, answer)
        return outcomes

    async def _once_more(
        self, asked: Asked, answer: Answer
    ) -> tuple[Program, Decision, int] | MetergateError:
        """Decide by itself what could not be decided among others."""
        try:
            await self._mend(asked, answer)
            return *(await self._decide_one(asked)), asked.quantity
        except MetergateError as error:
            return error

    @staticmethod
    def _not_decided(answers: Sequence[Answer]) -> int | None:
        """The place of the answer that says why nothing was decided; None if all was."""
        bystander = None
        for place, answer in enumerate(answers):
            if isinstance(answer, EpochStale | SliceStale | KeyReused):
                return place
            if isinstance(answer, Failed):
                if not answer.what.startswith("not decided"):
                    return place
                bystander = place
        return bystander

    async def _mend(self, asked: Asked, answer: Answer) -> Answer:
        match answer:
            case EpochStale() | SliceStale():
                await self._programs.refresh(asked.name, answer)
                return answer
            case KeyReused():
                raise InvalidRequestError(
                    "IDEMPOTENCY_MISMATCH",
                    f"idempotency key {asked.key!r} was used with other parameters",
                    idempotency_key=asked.key,
                )
            case Failed(what="overflow"):
                raise InvalidRequestError("QUANTITY_OVERFLOW", "a count would pass 2^53 - 1")
            case Failed(what) if what.startswith(("OOM", "READONLY", "MISCONF", "NOREPLICAS")):
                raise StoreUnavailableError(f"Redis refuses to write: {what}")
            case Failed(what):
                raise InternalError(f"the decision failed: {what}")
            case _:  # pragma: no cover - decisions never come here
                raise AssertionError

    # -- balances and reports

    async def get_balance(
        self, tenant: str, request: pb.GetBalanceRequest
    ) -> pb.GetBalanceResponse:
        """`EnforcerService.GetBalance`."""
        named(request.customer, request.feature)
        name = Name(tenant, request.customer, request.feature, request.product_version)
        asked = Asked.of(name, 1, Mode.PEEK, "", {})
        program, decision = await self._decide_one(asked)
        return pb.GetBalanceResponse(
            allowed=decision.granted > 0,
            reason=decision.reason.value,  # type: ignore[arg-type]  # the numbers of the enum
            limits=limits_of(program, decision),
            config_value=program.config,
            grace=program.grace,
        )

    async def report(
        self, tenant: str, request: usage_pb2.ReportRequest
    ) -> usage_pb2.ReportResponse:
        """`UsageService.Report`."""
        if not 0 < len(request.events) <= MOST_EVENTS:
            raise InvalidRequestError(
                "BAD_BATCH", f"a report has 1 to {MOST_EVENTS} events, not {len(request.events)}"
            )
        asked: list[Asked | MetergateError] = []
        for event in request.events:
            try:
                asked.append(self._reported(tenant, event))
            except MetergateError as error:
                asked.append(error)
        response = usage_pb2.ReportResponse()
        for outcome in await self._decide_each(asked):
            response.outcomes.append(_event_outcome(outcome))
        return response

    def _reported(self, tenant: str, event: usage_pb2.UsageEvent) -> Asked:
        named(event.customer, event.feature)
        if not event.idempotency_key:
            raise InvalidRequestError(
                "BAD_IDEMPOTENCY_KEY", "an event needs an idempotency_key to be counted once"
            )
        at = 0
        if event.HasField("occurred_at"):
            at = time_of(event.occurred_at, "occurred_at", OLDEST_EVENT, LATEST_EVENT)
        return Asked.of(
            Name(tenant, event.customer, event.feature),
            quantity_of(event.quantity if event.HasField("quantity") else None),
            Mode.RECORD_ONLY,
            key_of(event.idempotency_key),
            event.dimensions,
            at,
        )


def _event_outcome(
    outcome: tuple[Program, Decision, int] | MetergateError,
) -> usage_pb2.EventOutcome:
    if isinstance(outcome, MetergateError):
        return usage_pb2.EventOutcome(
            code=outcome.code.value, reason=outcome.reason, message=outcome.message
        )
    _, decision, _ = outcome
    if not decision.granted:
        return usage_pb2.EventOutcome(
            code=9, reason=decision.reason.name, message="the customer may not use this feature"
        )
    return usage_pb2.EventOutcome(
        accepted=True,
        replayed=decision.replayed,
        overage=decision.overage,
        bucket=decision.bucket,
        generation=decision.generation,
        sequence=decision.sequence,
    )
