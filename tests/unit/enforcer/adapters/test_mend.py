"""Records that an old copy lacks are written again where they were counted, whatever the terms say by now."""

from __future__ import annotations

from typing import Any

import msgspec

from enforcer.adapters.counters.image import Image, packed
from enforcer.adapters.counters.mend import Mender, Process
from enforcer.core.model import Customer, Feature, Node
from enforcer.core.program import FIELDS, Family
from meter.core.records import Body, Effect, Effects, RecordType, encode_body, encode_effects
from meter.core.sequence import Entry, Position

LIMIT, NOW = 102, 1_700_000_000_000
STATE = packed({LIMIT << 3 | Family.COUNT: [0.0] * FIELDS[Family.COUNT]})


class Redis:
    """Has a counter of the limit at the company; keeps what is written."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    async def call(self, name: str, *words: Any) -> Any:
        if name == "GET":
            return STATE if words[0].endswith("s:12:7") else None
        assert name == "EVAL"
        self.written += words
        return b"done"


class Definitions:
    """A unit and its company, without any terms."""

    async def resolve(self, tenant: str, customer: str) -> Customer:
        return Customer(tenant, 1, "acme", 0, 2, (Node(11, customer), Node(12, "acme")))

    async def feature(self, tenant: str, key: str) -> Feature:
        assert tenant
        return Feature(7, key, key)


async def test_a_hold_is_written_again_where_its_limit_was_counted_though_it_was_removed() -> None:
    """Else its end would come off another node, and the counter would keep what was held."""
    redis: Any = Redis()
    nobody: Any = Definitions()
    mender = Mender(
        redis, Process("run", "", 86_400_000, "w" * 16), nobody, nobody, lambda _: Position(0, 0)
    )
    body = encode_body(Body("demo", "acme", "acme-eu", "calls", "calls", id="r1"))
    held = Effects(
        RecordType.HOLD, NOW, 5, quantity=5, extra=NOW + 60_000, entries=(Effect(LIMIT, 0, 0, 5),)
    )
    entry = Entry(1, 4, body, encode_effects(held))
    await mender._again(0, "run", Position(1, 3), [entry], Image(redis, 0), NOW)
    at = redis.written.index("r1")
    _, _, _, chains, _ = msgspec.msgpack.decode(redis.written[at + 1])
    assert [[hold[0] for hold in chain] for chain in chains] == [["12:7"]]
