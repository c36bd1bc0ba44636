"""Blocks of supply over gRPC, on both counter stores; and in reports, audits and corrections, on real ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from enforcer.core.allowances import GRACE_MS
from enforcer.errors import NotPossibleError
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.records import RecordType
from meter.core.windows import Window
from meter.ports.usage import Scope
from meter.reports import UsageQuery
from tests.fixtures.gateway import ms
from tests.fixtures.service_desk import TENANT, place

if TYPE_CHECKING:
    from meter.ports.usage import Row
    from tests.fixtures.gateway import Service
    from tests.fixtures.service_desk import Desk

INVALID, NOT_NOW = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
CATALOG = """
version: 1
features: [{key: calls}, {key: words}, {key: tiered}, {key: paid}, {key: free}, {key: speed}, {key: seats}, {key: yes},
  {key: size}, {key: peak, meter: max}, {key: nothing}]
accounts:
  - key: acme
    entitlements:
      - {feature: calls, key: plan, model: quota, limit: 80, per: month}
      - {feature: words, key: pool, model: credits, overdraft: 5,
         grants: [{key: first, amount: 6}, {key: second, amount: 100, priority: 1}]}
      - {feature: tiered, model: tiered, per: month, tiers: [{name: a, up_to: 6}, {name: b, up_to: 100}, {name: c, behaviour: deny}]}
      - {feature: paid, key: paid, model: payg, per: total, price: {amount: "0.3", currency: EUR}, spend_cap: "30"}
      - {feature: free, model: payg, per: month}
      - {feature: speed, model: rate, limit: 80, per: 24h}
      - {feature: seats, model: concurrent, seats: 10}
      - {feature: yes, model: boolean}
      - {feature: size, model: config, value: 7}
