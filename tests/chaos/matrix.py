"""The whole matrix, on demand: `make matrix` hits every point many times, causes every fault, and writes the tables.

    python -m tests.chaos.matrix crashes --path embedded --path kafka --kills 6 --pauses 2
    python -m tests.chaos.matrix crashes --only rollup.claim
    python -m tests.chaos.matrix tables

What was found is kept in results.json beside this file; `tables` writes it into docs/guarantees.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from meter.adapters.kafka.client import KafkaOptions, prepare_topics
from tests.chaos import results
from tests.chaos.crashes import DEEDS, PATHS, crash, points
from tests.chaos.deployment import Deployment
from tests.fixtures.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.chaos.clients import Clients

__all__ = ["hit", "kafka_settings"]


async def hit(
    gateway: Deployment,
    clients: Clients,
    chosen: Sequence[str],
    times: Mapping[str, int],
    dice: random.Random,
    path: str,
) -> list[results.Crashes]:
    """Hit points one after the other, `times` with each deed, then judge: one verdict for all of them."""
    rows = []
    for point in chosen:
        clients.begin()
        for deed in DEEDS:
            for _ in range(times.get(deed, 0)):
                await crash(gateway, clients, point, deed, dice)
        await gateway.all_up()
        rows.append(
            results.Crashes(
                point,
                path,
                times.get("kill", 0),
                times.get("stop", 0),
                longest_wait=round(clients.longest, 2),
                seen=dict(sorted(clients.failures.items())),
            )
        )
    verdict = await gateway.judge(clients)
    for row in rows:
        row.records, row.lost, row.repeated = verdict.records, verdict.lost, verdict.repeated
        row.findings = verdict.findings
    return rows


def kafka_settings(options: KafkaOptions) -> dict[str, str]:
    """What the processes are told of Kafka."""
    return {
        "METERGATE_KAFKA_SERVERS": options.servers,
        "METERGATE_KAFKA_TOPIC": options.topic,
        "METERGATE_KAFKA_PARTITIONS": str(options.partitions),
        "METERGATE_KAFKA_GROUP": options.group,
        "METERGATE_KAFKA_INSTANCE": "meter",
    }


@asynccontextmanager
async def _way(path: str, folder: Path) -> AsyncIterator[dict[str, str]]:
    """Settings of a way of the records; a broker of its own for Kafka."""
    if path == "embedded":
        yield {}
        return
    broker = KafkaBroker(folder / "kafka")
    try:
        await asyncio.to_thread(broker.start)
        name = uuid4().hex[:8]
        options = KafkaOptions(broker.servers, f"records.{name}", 2, f"rollup.{name}")
        await prepare_topics(options, create=True)
        yield kafka_settings(options)
    finally:
        await asyncio.to_thread(broker.stop)


async def _crashes(path: str, times: Mapping[str, int], seed: int, only: Sequence[str]) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _way(path, Path(folder)) as kafka,
            Deployment(Path(folder) / "gateway", kafka=kafka) as gateway,
            gateway.clients(seed) as clients,
        ):
            for point in points(path):
                if only and point not in only:
                    continue
                (row,) = await hit(gateway, clients, [point], times, dice, path)
                sys.stdout.write(f"{row.line()}\n")
                sys.stdout.flush()
                results.keep(row)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.matrix", description=__doc__)
    parser.add_argument("what", choices=("crashes", "tables"))
    parser.add_argument("--path", action="append", choices=PATHS)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--pauses", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], metavar="POINT")
    options = parser.parse_args()
    if options.what == "crashes":
        times = {"kill": options.kills, "stop": options.pauses}
        for path in options.path or PATHS:
            asyncio.run(_crashes(path, times, options.seed, options.only))
    results.write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
