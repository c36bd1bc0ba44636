"""Carrying out corrections in memory, each once and in the order of their numbers: the twin of `correct.lua`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from enforcer.core.commands import EpochStale
from enforcer.core.corrections import (
    OVERFLOW,
    Change,
    Corrected,
    Correction,
    Known,
    Moved,
    Outcome,
    Refused,
    Uncertain,
    booked,
    change,
    has_room,
    overflows,
    side,
)
from enforcer.core.memory.bucket import State
from enforcer.core.program import Family, Reason
from enforcer.core.rules import fresh_slot
from meter.core.records import Effect, Effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.core.memory.bucket import Bucket, Step

__all__ = ["correct"]


def correct(
    step: Step,
    acknowledged: int,
    corrections: Sequence[Correction],
    *,
    certain: bool = False,
) -> list[Outcome]:
    """Carry out corrections in the order of their numbers, as the port says."""
    found = step.bucket
    if found.corrected_in != found.generation:
        if not certain:
            return [Uncertain(corrections[0].number)]
        found.corrected, found.corrected_in = acknowledged, found.generation
        found.corrections.clear()
    found.corrected = max(found.corrected, acknowledged)
    for number in [number for number in found.corrections if number <= acknowledged]:
        del found.corrections[number]
    outcomes: list[Outcome] = []
    for correction in corrections:
        outcome = _correct(step, correction)
        outcomes.append(outcome)
        if isinstance(outcome, Moved | EpochStale):
            break
    return outcomes


def _correct(step: Step, correction: Correction) -> Outcome:
    """Carry out one correction unless that was done; nothing of it when its answer is Moved or EpochStale."""
    bucket, number = step.bucket, correction.number
    if number <= bucket.corrected:
        return bucket.corrections.get(number, Known(number))
    if number > bucket.corrected + 1:
        return Moved(number)
    outcome: Corrected | Refused
    if correction.refused:
        outcome = Refused(number, correction.refused)
    else:
        if correction.account_id:
            stored = bucket.epochs.get(correction.account_id, 0)
            if stored != correction.epoch:
                return EpochStale(stored)
        changed: dict[tuple[str, int], list[float]] = {}
        effects: list[Effect] = []
        why = _book(step, correction.changes, changed, effects)
        if why is None:
            return Moved(number)
        outcome = Refused(number, why) if why else _record(step, correction, changed, effects)
    bucket.corrected = number
    bucket.corrections[number] = outcome
    return outcome


def _book(
    step: Step,
    changes: Sequence[Change],
    changed: dict[tuple[str, int], list[float]],
    effects: list[Effect],
) -> str | None:
    """Book on copies. Return why not to, nothing when all is well, or None when there is less room than planned."""
    for one in changes:
        effects.append(Effect(one.limit, one.period, one.delta, 0))
        suffix, code = _slot_of(step.bucket, one)
        if not suffix:
            continue
        slot = changed.get((suffix, code))
        if slot is None:
            state = step.bucket.states.get(suffix)
            slot = state.slots.get(code) if state is not None else None
            slot = fresh_slot(Family(code & 7)) if slot is None else slot
        current = booked(replace(one, code=code), slot, step.now)
        if current is None:
            continue
        if one.delta > 0:
            if overflows(one, current):
                return OVERFLOW
            if not has_room(one, current):
                return None
        change(replace(one, code=code), current)
        changed[suffix, code] = current
        if code & 7 == Family.COUNT:
            effects += side(one, slot, current)
    return ""


def _slot_of(bucket: Bucket, one: Change) -> tuple[str, int]:
    """Level and code of the counter's slot; nothing when no level has one."""
    if one.code:
        return one.suffixes[0], one.code
    for suffix in (*one.suffixes, *sorted(bucket.states)):
        state = bucket.states.get(suffix)
        for code in state.slots if state is not None else ():
            if code >> 3 == one.limit and code & 7 in (Family.COUNT, Family.RING24):
                return suffix, code
    return "", 0


def _record(
    step: Step,
    correction: Correction,
    changed: dict[tuple[str, int], list[float]],
    effects: Sequence[Effect],
) -> Corrected:
    for (suffix, code), slot in changed.items():
        step.bucket.states.setdefault(suffix, State(0, {})).slots[code] = slot
    place = step.append(
        correction.body,
        Effects(
            correction.kind,
            step.now,
            granted=correction.granted,
            overage=correction.overage,
            reason=Reason.ALLOWED,
            count=correction.count,
            quantity=correction.quantity,
            extra=int(correction.adjusts),
            entries=tuple(effects),
        ),
    )
    return Corrected(
        correction.number,
        *place,
        step.now,
        correction.granted,
        correction.overage,
        tuple((one.limit, one.period, one.delta) for one in correction.changes),
    )
