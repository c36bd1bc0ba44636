"""What a program is made of: who is entitled, where a slice ends, which counters there are."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from enforcer.core.compile import compile_program, price_fraction
from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Customer,
    Entitlement,
    Feature,
    Grant,
    Node,
    PaygTerms,
    Period,
    PeriodUnit,
    Price,
    QuotaTerms,
    RateTerms,
    Rollover,
    SeatMode,
    Terms,
    Validity,
)
from enforcer.core.program import Program, Reason, Shape

NOW = 1_795_514_400_000  # 2026-11-24 10:00 UTC
HOUR, DAY = 3_600_000, 86_400_000
FEATURE = Feature(7, "f", "f")
DAYS = Period(PeriodUnit.DAY)


def one(number: int, terms: Terms, **more: Any) -> Entitlement:
    return Entitlement(number, f"e{number}", "f", terms, **more)


def program(*levels: list[Entitlement], at: int = NOW, epoch: int = 1) -> Program:
    """Of the first level, below the others."""
    path = tuple(
        Node(10 + place, f"n{place}", entitlements=tuple(found))
        for place, found in enumerate(levels)
    )
    return compile_program(Customer("demo", 1, "root", 0, epoch, path), FEATURE, at)[0]


ENDED = Validity(end_ms=NOW)
LATER = Validity(start_ms=NOW + DAY)
GRACE = Validity(end_ms=NOW - HOUR, grace_ms=DAY)


def test_a_fallback_quota_does_not_take_a_feature_away_that_is_given_without_end() -> None:
    """The paid plan is a boolean, the free one a quota: who pays is not asked for a supply."""
    found = program([one(1, BooleanTerms()), one(2, QuotaTerms(5, DAYS), fallback=True)])
    assert found.verdict is Reason.ALLOWED
    assert found.chains == ()


@pytest.mark.parametrize("giver", [BooleanTerms(), ConfigTerms(1080)])
def test_a_fallback_counts_when_the_supply_beside_a_value_has_ended(giver: Terms) -> None:
    """The value alone does not make the feature free, so it does not keep the free quota away either."""
    found = program(
        [
            one(1, giver),
            one(2, QuotaTerms(1000, DAYS), validity=ENDED),
            one(3, QuotaTerms(5, DAYS), fallback=True),
        ]
    )
    assert found.verdict is Reason.ALLOWED
    assert [view.id for view in found.views] == [3]


def test_a_fallback_without_end_follows_a_quota_that_has_ended() -> None:
    found = program(
        [one(1, QuotaTerms(1000, DAYS), validity=ENDED), one(2, BooleanTerms(), fallback=True)]
    )
    assert found.verdict is Reason.ALLOWED
    assert found.chains == ()


def test_a_fallback_waits_while_the_supply_is_valid() -> None:
    found = program(
        [one(1, QuotaTerms(1000, DAYS)), one(2, QuotaTerms(5, DAYS), fallback=True)],
        [one(3, QuotaTerms(7, DAYS), fallback=True)],
    )
    assert [view.id for view in found.views] == [1]


def test_a_fallback_that_has_ended_gives_nothing() -> None:
    found = program(
        [
            one(1, QuotaTerms(1000, DAYS), validity=Validity(end_ms=NOW - DAY)),
            one(2, QuotaTerms(5, DAYS), fallback=True, validity=ENDED),
        ]
    )
    assert found.verdict is Reason.EXPIRED


def test_grace_is_told_when_the_supply_is_in_it_whatever_stands_beside() -> None:
    quota = one(1, QuotaTerms(5, DAYS), validity=GRACE)
    assert program([quota]).grace
    assert program([quota, one(2, BooleanTerms())]).grace
    assert not program([quota, one(2, QuotaTerms(5, DAYS))]).grace
    assert not program([one(1, BooleanTerms(), validity=GRACE), one(2, BooleanTerms())]).grace


def test_no_grace_without_an_end_or_beyond_it() -> None:
    assert not program([one(1, BooleanTerms())]).grace
    assert not program([one(1, BooleanTerms(), validity=ENDED)]).grace


def test_seats_in_shadow_are_counted_beside_the_enforced_ones() -> None:
    """Two limits are two counters, whichever was made first."""
    seats = ConcurrentTerms(2)
    found = program([one(1, replace(seats, seats=1), shadow=True), one(2, seats)])
    enforced, shadow = found.chains
    assert [view.id for view in enforced.views] == [2]
    assert [view.id for view in shadow.views] == [1]
    assert shadow.shadow


def test_seats_of_a_node_are_one_pool_named_by_its_oldest() -> None:
    """The name stays when the oldest has ended, so that leases taken before count on."""
    pool = [one(4, ConcurrentTerms(1), validity=ENDED), one(5, ConcurrentTerms(2, overdraft=1))]
    (view,) = program(pool).views
    assert (view.id, view.upper, view.extra) == (4, 3, (1, 2))


@pytest.mark.parametrize(
    ("seats", "overdraft", "factor", "upper"),
    [(8, 0, "1.25", 10), (7, 0, "1.25", 8), (8, 3, "1.25", 11), (8, 1, "1.25", 10), (0, 0, "2", 0)],
)
def test_the_larger_of_both_overdrafts_of_seats_counts(
    seats: int, overdraft: int, factor: str, upper: int
) -> None:
    terms = ConcurrentTerms(seats, SeatMode.NAMED, overdraft, Decimal(factor))
    (view,) = program([one(1, terms)]).views
    assert view.upper == upper


@pytest.mark.parametrize(("hard", "overage"), [(True, 0), (True, 5), (False, 0)])
def test_what_rolls_over_never_lifts_a_limit_beyond_the_largest_quantity(
    hard: bool, overage: int
) -> None:
    limit = MAX_QUANTITY - 10
    terms = QuotaTerms(limit, DAYS, hard, overage, Rollover(100, 50))
    for view in program([one(1, terms)]).views:
        _, _, minimum, maximum, _ = view.extra
        assert minimum <= maximum
        assert limit + overage + maximum <= MAX_QUANTITY


def test_a_slice_ends_where_the_first_thing_ends() -> None:
    midnight = NOW - 10 * HOUR
    hours = one(1, QuotaTerms(5, Period(PeriodUnit.HOUR)))
    days = one(2, QuotaTerms(5, DAYS))
    assert slice_of(program([hours, days])) == (NOW, NOW + HOUR)
    assert slice_of(program([days])) == (midnight, midnight + DAY)
    until = replace(days, validity=Validity(NOW - HOUR, NOW + HOUR, 2 * HOUR))
    assert slice_of(program([until])) == (NOW - HOUR, NOW + HOUR)
    assert slice_of(program([until], at=NOW + HOUR)) == (NOW + HOUR, NOW + 3 * HOUR)
    assert slice_of(program([until], at=NOW + 3 * HOUR)) == (NOW + 3 * HOUR, 0)


def test_a_slice_ends_where_a_grant_begins_or_expires() -> None:
    terms = CreditsTerms(
        (Grant(1, "a", 5, expires_ms=NOW + HOUR), Grant(2, "b", 5, effective_ms=NOW + 2 * HOUR))
    )
    ends = [slice_of(program([one(9, terms)], at=at)) for at in (NOW, NOW + HOUR, NOW + 2 * HOUR)]
    assert ends == [(0, NOW + HOUR), (NOW + HOUR, NOW + 2 * HOUR), (NOW + 2 * HOUR, 0)]


def test_a_slice_ends_where_an_ancestor_s_entitlement_begins() -> None:
    root = one(2, RateTerms(5, 1000), validity=LATER)
    assert slice_of(program([one(1, BooleanTerms())], [root])) == (0, NOW + DAY)


def slice_of(found: Program) -> tuple[int, int]:
    return found.start, found.end


def test_the_layout_has_the_counters_of_all_entitlements_valid_or_not() -> None:
    """Whoever asks at whatever time finds the same state."""
    ended, valid, later = (
        one(number, QuotaTerms(5, DAYS), validity=validity)
        for number, validity in ((1, ENDED), (2, Validity()), (3, LATER))
    )
    (level,) = program([later, ended, valid]).levels
    assert level.suffix == "10:7"
    assert [code >> 3 for code in level.slots] == [1, 2, 3]


def test_levels_without_limits_are_skipped() -> None:
    found = program([], [one(1, QuotaTerms(5, DAYS))], [], [one(2, RateTerms(5, 1000))])
    assert [level.suffix for level in found.levels] == ["11:7", "13:7"]
    assert [(view.id, found.levels[view.level].suffix) for view in found.views] == [
        (2, "13:7"),
        (1, "11:7"),
    ]


def test_leases_are_listed_on_every_level() -> None:
    found = program([], [one(1, ConcurrentTerms(5))], [])
    assert [level.suffix for level in found.levels] == ["10:7", "11:7", "12:7"]


@pytest.mark.parametrize(
    ("amount", "per", "fraction"),
    [
        ("0.02", 1, (20_000, 1)),
        ("0.15", 1_000_000, (3, 20)),  # 0.15 millionths of a dollar a token
        ("0.000000001", 1, (1, 1000)),
        ("1", 3, (1_000_000, 3)),
        ("0", 1, (0, 1)),
    ],
)
def test_a_price_is_a_short_fraction_of_millionths(
    amount: str, per: int, fraction: tuple[int, int]
) -> None:
    assert price_fraction(Price(Decimal(amount), "USD", per)) == fraction


def test_a_spend_cap_without_a_price_counts_no_money() -> None:
    terms = PaygTerms(DAYS, Price(Decimal(0), "USD"), Decimal(5))
    (view,) = program([one(1, terms)]).views
    assert view.shape is Shape.COUNT
