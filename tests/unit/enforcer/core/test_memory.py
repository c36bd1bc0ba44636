"""Stories of several commands, worked out by hand: retries, groups, reservations, leases, records, stale definitions."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from enforcer.core.commands import (
    Decision,
    EpochStale,
    Failed,
    HoldGone,
    KeyReused,
    LeaseInfo,
    Settled,
    SliceStale,
    TooMuch,
    idempotency,
)
from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    CreditsTerms,
    Grant,
    PaygTerms,
    Period,
    PeriodUnit,
    Price,
    QuotaTerms,
    RateTerms,
    Rollover,
    SeatMode,
    Tier,
    TierBehaviour,
    TieredTerms,
    Validity,
)
from enforcer.core.program import Reason
from enforcer.core.rules import Mode
from meter.core.records import RecordType
from tests.unit.enforcer.core.stories import NOW, Story, given

if TYPE_CHECKING:
    from enforcer.core.model import Entitlement

SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
DAYS, MONTHS = Period(PeriodUnit.DAY), Period(PeriodUnit.MONTH)
ROLLING = Period(PeriodUnit.DAY, rolling=True)


def quota(limit: int, key: str = "q", period: Period = DAYS, **more: object) -> Entitlement:
    return given(key, QuotaTerms(limit, period, **more))  # type: ignore[arg-type]


def seats(
    count: int, mode: SeatMode = SeatMode.FLOATING, key: str = "s", over: int = 0
) -> Entitlement:
    return given(f"{key}:{mode}", ConcurrentTerms(count, mode, over))


# -- retries


def test_a_retry_gets_the_original_answer_and_consumes_nothing() -> None:
    story = Story([quota(10)])
    first = story.check(6, key="k")
    story.check(3)
    assert story.check(6, key="k") == replace(first, replayed=True)
    assert story.shown()["q"] == (9, 0, 1)
    assert [one.granted for one in story.records()] == [6, 3]


def test_a_retry_is_answered_even_when_the_customer_is_not_entitled_any_more() -> None:
    story = Story([quota(10)])
    first = story.check(6, key="k")
    story.change([])
    assert story.check(6, key="k") == replace(first, replayed=True)


def test_a_denial_is_decided_again_and_recorded_once() -> None:
    story = Story([quota(10)])
    assert story.check(11, key="k").reason is Reason.QUOTA_EXCEEDED
    assert story.check(11, key="k").reason is Reason.QUOTA_EXCEEDED
    story.change([quota(20)])
    again = story.check(11, key="k")
    assert (again.granted, again.replayed) == (11, False)
    assert story.check(11, key="k").replayed
    story.now += SECOND
    story.store.tick(0)
    granted, denied = story.records()
    assert (denied.type, denied.count, denied.quantity) == (RecordType.DENIAL, 1, 11)
    assert granted.granted == 11


@pytest.mark.parametrize("denied", [False, True])
def test_a_key_with_other_parameters_is_an_error(denied: bool) -> None:
    story = Story([quota(1 if denied else 10)])
    story.check(5, key="k")
    assert story.group(story.ask(6, key="k")) == [KeyReused()]


def test_looking_does_not_use_a_key_up() -> None:
    story = Story([quota(10)])
    story.check(5, Mode.CHECK_ONLY, key="k")
    assert not story.check(5, key="k").replayed


def test_a_key_is_known_for_one_window_at_least_and_two_at_most() -> None:
    story = Story([quota(10, period=MONTHS)], window_ms=HOUR)
    story.check(1, key="k")  # NOW is the first millisecond of a window
    story.now = NOW + 2 * HOUR - 1
    assert story.check(1, key="k").replayed
    story.now += 1
    assert not story.check(1, key="k").replayed
    assert story.shown()["q"] == (2, 0, 8)


def test_keys_are_joined_without_ambiguity() -> None:
    assert idempotency(1, 23, "k") != idempotency(12, 3, "k")
    assert idempotency(1, 2, "k", "a-b", "c") != idempotency(1, 2, "k", "a", "b-c")
    assert idempotency(1, 2, "k", "a-b", "c")[:16] == idempotency(1, 2, "k", "a", "b-c")[:16]


# -- groups


def test_a_group_is_granted_whole_each_with_its_record() -> None:
    story = Story([quota(10)])
    answers = story.group(story.ask(4), story.ask(6))
    assert [one.granted for one in answers if isinstance(one, Decision)] == [4, 6]
    assert [one.sequence for one in answers if isinstance(one, Decision)] == [1, 2]
    assert story.shown()["q"] == (10, 0, 0)


def test_a_group_that_does_not_fit_as_a_whole_consumes_nothing() -> None:
    """5 + 5 fit, 1 more does not: 10 + 1 > 10."""
    story = Story([given("r", RateTerms(100, SECOND)), quota(10)])
    answers = story.group(story.ask(5), story.ask(5), story.ask(1), story.ask(2))
    reasons = [one.reason for one in answers if isinstance(one, Decision)]
    batch = Reason.BATCH_DENIED
    assert reasons == [batch, batch, Reason.QUOTA_EXCEEDED, batch]
    assert story.shown() == {"r": (0, 0, 100), "q": (0, 0, 10)}
    assert story.records() == []


def test_a_group_sees_what_its_earlier_items_took() -> None:
    """6 of the quota's 10, then 4 from it and 3 from the credits."""
    story = Story([quota(10), given("c", CreditsTerms((Grant(900, "g", 5),)))])
    _, second = story.group(story.ask(6), story.ask(7))
    assert isinstance(second, Decision)
    assert story.drawn(second) == {"q": 4, "c/g": 3}


