"""Allowances at a gateway that fails when it is told to: local decisions, refills, returns, ends."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from enforcer.client import (
    Client,
    ClosedError,
    ConfigurationError,
    FailClosed,
    NotPossibleError,
    Options,
    Reason,
    SyncClient,
    Verdict,
    returns,
)
from enforcer.client import allowances as module
from enforcer.v1 import enforcer_pb2 as pb
from tests.fixtures.fake_gateway import KEY, Arrived, FakeGateway, RefusalError, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Clock:
    """Stands still unless it is told to step."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "clock", made)
    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts."""
    monkeypatch.setattr(module, "PAUSE", 0.02)
    monkeypatch.setattr(returns, "PAUSE", 0.02)


class Seen:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.sums: Counter[str] = Counter()

    def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
        self.sums[method] += 1

    def retrying(self, method: str, reason: str, pause: float) -> None:
        self.sums["retries"] += 1

    def decided(self, feature: str, verdict: Verdict) -> None:
        self.sums["checks"] += 1

    def lease_lost(self, feature: str, reason: str) -> None:
        raise AssertionError

    def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
        self.sums["local"] += decisions
        self.sums["quantity"] += quantity

    def allowance_refilled(self, feature: str, outcome: str, granted: int, seconds: float) -> None:
        assert seconds > 0
        self.outcomes.append(outcome)
        self.sums["granted"] += granted

    def allowance_returned(self, feature: str, used: int, returned: int) -> None:
        self.sums["used"] += used
        self.sums["returned"] += returned

    def allowance_unreported(self, feature: str, used: int) -> None:
        self.sums["unreported"] += used


def hold(fake: FakeGateway, method: str, *, after: int = 0) -> asyncio.Event:
    """Calls of this method wait, from the next but `after` on, until the event is set."""
    let = asyncio.Event()
    seen = 0

    async def before(call: Arrived) -> None:
        nonlocal seen
        if call.method == method:
            seen += 1
            if seen > after:
                await let.wait()

    fake.before = before
    return let


def refuse(
    fake: FakeGateway, method: str, error: Callable[[], RefusalError], times: int = 1_000_000
) -> None:
    async def before(call: Arrived) -> None:
        nonlocal times
        if call.method == method and times:
            times -= 1
            raise error()

    fake.before = before


async def test_decisions_are_local_and_leaving_returns_what_was_not_used(fake: FakeGateway) -> None:
    fake.supply = 1000
    seen = Seen()
    async with (
        fake.client(observers=[seen]) as client,
        client.allowance("acme", "f", first=100, ttl=30, dimensions={"region": "eu"}) as allowance,
    ):
        assert allowance.left == 100
        assert [allowance.take() for _ in range(20)] == [True] * 20
        assert allowance.take(7)
        assert await allowance.check(3) == Verdict(allowed=True, granted=3)
        assert await allowance.check() == Verdict(allowed=True, granted=1)
        assert allowance.left == 69
        assert fake.names == ["TakeAllowance"]
    [taken] = fake.asked("TakeAllowance")
    assert (taken.customer, taken.feature, taken.quantity) == ("acme", "f", 100)
    assert (taken.ttl.seconds, dict(taken.dimensions)) == (30, {"region": "eu"})
    assert fake.names == ["TakeAllowance", "ReturnAllowance"]
    assert (fake.supply, fake.used["acme", "f"], fake.blocks) == (969, 31, {})
    assert seen.outcomes == ["allowed"]
    assert (seen.sums["local"], seen.sums["quantity"]) == (23, 31)
    assert (seen.sums["granted"], seen.sums["used"], seen.sums["returned"]) == (100, 31, 69)


async def test_a_block_is_replaced_before_it_is_dry_by_one_refill_and_the_old_one_returned(
    fake: FakeGateway,
) -> None:
    fake.supply = 10_000
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        let = hold(fake, "TakeAllowance")
        assert all(allowance.take() for _ in range(75))
        await asyncio.sleep(0)
        assert fake.names == ["TakeAllowance"]
        assert allowance.take()
        await eventually(lambda: len(fake.names) == 2)
        # The rest goes on while the refill is under way, and no second one begins.
        assert all(allowance.take() for _ in range(24))
        assert not allowance.take()
        waiting = [asyncio.create_task(allowance.check()) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert fake.names == ["TakeAllowance"] * 2
        assert not any(one.done() for one in waiting)
        let.set()
        assert all(await asyncio.gather(*waiting))
        await eventually(lambda: "ReturnAllowance" in fake.names)
        assert fake.used["acme", "f"] == 100
        # Used up within moments: more is wanted of the next one, but not of all.
        assert fake.asked("TakeAllowance")[1].quantity == 800
    assert fake.used["acme", "f"] == 150
    assert (fake.supply, fake.blocks) == (9850, {})
    assert fake.names.count("Check") + fake.names.count("CheckBatch") == 0


async def test_after_a_denial_the_gateway_decides_and_is_not_asked_for_blocks_at_once(
    fake: FakeGateway,
) -> None:
    fake.supply = 10
    seen = Seen()

    def deny(_: pb.CheckRequest) -> pb.CheckResponse:
        return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)

    fake.answer = deny
    async with (
        fake.client(observers=[seen]) as client,
        client.allowance("acme", "f", first=10) as allowance,
    ):
        assert all(allowance.take() for _ in range(10))
        verdicts = await asyncio.gather(*(allowance.check() for _ in range(20)))
        assert {verdict.reason for verdict in verdicts} == {Reason.QUOTA_EXCEEDED}
        assert not allowance.take()
        assert fake.names.count("TakeAllowance") == 2
    assert seen.outcomes == ["allowed", "quota_exceeded"]
    assert fake.used["acme", "f"] == 10


async def test_near_the_end_of_the_supply_decisions_are_checks(fake: FakeGateway) -> None:
    fake.supply, fake.share = 64, 8
    async with fake.client() as client, client.allowance("acme", "f", first=16) as allowance:
        assert allowance.left == 8
        for _ in range(20):
            assert await allowance.check()
        # Blocks of less than a handful are not worth their calls.
        assert fake.names.count("TakeAllowance") <= 2
        assert fake.names.count("Check") >= 10


async def test_a_block_that_has_expired_is_not_used_whatever_is_left_of_it(
    fake: FakeGateway, clock: Clock
) -> None:
    fake.supply, fake.lifetime = 1000, 10
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        assert allowance.take(40)
        clock.now += 9.999
        assert allowance.take(5)
        clock.now += 0.001
        assert allowance.left == 0
        assert not allowance.take()
        await eventually(lambda: fake.used["acme", "f"] == 45)
        # It is wanted: so there is another one.
        assert await allowance.check()
    assert fake.names.count("Check") == 0
    assert (fake.used["acme", "f"], fake.blocks) == (46, {})


async def test_a_lifetime_counts_from_before_the_question(fake: FakeGateway, clock: Clock) -> None:
    fake.supply, fake.lifetime = 1000, 10

    async def slow(call: Arrived) -> None:
        if call.method == "TakeAllowance":
            clock.now += 9

    fake.before = slow
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        assert allowance.take()
        clock.now += 0.9
        assert allowance.take()
        clock.now += 0.1
        assert not allowance.take()


async def test_a_block_that_comes_too_late_is_returned_and_another_one_asked_for(
    fake: FakeGateway, clock: Clock
) -> None:
    fake.supply, fake.lifetime = 1000, 10

    async def slow(call: Arrived) -> None:
        if call.method == "TakeAllowance" and fake.names.count("TakeAllowance") == 1:
            clock.now += 10

    fake.before = slow
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        assert await allowance.check()
        first, second = fake.asked("TakeAllowance")
        assert first.idempotency_key != second.idempotency_key
    assert (fake.supply, fake.used["acme", "f"], fake.blocks) == (999, 1, {})


async def test_blocks_that_live_no_longer_than_their_answers_travel_are_not_asked_for_in_a_loop(
    fake: FakeGateway,
) -> None:
    fake.supply, fake.lifetime = 1000, 0
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        for _ in range(50):
            assert await allowance.check()
        assert fake.names.count("TakeAllowance") <= 3
    assert fake.used["acme", "f"] == 50
    assert (fake.supply, fake.blocks) == (1000, {})


async def test_a_block_in_use_is_replaced_before_its_end_and_an_idle_one_is_given_up(
    fake: FakeGateway,
) -> None:
    fake.supply, fake.lifetime = 1000, 0.5
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        assert allowance.take()
        await eventually(lambda: fake.names.count("TakeAllowance") == 2)
        await eventually(lambda: fake.names.count("ReturnAllowance") == 2)
        assert allowance.left == 0
        assert fake.names.count("TakeAllowance") == 2
        assert (fake.supply, fake.blocks) == (999, {})
        assert not allowance.take()
        assert await allowance.check()
        assert fake.names.count("Check") == 0


async def test_an_answer_that_was_lost_is_asked_for_again_under_its_key(fake: FakeGateway) -> None:
    fake.supply = 1000

    async def lose(call: Arrived) -> None:
        if call.method == "TakeAllowance" and len(fake.names) < 3:
            raise RefusalError(UNAVAILABLE)

    fake.after = lose
    async with fake.client() as client, client.allowance("acme", "f", first=100) as allowance:
        assert allowance.take()
        assert len({one.idempotency_key for one in fake.asked("TakeAllowance")}) == 1
        assert fake.supply == 900
    assert fake.supply == 999


async def test_a_refill_that_failed_is_repeated_under_its_key_and_its_block_returned_at_the_end(
    fake: FakeGateway,
) -> None:
    fake.supply = 1000

    async def lose(call: Arrived) -> None:
        if call.method == "TakeAllowance":
            raise RefusalError(UNAVAILABLE)

    fake.after = lose
    policies = {"*": FailClosed(patience=0.2)}
    async with Client(fake.endpoint, KEY, policies=policies, options=Options(timeout=20)) as client:
        async with client.allowance("acme", "f", first=100, timeout=0.1) as allowance:
            assert allowance.left == 0
            assert not allowance.take()
            assert await allowance.check()
            fake.after = None
        await eventually(lambda: not fake.blocks)
    assert len({one.idempotency_key for one in fake.asked("TakeAllowance")}) == 1
    assert fake.supply == 1000


async def test_without_a_gateway_the_block_is_used_and_then_the_policy_counts(
    fake: FakeGateway,
) -> None:
    fake.supply = 1000

    async def away(_: Arrived) -> None:
        raise RefusalError(UNAVAILABLE, "STORE_UNAVAILABLE")

    policies = {"*": FailClosed(patience=0.2)}
    async with (
        Client(fake.endpoint, KEY, policies=policies, options=Options(timeout=20)) as client,
        client.allowance("acme", "f", first=100, timeout=1) as allowance,
    ):
        fake.before = away
        for _ in range(100):
            assert await allowance.check()
        denied = await allowance.check()
        assert (denied.allowed, denied.degraded) == (False, True)
        assert denied.reason is Reason.GATEWAY_UNAVAILABLE
        fake.before = None
        for _ in range(200):
            if allowance.take():
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("no refill after the gateway came back")
    assert (fake.used["acme", "f"], fake.blocks) == (101, {})


async def test_a_question_that_is_wrong_fails_at_once(fake: FakeGateway) -> None:
    refuse(
        fake,
        "TakeAllowance",
        lambda: RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "NO_BLOCKS"),
    )
    async with fake.client() as client:
        with pytest.raises(NotPossibleError) as caught:
            async with client.allowance("acme", "seats"):
                pytest.fail("entered")
        assert caught.value.reason == "NO_BLOCKS"
        for wrong in (
            {"first": 0},
            {"first": 5, "most": 4},
            {"first": 1.5},
            {"horizon": 0},
            {"horizon": float("nan")},
            {"ttl": "x"},
        ):
            with pytest.raises(ConfigurationError):
                client.allowance("acme", "f", **wrong)


async def test_a_quantity_that_is_none_takes_nothing(fake: FakeGateway) -> None:
    fake.supply = 1000
    async with fake.client() as client:
        made = client.allowance("acme", "f")
        with pytest.raises(ClosedError, match="not open"):
            made.take()
        async with made as allowance:
            for wrong in (0, -1, 1.5, 0.0):
                with pytest.raises(ConfigurationError, match="whole number"):
                    allowance.take(wrong)  # type: ignore[arg-type]
            assert allowance.left == 100
            with pytest.raises(ClosedError, match="once"):
                await made.__aenter__()
        with pytest.raises(ClosedError, match="closed"):
            allowance.take()
        with pytest.raises(ClosedError, match="closed"):
            await allowance.check()


async def test_cancelled_while_it_is_entered_it_returns_what_it_got(fake: FakeGateway) -> None:
    fake.supply = 1000
    let = hold(fake, "TakeAllowance")
    async with fake.client() as client:

        async def enter() -> None:
            async with client.allowance("acme", "f", first=100):
                pytest.fail("entered")

        task = asyncio.create_task(enter())
        await eventually(lambda: fake.names == ["TakeAllowance"])
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        let.set()
        await eventually(lambda: fake.names[-1] == "ReturnAllowance")
    assert (fake.supply, fake.blocks) == (1000, {})


async def test_a_block_and_the_refill_under_way_are_returned_when_the_holder_is_cancelled(
    fake: FakeGateway,
) -> None:
    fake.supply = 1000
    entered = asyncio.Event()
    let = hold(fake, "TakeAllowance", after=1)
    async with fake.client() as client:

        async def work() -> None:
            async with client.allowance("acme", "f", first=100) as allowance:
                assert allowance.take(90)
                entered.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(work())
        await entered.wait()
        await eventually(lambda: fake.names.count("TakeAllowance") == 2)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (fake.used["acme", "f"], fake.blocks) == (90, {})
        let.set()
    assert (fake.supply, fake.blocks) == (910, {})


async def test_closing_the_client_closes_its_allowances(fake: FakeGateway) -> None:
    fake.supply = 1000
    client = fake.client()
    client.open()
    allowance = client.allowance("acme", "f", first=100)
    await allowance.__aenter__()
    assert allowance.take(3)
    await client.close()
    assert (fake.supply, fake.blocks) == (997, {})
    with pytest.raises(ClosedError):
        allowance.take()
    await allowance.__aexit__(None, None, None)


@pytest.mark.usefixtures("impatient")
async def test_a_return_is_repeated_under_its_token_until_it_is_answered(fake: FakeGateway) -> None:
    fake.supply = 1000
    seen = Seen()

    async def lose(call: Arrived) -> None:
        if call.method == "ReturnAllowance" and fake.names.count("ReturnAllowance") < 3:
            raise RefusalError(UNAVAILABLE)

    fake.after = lose
    async with fake.client(observers=[seen]) as client:
        async with client.allowance("acme", "f", first=100) as allowance:
            assert allowance.take(3)
        assert client.unreported == 0
    assert fake.names.count("ReturnAllowance") == 3
    assert (fake.supply, fake.used["acme", "f"]) == (997, 3)
    assert (seen.sums["used"], seen.sums["returned"], seen.sums["unreported"]) == (3, 97, 0)


@pytest.mark.parametrize(
    "refusal",
    [
        lambda: RefusalError(UNAVAILABLE),
        lambda: RefusalError(grpc.StatusCode.NOT_FOUND, "UNKNOWN_CUSTOMER"),
    ],
)
async def test_what_no_gateway_could_be_told_is_counted_and_observed(
    fake: FakeGateway, refusal: Callable[[], RefusalError], caplog: pytest.LogCaptureFixture
) -> None:
    fake.supply = 1000
    seen = Seen()
    refuse(fake, "ReturnAllowance", refusal)
    client = fake.client(observers=[seen], timeout=0.3)
    async with client, client.allowance("acme", "f", first=100) as allowance:
        assert allowance.take(3)
    assert client.unreported == 3
    assert seen.sums["unreported"] == 3
    assert "a use of 3 of f by acme, from an allowance, was not reported" in caplog.text


@pytest.mark.usefixtures("impatient")
async def test_what_is_told_too_late_is_recorded_past_the_limits_once(fake: FakeGateway) -> None:
    fake.supply = 1000
    lost = 0

    async def late(call: Arrived) -> None:
        nonlocal lost
        if call.method == "ReturnAllowance":
            raise RefusalError(grpc.StatusCode.FAILED_PRECONDITION, "ALLOWANCE_EXPIRED")

    async def lose(call: Arrived) -> None:
        nonlocal lost
        if call.method == "Check" and lost < 2:
            lost += 1
            raise RefusalError(UNAVAILABLE)

    fake.before, fake.after = late, lose
    async with fake.client() as client:
        async with client.allowance("acme", "f", first=100) as allowance:
            assert allowance.take(3)
        async with client.allowance("acme", "f", first=100):
            pass
        assert client.unreported == 0
    checks = fake.asked("Check")
    assert len(checks) == 3
    assert {(one.quantity, one.mode) for one in checks} == {(3, pb.MODE_RECORD_ONLY)}
    assert fake.used["acme", "f"] == 3


FORKS = """
import asyncio, os, sys
from enforcer.client import Client, ConfigurationError

