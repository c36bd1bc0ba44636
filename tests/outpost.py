"""An enforcer in this process, over a Redis that tests take away: gateway, counters, journal, and its counting."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import redis

from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.adapters.journal.files import FileJournal
from enforcer.catalog.parse import parse
from enforcer.core.breaker import BreakerOptions
from enforcer.core.emergency import Shares
from enforcer.errors import MetergateError
from enforcer.gateway import Gateway
from enforcer.gateway.counting import Counting
from enforcer.gateway.emergency import Emergency
from enforcer.gateway.programs import Programs
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.keys import outbox
from meter.core.records import decode_body, decode_effects
from tests.fixtures.records import Records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from enforcer.ports.journal import Journal
    from meter.core.records import Body, Effects

__all__ = ["AMOUNT", "CATALOG", "Outpost", "outpost", "records_of"]

AMOUNT = 1_000
CATALOG = f"""
version: 1
features:
  - {{key: open, on_outage: fail_open, emergency: {AMOUNT}}}
  - {{key: flag, on_outage: fail_open, emergency: {AMOUNT}}}
  - {{key: seats, on_outage: fail_open, emergency: {AMOUNT}}}
  - {{key: closed}}
accounts:
  - key: acme
    entitlements:
      - {{feature: open, model: quota, limit: 500, per: year}}
      - {{feature: flag, model: boolean}}
      - {{feature: seats, model: concurrent, seats: 3}}
      - {{feature: closed, model: quota, limit: 1000000, per: year}}
  - key: umbrella
    entitlements:
      - {{feature: open, model: payg, per: year}}
"""


class Outpost:
    """What the composition root joins, with the wire left out."""

    def __init__(
        self,
        definitions: SqlDefinitions,
        counters: RedisCounters,
        gateway: Gateway,
        counting: Counting,
        outcomes: Counter[str],
    ) -> None:
        self.definitions, self.counters = definitions, counters
        self.gateway, self.counting, self.outcomes = gateway, counting, outcomes

    async def check(
        self, feature: str = "open", quantity: int = 1, *, customer: str = "acme", **fields: Any
    ) -> pb.CheckResponse:
        """`Check`."""
        request = pb.CheckRequest(customer=customer, feature=feature, quantity=quantity, **fields)
        return pb.CheckResponse.FromString(
            await self.gateway.check("demo", request.SerializeToString())
        )

    async def timed(self, feature: str = "open", **fields: Any) -> tuple[float, str]:
        """Seconds and outcome of a check: `degraded`, `decided`, or the reason of a denial or fault."""
        begun = time.perf_counter()
        try:
            answer = await self.check(feature, **fields)
        except MetergateError as error:
            outcome = error.reason
        else:
            outcome = "degraded" if answer.degraded else "decided"
            if not answer.allowed:
                outcome = pb.Reason.Name(answer.reason)
        return time.perf_counter() - begun, outcome

    async def serving(self, within: float = 60) -> None:
        """Wait until checks are decided by the store again."""
        async with asyncio.timeout(within):
            while not self.counters.serving:  # noqa: ASYNC110 - polled, as the process does
                await asyncio.sleep(0.01)

    async def held_back(self, feature: str = "open", within: float = 60) -> None:
        """Ask until the breaker opens."""
        async with asyncio.timeout(within):
            while self.counters.breaker.closed:
                await asyncio.gather(*(self.timed(feature) for _ in range(4)))

    async def apply(self, text: str) -> None:
        """Declare a catalog, whose changes count from the next check."""
        catalog = parse(text, "c.yaml").of_tenant("demo")
        applied = await self.definitions.apply(catalog, actor="test", dry_run=False)
        for account_id, bucket, epoch in applied.touched:
            await self.counters.project(bucket, account_id, epoch)

    async def used(self, customer: str = "acme", feature: str = "open") -> int:
        """What the counters say."""
        request = pb.GetBalanceRequest(customer=customer, feature=feature)
        balance = await self.gateway.get_balance("demo", request)
        return sum(limit.used for limit in balance.limits)


async def define(path: Path) -> None:
    """Declare the catalog."""
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{path}", 1)
    await definitions.migrate()
    await definitions.ensure_tenant("demo")
    await definitions.apply(parse(CATALOG, "c.yaml").of_tenant("demo"), actor="test", dry_run=False)
    await definitions.close()


@asynccontextmanager
async def outpost(
    url: str,
    folder: Path,
    *,
    enforcers: int = 1,
    ledger: Records | None = None,
    steps: Callable[[str], None] = lambda _: None,
    journal: Journal | None = None,
    **options: Any,
) -> AsyncIterator[Outpost]:
    """One enforcer; several may share a folder. Ready when there is a server, else at once."""
    path = folder / "definitions.db"
    if not path.exists():
        await define(path)
    async with AsyncExitStack() as stack:
        definitions = SqlDefinitions(f"sqlite+aiosqlite:///{path}", 1)
        stack.push_async_callback(definitions.close)
        settings: dict[str, Any] = {
            "fail_open_wait": 0.1,
            "reply_timeout": 0.5,
            "patience": 0.3,
            "breaker": BreakerOptions(window=1.0, least=5, rate=0.5),
        }
        counters = RedisCounters(
            RedisOptions(url, 1, **(settings | options)), definitions, ledger=ledger or Records(url)
        )
        counters.start()
        stack.push_async_callback(counters.close)
        outcomes: Counter[str] = Counter()
        journal = journal or FileJournal(folder / "journal", enforcers, steps=steps)
        stack.push_async_callback(journal.close)
        programs = Programs(definitions, counters)
        emergency = Emergency(
            journal, Shares(enforcers), programs.now_ms, lambda outcome: outcomes.update([outcome])
        )
        gateway = Gateway(counters, programs, b"secret", emergency=emergency)
        counting = Counting(journal, counters, programs, emergency)
        await counting.weigh()
        yield Outpost(definitions, counters, gateway, counting, outcomes)


def records_of(url: str) -> list[tuple[Body, Effects]]:
    """All records of the only bucket."""
    with redis.Redis.from_url(url) as client:
        entries: Any = client.xrange(outbox(0))
    return [(decode_body(fields[b"b"]), decode_effects(fields[b"e"])) for _, fields in entries]