def test_a_group_is_repeated_item_by_item() -> None:
    story = Story([quota(10)])
    story.check(4, key="a")
    first, second = story.group(story.ask(4, key="a"), story.ask(5, key="b"))
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    assert (first.replayed, second.replayed) == (True, False)
    assert story.shown()["q"] == (9, 0, 1)


def test_one_stale_item_keeps_the_whole_group_undone() -> None:
    story = Story([quota(10)])
    old = story.ask(1)
    story.change([quota(10)])
    answers = story.group(story.ask(2), old)
    assert isinstance(answers[0], Failed)
    assert answers[1] == EpochStale(2)
    assert story.shown()["q"] == (0, 0, 10)


# -- stale definitions and time


def test_an_old_or_unknown_epoch_decides_nothing() -> None:
    story = Story([quota(10)])
    story.epoch = 2  # not projected yet
    assert story.group(story.ask(1)) == [EpochStale(1)]
    assert story.store.project(0, 1, 2) == 2
    assert story.check(1).granted == 1
    assert story.store.project(0, 1, 1) == 2, "newer only"


def test_a_slice_that_is_over_or_not_there_yet_decides_nothing() -> None:
    story = Story([quota(10)])
    today = story.ask(1)
    story.now = NOW + 14 * HOUR
    assert story.group(today) == [SliceStale(NOW + 14 * HOUR)]
    tomorrow = story.ask(1)
    other = Story([quota(10)])
    assert other.group(tomorrow) == [SliceStale(NOW)]


def test_time_never_runs_backwards() -> None:
    story = Story([quota(10)])
    story.now += 14 * HOUR
    story.check(10)
    story.now -= 14 * HOUR
    program = story.program()
    (answer,) = story.store.decide([replace(story.ask(1), program=program)])
    assert answer == SliceStale(NOW + 14 * HOUR)


# -- denials


def test_denials_of_a_second_become_one_record_for_each_limit() -> None:
    story = Story([given("r", RateTerms(5, HOUR)), quota(3)])
    story.check(3)
    for quantity in (1, 2, 2):  # quota: 3 of 3 used
        assert story.check(quantity).reason is Reason.QUOTA_EXCEEDED
    assert story.check(6).reason is Reason.RATE_LIMITED  # 2 tokens are left
    assert len(story.records()) == 1
    story.now += SECOND
    assert story.store.tick(0) == 2
    by_reason = {one.reason: one for one in story.records() if one.type is RecordType.DENIAL}
    quota_denials = by_reason[Reason.QUOTA_EXCEEDED]
    assert (quota_denials.count, quota_denials.quantity) == (3, 5)
    assert quota_denials.extra == quota(3).id
    assert quota_denials.now == NOW
    rate_denials = by_reason[Reason.RATE_LIMITED]
    assert (rate_denials.count, rate_denials.quantity) == (1, 6)
    assert story.store.tick(0) == 0


def test_looking_at_a_denial_leaves_no_record() -> None:
    story = Story([quota(3)])
    story.check(4, Mode.CHECK_ONLY)
    story.now += SECOND
    assert story.store.tick(0) == 0


# -- reservations