"""


@pytest.fixture
async def sold(service: Service) -> Service:
    await service.apply(CATALOG)
    return service


async def take(
    service: Service,
    feature: str = "calls",
    quantity: int = 10,
    key: str | None = None,
    **more: Any,
) -> pb.TakeAllowanceResponse:
    request = pb.TakeAllowanceRequest(customer="acme", feature=feature, quantity=quantity, **more)
    response: pb.TakeAllowanceResponse = await service.door.call(
        service.door.enforcer.TakeAllowance, request, key
    )
    return response


async def give_back(
    service: Service, allowance: str, used: int = 0, key: str | None = None
) -> pb.ReturnAllowanceResponse:
    request = pb.ReturnAllowanceRequest(allowance=allowance, used=used)
    response: pb.ReturnAllowanceResponse = await service.door.call(
        service.door.enforcer.ReturnAllowance, request, key
    )
    return response


async def shown(service: Service, feature: str = "calls") -> tuple[int, int, int]:
    """Used, held and remaining, over all limits of the feature."""
    limits = (await service.door.balance(feature)).limits
    used, held = sum(one.used for one in limits), sum(one.held for one in limits)
    return used, held, sum(one.remaining for one in limits)


async def test_a_block_is_taken_and_what_was_used_of_it_is_told(sold: Service) -> None:
    taken = await take(sold)
    assert (taken.check.granted, taken.check.reason) == (10, pb.REASON_ALLOWED)
    assert taken.lifetime == Duration(seconds=60)
    assert taken.expires_at.ToMilliseconds() == sold.clock.now + 60_000
    assert await shown(sold) == (0, 10, 70)
    found = await sold.fault(give_back(sold, taken.allowance, 11))
    assert found.named == (INVALID, "ALLOWANCE_EXCEEDED")
    assert found.metadata == {"used": "11", "held": "10"}
    assert (await sold.fault(give_back(sold, taken.allowance, -1))).reason == "BAD_QUANTITY"
    done = await give_back(sold, taken.allowance, 4)
    assert (done.used, done.returned, done.replayed) == (4, 6, False)
    assert done.record.sequence == taken.check.record.sequence + 1
    assert await shown(sold) == (4, 0, 76)
    again = await give_back(sold, taken.allowance, 4)
    assert (again.used, again.returned, again.record, again.replayed) == (4, 6, done.record, True)
    found = await sold.fault(give_back(sold, taken.allowance, 5))
    assert found.named == (NOT_NOW, "ALLOWANCE_RETURNED")


async def test_a_retry_gets_the_same_block(sold: Service) -> None:
    first = await take(sold, idempotency_key="k")
    again = await take(sold, idempotency_key="k")
    assert (again.allowance, again.lifetime) == (first.allowance, first.lifetime)
    assert again.check.replayed
    assert await shown(sold) == (0, 10, 70)
    for other in ({"quantity": 9}, {"ttl": Duration(seconds=9)}, {"dimensions": {"a": "b"}}):
        found = await sold.fault(take(sold, idempotency_key="k", **other))
        assert found.named == (INVALID, "IDEMPOTENCY_MISMATCH")


async def test_many_clients_share_the_end_of_a_quota_and_never_pass_it(sold: Service) -> None:
    taken = await asyncio.gather(*(take(sold, quantity=40) for _ in range(60)))
    sizes = sorted((one.check.granted for one in taken), reverse=True)
    assert sizes[:3] == [10, 9, 8]  # 80 / 8, then 70 / 8, then 61 / 8
    assert sum(sizes) == 80
    assert sizes.count(0) > 0
    denied = next(one for one in taken if not one.check.granted)
    assert (denied.check.reason, denied.allowance) == (pb.REASON_QUOTA_EXCEEDED, "")
    assert not denied.HasField("lifetime")
    assert not denied.HasField("expires_at")
    assert not (await sold.door.check("calls")).allowed


async def test_a_block_ends_with_its_period(sold: Service) -> None:
    sold.clock.to(ms(2026, 7, 1) - 7_000)
    taken = await take(sold)
    assert taken.lifetime == Duration(seconds=7)
    assert taken.expires_at.ToMilliseconds() == ms(2026, 7, 1)


async def test_a_block_that_nobody_returns_counts_as_used_until_its_period_ends(
    sold: Service,
) -> None:
    taken = await take(sold, ttl=Duration(seconds=1))
    sold.clock.forward(1_000 + GRACE_MS - 1)
    await sold.tick()
    assert await shown(sold) == (0, 10, 70)
    sold.clock.forward(1)
    await sold.tick()
    assert await shown(sold) == (10, 0, 70)
    found = await sold.fault(give_back(sold, taken.allowance, 3))
    assert found.named == (NOT_NOW, "ALLOWANCE_EXPIRED")
    assert "MODE_RECORD_ONLY" in found.message
    sold.clock.to(ms(2026, 7, 1))
    assert await shown(sold) == (0, 0, 80)


@pytest.mark.parametrize(
    ("feature", "used", "left"), [("words", 7, 104), ("tiered", 7, 93), ("paid", 7, 93)]
)
async def test_a_block_is_drawn_in_order_and_given_back_where_it_was_taken(
    sold: Service, feature: str, used: int, left: int
) -> None:
    taken = await take(sold, feature)
    assert taken.check.granted == 10
    await give_back(sold, taken.allowance, used)
    assert await shown(sold, feature) == (used, 0, left)


async def test_tokens_of_a_rate_are_spent_at_once(sold: Service) -> None:
    taken = await take(sold, "speed", 40)
    assert taken.check.granted == 10  # an eighth of what the bucket has
    await give_back(sold, taken.allowance)
    assert await shown(sold, "speed") == (10, 0, 70)


async def test_what_has_no_limit_gives_what_is_wanted(sold: Service) -> None:
    assert (await take(sold, "free", 10**9)).check.granted == 10**9


async def test_features_without_quantities_have_no_blocks(sold: Service) -> None:
    for feature in ("seats", "yes", "size"):
        found = await sold.fault(take(sold, feature))
        assert found.named == (INVALID, "MODE_NOT_SUPPORTED")
    assert (await take(sold, "nothing")).check.reason == pb.REASON_NOT_ENTITLED


async def test_what_is_asked_for_has_bounds(sold: Service) -> None:
    for ttl in (Duration(nanos=999_000_000), Duration(seconds=3_601)):
        assert (await sold.fault(take(sold, ttl=ttl))).named == (INVALID, "BAD_TTL")
    for quantity in (0, -1, 2**53):
        found = await sold.fault(take(sold, quantity=quantity))
        assert found.named == (INVALID, "BAD_QUANTITY")
    absent = pb.TakeAllowanceRequest(customer="acme", feature="calls")
    found = await sold.fault(sold.door.call(sold.door.enforcer.TakeAllowance, absent))
    assert found.named == (INVALID, "BAD_QUANTITY")


async def test_a_block_is_its_tenant_s_alone_and_no_reservation(sold: Service) -> None:
    taken, held = await take(sold), await sold.door.reserve("calls")
    stranger = sold.keys["stranger"]
    found = await sold.fault(give_back(sold, taken.allowance, 1, stranger))
    assert found.named == (INVALID, "BAD_TOKEN")
    found = await sold.fault(take(sold, key=stranger))
    assert found.reason == "UNKNOWN_CUSTOMER"
    assert (await sold.fault(take(sold, key="nobody"))).reason == "BAD_API_KEY"
    assert (await sold.fault(sold.door.commit(taken.allowance))).reason == "BAD_TOKEN"
    assert (await sold.fault(give_back(sold, held.reservation))).reason == "BAD_TOKEN"
    assert (await give_back(sold, taken.allowance, 1)).used == 1


async def test_a_suspension_stops_new_blocks_and_lets_old_ones_come_back(sold: Service) -> None:
    taken = await take(sold)
    await sold.apply(CATALOG.replace("- key: acme", "- key: acme\n    suspended: true"))
    assert (await take(sold)).check.reason == pb.REASON_SUSPENDED
    assert (await give_back(sold, taken.allowance, 4)).used == 4


# -- in reports, audits and corrections


class Blocks:
    """Taken and returned at a gateway with a meter behind it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def take(self, feature: str, quantity: int = 10, **more: Any) -> str:
        request = pb.TakeAllowanceRequest(
            customer="acme", feature=feature, quantity=quantity, ttl=Duration(seconds=10), **more
        )
        taken = await self.desk.gateway.allowances.take(TENANT, request)
        assert taken.check.granted == quantity
        return taken.allowance

    async def give_back(self, allowance: str, used: int) -> pb.ReturnAllowanceResponse:
        request = pb.ReturnAllowanceRequest(allowance=allowance, used=used)
        return await self.desk.gateway.allowances.give_back(TENANT, request)

    async def reap(self) -> None:
        """Until all blocks that are out are given up."""
        self.desk.forward(10_000 + GRACE_MS)
        for bucket in (0, 1):
            await self.desk.store.tick(bucket)

    async def row(self, feature: str, window: Window = Window.WHOLE) -> Row:
        """The only row of a report."""
        await self.desk.carrier_records.drain()
        end = self.desk.now // 1000 // 900 * 900 + 900
        query = UsageQuery(Scope(TENANT, feature, ("acme",)), window, start=0, end=end)
        (line,) = (await self.desk.meter.reports().query(query)).lines
        return line.row


