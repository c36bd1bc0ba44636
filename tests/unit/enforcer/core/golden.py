"""The golden table: how limits combine. Every expected value was worked out by hand; the sum is in the note.

`NOW` is Tuesday 2026-11-24 10:00 UTC. Path: level 0 is the customer that asks, the last level the account's root. A
case's history is a list of steps; a bare number is an ENFORCE check of that quantity by level 0 at the time reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from enforcer.core.model import (
    MAX_QUANTITY,
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    Entitlement,
    Grant,
    LicenseType,
    PaygTerms,
    Period,
    PeriodUnit,
    Price,
    QuotaTerms,
    RateAlgorithm,
    RateTerms,
    Rollover,
    Terms,
    Tier,
    TierBehaviour,
    TieredTerms,
    Validity,
)
from enforcer.core.program import Reason
from enforcer.core.rules import Mode

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
NOW = 1_795_514_400_000
HOURS, DAYS, MONTHS, TOTAL = (
    Period(PeriodUnit.HOUR),
    Period(PeriodUnit.DAY),
    Period(PeriodUnit.MONTH),
    Period(PeriodUnit.TOTAL),
)
ROLLING = Period(PeriodUnit.DAY, rolling=True)
BEST, RECORD, ONLY = Mode.BEST_EFFORT, Mode.RECORD_ONLY, Mode.CHECK_ONLY
OK = Reason.ALLOWED

_numbers: dict[str, int] = {}


def number(key: str) -> int:
    return _numbers.setdefault(key, len(_numbers) + 1)


def given(key: str, terms: Terms, level: int = 0, **more: Any) -> tuple[int, Entitlement]:
    return level, Entitlement(number(key), key, "f", terms, **more)


def quota(limit: int, key: str = "q", level: int = 0, period: Period = DAYS, **more: Any) -> Any:
    own = {name: more.pop(name) for name in ("hard", "overage", "rollover", "cap") if name in more}
    return given(key, QuotaTerms(limit, period, **own), level, **more)


def credit(*grants: Any, key: str = "c", level: int = 0, overdraft: int = 0, **more: Any) -> Any:
    made = []
    for name, amount, *rest in grants:
        filled: list[Any] = [*rest, *[0, None, None][len(rest) :]]
        priority, effective, expires = filled
        made.append(Grant(number(f"grant {name}"), name, amount, priority or 0, effective, expires))
    return given(key, CreditsTerms(tuple(made), overdraft), level, **more)


def payg(key: str = "p", level: int = 0, price: str = "", per: int = 1, cap: str = "", **more: Any) -> Any:
    terms = PaygTerms(
        MONTHS,
        Price(Decimal(price), "EUR", per) if price else None,
        Decimal(cap) if cap else None,
    )
    return given(key, terms, level, **more)


def rate(limit: int, per: int = SECOND, burst: int | None = None, key: str = "r", level: int = 0, **more: Any) -> Any:
    return given(key, RateTerms(limit, per, burst), level, **more)


def window(limit: int, per: int, key: str = "w", level: int = 0, **more: Any) -> Any:
    return given(key, RateTerms(limit, per, None, RateAlgorithm.SLIDING_WINDOW), level, **more)


def tiers(*steps: Any, key: str = "t", level: int = 0, **more: Any) -> Any:
    made = tuple(
        Tier(name, up_to, TierBehaviour(behaviour), rate=1, burst=2)
        for name, up_to, behaviour in steps
    )
    return given(key, TieredTerms(made, DAYS), level, **more)


def seats(count: int, key: str = "s", level: int = 0, overdraft: int = 0, factor: str = "1") -> Any:
    return given(key, ConcurrentTerms(count, overdraft=overdraft, overdraft_factor=Decimal(factor)), level)


def boolean(key: str = "b", level: int = 0, **more: Any) -> Any:
    return given(key, BooleanTerms(), level, **more)


def config(value: Any, key: str = "v", level: int = 0, **more: Any) -> Any:
    return given(key, ConfigTerms(value), level, **more)


TRIAL: dict[str, Any] = {"license_type": LicenseType.TRIAL}


def valid(start: int | None = None, end: int | None = None, grace: int = 0, until: int | None = None) -> Any:
    """Times relative to `NOW`."""
    moment = [None if at is None else NOW + at for at in (start, end, until)]
    return {"validity": Validity(moment[0], moment[1], grace, moment[2])}


@dataclass(frozen=True)
class Step:
    """`after` ms pass, then `level` asks for `quantity`. `change` replaces the entitlements first."""

    quantity: int = 0
    after: int = 0
    mode: Mode = Mode.ENFORCE
    level: int = 0
    change: tuple[Any, ...] | None = None
    released: int | None = None


@dataclass(frozen=True)
class Case:
    """`drawn`, `left` by the limit's id in the catalog (only those named are compared); `denied` are exactly those."""

    note: str
    terms: list[Any]
    ask: int | Step
    reason: Reason = OK
    granted: int | None = None
    past: list[int | Step] = field(default_factory=list)
    overage: int = 0
    drawn: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    shadow: bool = False
    tier: str = ""
    grace: bool = False
    config: str = ""
    suspended: tuple[int, ...] = ()