def test_a_reservation_holds_against_everybody_else() -> None:
    story = Story([quota(10)])
    held = story.reserve(7, "r")
    assert (held.granted, held.id, held.expires) == (7, "r", NOW + 60_000)
    assert story.shown()["q"] == (0, 7, 3)
    assert story.check(4).reason is Reason.QUOTA_EXCEEDED
    assert story.check(3).granted == 3


def test_a_commit_uses_the_real_amount_and_gives_back_the_rest() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    assert story.commit("r", 4) == Settled(4, 3, NOW, 1, 2)
    assert story.shown()["q"] == (4, 0, 6)
    hold, commit = story.records()
    assert (hold.type, hold.entries[0].held, hold.entries[0].used) == (RecordType.HOLD, 7, 0)
    assert (commit.entries[0].held, commit.entries[0].used) == (-7, 4)
    assert (commit.granted, commit.extra) == (4, 7)


def test_a_commit_without_a_quantity_uses_all() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    assert story.commit("r").used == 7


def test_settling_again_gets_the_first_answer_and_the_other_way_is_an_error() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    first = story.commit("r", 4)
    assert story.commit("r", 4) == replace(first, replayed=True)
    assert story.commit("r", 5) == KeyReused()
    assert story.store.release(0, "r") == KeyReused()
    assert story.shown()["q"] == (4, 0, 6)


def test_more_than_what_is_held_cannot_be_committed() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    assert story.commit("r", 8) == TooMuch(7)
    assert story.commit("r", 7).used == 7


def test_a_reservation_that_expired_cannot_be_committed_and_is_given_back() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    story.now += 60_000
    assert story.commit("r") == HoldGone()
    assert story.shown()["q"] == (0, 7, 3), "held until the reaper has written that it ended"
    assert story.store.tick(0) == 1
    assert story.shown()["q"] == (0, 0, 10)
    assert story.records()[-1].type is RecordType.HOLD_EXPIRED


def test_a_reservation_is_committed_in_the_order_in_which_it_was_drawn() -> None:
    """8 = 5 of the quota + 3 credits. 6 were used: 5 + 1, and 2 credits go back to the very grant."""
    prepaid = given("c", CreditsTerms((Grant(901, "g", 5),)))
    story = Story([quota(5), prepaid])
    assert story.drawn(story.reserve(8, "r")) == {"q": 5, "c/g": 3}
    story.commit("r", 6)
    assert story.shown() == {"q": (5, 0, 0), "c/g": (1, 0, 4)}


def test_what_a_reservation_took_past_the_included_is_overage_only_when_it_is_used() -> None:
    """7 + 5 of 10 with an overage of 5: 2 beyond. 2 are used: none beyond; 5 would have been 2."""
    story = Story([quota(10, overage=5)])
    story.check(7)
    assert story.reserve(5, "r").overage == 2
    assert story.commit("r", 2).used == 2
    assert story.records()[-1].overage == 0
    story.reserve(5, "r2")
    story.commit("r2")
    assert story.records()[-1].overage == 4  # 9 + 5 = 14


def test_a_reservation_is_settled_in_the_period_that_held_it() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r", ttl_ms=DAY)
    story.now += 14 * HOUR  # midnight
    story.check(10)
    story.commit("r", 5)
    assert story.shown()["q"] == (10, 0, 0), "today knows nothing of it"
    effect = story.records()[-1].entries[0]
    assert (effect.period, effect.used, effect.held) == (NOW - 10 * HOUR, 5, -7)


def test_what_is_held_does_not_roll_over() -> None:
    """10, of which 4 are used and 3 held: 3 go on, so that 13 are there tomorrow."""
    story = Story([quota(10, rollover=Rollover(20))])
    story.check(4)
    story.reserve(3, "r", ttl_ms=2 * DAY)
    story.now += DAY
    assert story.shown()["q"] == (0, 0, 13)


def test_a_rolling_quota_holds_as_long_as_the_reservation_and_counts_from_its_commit() -> None:
    story = Story([quota(10, period=ROLLING)])
    story.reserve(7, "r", ttl_ms=3 * DAY)
    story.now += 2 * DAY
    assert story.shown()["q"] == (0, 7, 3)
    story.commit("r", 6)
    assert story.shown()["q"] == (6, 0, 4)
    story.now += 25 * HOUR
    assert story.shown()["q"] == (0, 0, 10)


def test_a_rate_is_spent_by_the_reservation_and_not_given_back() -> None:
    story = Story([given("r", RateTerms(10, HOUR)), quota(100)])
    story.reserve(7, "r")
    story.commit("r", 1)
    assert story.shown() == {"r": (7, 0, 3), "q": (1, 0, 99)}


