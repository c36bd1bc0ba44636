"""docs/modes.md cell by cell, over both counter stores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc.aio
import pytest

from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from tests.fixtures.gateway import Service

PAGE = Path(__file__).parents[3] / "docs" / "modes.md"
ENFORCE, CHECK_ONLY, BEST_EFFORT, RECORD_ONLY = 1, 2, 3, 4
NOT_SUPPORTED = "MODE_NOT_SUPPORTED"

CATALOG = """
version: 1
features: [{key: boolean}, {key: config}, {key: hard}, {key: overage}, {key: soft}, {key: credits},
  {key: overdraft}, {key: payg}, {key: spend}, {key: tiered}, {key: throttled}, {key: rate}, {key: window},
  {key: seats}, {key: ended}, {key: ended.boolean}, {key: ended.seats}, {key: nothing}]
accounts:
  - key: acme
    entitlements:
      - {feature: boolean, model: boolean}
      - {feature: config, model: config, value: 7}
      - {feature: hard, model: quota, limit: 10, per: total}
      - {feature: overage, model: quota, limit: 8, overage: 2, per: total}
      - {feature: soft, model: quota, limit: 10, per: total, hard: false}
      - {feature: credits, model: credits, grants: [{key: a, amount: 4}, {key: b, amount: 6}]}
      - {feature: overdraft, model: credits, overdraft: 2, grants: [{key: a, amount: 8}]}
      - {feature: payg, model: payg, per: month}
      - {feature: spend, model: payg, per: month, price: {amount: "1", currency: EUR}, spend_cap: 10}
      - {feature: tiered, model: tiered, per: month, tiers: [{name: a, up_to: 4}, {name: b, up_to: 10}, {name: c, behaviour: deny}]}
      - {feature: throttled, model: tiered, per: month, tiers: [{name: a, up_to: 4}, {name: b, behaviour: throttle, rate: 6, rate_per: 1h}]}
      - {feature: rate, model: rate, limit: 10, per: 24h}
      - {feature: window, model: rate, limit: 10, per: 24h, algorithm: sliding_window}
      - {feature: seats, model: concurrent, seats: 10}
      - {feature: ended, model: quota, limit: 10, per: total, start: 2020-01-01, end: 2021-01-01}
      - {feature: ended.boolean, model: boolean, start: 2020-01-01, end: 2021-01-01}
      - {feature: ended.seats, model: concurrent, seats: 1, start: 2020-01-01, end: 2021-01-01}