async def main(endpoint, key):
    async with Client(endpoint, key) as client, client.allowance("acme", "f", first=100) as allowance:
        child = os.fork()
        if not child:  # it only looks and leaves
            status = 1
            try:
                allowance.take()
            except ConfigurationError as error:
                status = 0 if "fork" in str(error) and allowance.left == 0 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert allowance.take(100)

asyncio.run(main(*sys.argv[1:]))
"""
"""In a process of its own: that of the tests has threads that a fork may not survive, such as gRPC's servers."""


async def test_a_process_that_forks_leaves_the_block_to_its_parent(fake: FakeGateway) -> None:
    fake.supply = 1000
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FORKS, fake.endpoint, KEY),
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, told = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, told.decode()
    assert fake.used["acme", "f"] == 100


async def test_several_clients_never_use_more_than_there_was(
    fakes: Callable[[], Awaitable[FakeGateway]],
) -> None:
    fake = await fakes()
    fake.supply, fake.share = 3000, 8

    def decide(request: pb.CheckRequest) -> pb.CheckResponse:
        if fake.supply < request.quantity:
            return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
        fake.supply -= request.quantity
        return pb.CheckResponse(allowed=True, granted=request.quantity, reason=pb.REASON_ALLOWED)

    fake.answer = decide

    async def work(client: Client) -> int:
        used = 0
        async with client.allowance("acme", "f", first=50) as allowance:
            while verdict := await allowance.check(1 + used % 3):
                used += verdict.granted
        return used

    async with fake.client() as one, fake.client() as two:
        used = sum(await asyncio.gather(*(work(client) for client in (one, two) * 3)))
    assert used == fake.used["acme", "f"]
    assert used + fake.supply == 3000
    assert fake.blocks == {}


