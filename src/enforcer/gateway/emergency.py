"""Checks while the counters are away: each feature's own failure policy decides.

A feature that fails closed has no answer. One that fails open allows a bounded amount: taken from this enforcer's share,
journaled, and only then answered. What was journaled is counted once when the counters are back (`counting`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from enforcer.core.commands import Decision, decided
from enforcer.core.emergency import Use
from enforcer.core.program import Reason
from enforcer.core.rules import Mode
from enforcer.errors import (
    CountersRebuildingError,
    InvalidRequestError,
    JournalUnavailableError,
    MetergateError,
    OutcomeUnknownError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from enforcer.core.commands import Ask
    from enforcer.core.emergency import Shares
    from enforcer.core.program import Program
    from enforcer.ports.journal import Journal

__all__ = ["AWAY", "Emergency"]

_log = structlog.get_logger(__name__)

AWAY = (StoreUnavailableError, OutcomeUnknownError, CountersRebuildingError)
"""What says that the counters cannot be asked."""


@dataclass(slots=True)
class _Given:
    """An answer by idempotency key, until the store knows the key itself; good when `written` is done."""

    finger: bytes
    decision: Decision
    written: asyncio.Task[None]


class Emergency:
    """Decides by failure policy. `journal` is None where none is set up: then every feature fails closed.

    `observe(outcome)` is told of every check that came here.
    """

    def __init__(
        self,
        journal: Journal | None,
        shares: Shares,
        now_ms: Callable[[], int],
        observe: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._journal, self._shares, self._now_ms, self._observe = journal, shares, now_ms, observe
        self._given: dict[bytes, _Given] = {}
        self._refused = False

    def forget(self, use: Use) -> None:
        """The use is counted: its share is free again, and the store knows its key."""
        self._shares.give_back(use.holder, use.quantity)
        self._given.pop(use.key[:16], None)

    def weigh(self, use: Use) -> None:
        """An earlier life of this enforcer allowed it and nobody has counted it: it weighs on the share."""
        self._shares.take(use.holder, use.quantity)

    async def decide(
        self, program: Program, ask: Ask, version: str, error: MetergateError
    ) -> Decision:
        """Answer a check that the store could not decide because of `error`, or raise it."""
        if not program.emergency:
            self._observe("fail_closed")
            raise error
        if self._journal is None or ask.mode is Mode.PEEK:
            self._observe("no_journal" if self._journal is None else "fail_closed")
            raise error
        sent = getattr(error, "sent", None)
        if program.verdict is not Reason.ALLOWED:
            return self._deny(program, program.verdict, error, in_doubt=sent is not None)
        if given := self._repeated(ask):
            await asyncio.shield(given.written)
            self._observe("repeated")
            return replace(given.decision, replayed=True)
        holder = program.tenant, program.customer, program.feature
        left = self._shares.left(holder, program.emergency)
        granted = ask.quantity if ask.quantity <= left else 0
        if ask.mode is Mode.BEST_EFFORT:
            granted = min(ask.quantity, left)
        if ask.mode is Mode.CHECK_ONLY:
            reason = Reason.ALLOWED if granted else Reason.EMERGENCY_EXHAUSTED
            self._observe("check_only")
            return self._decision(program, reason, granted)
        if not granted:
            # Usage that has happened cannot be denied, and what may have run must not be: the client asks again.
            in_doubt = sent is not None or ask.mode is Mode.RECORD_ONLY
            return self._deny(program, Reason.EMERGENCY_EXHAUSTED, error, in_doubt=in_doubt)
        use = Use(
            tenant=program.tenant,
            customer=program.customer,
            feature=program.feature,
            version=version,
            account_id=program.account_id,
            bucket=program.bucket,
            quantity=granted,
            at=self._now_ms(),
            body=ask.body,
            key=ask.idempotency,
            sent=None if ask.idempotency else sent,
        )
        decision = self._decision(program, Reason.ALLOWED, granted)
        # A task of its own: a client that goes away meanwhile changes nothing for one that asks the same.
        written = asyncio.create_task(self._write(self._journal, use, error))
        self._shares.take(use.holder, use.quantity)
        if use.key:
            self._given[use.key[:16]] = _Given(use.key[16:], decision, written)
        await asyncio.shield(written)
        self._observe("allowed")
        return decision

    def _repeated(self, ask: Ask) -> _Given | None:
        given = self._given.get(ask.idempotency[:16]) if ask.idempotency else None
        if given is not None and given.finger != ask.idempotency[16:]:
            raise InvalidRequestError(
                "IDEMPOTENCY_MISMATCH", "the idempotency key was used with other parameters"
            )
        return given

    async def _write(self, journal: Journal, use: Use, error: MetergateError) -> None:
        try:
            await journal.append(use)
        except JournalUnavailableError as failure:
            self.forget(use)
            self._observe("journal_failed")
            if not self._refused:
                self._refused = True
                _log.error("features fail closed: no journal", error=failure.message)
            if use.sent is None and (failure.certain or use.key):
                # What the disk said is for the log.
                message = "the counters are away, and the use could not be journaled"
                raise JournalUnavailableError(message) from failure
            raise (OutcomeUnknownError() if not use.key else error) from failure
        if self._refused:
            self._refused = False
            _log.info("the journal can be written again")

    def _deny(
        self, program: Program, reason: Reason, error: MetergateError, *, in_doubt: bool
    ) -> Decision:
        if in_doubt:
            self._observe("in_doubt")
            raise error
        self._observe("exhausted" if reason is Reason.EMERGENCY_EXHAUSTED else "denied")
        return self._decision(program, reason, 0)

    def _decision(self, program: Program, reason: Reason, granted: int) -> Decision:
        return decided(reason, granted, program.bucket, now=self._now_ms(), degraded=True)
