"""However a log repeats and reorders within its look ahead, the sequence comes out once and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meter.core.records import Effects, RecordType, encode_effects
from meter.core.sequence import START, Entry, Position, Sequencer, Verdict


def _entries(lengths: list[int]) -> list[Entry]:
    out = []
    for generation, length in enumerate(lengths, 1):
        last = lengths[generation - 2] - 1 if generation > 1 else -1
        for sequence in range(length):
            kind = RecordType.USAGE if sequence else RecordType.GENERATION
            effects = Effects(kind, 1, quantity=last, extra=generation - 1)
            out.append(Entry(generation, sequence, b"", encode_effects(effects)))
    return out


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.data())
def test_delivery_in_any_order_with_repeats(lengths: list[int], data: st.DataObject) -> None:
    entries = _entries(lengths)
    arrivals = data.draw(st.permutations(entries + data.draw(st.lists(st.sampled_from(entries)))))
    sequencer, out = Sequencer(0, START), []
    dropped = 0
    for entry in arrivals:
        verdict = sequencer.offer(entry)
        if verdict is Verdict.NEXT:
            out += [entry, *sequencer.released()]
        elif verdict in (Verdict.REPEAT, Verdict.LATE):
            dropped += 1
    assert out == entries
    assert sequencer.gap is None
    assert dropped == len(arrivals) - len(entries)


@given(st.integers(2, 12), st.data())
def test_nothing_passes_a_gap(length: int, data: st.DataObject) -> None:
    entries = _entries([length])
    missing = data.draw(st.integers(0, length - 2))
    sequencer, out = Sequencer(0, START), []
    for entry in data.draw(st.permutations(entries[:missing] + entries[missing + 1 :])):
        if sequencer.offer(entry) is Verdict.NEXT:
            out += [entry, *sequencer.released()]
    assert out == entries[:missing]
    assert sequencer.gap is not None
    assert sequencer.gap[1:4] == (1, missing, missing + 1)


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 4)), min_size=1, max_size=5)
    | st.integers(1, 5).map(lambda count: [(1, place) for place in range(3, 3 + count)]),
)
def test_entries_taken_at_once_are_those_that_each_come_next(places: list[tuple[int, int]]) -> None:
    entries = [Entry(*place, b"", b"") for place in places]
    at_once, one_by_one = Sequencer(0, Position(1, 2)), Sequencer(0, Position(1, 2))
    verdicts = {one_by_one.offer(entry) for entry in entries}
    same = {entry.generation for entry in entries} == {1}
    assert at_once.follow(entries) == (same and verdicts == {Verdict.NEXT})
    if at_once.position != Position(1, 2):
        assert (at_once.position, at_once.read) == (one_by_one.position, one_by_one.read)