async def test_threads_share_a_block_without_using_a_unit_twice(
    fake: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def yielding() -> float:
        time.sleep(0)  # another thread's turn, in the middle of a decision
        return time.monotonic()

    monkeypatch.setattr(module, "clock", yielding)
    fake.supply = 20_000

    def deny(_: pb.CheckRequest) -> pb.CheckResponse:
        return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)

    fake.answer = deny
    started = threading.Barrier(8)

    def work(client: SyncClient) -> int:
        with client.allowance("acme", "f", first=500) as allowance, ThreadPoolExecutor(8) as pool:

            def use() -> int:
                started.wait()
                used = 0
                while allowance.check():
                    used += 1
                return used

            return sum(pool.map(lambda _: use(), range(8)))

    with SyncClient(fake.endpoint, KEY, options=Options(timeout=30)) as client:
        used = await asyncio.to_thread(work, client)
    assert used == 20_000 - fake.supply == fake.used["acme", "f"]
    assert used > 10_000
    assert fake.blocks == {}


async def test_who_comes_while_a_refill_is_overdue_does_not_wait_for_it(fake: FakeGateway) -> None:
    fake.supply = 1000
    policies = {"*": FailClosed(patience=0.1)}
    async with (
        Client(fake.endpoint, KEY, policies=policies, options=Options(timeout=30)) as client,
        client.allowance("acme", "f", first=100) as allowance,
    ):
        let = hold(fake, "TakeAllowance")
        assert allowance.take(100)
        assert await allowance.check()  # after the patience
        assert fake.names[-1] == "Check"
        begun = asyncio.get_running_loop().time()
        for _ in range(20):
            assert await allowance.check()
        assert asyncio.get_running_loop().time() - begun < 20 * 0.1
        let.set()
        await eventually(lambda: allowance.left > 0)


