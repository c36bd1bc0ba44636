"""Stories of blocks of supply, worked out by hand: their size, their end, what is told and what is not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from hypothesis import given as generated
from hypothesis import strategies as st

from enforcer.core.allowances import GRACE_MS, SHARE, block, sought
from enforcer.core.commands import Decision, HoldGone, KeyReused, Settled, TooMuch
from enforcer.core.model import (
    MAX_QUANTITY,
    CreditsTerms,
    Grant,
    PaygTerms,
    Period,
    PeriodUnit,
    Price,
    QuotaTerms,
    RateTerms,
    Rollover,
    Validity,
)
from enforcer.core.program import Reason
from enforcer.core.rules import Mode
from meter.core.records import RecordType
from tests.unit.enforcer.core.stories import NOW, Story, given

if TYPE_CHECKING:
    from enforcer.core.model import Entitlement

SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
MIDNIGHT = NOW + 14 * HOUR
DAYS = Period(PeriodUnit.DAY)


def quota(limit: int, key: str = "q", **more: object) -> Entitlement:
    return given(key, QuotaTerms(limit, DAYS, **more))  # type: ignore[arg-type]


def take(
    story: Story, wanted: int, name: str = "a", ttl_ms: int = 60_000, key: str = ""
) -> Decision:
    return story.reserve(wanted, name, ttl_ms, Mode.ALLOWANCE, key=key)


# -- how large a block is


def test_a_block_is_an_eighth_of_what_is_left_so_that_many_share_the_end_of_a_quota() -> None:
    """100 / 8 = 12.5, 87 / 8 = 10.9, 76 / 8 = 9.5, ... each rounded up, down to single units."""
    story = Story([quota(100)])
    sizes = [take(story, 50, f"a{number}").granted for number in range(40)]
    assert sizes[:3] == [13, 11, 10]
    assert sum(sizes) == 100
    assert sizes[sizes.index(0) - 1] == 1
    assert story.shown()["q"] == (0, 100, 0)
    assert take(story, 50, "late").reason is Reason.QUOTA_EXCEEDED


def test_where_there_is_plenty_a_block_is_what_is_wanted() -> None:
    assert take(Story([quota(400)]), 50).granted == 50
    assert take(Story([quota(399)]), 50).granted == 50
    assert take(Story([quota(392)]), 50).granted == 49
    unlimited = given("free", PaygTerms(DAYS, None, None))
    assert take(Story([unlimited]), 10**9).granted == 10**9


@generated(st.integers(1, MAX_QUANTITY), st.integers(0, MAX_QUANTITY))
def test_a_block_is_never_more_than_wanted_or_left_and_something_while_something_is(
    wanted: int, room: int
) -> None:
    left = min(sought(wanted), room)
    granted = block(left)
    assert granted <= min(wanted, room)
    assert (granted > 0) == (room > 0)
    if room >= wanted * SHARE:
        assert granted == wanted


def test_every_limit_has_its_say() -> None:
    """The rate has 40 tokens: 5. The ancestor has 24 left: 3."""
    story = Story([given("r", RateTerms(40, DAY)), quota(1_000)], [quota(64, key="above")])
    assert take(story, 100, "a").granted == 5
    story.check(35)
    assert story.shown()["above"] == (35, 5, 24)
    assert take(story, 100, "b").reason is Reason.RATE_LIMITED
    story = Story([quota(1_000)], [quota(24, key="above")])
    assert take(story, 100).granted == 3


def test_money_that_is_left_is_shared_as_well() -> None:
    paid = given("p", PaygTerms(DAYS, Price(Decimal("0.5"), "EUR"), Decimal(20)))
    story = Story([paid])
    assert take(story, 100).granted == 5  # 40 units, an eighth of them
    assert isinstance(story.store.give_back(0, "a", 3), Settled)
    assert story.shown()["p"] == (3, 0, 37)


def test_a_denied_block_takes_nothing_and_is_recorded_as_a_denial() -> None:
    story = Story([quota(0)])
    assert (take(story, 8).granted, take(story, 8).id) == (0, "")
    story.now += SECOND
    story.store.tick(0)
    (denied,) = story.records()
    assert (denied.type, denied.count, denied.quantity) == (RecordType.DENIAL, 2, 16)


# -- when it ends


def test_a_block_ends_with_the_period_it_was_taken_from() -> None:
    story = Story([quota(800)])
    assert take(story, 10, "a").expires == NOW + 60_000
    story.now = MIDNIGHT - 10 * SECOND
    assert take(story, 10, "b").expires == MIDNIGHT
    assert take(story, 10, "c", ttl_ms=9_000).expires == MIDNIGHT - SECOND


def test_a_block_ends_with_the_entitlement_and_with_an_ancestor_s_period() -> None:
    ending = replace(quota(800, key="ending"), validity=Validity(end_ms=NOW + 7_000))
    assert take(Story([ending]), 10).expires == NOW + 7_000
    hourly = given("hourly", QuotaTerms(800, Period(PeriodUnit.HOUR)))
    story = Story([quota(8_000)], [hourly])
    story.now = NOW + HOUR - 2_000
    assert take(story, 10).expires == NOW + HOUR


# -- what is told of it


def test_what_was_used_becomes_usage_where_it_was_taken_and_the_rest_goes_back() -> None:
    prepaid = given("c", CreditsTerms((Grant(901, "g", 800),)))
    story = Story([quota(4), prepaid])
    answer = take(story, 10)
    assert story.drawn(answer) == {"q": 4, "c/g": 6}
    assert story.store.give_back(0, "a", 7) == Settled(7, 3, NOW, 1, 2)
    assert story.shown() == {"q": (4, 0, 0), "c/g": (3, 0, 797)}
    taken, used = story.records()
    assert (taken.type, taken.granted, taken.extra) == (RecordType.ALLOWANCE, 10, NOW + 60_000)
    assert (used.type, used.granted, used.extra) == (RecordType.ALLOWANCE_USE, 7, 10)


def test_telling_again_gets_the_first_answer_and_another_use_is_an_error() -> None:
    story = Story([quota(800)])
    take(story, 10)
    first = story.store.give_back(0, "a", 7)
    assert isinstance(first, Settled)
    assert story.store.give_back(0, "a", 7) == replace(first, replayed=True)
    assert story.store.give_back(0, "a", 8) == KeyReused()
    assert story.shown()["q"] == (7, 0, 793)


def test_more_than_the_block_cannot_have_been_used() -> None:
    story = Story([quota(800)])
    take(story, 10)
    assert story.store.give_back(0, "a", 11) == TooMuch(10)
    assert story.store.give_back(0, "a", 0) == Settled(0, 10, NOW, 1, 2)


def test_a_retry_of_the_taking_gets_the_same_block() -> None:
    story = Story([quota(800)])
    first = take(story, 10, "a", key="k")
    story.check(700)
    again = take(story, 10, "b", key="k")
    assert (again.id, again.granted, again.expires) == ("a", 10, first.expires)
    assert again.replayed


# -- what is not told


def test_a_block_of_which_nobody_tells_counts_as_used_until_the_period_ends() -> None:
    story = Story([quota(100)])
    assert take(story, 50).granted == 13
    story.now += 60_000 + GRACE_MS - 1
    story.store.tick(0)
    assert story.shown()["q"] == (0, 13, 87), "it is still taken back"
    story.now += 1
    assert story.store.give_back(0, "a", 5) == HoldGone()
    assert story.store.tick(0) == 1
    assert story.shown()["q"] == (13, 0, 87)
    lost = story.records()[-1]
    assert (lost.type, lost.granted, lost.extra) == (RecordType.UNACCOUNTED, 13, 13)
    assert lost.now == NOW + 59_999
    assert [(one.used, one.held) for one in lost.entries] == [(13, -13)]
    assert story.store.give_back(0, "a", 5) == HoldGone()
    story.now = MIDNIGHT
    assert story.shown()["q"] == (0, 0, 100)


def test_a_block_is_taken_back_shortly_after_its_period_into_that_very_period() -> None:
    carried = quota(80, key="rolls", rollover=Rollover(maximum=80))
    story = Story([carried])
    story.now = MIDNIGHT - SECOND
    assert take(story, 10).granted == 10
    story.now = MIDNIGHT + GRACE_MS - 1
    assert story.check(1).granted == 1
    assert isinstance(story.store.give_back(0, "a", 4), Settled)
    used = story.records()[-1]
    assert used.now == MIDNIGHT - 1
    assert [(one.period, one.used, one.held) for one in used.entries] == [(MIDNIGHT - DAY, 4, -10)]
    # 70 rolled over: what was out at midnight counts there as used.
    assert story.shown()["rolls"] == (1, 0, 149)


def test_what_was_out_and_unaccounted_of_a_rolling_quota_leaves_the_window_in_time() -> None:
    rolling = given("w", QuotaTerms(80, Period(PeriodUnit.DAY, rolling=True)))
    story = Story([rolling])
    take(story, 10)
    story.now += 60_000 + GRACE_MS
    story.store.tick(0)
    assert story.shown()["w"] == (10, 0, 70)
    story.now += DAY + HOUR
    assert story.shown()["w"] == (0, 0, 80)