def test_a_reservation_sets_money_aside() -> None:
    """0.30 each, cap 1: 3 units are 0.90. 2 held leave 1; of them 1 is used: 0.30, so 2 more are 0.90."""
    terms = PaygTerms(MONTHS, Price(Decimal("0.30"), "EUR"), Decimal(1))
    story = Story([given("p", terms)])
    story.reserve(2, "r")
    assert story.shown()["p"] == (0, 2, 1)
    assert story.check(2).reason is Reason.SPEND_CAP_REACHED
    story.commit("r", 1)
    assert story.check(2).granted == 2
    assert story.shown()["p"] == (3, 0, 0)


def test_a_best_effort_reservation_holds_what_there_is() -> None:
    story = Story([quota(10)])
    story.check(6)
    assert story.reserve(9, "r", mode=Mode.BEST_EFFORT).granted == 4
    assert story.commit("r", 5) == TooMuch(4)


def test_an_epoch_that_drops_a_limit_does_not_lose_what_is_held_in_it() -> None:
    story = Story([quota(10)])
    story.reserve(7, "r")
    story.change([given("b", BooleanTerms())])
    assert story.check(1).granted == 1
    assert story.commit("r", 5).used == 5
    story.change([quota(10)])
    assert story.shown()["q"] == (5, 0, 5)


# -- leases


def test_seats_are_taken_by_leases_and_free_again_at_their_end() -> None:
    story = Story([seats(2)])
    assert story.seat("l1").granted == 1
    assert story.seat("l2", ttl_ms=30_000).granted == 1
    full = story.seat("l3")
    assert (full.reason, full.id) == (Reason.NO_SEATS, "")
    story.now += 30_000  # l2 ends, though nobody has reaped it
    assert story.seat("l3").granted == 1
    assert story.seat("l4").reason is Reason.NO_SEATS


def test_a_renewal_after_expiry_fails_even_if_nobody_has_the_seat() -> None:
    story = Story([seats(1)])
    story.seat("l1")
    story.now += 59_999
    renewed = story.renew("l1")
    assert isinstance(renewed, LeaseInfo)
    assert (renewed.started, renewed.expires) == (NOW, NOW + 119_999)
    story.now += 60_000
    assert story.renew("l1") is None


def test_a_lease_that_expired_ends_in_the_records_when_it_expired() -> None:
    story = Story([seats(1)])
    story.seat("l1")
    story.now += HOUR
    story.store.tick(0)
    start, end = story.records()
    assert (start.type, start.now) == (RecordType.LEASE_START, NOW)
    assert (end.type, end.now, end.extra) == (RecordType.LEASE_EXPIRED, NOW + 60_000, NOW)
    assert [one.held for one in (*start.entries, *end.entries)] == [1, -1]


@pytest.mark.parametrize("mode", [SeatMode.FLOATING, SeatMode.NAMED])
def test_a_seat_that_is_given_again_was_given_back_by_the_records_before(mode: SeatMode) -> None:
    story = Story([seats(2, mode)])
    for name, user in (("l1", "ann"), ("l2", "bob")):
        assert story.seat(name, user).granted == 1
    story.now += HOUR
    assert story.seat("l3", "eve").granted == 1
    *_, first, second, third = story.records()
    assert [one.type for one in (first, second)] == 2 * [RecordType.LEASE_EXPIRED]
    assert (first.now, third.type) == (NOW + 60_000, RecordType.LEASE_START)
    live = list(accumulate(one.held for record in story.records() for one in record.entries))
    assert max(live) == 2
    story.store.tick(0)
    assert len(story.records()) == 5, "the tick finds nothing more to end"


def test_a_lease_ends_once() -> None:
    story = Story([seats(1)])
    story.seat("l1")
    assert story.leave("l1") == (1, 2)
    assert story.leave("l1") is None
    assert story.leave("never") is None


def test_leases_of_one_named_user_count_once() -> None:
    story = Story([seats(2, SeatMode.NAMED)])
    for lease, user in (("l1", "ann"), ("l2", "bob"), ("l3", "ann")):
        assert story.seat(lease, user).granted == 1
    assert story.seat("l4", "eve").reason is Reason.NO_SEATS
    story.leave("l1")
    assert story.seat("l4", "eve").reason is Reason.NO_SEATS, "ann still has l3"
    story.leave("l3")
    assert story.seat("l4", "eve").granted == 1


