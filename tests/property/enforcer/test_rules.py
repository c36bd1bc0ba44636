"""Single rules against oracles that know nothing of slots: sums over what was really granted."""

from __future__ import annotations

import struct
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from enforcer.core.commands import Ask, Decision
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import (
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
    RateAlgorithm,
    RateTerms,
    Rollover,
    Tier,
    TierBehaviour,
    TieredTerms,
)
from enforcer.core.rules import Mode

NOW = 1_795_514_400_000
HOUR, DAY = 3_600_000, 86_400_000
FEATURE = Feature(1, "f", "f")
STRICT = st.sampled_from([Mode.ENFORCE, Mode.BEST_EFFORT])


class Shop:
    """One customer with `terms`, and what was granted when."""

    def __init__(self, *terms: Any) -> None:
        self.now = NOW
        self.store = MemoryCounters(lambda: self.now)
        self.store.open(0, 1)
        self.store.project(0, 1, 1)
        found = tuple(Entitlement(n, f"e{n}", "f", one) for n, one in enumerate(terms, 1))
        self.customer = Customer("demo", 1, "n", 0, 1, (Node(1, "n", entitlements=found),))
        self.log: list[tuple[int, int]] = []

    def check(self, quantity: int, mode: Mode = Mode.ENFORCE) -> Decision:
        program, _ = compile_program(self.customer, FEATURE, self.now)
        (answer,) = self.store.decide([Ask(program, quantity, mode, b"{}")])
        assert isinstance(answer, Decision)
        if answer.granted:
            self.log.append((self.now, answer.granted))
        return answer

    def left(self) -> int:
        """The most that would be granted now."""
        found = self.check(10**6, Mode.PEEK)
        return min(entry.remaining for entry in found.entries)

    def since(self, start: int) -> int:
        """Granted after `start`."""
        return sum(amount for at, amount in self.log if at > start)


def steps(longest: int) -> st.SearchStrategy[list[tuple[int, int, Mode]]]:
    return st.lists(st.tuples(st.integers(0, longest), st.integers(1, 12), STRICT), max_size=40)


@given(st.integers(1, 20), st.integers(1, 5_000), st.none() | st.integers(1, 20), steps(3_000))
def test_a_bucket_never_gives_more_than_its_burst_and_what_refills(
    limit: int, per: int, burst: int | None, asked: list[tuple[int, int, Mode]]
) -> None:
    shop = Shop(RateTerms(limit, per, burst))
    most = limit if burst is None else burst
    for wait, quantity, mode in asked:
        shop.now += wait
        shop.check(quantity, mode)
        for start, _ in shop.log:
            # In doubles a hair may be missing or too much.
            allowed = most + Fraction(limit * (shop.now - start), per) + Fraction(1, 10**6)
            assert shop.since(start - 1) <= allowed


@given(st.integers(1, 20), st.integers(10, 5_000), steps(1_500))
def test_no_window_ever_holds_more_than_its_limit(
    limit: int, per: int, asked: list[tuple[int, int, Mode]]
) -> None:
    shop = Shop(RateTerms(limit, per, None, RateAlgorithm.SLIDING_WINDOW))
    for wait, quantity, mode in asked:
        shop.now += wait
        shop.check(quantity, mode)
        assert shop.since(shop.now - per) <= limit
    # The oldest use is forgotten at the latest after eleven tenths of the window, each in whole milliseconds.
    shop.now += 11 * -(-per // 10)
    assert shop.left() == limit


@given(st.integers(1, 20), steps(20 * HOUR))
def test_a_rolling_day_never_holds_more_than_its_quota(
    limit: int, asked: list[tuple[int, int, Mode]]
) -> None:
    shop = Shop(QuotaTerms(limit, Period(PeriodUnit.DAY, rolling=True)))
    for wait, quantity, mode in asked:
        shop.now += wait
        shop.check(quantity, mode)
        assert shop.since(shop.now - DAY) <= limit
    shop.now += 25 * HOUR
    assert shop.left() == limit


@given(
    st.integers(1, 20),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    steps(20 * HOUR),
)
def test_no_calendar_day_ever_holds_more_than_its_quota(
    limit: int, zone: str, asked: list[tuple[int, int, Mode]]
) -> None:
    shop = Shop(QuotaTerms(limit, Period(PeriodUnit.DAY, zone)))

    def day(at: int) -> object:
        return datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).date()

    for wait, quantity, mode in asked:
        shop.now += wait
        used = sum(amount for at, amount in shop.log if day(at) == day(shop.now))
        answer = shop.check(quantity, mode)
        fits = min(quantity, limit - used)
        assert answer.granted == (fits if mode is Mode.BEST_EFFORT or fits == quantity else 0)


@given(
    st.integers(0, 20), st.integers(0, 30), st.integers(0, 5), steps(40 * HOUR), st.integers(0, 3)
)
def test_what_rolls_over_is_what_was_left_each_day(
    limit: int, most: int, least: int, asked: list[tuple[int, int, Mode]], empty_days: int
) -> None:
    """The rule applied day by day, with every unused day walked through."""
    least = min(least, most)
    shop = Shop(QuotaTerms(limit, Period(PeriodUnit.DAY), rollover=Rollover(most, least)))
    today, carry, used = NOW // DAY, 0, 0
    for wait, quantity, mode in asked:
        shop.now += wait + empty_days * DAY
        while today < shop.now // DAY:
            # Nothing rolls over before the first use: nobody knows since when it counts.
            carry = min(most, max(least, limit + carry - used)) if shop.log else 0
            today, used = today + 1, 0
        answer = shop.check(quantity, mode)
        fits = min(quantity, limit + carry - used)
        assert answer.granted == (fits if mode is Mode.BEST_EFFORT or fits == quantity else 0)
        used += answer.granted


