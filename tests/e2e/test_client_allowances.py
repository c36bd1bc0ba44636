"""Allowances of real gateways: a hard limit holds whoever shares it, and whoever is killed while using it."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING

from enforcer.client import Client
from tests.nursery import spawn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.stack import Stack

PROCESSES = 50
LIMIT = 20_000
SECONDS = 60
LONGEST_LIFE = 2.0
"""Seconds from the first decisions on."""
SLOT = struct.Struct("<q")
READY, BEGIN = PROCESSES, 2 * PROCESSES
"""Slots: what each was allowed, whether it is ready, and whether they begin."""

CATALOG = f"""
version: 1
features: [{{key: units}}]
accounts:
  - key: shared-allowances
    entitlements: [{{feature: units, model: quota, limit: 500, per: total}}]
  - key: killed-allowances
    entitlements: [{{feature: units, model: quota, limit: {LIMIT}, per: total}}]
"""


async def test_clients_share_a_small_quota_to_its_end_and_never_beyond(stack: Stack) -> None:
    await asyncio.to_thread(stack.apply, CATALOG)

    async def work(client: Client) -> int:
        used = 0
        async with client.allowance("shared-allowances", "units", first=20, ttl=10) as allowance:
            while verdict := await allowance.check(1 + used % 2):
                used += verdict.granted
                await asyncio.sleep(0)
        return used

    async with (
        Client(stack.endpoint, stack.api_key) as one,
        Client(stack.endpoint, stack.api_key) as two,
    ):
        used = sum(await asyncio.gather(*(work(client) for client in (one, two, one, two))))
        [quota] = (await one.balance("shared-allowances", "units")).limits
        # Everything was returned: what was used is known to the unit, and the rest is there for others.
        assert (quota.used, quota.held) == (used, 0)
        assert used <= 500
        rest = await one.check("shared-allowances", "units", 500 - used) if used < 500 else None
        assert rest is None or rest.allowed
        assert not await one.check("shared-allowances", "units")
    audit = await asyncio.to_thread(stack.json, "audit")
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)


def test_fifty_processes_killed_while_they_decide_use_no_unit_too_many(
    stack: Stack, tmp_path: Path
) -> None:
    """Each writes what it was allowed into shared memory before it would act on it: the sum bounds what was used."""
    stack.apply(CATALOG)
    file = tmp_path / "allowed"
    file.write_bytes(bytes(SLOT.size * (2 * PROCESSES + 1)))
    dice = random.Random(17)
    environment = {
        **os.environ,
        "METERGATE_ENDPOINT": stack.endpoint,
        "METERGATE_API_KEY": stack.api_key,
    }

    def slots() -> list[int]:
        return [one for (one,) in SLOT.iter_unpack(file.read_bytes())]

    with (tmp_path / "told").open("wb") as told:
        processes = [
            spawn(
                "tests.e2e.test_client_allowances",
                str(file),
                str(number),
                environment=environment,
                stdout=told.fileno(),
                stderr=told.fileno(),
            )
            for number in range(PROCESSES)
        ]
        try:
            give_up = time.monotonic() + SECONDS
            while not all(slots()[READY:BEGIN]):
                assert time.monotonic() < give_up, (tmp_path / "told").read_text()
                time.sleep(0.02)
            with file.open("r+b") as opened:
                opened.seek(SLOT.size * BEGIN)
                opened.write(SLOT.pack(1))
            for process in processes:
                time.sleep(dice.random() * 2 * LONGEST_LIFE / PROCESSES)
                process.send_signal(signal.SIGKILL)
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
            statuses = [process.wait(SECONDS) for process in processes]
    assert statuses == [-signal.SIGKILL] * PROCESSES, (tmp_path / "told").read_text()
    allowed = slots()[:READY]
    used = sum(allowed)
    assert len([one for one in allowed if one]) > PROCESSES / 2
    assert LIMIT / 10 < used <= LIMIT
    # Blocks of the dead are given up 5 s after their end, and count as used: nobody gets their rest.
    asyncio.run(_what_is_left(stack, used))
    audit = stack.json("audit")
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)


async def _what_is_left(stack: Stack, used: int) -> None:
    async with Client(stack.endpoint, stack.api_key) as client, asyncio.timeout(SECONDS):
        while True:
            [quota] = (await client.balance("killed-allowances", "units")).limits
            if not quota.held:
                break
            await asyncio.sleep(0.2)
        assert used <= quota.used <= LIMIT
        assert quota.used > used  # some had something left, or the test shows little
        left = LIMIT - quota.used
        if left:
            assert await client.check("killed-allowances", "units", left)
        assert not await client.check("killed-allowances", "units")


def main() -> None:
    """One of those that are killed."""
    asyncio.run(_decide(sys.argv[1], int(sys.argv[2])))


async def _decide(file: str, number: int) -> None:
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:  # noqa: ASYNC230, PTH123
        allowed = 0
        async with (
            Client() as client,
            client.allowance(
                "killed-allowances", "units", first=50, most=200, ttl=1.5
            ) as allowance,
        ):
            SLOT.pack_into(memory, SLOT.size * (READY + number), 1)
            while not SLOT.unpack_from(memory, SLOT.size * BEGIN)[0]:  # noqa: ASYNC110 - shared memory tells nobody
                await asyncio.sleep(0.02)
            while True:
                if allowance.take() or await allowance.check():
                    allowed += 1
                    SLOT.pack_into(memory, SLOT.size * number, allowed)
                    if allowed % 20:
                        continue
                await asyncio.sleep(0.02)