"""


class Row(NamedTuple):
    """What happens to a feature with room for 10: granted, and the overage of it, or a reason.

    `enforce` is asked for 10 and then for 1 more; the other modes for 15 on fresh counters.
    """

    enforce: tuple[Any, Any]
    check_only: Any
    best_effort: Any
    record_only: Any


TABLE = {
    "boolean": Row(((10, 0), (1, 0)), (15, 0), (15, 0), NOT_SUPPORTED),
    "config": Row(((10, 0), (1, 0)), (15, 0), (15, 0), NOT_SUPPORTED),
    "hard": Row(((10, 0), "QUOTA_EXCEEDED"), "QUOTA_EXCEEDED", (10, 0), (15, 5)),
    "overage": Row(((10, 2), "QUOTA_EXCEEDED"), "QUOTA_EXCEEDED", (10, 2), (15, 7)),
    "soft": Row(((10, 0), (1, 1)), (15, 5), (15, 5), (15, 5)),
    "credits": Row(((10, 0), "CREDITS_EXHAUSTED"), "CREDITS_EXHAUSTED", (10, 0), (15, 5)),
    "overdraft": Row(((10, 2), "CREDITS_EXHAUSTED"), "CREDITS_EXHAUSTED", (10, 2), (15, 7)),
    "payg": Row(((10, 0), (1, 0)), (15, 0), (15, 0), (15, 0)),
    "spend": Row(((10, 0), "SPEND_CAP_REACHED"), "SPEND_CAP_REACHED", (10, 0), (15, 5)),
    "tiered": Row(((10, 0), "TIER_LIMIT_REACHED"), "TIER_LIMIT_REACHED", (10, 0), (15, 5)),
    "throttled": Row(((10, 0), "TIER_LIMIT_REACHED"), "TIER_LIMIT_REACHED", (10, 0), (15, 5)),
    "rate": Row(((10, 0), "RATE_LIMITED"), "RATE_LIMITED", (10, 0), (15, 0)),
    "window": Row(((10, 0), "RATE_LIMITED"), "RATE_LIMITED", (10, 0), (15, 0)),
    "seats": Row((NOT_SUPPORTED, NOT_SUPPORTED), "NO_SEATS", NOT_SUPPORTED, NOT_SUPPORTED),
    "ended": Row(("EXPIRED", "EXPIRED"), "EXPIRED", "EXPIRED", "EXPIRED"),
    "ended.boolean": Row(("EXPIRED", "EXPIRED"), "EXPIRED", "EXPIRED", NOT_SUPPORTED),
    "ended.seats": Row(("EXPIRED", "EXPIRED"), "EXPIRED", "EXPIRED", NOT_SUPPORTED),
    "nothing": Row(("NOT_ENTITLED",) * 2, "NOT_ENTITLED", "NOT_ENTITLED", "NOT_ENTITLED"),
}


async def outcome(service: Service, feature: str, mode: int, quantity: int) -> Any:
    """Granted and overage, or why not: a denial's reason, or an error's."""
    try:
        answer = await service.door.check(feature, quantity, mode=mode)
    except grpc.aio.AioRpcError as error:
        return service.told(error).reason
    if not answer.allowed:
        assert answer.granted == answer.overage == 0
        return pb.Reason.Name(answer.reason).removeprefix("REASON_")
    assert answer.reason == pb.REASON_ALLOWED
    return answer.granted, answer.overage


@pytest.mark.parametrize("feature", TABLE)
async def test_enforce_takes_all_or_nothing(service: Service, feature: str) -> None:
    await service.apply(CATALOG)
    first, second = TABLE[feature].enforce
    assert await outcome(service, feature, ENFORCE, 10) == first
    before = await service.counted()
    assert await outcome(service, feature, ENFORCE, 1) == second
    if not isinstance(second, tuple):
        assert await service.counted() == before


@pytest.mark.parametrize("feature", TABLE)
async def test_check_only_tells_and_changes_nothing(service: Service, feature: str) -> None:
    await service.apply(CATALOG)
    before = await service.counted(), await service.last_records()
    for _ in range(2):
        assert await outcome(service, feature, CHECK_ONLY, 15) == TABLE[feature].check_only
    assert (await service.counted(), await service.last_records()) == before
    if feature not in ("nothing", "seats"):
        assert await outcome(service, feature, ENFORCE, 10) == TABLE[feature].enforce[0]


@pytest.mark.parametrize("feature", TABLE)
async def test_best_effort_takes_what_there_is(service: Service, feature: str) -> None:
    await service.apply(CATALOG)
    assert await outcome(service, feature, BEST_EFFORT, 15) == TABLE[feature].best_effort
    left = TABLE[feature].enforce[1]
    assert (await outcome(service, feature, BEST_EFFORT, 1)) == left


@pytest.mark.parametrize("feature", TABLE)
async def test_record_only_counts_what_has_happened(service: Service, feature: str) -> None:
    await service.apply(CATALOG)
    assert await outcome(service, feature, RECORD_ONLY, 15) == TABLE[feature].record_only


async def test_seats_are_looked_at_but_not_taken_by_a_check(service: Service) -> None:
    await service.apply(CATALOG)
    assert await outcome(service, "seats", CHECK_ONLY, 10) == (10, 0)
    for _ in range(10):
        assert (await service.door.acquire("seats")).check.allowed
    assert await outcome(service, "seats", CHECK_ONLY, 1) == "NO_SEATS"


async def test_a_suspended_customer_is_denied_in_every_mode(service: Service) -> None:
    await service.apply(CATALOG.replace("- key: acme", "- key: acme\n    suspended: true"))
    for feature in ("hard", "rate", "nothing"):
        for mode in (ENFORCE, CHECK_ONLY, BEST_EFFORT, RECORD_ONLY):
            assert await outcome(service, feature, mode, 1) == "SUSPENDED", (feature, mode)


async def test_reservations_take_two_of_the_modes(service: Service) -> None:
    await service.apply(CATALOG)
    for mode in (CHECK_ONLY, RECORD_ONLY):
        found = await service.fault(service.door.reserve("hard", 1, mode=mode))
        assert found.named == ("INVALID_ARGUMENT", NOT_SUPPORTED)
    assert not (await service.door.reserve("hard", 15)).check.allowed
    assert (await service.door.reserve("hard", 15, mode=BEST_EFFORT)).check.granted == 10


async def test_a_recorded_rate_leaves_a_debt_of_one_burst_at_most(service: Service) -> None:
    await service.apply(CATALOG)
    assert await outcome(service, "rate", RECORD_ONLY, 1000) == (1000, 0)
    refused = await service.door.check("rate")
    service.clock.forward(refused.retry_after.ToMilliseconds() - 10)
    assert await outcome(service, "rate", ENFORCE, 1) == "RATE_LIMITED"
    service.clock.forward(10)
    assert await outcome(service, "rate", ENFORCE, 1) == (1, 0)
    assert refused.retry_after.ToMilliseconds() == 11 * 86_400_000 // 10


MODELS = {
    "boolean": "boolean, config",
    "config": "boolean, config",
    "hard": "quota, hard",
    "overage": "quota, hard",
    "soft": "quota, soft",
    "credits": "credits",
    "overdraft": "credits",
    "payg": "pay-as-you-go",
    "spend": "pay-as-you-go",
    "tiered": "tiered",
    "throttled": "tiered",
    "rate": "rate",
    "window": "rate",
    "seats": "concurrent",
    "ended": "not entitled, ended, suspended",
    "nothing": "not entitled, ended, suspended",
}


def test_the_page_has_a_row_for_each_model_and_names_the_errors() -> None:
    lines = re.findall(r"^\| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines}
    assert set(MODELS.values()) <= set(cells)
    for feature, model in MODELS.items():
        row = TABLE[feature]
        tried = (row.enforce[0], row.check_only, row.best_effort, row.record_only)
        for cell, found in zip(cells[model], tried, strict=True):
            assert (NOT_SUPPORTED in cell) == (found == NOT_SUPPORTED), (model, cell)
