"""A bucket's sequence: next, repeat, ahead, late, and what is missing."""

from __future__ import annotations

import pytest

from meter.core.records import Effects, RecordType, encode_effects
from meter.core.sequence import START, Entry, Position, Sequencer, Verdict

USE = encode_effects(Effects(RecordType.USAGE, 1))


def use(generation: int, sequence: int) -> Entry:
    """Any record but an opening."""
    return Entry(generation, sequence, b"", USE)


def opened(generation: int, previous: int, last: int) -> Entry:
    """The first record of a generation."""
    effects = Effects(RecordType.GENERATION, 1, quantity=last, extra=previous)
    return Entry(generation, 0, b"", encode_effects(effects))


def test_the_sequence_is_dense_from_0() -> None:
    sequencer = Sequencer(0, START)
    verdicts = [sequencer.offer(entry) for entry in (opened(1, 0, -1), use(1, 1), use(1, 2))]
    assert verdicts == [Verdict.NEXT] * 3
    assert sequencer.position == Position(1, 2)
    assert sequencer.gap is None


def test_a_repeat_is_counted() -> None:
    sequencer = Sequencer(0, Position(1, 5))
    assert sequencer.offer(use(1, 5)) is Verdict.REPEAT
    assert sequencer.offer(use(1, 6)) is Verdict.NEXT
    assert sequencer.offer(use(1, 6)) is Verdict.REPEAT
    assert sequencer.repeats == 2


def test_what_comes_early_waits_and_follows_in_order() -> None:
    sequencer = Sequencer(3, Position(1, 0))
    assert [sequencer.offer(use(1, n)) for n in (4, 2, 4)] == [
        Verdict.AHEAD,
        Verdict.AHEAD,
        Verdict.REPEAT,
    ]
    assert sequencer.gap is not None
    assert sequencer.gap[:4] == (3, 1, 1, 2)
    assert sequencer.offer(use(1, 1)) is Verdict.NEXT
    assert sequencer.released() == [use(1, 2)]
    assert sequencer.gap[:4] == (3, 1, 3, 4)
    assert sequencer.offer(use(1, 3)) is Verdict.NEXT
    assert sequencer.released() == [use(1, 4)]
    assert sequencer.gap is None


def test_beyond_the_look_ahead_nothing_is_kept_and_nothing_is_skipped() -> None:
    sequencer = Sequencer(0, Position(1, 0), look_ahead=2)
    for number in (2, 3, 4, 5):
        sequencer.offer(use(1, number))
    assert sequencer.exhausted
    assert sequencer.read == Position(1, 3), "4 and 5 have to be read again"


@pytest.mark.parametrize(
    ("at", "entry", "gap"),
    [
        (Position(1, 5), opened(2, 1, 5), None),
        # The server that opened it had an older copy: what was seen stays.
        (Position(1, 5), opened(2, 1, 3), None),
        (Position(1, 5), opened(7, 1, 5), None),
        (Position(1, 5), opened(2, 1, 9), (1, 6, 10)),
        (Position(1, 5), use(2, 3), (2, 0, 3)),
        (Position(1, 5), opened(4, 3, 8), (3, 0, 9)),
        (Position(1, 5), opened(4, 3, -1), None),
        (Position(1, 5), use(2, 0), (2, 0, 0)),
        (Position(1, 5), Entry(2, 0, b"", b"garbage"), (2, 0, 0)),
        (START, use(3, 0), None),
        (START, use(3, 8), (3, 0, 8)),
        (START, opened(3, 2, 8), (2, 0, 9)),
    ],
)
def test_a_new_generation_says_where_the_old_one_ended(
    at: Position, entry: Entry, gap: tuple[int, int, int] | None
) -> None:
    sequencer = Sequencer(0, at)
    verdict = sequencer.offer(entry)
    if gap is None:
        assert verdict is Verdict.NEXT
        assert sequencer.position == entry.position
    else:
        assert verdict is Verdict.AHEAD
        assert sequencer.gap is not None
        assert sequencer.gap[1:4] == gap
        assert sequencer.position == at


def test_the_rest_of_an_old_generation_may_still_come_before_the_new_one() -> None:
    sequencer = Sequencer(0, Position(1, 0))
    assert sequencer.offer(opened(2, 1, 1)) is Verdict.AHEAD
    assert sequencer.offer(use(1, 1)) is Verdict.NEXT
    assert sequencer.released() == [opened(2, 1, 1)]
    assert sequencer.position == Position(2, 0)


def test_a_record_of_a_generation_that_is_over_is_late() -> None:
    sequencer = Sequencer(0, Position(2, 0))
    assert sequencer.offer(use(1, 99)) is Verdict.LATE
    assert sequencer.repeats == 0