def test_a_device_stays_bound_when_its_lease_has_ended() -> None:
    story = Story([seats(1, SeatMode.NODE_LOCKED)])
    story.seat("l1", "laptop")
    story.leave("l1")
    assert story.seat("l2", "tower").reason is Reason.NO_SEATS
    assert story.seat("l3", "laptop").granted == 1
    story.leave("l3", unbind=True)
    assert story.seat("l4", "tower").granted == 1


@pytest.mark.parametrize(("taken", "overage", "reason"), [(2, 0, None), (3, 1, None), (4, 0, 13)])
def test_seats_beyond_the_bought_ones_are_overage_up_to_the_overdraft(
    taken: int, overage: int, reason: int | None
) -> None:
    """2 bought, 1 overdraft."""
    story = Story([seats(2, over=1)])
    last = [story.seat(f"l{number}") for number in range(taken)][-1]
    assert last.overage == overage
    assert last.reason == (reason or Reason.ALLOWED)


def test_a_second_lease_of_a_user_in_overdraft_is_no_more_overage() -> None:
    story = Story([seats(1, SeatMode.NAMED, over=1)])
    story.seat("l1", "ann")
    assert story.seat("l2", "bob").overage == 1
    assert story.seat("l3", "bob").overage == 0


def test_seats_of_the_root_limit_all_below_it() -> None:
    story = Story([seats(5)], [seats(2, key="root")])
    assert story.seat("l1").granted == 1
    assert story.seat("l2", level=1).granted == 1  # by the root itself
    assert story.seat("l3").reason is Reason.NO_SEATS
    assert story.shown()["s:floating"] == (0, 1, 4)
    listed = story.store.leases(0, "2:1", (0, ""), 10)
    assert [one.id for one in listed] == ["l1", "l2"]
    assert [one.id for one in story.store.leases(0, "1:1", (0, ""), 10)] == ["l1"]


def test_leases_are_listed_in_pages() -> None:
    story = Story([seats(9)])
    for name, ttl in (("c", 30_000), ("a", 60_000), ("b", 60_000), ("d", 10_000)):
        story.seat(name, ttl_ms=ttl)
    story.now += 10_000  # d has ended
    first = story.store.leases(0, "1:1", (0, ""), 2)
    assert [one.id for one in first] == ["c", "a"]
    rest = story.store.leases(0, "1:1", (first[-1].expires, first[-1].id), 2)
    assert [one.id for one in rest] == ["b"]


def test_fewer_seats_end_no_lease_and_give_no_new_one() -> None:
    story = Story([seats(3)])
    for name in ("l1", "l2", "l3"):
        story.seat(name)
    story.change([seats(1)])
    assert story.renew("l3") is not None
    story.leave("l1")
    story.leave("l2")
    assert story.seat("l4").reason is Reason.NO_SEATS
    story.leave("l3")
    assert story.seat("l4").granted == 1


def test_a_renewal_with_an_old_epoch_has_to_look_again() -> None:
    story = Story([seats(1)])
    story.seat("l1")
    story.change([])
    story.epoch -= 1
    assert story.renew("l1") == EpochStale(2)


def test_a_retried_acquisition_takes_no_second_seat() -> None:
    story = Story([seats(2)])
    first = story.seat("l1", key="k")
    again = story.seat("l2", key="k")
    assert (again.id, again.replayed) == ("l1", True)
    assert again.expires == first.expires
    assert story.shown()["s:floating"] == (0, 1, 1)


# -- amounts at the edge


def test_the_last_unit_of_2_53_minus_1_is_counted_and_the_next_is_an_error() -> None:
    """RECORD_ONLY goes past every limit but that of the numbers."""
    story = Story([quota(10)])
    assert story.check(MAX_QUANTITY - 1, Mode.RECORD_ONLY).overage == MAX_QUANTITY - 11
    assert story.check(1, Mode.RECORD_ONLY).granted == 1
    before = story.records()
    assert story.group(story.ask(1, Mode.RECORD_ONLY)) == [Failed("overflow")]
    assert story.records() == before
    assert story.check(1).reason is Reason.QUOTA_EXCEEDED


def test_an_overflow_in_a_group_undoes_the_group() -> None:
    story = Story([quota(10)])
    first, second = story.group(
        story.ask(5, Mode.RECORD_ONLY), story.ask(MAX_QUANTITY, Mode.RECORD_ONLY)
    )
    assert isinstance(first, Failed)
    assert second == Failed("overflow")
    assert story.shown()["q"] == (0, 0, 10)


