"""Counts what was allowed while the counters were away, once, when they are back.

Each use is counted in the same step that raises its journal's mark in its bucket, in the journal's order. So it does not
matter who counts, how often it is begun again, or where it is cut off.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
import structlog

from enforcer.core.commands import (
    Ask,
    Decision,
    EpochStale,
    Failed,
    Journaled,
    OutOfTurn,
    SliceStale,
)
from enforcer.core.program import Chain, Program, Reason
from enforcer.core.rules import Mode
from enforcer.errors import (
    InternalError,
    InvalidRequestError,
    MetergateError,
    NotFoundError,
    StoreUnavailableError,
)
from enforcer.gateway.asked import Name
from meter.core.records import decode_body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.core.commands import Answer
    from enforcer.core.emergency import Use
    from enforcer.gateway.emergency import Emergency
    from enforcer.gateway.programs import Programs
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.journal import Journal, Sealed

__all__ = ["Counting"]

_log = structlog.get_logger(__name__)
BATCH = 128
ROUNDS_WITHOUT_PROGRESS = 8
_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")


class Counting:
    """`observe(uses, overage)` is told of what was counted, and how much of it went past limits."""

    def __init__(
        self,
        journal: Journal,
        counters: CounterStore,
        programs: Programs,
        emergency: Emergency,
        observe: Callable[[int, int], None] = lambda _uses, _overage: None,
    ) -> None:
        self._journal, self._counters, self._programs = journal, counters, programs
        self._emergency, self._observe = emergency, observe
        self._weighed = False

    async def weigh(self) -> None:
        """Once, if need be before the first check: what earlier lives allowed weighs on this enforcer's shares."""
        if not self._weighed:
            for use in await self._journal.left_over():
                self._emergency.weigh(use)
            self._weighed = True

    async def count(self) -> int:
        """Count all that can be counted now; return how many uses that were. Raise why it cannot go on."""
        await self.weigh()
        total = 0
        async with aclosing(self._journal.seal()) as parts:
            async for sealed in parts:
                uses = await self._part(sealed)
                await sealed.discard()
                _log.info("counted a journal", journal=sealed.journal, uses=uses)
                total += uses
        return total

    async def _part(self, sealed: Sealed) -> int:
        def counted(use: Use, decision: Decision | None) -> None:
            if sealed.own:
                self._emergency.forget(use)
            if decision is not None:
                self._observe(1, decision.overage)

        total = 0
        async with aclosing(sealed.batches(BATCH)) as batches:
            async for uses in batches:
                batch = _Batch(self._counters, self._programs, sealed.journal, counted)
                await batch.run(list(uses))
                total += len(uses)
        return total


class _Batch:
    """Uses of one journal, asked until every one is counted.

    `counted` is told of each, with None when the store had counted it before.
    """

    def __init__(
        self,
        counters: CounterStore,
        programs: Programs,
        journal: str,
        counted: Callable[[Use, Decision | None], None],
    ) -> None:
        self._counters, self._programs = counters, programs
        self._journal, self._counted = journal, counted
        self._bare: dict[tuple[int, int], int] = {}
        self._first: set[tuple[int, int]] = set()

    async def run(self, uses: list[Use]) -> None:
        idle = 0
        last: object = None
        while uses:
            asks = [await self._ask(use) for use in uses]
            answers = await self._counters.decide_all([[ask] for ask in asks])
            left: list[Use] = []
            for use, ask, answer in zip(uses, asks, answers, strict=True):
                found = answer if isinstance(answer, MetergateError) else answer[0]
                if not await self._settled(use, ask, found, later=_waits(left, use)):
                    left.append(use)
                    last = found
            idle = idle + 1 if len(left) == len(uses) else 0
            if idle > ROUNDS_WITHOUT_PROGRESS:
                raise InternalError(f"a journal cannot be counted: {last!r}")
            uses = left

    async def _settled(
        self, use: Use, ask: Ask, answer: Answer | MetergateError, *, later: bool
    ) -> bool:
        """Whether the use is counted. `later`: one before it in its bucket is not."""
        place = use.bucket, use.number
        match answer:
            case Decision():
                self._counted(use, answer)
                return True
            case OutOfTurn(mark) if mark >= use.number:
                self._counted(use, None)
                return True
            case OutOfTurn(mark):
                if not later:
                    # Nothing of this journal that comes before is left anywhere: the mark itself was lost.
                    _log.warning(
                        "a mark was lost", journal=self._journal, bucket=use.bucket, mark=mark
                    )
                    self._first.add(place)
            case EpochStale(stored) if place in self._bare:
                self._bare[place] = stored
            case EpochStale() | SliceStale():
                try:
                    await self._programs.refresh(_name(use), answer)
                except (NotFoundError, InvalidRequestError) as error:
                    self._go_bare(use, error.reason, getattr(answer, "stored", 0))
            case Failed(what) if what.startswith(_REFUSALS):
                raise StoreUnavailableError(f"Redis refuses to write: {what}")
            case Failed(what):
                if place in self._bare:
                    raise InternalError(f"an emergency use cannot be counted: {what}")
                self._go_bare(use, what, ask.program.epoch)
            case MetergateError():
                raise answer
            case _:
                raise InternalError(f"an emergency use was answered {answer!r}")
        return False

    async def _ask(self, use: Use) -> Ask:
        place = use.bucket, use.number
        program = self._bare_program(use) if place in self._bare else await self._program(use)
        body = decode_body(use.body)
        body = msgspec.structs.replace(body, at=body.at or use.at, j=self._journal, jn=use.number)
        after = 0 if place in self._first else use.number - 1
        return Ask(
            program,
            use.quantity,
            Mode.RECORD_ONLY,
            encode_body(body),
            use.key,
            journaled=Journaled(self._journal, use.number, after, use.sent),
        )

    async def _program(self, use: Use) -> Program:
        try:
            program = await self._programs.current(_name(use))
        except (NotFoundError, InvalidRequestError) as error:
            self._go_bare(use, error.reason, 0)
        else:
            if program.bucket == use.bucket:
                return program
            self._go_bare(use, "another account has the name", 0)
        return self._bare_program(use)

    def _go_bare(self, use: Use, because: str, epoch: int) -> None:
        _log.warning("counted beside all limits", feature=use.feature, because=because)
        self._bare[use.bucket, use.number] = epoch

    def _bare_program(self, use: Use) -> Program:
        """No limits and nothing to draw from: what has happened is recorded whole, as overage."""
        body = decode_body(use.body)
        program = Program(
            tenant=use.tenant,
            customer=use.customer,
            feature=use.feature,
            account_id=use.account_id,
            account_key=body.a,
            bucket=use.bucket,
            epoch=self._bare[use.bucket, use.number],
            start=0,
            end=0,
            verdict=Reason.ALLOWED,
            levels=(),
            chains=(Chain((), Reason.NOT_ENTITLED, supply=True),),
            suffix="0:0",
            denial_body=use.body,
            labels={},
            meter=body.m,
        )
        object.__setattr__(program, "packed", program.pack())
        return program


def _name(use: Use) -> Name:
    return Name(use.tenant, use.customer, use.feature, use.version)


def _waits(left: list[Use], use: Use) -> bool:
    return any(one.bucket == use.bucket for one in left)
