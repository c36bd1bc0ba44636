"""An outpost as a process of its own, to be killed: reads commands from its standard input, answers each with a line.

check FEATURE QUANTITY KEY   → outcome, as `Outpost.timed` tells it
serving                      → ok, when checks are decided by the store
count                        → how many uses were counted
used                         → what the counters say
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from meter.crash import crash_points
from tests.outpost import Outpost, outpost


async def _answer(post: Outpost, command: str, *words: str) -> object:
    if command == "check":
        feature, quantity, key = words
        _, outcome = await post.timed(feature, quantity=int(quantity), idempotency_key=key)
        return outcome
    if command == "serving":
        await post.serving()
        return "ok"
    if command == "count":
        return await post.counting.count()
    return await post.used()


async def _run(url: str, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    async with outpost(url, folder, steps=crash_points("enforcer")) as post:
        print("ready", flush=True)  # noqa: T201 - the protocol of this process
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(await _answer(post, *line.split()), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2])))