@given(
    st.decimals("0.000001", "9", places=6),
    st.sampled_from([1, 3, 7, 1000, 10**6]),
    st.decimals("0", "20", places=2),
    st.lists(st.tuples(st.integers(1, 10**7), STRICT), max_size=12),
)
def test_a_spend_cap_is_passed_by_no_millionth_and_used_to_the_last_unit(
    amount: Decimal, per: int, cap: Decimal, asked: list[tuple[int, Mode]]
) -> None:
    shop = Shop(PaygTerms(Period(PeriodUnit.TOTAL), Price(amount, "EUR", per), cap))
    price = Fraction(amount) / per * 10**6

    def cost(units: int) -> int:
        return int(price * units)  # rounded down, once over the whole

    for quantity, mode in asked:
        before = shop.since(0)
        answer = shop.check(quantity, mode)
        if answer.granted:
            assert cost(before + answer.granted) <= int(cap * 10**6)
        if answer.granted < quantity:
            more = answer.granted + 1 if mode is Mode.BEST_EFFORT else quantity
            assert cost(before + more) > int(cap * 10**6)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.integers(0, 2),
            st.none() | st.integers(-2, 5).map(lambda days: NOW + days * DAY),
        ),
        max_size=6,
    ),
    st.integers(0, 5),
    st.lists(st.integers(1, 9), max_size=8),
)
def test_credits_go_by_priority_then_expiry_then_age(
    found: list[tuple[int, int, int | None]], overdraft: int, asked: list[int]
) -> None:
    grants = tuple(
        Grant(100 + place, f"g{place}", amount, priority, None, expires)
        for place, (amount, priority, expires) in enumerate(found)
    )
    shop = Shop(CreditsTerms(grants, overdraft))
    valid = [one for one in grants if one.expires_ms is None or one.expires_ms > NOW]
    valid.sort(key=lambda one: (one.priority, one.expires_ms or 2**62, one.id))
    purse = [one.id for one in valid for _ in range(one.amount)] + [1] * overdraft
    for quantity in asked:
        answer = shop.check(quantity)
        if quantity > len(purse):
            assert answer.granted == 0
            continue
        taken, purse = purse[:quantity], purse[quantity:]
        drawn = {entry.code >> 16: entry.drawn for entry in answer.entries if entry.drawn}
        assert drawn == {number: taken.count(number) for number in set(taken)}
        assert answer.overage == taken.count(1)


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(1, 9), max_size=8),
)
def test_each_unit_falls_into_the_tier_of_its_number(
    widths: list[int], ends: bool, asked: list[int]
) -> None:
    bounds = [sum(widths[: place + 1]) for place in range(len(widths))]
    tiers = [Tier(f"t{place}", upper) for place, upper in enumerate(bounds)]
    if ends:
        tiers.append(Tier("stop", None, TierBehaviour.DENY))
    shop = Shop(TieredTerms(tuple(tiers), Period(PeriodUnit.DAY)))
    used = 0
    for quantity in asked:
        answer = shop.check(quantity)
        assert answer.granted == (quantity if used + quantity <= bounds[-1] else 0)
        units = range(used, used + answer.granted)
        expected = [
            sum(lower <= unit < upper for unit in units)
            for lower, upper in zip([0, *bounds], bounds, strict=False)
        ]
        assert [entry.drawn for entry in answer.entries] == expected
        used += answer.granted


@given(
    st.integers(1, 50),
    st.sampled_from([7, 1000, 60_000]),
    st.integers(1, 30),
    st.lists(
        st.tuples(st.integers(0, 5_000), st.integers(1, 12), st.sampled_from(list(Mode))),
        max_size=30,
    ),
)
def test_a_state_is_the_same_when_it_was_packed_in_between(
    limit: int, per: int, burst: int, asked: list[tuple[int, int, Mode]]
) -> None:
    """The scripts keep doubles: tokens to the last bit, and every count exactly."""
    terms = (
        RateTerms(limit, per, burst),
        RateTerms(limit, per, None, RateAlgorithm.SLIDING_WINDOW),
        QuotaTerms(20, Period(PeriodUnit.HOUR), rollover=Rollover(7)),
        PaygTerms(Period(PeriodUnit.DAY), Price(Decimal("0.000003"), "EUR", 7), Decimal("0.00003")),
        TieredTerms(
            (Tier("a", 3), Tier("b", None, TierBehaviour.THROTTLE, rate=3, rate_per_ms=7, burst=4)),
            Period(PeriodUnit.DAY),
        ),
    )
    kept, packed = Shop(*terms), Shop(*terms)
    for wait, quantity, mode in asked:
        kept.now += wait
        packed.now += wait
        assert kept.check(quantity, mode) == packed.check(quantity, mode)
        for state in packed.store._buckets[0].states.values():
            for code, slot in state.slots.items():
                layout = f"<{len(slot)}d"
                state.slots[code] = list(struct.unpack(layout, struct.pack(layout, *slot)))
    assert kept.store.counters(0) == packed.store.counters(0)
    assert kept.store.records(0) == packed.store.records(0)
