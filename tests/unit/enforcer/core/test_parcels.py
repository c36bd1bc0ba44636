"""What a correction gives back, and where it draws: the very limits and periods of the record, the last drawn first."""

from __future__ import annotations

from enforcer.core.parcels import Draw, Parcel, give_back, parcel


def test_effects_are_split_into_chains_that_each_gave_the_whole_quantity() -> None:
    entries = [(1, 10, 3), (1, 10, 4), (2, 10, 7), (3, 0, 0), (3, 5, 7)]
    assert parcel(7, 4, entries) == Parcel(
        7,
        4,
        (
            (Draw(1, 10, 3), Draw(1, 10, 4)),
            (Draw(2, 10, 7),),
            (Draw(3, 5, 7),),
        ),
    )


def test_what_was_drawn_last_is_given_back_first_in_every_chain() -> None:
    one = Parcel(7, 4, ((Draw(1, 10, 3), Draw(2, 0, 4)), (Draw(9, 10, 7),)))
    back = give_back([one], 5, None)
    assert back.left == (Parcel(2, 0, ((Draw(1, 10, 2),), (Draw(9, 10, 2),))),)
    assert back.overage == 4
    changed = {(change.limit, change.period): change.delta for change in back.changes}
    assert changed == {(2, 0): -4, (1, 10): -1, (9, 10): -5}


def test_an_amendment_upwards_is_taken_back_before_the_record_itself() -> None:
    first = Parcel(2, 0, ((Draw(1, 10, 2),),))
    added = Parcel(3, 1, ((Draw(2, 0, 3),),))
    back = give_back([first, added], 4, None)
    assert back.left == (Parcel(1, 0, ((Draw(1, 10, 1),),)),)
    assert {(change.limit, change.delta) for change in back.changes} == {(2, -3), (1, -1)}


def test_giving_everything_back_leaves_nothing() -> None:
    one = Parcel(2, 2, ((Draw(1, 10, 2),),))
    back = give_back([one], 2, None)
    assert back.left == ()
    assert back.overage == 2