async def test_a_client_that_is_closed_while_an_allowance_is_entered_keeps_no_block(
    fake: FakeGateway,
) -> None:
    fake.supply = 1000
    let = hold(fake, "TakeAllowance")
    client = fake.client()
    client.open()

    async def enter() -> None:
        async with client.allowance("acme", "f", first=100):
            pytest.fail("entered")

    task = asyncio.create_task(enter())
    await eventually(lambda: fake.names == ["TakeAllowance"])
    await client.close()
    with pytest.raises(ClosedError):
        await task
    let.set()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_is_lost_on_the_way_what_was_allowed_is_what_was_told(
    fake: FakeGateway, seed: int
) -> None:
    """Calls fail before or after they run, blocks expire, allowances come and go: not a unit too many, none lost."""
    dice = random.Random(seed)
    total = fake.supply = 1500
    fake.share, fake.lifetime = 4, 0.25

    async def fail(_: Arrived) -> None:
        await asyncio.sleep(dice.random() * 0.004)
        if dice.random() < 0.2:
            raise RefusalError(UNAVAILABLE, "STORE_UNAVAILABLE", retry_after=0.01)

    def decide(request: pb.CheckRequest) -> pb.CheckResponse:
        if fake.supply < request.quantity:
            return pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
        fake.supply -= request.quantity
        return pb.CheckResponse(allowed=True, granted=request.quantity, reason=pb.REASON_ALLOWED)

    fake.before = fake.after = fail
    fake.answer = decide

    async def work(client: Client, chance: random.Random) -> int:
        used = 0
        while fake.supply > 200:
            async with client.allowance("acme", "f", first=chance.randint(1, 100)) as allowance:
                for _ in range(chance.randint(1, 200)):
                    quantity = chance.randint(1, 3)
                    if allowance.take(quantity) or await allowance.check(quantity):
                        used += quantity
                    if chance.random() < 0.05:
                        await asyncio.sleep(chance.random() * 0.05)
        return used

    async with fake.client(first_pause=0.005) as one, fake.client(first_pause=0.005) as two:
        used = sum(
            await asyncio.gather(
                *(
                    work(client, random.Random(f"{seed}-{n}"))
                    for n, client in enumerate((one, two, one, two))
                )
            )
        )
        fake.before = fake.after = None
    assert one.unreported == two.unreported == 0
    assert used == fake.used["acme", "f"]
    # What was granted to a question that nobody heard the answer of within its block's life stays out.
    assert used + fake.supply + sum(fake.blocks.values()) == total
    assert used > total / 2
