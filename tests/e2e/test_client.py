"""The client against real gateways: exact totals, whatever travels together, dies or comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enforcer.client import Check, Client, Options, Verdict
from tests.chaos.deployment import Deployment

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


async def test_every_key_counts_once_although_gateways_are_killed_and_come_back(
    tmp_path: Path,
) -> None:
    async with Deployment(tmp_path) as deployment:
        endpoints = [enforcer.listen for enforcer in deployment.enforcers]
        options = Options(timeout=60, attempt_timeout=5)
        granted = 0
        async with Client(endpoints, deployment.key, options=options) as client:
            running = True

            async def worker(name: int) -> int:
                total = asked = 0
                while running:
                    quantity = 1 + asked % 3
                    # A key of ours: asked for again below, it must be known.
                    verdict = await client.check("ada", "held", quantity, key=f"{name}-{asked}")
                    assert verdict.granted == quantity
                    total, asked = total + quantity, asked + 1
                    seen[name] = asked
                return total

            async def more() -> None:
                enough = sum(seen.values()) + 100
                while sum(seen.values()) < enough:
                    assert not any(one.done() for one in workers)
                    await asyncio.sleep(0.01)

            seen: dict[int, int] = {}
            workers = [asyncio.create_task(worker(name)) for name in range(16)]
            for number in (0, 1):
                await more()
                enforcer = deployment.enforcers[number]
                await asyncio.to_thread(enforcer.kill)
                enforcer.start()
                await enforcer.serving()
            # Both at once: nobody answers for a while.
            for enforcer in deployment.enforcers:
                await asyncio.to_thread(enforcer.kill)
            await asyncio.sleep(0.3)
            for enforcer in deployment.enforcers:
                enforcer.start()
            await more()
            running = False
            granted = sum(await asyncio.gather(*workers))
            again = await client.check_each(
                [
                    Check("ada", "held", 1 + number % 3, key=f"{name}-{number}")
                    for name, count in seen.items()
                    for number in range(count)
                ]
            )
            assert all(isinstance(one, Verdict) and one.replayed for one in again)
            balance = await client.balance("ada", "held")
        assert balance.limits[0].used == granted
