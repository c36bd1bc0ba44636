"""The client against real gateways: exact totals, whatever travels together, dies or comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from enforcer.client import Check, Client, ClientError, FailOpen, Options, Verdict
from tests.chaos.deployment import Deployment
from tests.fixtures.fake_gateway import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.stack import Stack

CATALOG = """
version: 1
features: [{key: pages}, {key: words}]
plans:
  - key: print
    items:
      - {feature: pages, model: quota, limit: 150, per: total}
      - {feature: words, model: quota, limit: 1_000_000, per: total}
accounts:
  - {key: together, subscriptions: [{plan: print}]}
  - {key: alone, subscriptions: [{plan: print}]}
"""


async def test_checks_that_travel_together_give_the_totals_of_bare_ones(stack: Stack) -> None:
    await asyncio.to_thread(stack.apply, CATALOG)
    words = [1 + number % 7 for number in range(200)]
    totals = {}
    for customer, largest in (("together", 64), ("alone", 1)):
        options = Options(largest_batch=largest, most_in_flight=4 if largest > 1 else 64)
        async with Client(stack.endpoint, stack.api_key, options=options) as client:
            asked = [Check(customer, "words", count) for count in words]
            answers = await client.check_each(asked + [Check(customer, "pages")] * 200)
            verdicts = [one for one in answers if isinstance(one, Verdict)]
            assert len(verdicts) == 400, answers
            assert [one.granted for one in verdicts[:200]] == words
            used = [
                (await client.balance(customer, feature)).limits[0].used
                for feature in ("words", "pages")
            ]
        totals[customer] = (*used, sum(one.granted for one in verdicts[200:]))
    assert totals["together"] == totals["alone"] == (sum(words), 150, 150)


class Load:
    """Tasks that check with keys of their own: all of one customer's feature, quantities 1 to 3."""

    def __init__(self, client: Client, tasks: int) -> None:
        self._client, self._running = client, True
        self._asked = [0] * tasks
        self._tasks = [asyncio.create_task(self._work(name)) for name in range(tasks)]

    async def _work(self, name: int) -> int:
        granted = 0
        while self._running:
            check = self._check(name, self._asked[name])
            verdict = await self._client.check(
                check.customer, check.feature, check.quantity, key=check.key
            )
            assert verdict.granted == check.quantity
            granted += check.quantity
            self._asked[name] += 1
        return granted

    @staticmethod
    def _check(name: int, number: int) -> Check:
        return Check("ada", "held", 1 + number % 3, key=f"{name}-{number}")

    async def more(self) -> None:
        """Wait until a hundred more were answered."""
        enough = sum(self._asked) + 100
        while sum(self._asked) < enough:
            assert not any(task.done() for task in self._tasks)
            await asyncio.sleep(0.01)

    async def end(self) -> int:
        """What was granted to all of them."""
        self._running = False
        return sum(await asyncio.gather(*self._tasks))

    async def again(self) -> list[Verdict | ClientError]:
        """Ask all of it again, under the same keys."""
        return await self._client.check_each(
            [
                self._check(name, number)
                for name, count in enumerate(self._asked)
                for number in range(count)
            ]
        )


async def test_keys_count_once_and_a_seat_is_kept_although_gateways_are_killed_and_paused(
    tmp_path: Path,
) -> None:
    seated, cleaned_up = asyncio.Event(), asyncio.Event()

    async def sit(client: Client) -> None:
        async with client.lease("ada", "seats", holder="somebody"):
            seated.set()
            try:
                await asyncio.sleep(600)
            finally:
                await cleaned_up.wait()

    async with Deployment(tmp_path) as deployment:
        endpoints = [enforcer.listen for enforcer in deployment.enforcers]
        # Only the probe of a silent connection ends a call that a gateway never answers.
        options = Options(timeout=100, attempt_timeout=100, keepalive=1)
        async with Client(endpoints, deployment.key, options=options) as client:
            holder = asyncio.create_task(sit(client))
            await seated.wait()
            [taken] = await client.leases("ada", "seats")
            # Only its heartbeat keeps the seat from now on, whoever dies.
            holder.cancel()
            load = Load(client, 16)
            for enforcer in deployment.enforcers:
                await load.more()
                await asyncio.to_thread(enforcer.kill)
                enforcer.start()
                await enforcer.serving()
            paused = deployment.enforcers[0]
            assert paused.process is not None
            os.kill(paused.process.pid, signal.SIGSTOP)
            await load.more()
            deployment.go_on(paused)
            # Longer than a lease lives that nobody renews.
            while datetime.now(UTC) < taken.expires_at + timedelta(seconds=1):
                assert not holder.done()
                await asyncio.sleep(0.1)
            assert [one.id for one in await client.leases("ada", "seats")] == [taken.id]
            cleaned_up.set()
            with pytest.raises(asyncio.CancelledError):
                await holder
            assert await client.leases("ada", "seats") == []
            # Both at once: nobody answers for a while.
            for enforcer in deployment.enforcers:
                await asyncio.to_thread(enforcer.kill)
            open_until = {"calls": FailOpen(amount=25, patience=0.5)}
            async with Client(endpoints, deployment.key, policies=open_until) as other:
                verdicts = [await other.check("bob", "calls") for _ in range(30)]
                assert all(one.degraded for one in verdicts)
                assert sum(one.allowed for one in verdicts) == other.uncounted == 25
                for enforcer in deployment.enforcers:
                    enforcer.start()
                await load.more()
                await eventually(lambda: other.uncounted == 0)
            assert (await client.balance("bob", "calls")).limits[0].used == 25
            granted = await load.end()
            answers = await load.again()
            assert all(isinstance(one, Verdict) and one.replayed for one in answers)
            balance = await client.balance("ada", "held")
            assert balance.limits[0].used == granted
