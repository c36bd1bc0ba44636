"""Deciding a group of checks in memory: the twin of `decide.lua`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from enforcer.core.allowances import ends
from enforcer.core.commands import (
    Answer,
    Ask,
    Decision,
    EpochStale,
    Failed,
    KeyReused,
    OutOfTurn,
    SliceStale,
    decided,
)
from enforcer.core.memory.hold import clear_seats, hold, notes, sit
from enforcer.core.program import Reason
from enforcer.core.rules import Mode, Overflow, Verdict, apply, entries, evaluate
from meter.core.records import Effect, Effects, RecordType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.memory.bucket import Step
    from enforcer.core.program import Program
    from enforcer.core.rules import Entry

__all__ = ["decide"]

_READS = (Mode.CHECK_ONLY, Mode.PEEK)


def decide(step: Step, group: Sequence[Ask]) -> list[Answer]:
    """All checks of the group or none, as the port says."""
    step.flush_denials()
    if group[0].journaled is not None:
        return [_count(step, group[0])]
    answers: list[Answer | None] = [None] * len(group)
    known: set[int] = set()
    for place, ask in enumerate(group):
        found = None
        if ask.idempotency and ask.mode not in _READS:
            found = step.remembered(ask.idempotency)
        if found is None:
            continue
        finger, answer = found
        if finger != ask.idempotency[16:]:
            return _whole(group, place, KeyReused())
        if isinstance(answer, Decision):
            answers[place] = replace(answer, replayed=True)
        else:
            known.add(place)
    for place, ask in enumerate(group):
        if answers[place] is not None:
            continue
        stored = step.bucket.epochs.get(ask.program.account_id, 0)
        if stored != ask.program.epoch:
            return _whole(group, place, EpochStale(stored))
        if not ask.program.start <= step.now < (ask.program.end or step.now + 1):
            return _whole(group, place, SliceStale(step.now))
    return _evaluate(step, group, answers, known)


def _count(step: Step, ask: Ask) -> Answer:
    """Count what was allowed while the store was away. See `Ask`."""
    place, program = ask.journaled, ask.program
    assert place is not None
    marks = step.bucket.marks
    mark = marks.get(place.journal, 0)
    if not place.after <= mark < place.number:
        return OutOfTurn(mark)
    stored = step.bucket.epochs.get(program.account_id, 0)
    if stored != program.epoch:
        return EpochStale(stored)
    if not program.start <= step.now < (program.end or step.now + 1):
        return SliceStale(step.now)
    if program.verdict is not Reason.ALLOWED:
        return Failed(program.verdict.name)
    # What batches left behind on their way is the wire's affair: here only keys tell what was counted before.
    before, key = 0, b""
    if ask.idempotency:
        finger, known = step.remembered(ask.idempotency) or (ask.idempotency[16:], None)
        if finger == ask.idempotency[16:]:
            if isinstance(known, Decision):
                before = known.granted
            else:
                key = ask.idempotency
    rest = max(0, ask.quantity - before)
    if not rest:
        effects = Effects(RecordType.EMERGENCY, step.now, quantity=ask.quantity)
        _, sequence = step.append(ask.body, effects)
        marks[place.journal] = place.number
        verdict = Verdict(Reason.ALLOWED, 0, 0, shadow=False, chains=(), denied=())
        return _decision(step, verdict, ()).but(sequence=sequence)
    (answer,) = _evaluate(step, [replace(ask, quantity=rest, idempotency=key)], [None], set())
    if isinstance(answer, Decision):
        marks[place.journal] = place.number
    return answer


def _evaluate(
    step: Step, group: Sequence[Ask], answers: list[Answer | None], known: set[int]
) -> list[Answer]:
    granted: list[tuple[int, Ask, Verdict, tuple[Effect, ...]]] = []
    for place, ask in enumerate(group):
        if answers[place] is not None:
            continue
        program, read = ask.program, ask.mode in _READS
        levels = [step.state(level, program.epoch).slots for level in program.levels]
        seats = step.seats(program, ask.seat.holder if ask.seat else "")
        verdict = evaluate(program, levels, seats, ask.quantity, ask.mode, step.now)
        if not verdict.granted:
            shown = entries(program, verdict, levels, seats, step.now, drawn=False)
            answer = _decision(step, verdict, shown)
            if not read:
                if place not in known:
                    step.deny(ask, verdict.reason, _denier(program, verdict))
                step.remember(ask.idempotency, None)
            return _denied(group, place, answer, answers)
        effects: tuple[Effect, ...] = ()
        if ask.mode is not Mode.PEEK:
            try:
                effects = apply(verdict, levels, step.now, hold=bool(ask.reservation))
            except Overflow:
                return _whole(group, place, Failed("overflow"))
        if read:
            drawn = ask.mode is not Mode.PEEK
            shown = entries(program, verdict, levels, seats, step.now, drawn=drawn)
            answers[place] = _decision(step, verdict, shown)
        else:
            granted.append((place, ask, verdict, effects))
            shown = entries(program, verdict, levels, seats, step.now, drawn=True)
            answers[place] = _decision(step, verdict, shown)
    if granted:
        step.keep()
    for place, ask, verdict, effects in granted:
        shown_so_far = answers[place]
        assert isinstance(shown_so_far, Decision)
        answers[place] = _record(step, ask, verdict, effects, shown_so_far)
    return [answer for answer in answers if answer is not None]


def _decision(step: Step, verdict: Verdict, shown: tuple) -> Decision:  # type: ignore[type-arg]
    return decided(
        verdict.reason,
        verdict.granted,
        step.number,
        now=step.now,
        generation=step.bucket.generation,
        overage=verdict.overage,
        shadow=verdict.shadow,
        values=_flat(shown),
    )


def _record(
    step: Step,
    ask: Ask,
    verdict: Verdict,
    effects: tuple[Effect, ...],
    answer: Decision,
) -> Decision:
    kind = RecordType.USAGE
    name, expires = "", 0
    if ask.reservation:
        kind, name, expires = RecordType.HOLD, ask.reservation, step.now + ask.ttl_ms
        if ask.mode is Mode.ALLOWANCE:
            kind, expires = RecordType.ALLOWANCE, ends(step.now, ask.ttl_ms, ask.program.end)
        effects += notes(ask.program, verdict, effects)
    elif ask.seat is not None:
        kind, name, expires = RecordType.LEASE_START, ask.seat.lease, step.now + ask.seat.ttl_ms
        clear_seats(step, ask.program)
    _, sequence = step.append(
        ask.body,
        Effects(
            kind,
            step.now,
            granted=verdict.granted,
            overage=verdict.overage,
            reason=verdict.reason,
            quantity=ask.quantity,
            extra=expires,
            entries=effects,
        ),
    )
    if ask.reservation:
        hold(step, ask, verdict, expires)
    elif ask.seat is not None:
        sit(step, ask, expires)
        seats = step.seats(ask.program, ask.seat.holder)
        levels = [step.bucket.states[level.suffix].slots for level in ask.program.levels]
        shown = entries(ask.program, verdict, levels, seats, step.now, drawn=True)
        answer = answer.but(values=_flat(shown))
    answer = answer.but(sequence=sequence, id=name, expires=expires)
    step.remember(ask.idempotency, answer)
    return answer


def _flat(shown: Sequence[Entry]) -> tuple[int, ...]:
    return tuple([value for entry in shown for value in entry])


def _denier(program: Program, verdict: Verdict) -> int:
    """The id of the first limit that denied; 0 when no limit did."""
    for chain, short in zip(program.chains, verdict.denied, strict=False):
        if short and not chain.shadow:
            return chain.views[0].id if chain.views else 0
    return 0


def _whole(group: Sequence[Ask], place: int, answer: Answer) -> list[Answer]:
    """Nothing of the group was done, for the reason at `place`."""
    nothing: list[Answer] = [
        Failed("not decided: another item of the batch was not") for _ in group
    ]
    nothing[place] = answer
    return nothing


def _denied(
    group: Sequence[Ask], place: int, denied: Decision, answers: list[Answer | None]
) -> list[Answer]:
    """The group is denied by the item at `place`. Items that were answered before keep their answers."""
    done: list[Answer] = []
    for number in range(len(group)):
        answer = answers[number]
        if number == place:
            done.append(denied)
        elif isinstance(answer, Decision) and answer.replayed:
            done.append(answer)
        else:
            done.append(denied.but(reason=Reason.BATCH_DENIED, shadow=False, values=()))
    return done