@pytest.fixture
async def blocks(desk: Desk) -> Blocks:
    await desk.apply(CATALOG)
    return Blocks(desk)


async def test_what_nobody_tells_of_is_no_usage_and_counts_against_the_limit(
    blocks: Blocks,
) -> None:
    told, lost = await blocks.take("calls"), await blocks.take("calls", 8)
    await blocks.give_back(told, 4)
    await blocks.desk.audit()  # while one is out
    await blocks.reap()
    with pytest.raises(NotPossibleError):
        await blocks.give_back(lost, 8)
    assert await blocks.desk.balance("calls") == {"plan": 12}
    for window in (Window.WHOLE, Window.MONTH):
        row = await blocks.row("calls", window)
        assert (row.quantity, row.events, row.unaccounted) == (4, 1, 8)
    await blocks.desk.audit()


async def test_every_supply_s_blocks_add_up_in_counters_ledger_and_rollups(blocks: Blocks) -> None:
    for feature in ("words", "tiered", "paid", "free", "speed"):
        told, _ = await blocks.take(feature, 8), await blocks.take(feature, 8)
        await blocks.give_back(told, 5)
    await blocks.reap()
    for feature in ("words", "tiered", "paid", "free", "speed"):
        row = await blocks.row(feature)
        assert (row.quantity, row.unaccounted) == (5, 8), feature
        used = sum((await blocks.desk.balance(feature)).values())
        assert used == (16 if feature == "speed" else 13), feature
    await blocks.desk.audit()


async def test_what_was_told_of_a_block_can_be_corrected_and_what_was_not_cannot(
    blocks: Blocks,
) -> None:
    desk = blocks.desk
    done = await blocks.give_back(await blocks.take("words"), 9)
    assert await desk.balance("words") == {"pool/first": 6, "pool/second": 3, "pool": 0}
    await desk.amend(place(done.record), 7)
    assert await desk.total("words") == 7
    assert (await desk.balance("words"))["pool/second"] == 1
    await desk.void(place(done.record))
    assert await desk.total("words") == 0
    assert sum((await desk.balance("words")).values()) == 0
    await blocks.take("calls")
    await blocks.reap()
    (lost,) = [one for one in await desk.records() if one[3] == RecordType.UNACCOUNTED]
    record = place(pb.RecordId(bucket=lost[0], generation=lost[1], sequence=lost[2]))
    with pytest.raises(NotPossibleError) as caught:
        await desk.void(record)
    assert caught.value.reason == "NOT_CORRECTABLE"
    await desk.audit()