CASES = [
    # -- who may at all
    Case("nothing is defined", [], 1, Reason.NOT_ENTITLED, 0),
    Case("a boolean gives without end", [boolean()], 5, OK, 5),
    Case("a boolean of the root is inherited", [boolean(level=2)], 1, OK, 1),
    Case("begins tomorrow", [boolean(**valid(start=DAY))], 1, Reason.NOT_STARTED, 0),
    Case("ended an hour ago", [boolean(**valid(end=-HOUR))], 1, Reason.EXPIRED, 0),
    Case("its end is outside: [start, end)", [boolean(**valid(end=0))], 1, Reason.EXPIRED, 0),
    Case("its start is inside", [boolean(**valid(start=0))], 1, OK, 1),
    Case("a trial that ended says so", [boolean(**valid(end=-1), **TRIAL)], 1, Reason.TRIAL_EXPIRED, 0),
    Case("a day of grace: allowed, and told", [boolean(**valid(end=-HOUR, grace=DAY))], 1, OK, 1, grace=True),
    Case("grace is over, too", [boolean(**valid(end=-2 * DAY, grace=DAY))], 1, Reason.EXPIRED, 0),
    Case("in grace beside one that is valid: no grace", [boolean(**valid(end=-HOUR, grace=DAY)), boolean("b2")], 1, OK, 1),
    Case("the last to end gives the reason: the subscription, not the trial before it", [boolean(**valid(end=-9 * DAY), **TRIAL), boolean("b2", **valid(end=-DAY))], 1, Reason.EXPIRED, 0),
    Case("a suspended customer", [boolean()], 1, Reason.SUSPENDED, 0, suspended=(0,)),
    Case("a suspended ancestor", [boolean()], 1, Reason.SUSPENDED, 0, suspended=(2,)),
    Case("freemium: the trial still holds, the fallback waits", [quota(10, "trial", **valid(end=DAY)), quota(2, "free", fallback=True)], 5, OK, 5, drawn={"trial": 5}),
    Case("freemium: the trial has ended, 2 a day are left; 5 do not fit", [quota(10, "trial", **valid(end=-DAY)), quota(2, "free", fallback=True)], 5, Reason.QUOTA_EXCEEDED, 0, denied={"free"}),
    Case("freemium: 2 fit", [quota(10, "trial", **valid(end=-DAY)), quota(2, "free", fallback=True)], 2, OK, 2, left={"free": 0}),
    Case("a rate beside the fallback does not keep it away", [rate(10), quota(2, "free", fallback=True)], 2, OK, 2, left={"free": 0, "r": 8}),
    Case("supplies have ended: a boolean beside them does not make it free", [boolean(), quota(10, **valid(end=-1))], 1, Reason.EXPIRED, 0),
    Case("a rate alone entitles: 10 a second, 3 taken", [rate(10)], 3, OK, 3, left={"r": 7}),
    Case("a rate does not replace the supply that has not begun", [rate(10), quota(5, **valid(start=DAY))], 1, Reason.NOT_STARTED, 0),
    # -- product versions
    Case("maintenance until yesterday covers a version of last week", [boolean(license_type=LicenseType.PERPETUAL, **valid(until=-DAY))], Step(1, released=NOW - 7 * DAY), OK, 1),
    Case("and not the version of today", [boolean(license_type=LicenseType.PERPETUAL, **valid(until=-DAY))], Step(1, released=NOW), Reason.VERSION_NOT_COVERED, 0),
    Case("released at the very end of maintenance: not covered, [.., until)", [boolean(**valid(until=0))], Step(1, released=NOW), Reason.VERSION_NOT_COVERED, 0),
    Case("another entitlement covers every version", [boolean(**valid(until=-DAY)), boolean("b2")], Step(1, released=NOW), OK, 1),
    # -- config
    Case("a value is handed back", [config(1080)], 1, OK, 1, config="1080"),
    Case("of two on one node the larger number", [config(720, "v1"), config(2160, "v2")], 1, OK, 1, config="2160"),
    Case("the nearest node wins, even if smaller", [config(720, "v1", 0), config(2160, "v2", 1)], 1, OK, 1, config="720"),
    Case("priority before size", [config(720, "v1", priority=0), config(2160, "v2", priority=1)], 1, OK, 1, config="720"),
    # -- quota
    Case("hard: 7 of 10 used, 3 fit exactly", [quota(10)], 3, OK, 3, past=[7], left={"q": 0}, drawn={"q": 3}),
    Case("hard: 7 of 10 used, 4 do not fit and 3 stay", [quota(10)], 4, Reason.QUOTA_EXCEEDED, 0, past=[7], left={"q": 3}, denied={"q"}),
    Case("best effort takes the 3 that are left", [quota(10)], Step(4, mode=BEST), OK, 3, past=[7], left={"q": 0}),
    Case("best effort with nothing left is a denial", [quota(10)], Step(4, mode=BEST), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("record only: 7 + 5 = 12 of 10, 2 are overage", [quota(10)], Step(5, mode=RECORD), OK, 5, past=[7], overage=2, left={"q": 0}, drawn={"q": 5}),
    Case("check only answers the same", [quota(10)], Step(3, mode=ONLY), OK, 3, past=[7], left={"q": 0}),
    Case("check only has consumed nothing", [quota(10)], 3, OK, 3, past=[7, Step(3, mode=ONLY), Step(3, mode=ONLY)], left={"q": 0}),
    Case("soft: 12 of 10, 2 of them overage", [quota(10, hard=False)], 5, OK, 5, past=[7], overage=2, drawn={"q": 5}),
    Case("overage up to 5: 10 + 5 fit", [quota(10, overage=5)], 8, OK, 8, past=[7], overage=5, left={"q": 0}),
    Case("overage up to 5: one more does not", [quota(10, overage=5)], 9, Reason.QUOTA_EXCEEDED, 0, past=[7], denied={"q"}),
    Case("zero quota gives nothing", [quota(0)], 1, Reason.QUOTA_EXCEEDED, 0, denied={"q"}),
    Case("the next day begins at midnight: 14 h later 10 are there again", [quota(10)], Step(10, after=14 * HOUR), OK, 10, past=[10], left={"q": 0}),
    Case("a millisecond before midnight they are not", [quota(10)], Step(1, after=14 * HOUR - 1), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("midnight in Berlin is 23:00 UTC: 13 h later", [quota(10, period=Period(PeriodUnit.DAY, "Europe/Berlin"))], Step(10, after=13 * HOUR), OK, 10, past=[10]),
    Case("hourly: 11:00 is an hour away", [quota(10, period=HOURS)], Step(10, after=HOUR), OK, 10, past=[10]),
    Case("weekly: Monday is 5 days and 14 h away", [quota(10, period=Period(PeriodUnit.WEEK))], Step(1, after=5 * DAY + 14 * HOUR - 1), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("weekly: on Monday they are back", [quota(10, period=Period(PeriodUnit.WEEK))], Step(10, after=5 * DAY + 14 * HOUR), OK, 10, past=[10]),
    Case("monthly: December is 6 days and 14 h away", [quota(10, period=MONTHS)], Step(10, after=6 * DAY + 14 * HOUR), OK, 10, past=[10]),
    # 2026-01-31 00:00 UTC = NOW - 297 d 10 h; its monthly day in November is the 30th, 5 d 14 h away.
    Case("anniversary of the 31st: in November the 30th", [quota(10, period=Period(PeriodUnit.MONTH, anchor_ms=NOW - 297 * DAY - 10 * HOUR))], Step(10, after=5 * DAY + 14 * HOUR), OK, 10, past=[10]),
    Case("and a millisecond before it is not there", [quota(10, period=Period(PeriodUnit.MONTH, anchor_ms=NOW - 297 * DAY - 10 * HOUR))], Step(1, after=5 * DAY + 14 * HOUR - 1), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("in total: a year later still used up", [quota(10, period=TOTAL)], Step(1, after=366 * DAY), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("rolling: 23 h later the 10 still count", [quota(10, period=ROLLING)], Step(1, after=23 * HOUR), Reason.QUOTA_EXCEEDED, 0, past=[10], denied={"q"}),
    Case("rolling: 25 h later their slot of one hour has left", [quota(10, period=ROLLING)], Step(10, after=25 * HOUR), OK, 10, past=[10]),
    Case("rolling: 6, 12 h later 4; 25 h after the first 6 are free again", [quota(10, period=ROLLING)], Step(6, after=13 * HOUR), OK, 6, past=[6, Step(4, after=12 * HOUR)], left={"q": 0}),
    Case("rollover: 7 of 10 used, 3 go on: 13 tomorrow", [quota(10, rollover=Rollover(5))], Step(13, after=DAY), OK, 13, past=[7], left={"q": 0}),
    Case("rollover: at most 5 of the 8 left: 15 tomorrow", [quota(10, rollover=Rollover(5))], Step(16, after=DAY), Reason.QUOTA_EXCEEDED, 0, past=[2], denied={"q"}),
    Case("rollover: at least 2, though all is used: 12", [quota(10, rollover=Rollover(5, 2))], Step(12, after=DAY), OK, 12, past=[10], left={"q": 0}),
    Case("rollover over an unused day: 3, then 3 + 10 capped at 20: 10 + 13 = 23", [quota(10, rollover=Rollover(20))], Step(23, after=2 * DAY), OK, 23, past=[7], left={"q": 0}),
    Case("rollover over three days: 3 + 10 + 10 = 23 capped at 20: 30", [quota(10, rollover=Rollover(20))], Step(31, after=3 * DAY), Reason.QUOTA_EXCEEDED, 0, past=[7], denied={"q"}),
    Case("never used since it began two days ago: 10, then 20: 30 today", [quota(10, rollover=Rollover(20), **valid(start=-2 * DAY))], 30, OK, 30, left={"q": 0}),
    Case("a limit raised from 10 to 15 with 10 used: 5 more", [quota(10)], Step(5, change=(quota(15),)), OK, 5, past=[10], left={"q": 0}),
    Case("a limit lowered below what is used: nothing, and no debt tomorrow", [quota(10)], Step(4, after=DAY, change=(quota(4),)), OK, 4, past=[8]),
    Case("lowered below what is used: denied today", [quota(10)], Step(1, change=(quota(4),)), Reason.QUOTA_EXCEEDED, 0, past=[8], denied={"q"}, left={"q": 0}),
    Case("raised after 5 of overage: 10 + 5 used, 20 now: 5 left, no overage", [quota(10, overage=5)], Step(5, change=(quota(20, overage=5),)), OK, 5, past=[15], left={}),
    # -- credits
    Case("the earlier expiry first: 30 from b, 20 from a", [credit(("a", 100, 0, None, NOW + 9 * DAY), ("b", 30, 0, None, NOW + DAY))], 50, OK, 50, drawn={"c/b": 30, "c/a": 20}),
    Case("priority before expiry", [credit(("a", 100, 0, None, NOW + 9 * DAY), ("b", 30, 1, None, NOW + DAY))], 50, OK, 50, drawn={"c/a": 50, "c/b": 0}),
    Case("equal in both: the older, which has the smaller number", [credit(("old", 10), ("young", 10))], 12, OK, 12, drawn={"c/old": 10, "c/young": 2}),
    Case("one that never expires comes last", [credit(("ever", 10), ("soon", 10, 0, None, NOW + DAY))], 12, OK, 12, drawn={"c/soon": 10, "c/ever": 2}),
    Case("an expired grant gives nothing", [credit(("gone", 100, 0, None, NOW), ("b", 5))], 6, Reason.CREDITS_EXHAUSTED, 0, denied={"c/b"}),
    Case("a grant that is not effective yet gives nothing", [credit(("later", 100, 0, NOW + HOUR, None), ("b", 5))], 6, Reason.CREDITS_EXHAUSTED, 0, denied={"c/b"}),
    Case("never negative: 95 of 100 used, 6 do not fit", [credit(("a", 100))], 6, Reason.CREDITS_EXHAUSTED, 0, past=[95], denied={"c/a"}, left={"c/a": 5}),
    Case("an overdraft of 10: 5 left + 10 take 12, 7 of them overdrawn", [credit(("a", 100), overdraft=10)], 12, OK, 12, past=[95], overage=7, drawn={"c/a": 5, "c": 7}, left={"c": 3}),
    Case("a top-up in between: 100 used, 50 new", [credit(("a", 100))], Step(40, change=(credit(("a", 100), ("top", 50)),)), OK, 40, past=[100], drawn={"c/top": 40}, left={"c/top": 10}),
    Case("no grant at all", [credit()], 1, Reason.CREDITS_EXHAUSTED, 0),
    # -- pay-as-you-go
    Case("metered without end", [payg()], 10**12, OK, 10**12, drawn={"p": 10**12}),
    Case("0.02 each, cap 1: 50 units fit", [payg(price="0.02", cap="1")], 50, OK, 50, left={"p": 0}),
    Case("0.02 each, cap 1: 51 do not", [payg(price="0.02", cap="1")], 51, Reason.SPEND_CAP_REACHED, 0, denied={"p"}, left={"p": 50}),
    Case("0.15 a million, cap 0.30: 2,000,000 fit and 6 more, whose 0.9 millionths round down", [payg(price="0.15", per=10**6, cap="0.30")], Step(10**7, mode=BEST), OK, 2_000_006),
    Case("fractions add up over many checks: 3 x 333,334 at 0.15 a million = 0.15 spent; 1,000,000 more are 0.30", [payg(price="0.15", per=10**6, cap="0.30")], 1_000_000, OK, 1_000_000, past=[333_334, 333_334, 333_334]),
    Case("a cap raised from 1 to 2 with 1 spent: 50 more", [payg(price="0.02", cap="1")], Step(50, change=(payg(price="0.02", cap="2"),)), OK, 50, past=[50], left={"p": 0}),
    # -- the supply's order
    Case("quota 1000, credits 500, then pay-as-you-go: 2,000 are 1,000 + 500 + 500", [quota(1000), credit(("a", 500)), payg()], 2000, OK, 2000, drawn={"q": 1000, "c/a": 500, "p": 500}),
    Case("the same in four checks of 500: the last is pay-as-you-go", [quota(1000), credit(("a", 500)), payg()], 500, OK, 500, past=[500, 500, 500], drawn={"q": 0, "c/a": 0, "p": 500}),
    Case("declared the other way round it is the same", [payg(), credit(("a", 500)), quota(1000)], 2000, OK, 2000, drawn={"q": 1000, "c/a": 500, "p": 500}),
    Case("overage comes after credits: 10 + 5 + 3", [quota(10, overage=5), credit(("a", 5))], 18, OK, 18, overage=3, drawn={"c/a": 5}),
    Case("bounded overage before pay-as-you-go: 10 + 5 overage + 5", [quota(10, overage=5), payg()], 20, OK, 20, overage=5, drawn={"p": 5}),
    Case("two quotas merge: 10 + 5; the one that ends first is drawn first", [quota(10, "day"), quota(5, "hour", period=HOURS)], 12, OK, 12, drawn={"hour": 5, "day": 7}),
    Case("priority before the earlier end", [quota(10, "day", priority=0), quota(5, "hour", period=HOURS, priority=1)], 12, OK, 12, drawn={"day": 10, "hour": 2}),
    Case("all exhausted: the last one gives the reason", [quota(1), credit(("a", 1))], 3, Reason.CREDITS_EXHAUSTED, 0, denied={"q", "c/a"}),
    # -- tiers
    Case("in the first tier", [tiers(("a", 10, "allow"), ("b", None, "notify"))], 10, OK, 10, tier="a"),
    Case("over its border: 4 in a, 6 in b, which notifies", [tiers(("a", 10, "allow"), ("b", None, "notify"))], 10, OK, 10, past=[6], tier="b", drawn={"t/a": 4, "t/b": 6}),
    Case("the tier that denies is never entered", [tiers(("a", 10, "allow"), ("stop", None, "deny"))], 5, Reason.TIER_LIMIT_REACHED, 0, past=[6], denied={"t/a"}, left={"t/a": 4}),
    Case("throttled: a burst of 2, then nothing", [tiers(("a", 10, "allow"), ("slow", None, "throttle"))], 1, Reason.TIER_LIMIT_REACHED, 0, past=[10, 2], denied={"t/a", "t/slow"}, tier="slow"),
    Case("throttled: one more after a second", [tiers(("a", 10, "allow"), ("slow", None, "throttle"))], Step(1, after=SECOND), OK, 1, past=[10, 2], tier="slow"),
    Case("a throttled tier without tokens is not jumped over", [tiers(("slow", 10, "throttle"), ("b", None, "allow"))], Step(5, mode=BEST), OK, 2, tier="slow", drawn={"t/slow": 2, "t/b": 0}),
    Case("the border moved from 10 to 20 with 15 used: 5 more are in a", [tiers(("a", 10, "allow"), ("b", None, "allow"))], Step(5, change=(tiers(("a", 20, "allow"), ("b", None, "allow")),)), OK, 5, past=[15], tier="a"),
    # -- rates
    Case("a bucket of 10: the 11th at once is refused", [rate(10)], 1, Reason.RATE_LIMITED, 0, past=[10], denied={"r"}),
    Case("100 ms later one token is back", [rate(10)], Step(1, after=100), OK, 1, past=[10], left={"r": 0}),
    Case("99 ms later it is not", [rate(10)], Step(1, after=99), Reason.RATE_LIMITED, 0, past=[10], denied={"r"}),
    Case("never more than the burst: 3, even after an hour", [rate(10, burst=3)], Step(4, after=HOUR), Reason.RATE_LIMITED, 0, past=[3], denied={"r"}),
    Case("record only makes a debt: 10 - 15 = -5, so that 0.5 s later nothing is there", [rate(10)], Step(1, after=500), Reason.RATE_LIMITED, 0, past=[Step(15, mode=RECORD)], denied={"r"}),
    Case("0.6 s later one is", [rate(10)], Step(1, after=600), OK, 1, past=[Step(15, mode=RECORD)]),
    Case("a sliding window of 10 a second: 1 s later the slot of 100 ms may still be half inside", [window(10, SECOND)], Step(1, after=SECOND), Reason.RATE_LIMITED, 0, past=[10], denied={"w"}),
    Case("1.1 s later it has left", [window(10, SECOND)], Step(10, after=1100), OK, 10, past=[10], left={"w": 0}),
    Case("two rates are both asked", [rate(10, key="r1"), rate(5, MINUTE, key="r2")], 6, Reason.RATE_LIMITED, 0, denied={"r2"}, left={"r1": 10, "r2": 5}),
    # -- ANDed: a denial consumes nowhere
    Case("the second of two constraints denies: the first is untouched", [rate(100), quota(5)], 6, Reason.QUOTA_EXCEEDED, 0, denied={"q"}, left={"r": 100, "q": 5}),
    Case("the first denies: the supply is untouched", [rate(5), quota(100)], 6, Reason.RATE_LIMITED, 0, denied={"r"}, left={"r": 5, "q": 100}),
    Case("both deny: the first in order gives the reason", [rate(5), quota(5)], 6, Reason.RATE_LIMITED, 0, denied={"r", "q"}),
    Case("best effort: min(rate 8, quota 5) = 5 from both", [rate(8), quota(5)], Step(20, mode=BEST), OK, 5, left={"r": 3, "q": 0}),
    # -- trees
    Case("the root's quota is used by a user below it", [quota(10, level=2)], 4, OK, 4, past=[5], left={"q": 1}),
    Case("the team's quota is nearer, the root's counts along", [quota(5, "team", 1), quota(100, "root", 2)], 3, OK, 3, left={"team": 2, "root": 97}),
    Case("the root's quota caps the team's: 8 of 10 are gone by others", [quota(100, "team", 1), quota(10, "root", 2)], 3, Reason.CAP_REACHED, 0, past=[Step(8, level=2)], denied={"root"}, left={"team": 100, "root": 2}),
    Case("a used-up team is not helped by the root", [quota(5, "team", 1), quota(100, "root", 2)], 1, Reason.QUOTA_EXCEEDED, 0, past=[5], denied={"team"}),
    Case("credits of the root are not touched when the team has a quota", [quota(5, "team", 1), credit(("a", 100), level=2)], 5, OK, 5, drawn={"team": 5}),
    Case("a cap on the team within the root's supply: 3 fit", [quota(3, "cap", 1, cap=True), quota(100, "root", 2)], 3, OK, 3, left={"cap": 0, "root": 97}),
    Case("and 4 do not", [quota(3, "cap", 1, cap=True), quota(100, "root", 2)], 4, Reason.CAP_REACHED, 0, denied={"cap"}, left={"cap": 3, "root": 100}),
    Case("who is beside the team is not capped by it", [quota(3, "cap", 1, cap=True), quota(100, "root", 2)], Step(4, level=2), OK, 4, left={"root": 96}),
    Case("a rate on the root limits everybody together", [rate(10, level=2), quota(100, level=0)], 5, Reason.RATE_LIMITED, 0, past=[Step(6, level=0)], denied={"r"}),
    Case("a soft quota of the root counts along and never denies", [quota(100, "team", 1), quota(1, "root", 2, hard=False)], 5, OK, 5, drawn={"team": 5}),
    Case("the customer's own supply has ended: the next one up is the nearest", [quota(5, "own", 0, **valid(end=-1)), quota(10, "root", 2)], 4, OK, 4, left={"root": 6}),
    # -- shadow
    Case("a shadow quota would deny, and is counted: 12 of 10", [quota(10, "seen", shadow=True), payg()], 5, OK, 5, past=[7], shadow=True, denied={"seen"}, drawn={"seen": 5, "p": 5}),
    Case("a shadow quota with room says nothing", [quota(10, "seen", shadow=True), payg()], 3, OK, 3, past=[7], left={"seen": 0}),
    Case("a shadow quota alone lets everything through", [quota(10, "seen", shadow=True)], 50, OK, 50, shadow=True, denied={"seen"}),
    Case("a shadow rate would deny: the enforced quota decides", [rate(1, shadow=True), quota(10)], 5, OK, 5, shadow=True, denied={"r"}, left={"q": 5}),
    Case("shadow credits are drawn beside the real supply", [credit(("a", 3), shadow=True), quota(10)], 5, OK, 5, shadow=True, denied={"c/a"}, left={"q": 5}),
    # -- seats (a check of them only looks)
    Case("two seats are free; looking takes none", [seats(2)], Step(1, mode=ONLY), OK, 1, left={"s": 2}),
    Case("no seats at all", [seats(0)], Step(1, mode=ONLY), Reason.NO_SEATS, 0, denied={"s"}),
    Case("1.5 x 1 seat, rounded down, is no seat more", [seats(1, factor="1.5")], Step(2, mode=ONLY), Reason.NO_SEATS, 0, denied={"s"}),
    Case("1.5 x 2 seats are 3", [seats(2, factor="1.5")], Step(3, mode=ONLY), OK, 3, left={"s": 3}, overage=1),
    Case("two pools of one node merge: 1 + 2", [seats(1, "s1"), seats(2, "s2")], Step(3, mode=ONLY), OK, 3),
    Case("the root's seats cap the team's", [seats(5, "team", 1), seats(1, "root", 2)], Step(2, mode=ONLY), Reason.NO_SEATS, 0, denied={"root"}),
    # -- the largest quantities
    Case("2^53 - 1 fits where nothing was used", [payg()], MAX_QUANTITY, OK, MAX_QUANTITY),
    Case("and nothing after it", [payg()], 1, Reason.SPEND_CAP_REACHED, 0, past=[MAX_QUANTITY], denied={"p"}),
]