# -- more on combinations


def test_a_denied_check_takes_no_token_no_quota_and_no_credit_on_any_level() -> None:
    """The root's cap of 5 denies 6; all else would have fit."""
    prepaid = given("c", CreditsTerms((Grant(902, "g", 5),)))
    story = Story(
        [given("r0", RateTerms(50, HOUR)), quota(4), prepaid],
        [given("r1", RateTerms(60, HOUR))],
        [quota(5, "cap", cap=True)],
    )
    before = story.shown()
    assert story.check(6).reason is Reason.CAP_REACHED
    assert story.shown() == before
    assert story.drawn(story.check(5)) == {"r0": 5, "r1": 5, "cap": 5, "q": 4, "c/g": 1}


def test_four_levels_each_with_a_cap_the_tightest_decides() -> None:
    story = Story(*([quota(limit, f"cap{limit}", cap=True)] for limit in (9, 7, 8)), [quota(100)])
    assert story.check(8).reason is Reason.CAP_REACHED
    assert story.check(8, Mode.BEST_EFFORT).granted == 7
    assert story.shown()["q"] == (7, 0, 93)
    assert story.shown(level=2) == {"cap8": (7, 0, 1), "q": (7, 0, 93)}


def test_a_tier_that_notifies_is_entered_and_a_throttled_one_slows_down() -> None:
    """4 included, 2 notified, then 1 a second with a burst of 2: 9 are 4 + 2 + 2 and 1 too many."""
    terms = TieredTerms(
        (
            Tier("a", 4),
            Tier("b", 6, TierBehaviour.NOTIFY),
            Tier("c", None, TierBehaviour.THROTTLE, rate=1, burst=2),
        ),
        DAYS,
    )
    story = Story([given("t", terms)])
    assert story.check(9).reason is Reason.TIER_LIMIT_REACHED
    assert story.drawn(story.check(8)) == {"t/a": 4, "t/b": 2, "t/c": 2}
    assert story.check(1).granted == 0
    story.now += SECOND
    assert story.drawn(story.check(1)) == {"t/c": 1}


def test_a_trial_then_grace_then_the_free_quota() -> None:
    trial = replace(quota(100, "trial"), validity=Validity(NOW - DAY, NOW + DAY, HOUR))
    free = replace(quota(3, "free"), fallback=True)
    story = Story([trial, free])
    assert story.drawn(story.check(5)) == {"trial": 5}
    story.now = NOW + DAY
    assert story.program().grace
    assert story.drawn(story.check(5)) == {"trial": 5}
    story.now += HOUR
    assert story.check(5).reason is Reason.QUOTA_EXCEEDED
    assert story.drawn(story.check(3)) == {"free": 3}


def test_shadow_of_every_kind_denies_nothing_and_says_so() -> None:
    """Each shadow limit has room for less than the 5 that are asked for."""
    tight = [
        given("r", RateTerms(4, HOUR), shadow=True),
        given("q", QuotaTerms(3, DAYS), shadow=True),
        given("c", CreditsTerms((Grant(903, "g", 2),)), shadow=True),
        given("t", TieredTerms((Tier("a", 1),), DAYS), shadow=True),
        given("p", PaygTerms(DAYS, Price(Decimal(1), "EUR"), Decimal(4)), shadow=True),
    ]
    for one in tight:
        story = Story([one, quota(10, "real")])
        answer = story.check(5)
        assert (answer.granted, answer.shadow) == (5, True), one.key
        assert story.shown()["real"] == (5, 0, 5)
        assert not Story([one, quota(10, "real")]).check(1).shadow, one.key


def test_an_overdraft_is_lent_once_and_a_later_grant_does_not_pay_it_back() -> None:
    """5 credits and an overdraft of 4: 8 taken, 3 of them overdrawn. A top-up of 10: 10 and 1 of overdraft are left."""
    grants = (Grant(904, "g", 5),)
    story = Story([given("c", CreditsTerms(grants, 4))])
    assert story.check(8).overage == 3
    story.change([given("c", CreditsTerms((*grants, Grant(905, "top", 10)), 4))])
    assert story.check(12).reason is Reason.CREDITS_EXHAUSTED
    last = story.check(11)
    assert (story.drawn(last), last.overage) == ({"c/top": 10, "c": 1}, 1)
