"""What every adapter of the list of corrections has to do: one body over SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from enforcer.adapters.definitions.corrections import SqlCorrections
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.core.parcels import Draw, Parcel
from enforcer.ports.corrections import (
    Intent,
    KeyTaken,
    Place,
    ReviewItem,
    SealRule,
    Settlement,
    State,
)
from meter.core.records import RecordType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DAY = 86_400_000
NEVER = SealRule()
PARCEL = Parcel(7, 2, ((Draw(1, 10, 5), Draw(2, 0, 2)), (Draw(9, 10, 7),)))
INTENT = Intent(
    tenant="demo",
    bucket=1,
    kind=RecordType.VOID,
    scope="record",
    key="a",
    fingerprint="f",
    actor="ann",
    reason="späť",
    account="acme",
    customer="acme/eu",
    feature="calls",
    meter="calls",
    at_ms=1_790_000_000_000,
    quantity=0,
    dimensions={"region": "eu"},
    target=Place(1, 5),
    version=1,
    parcels=(PARCEL,),
    counts=True,
)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite+aiosqlite:///{tmp_path}/definitions.db"


@pytest.fixture
async def corrections(url: str) -> AsyncIterator[SqlCorrections]:
    definitions = SqlDefinitions(url, 4)
    await definitions.migrate()
    await definitions.ensure_tenant("demo")
    await definitions.ensure_tenant("other")
    yield SqlCorrections(definitions, lambda: INTENT.at_ms + 1)
    await definitions.close()


async def test_an_entry_is_read_as_it_was_listed(corrections: SqlCorrections) -> None:
    await corrections.add([INTENT], NEVER)
    (listed,) = await corrections.by_keys("demo", [("record", "a"), ("record", "b")])
    assert listed.intent == INTENT
    assert (listed.number, listed.state, listed.sealed) == (1, State.PENDING, False)
    assert await corrections.by_keys("other", [("record", "a")]) == []
    assert await corrections.latest(1, Place(1, 5)) == (1, listed)
    assert await corrections.unfinished() == [1]
    done = Settlement(1, State.APPLIED, Place(1, 9), -2, (PARCEL,))
    await corrections.settle(1, [done])
    await corrections.settle(1, [replace_state(done)])
    (settled,) = await corrections.page("demo", "", (1, Place(1, 9)), 0, 10)
    assert (settled.state, settled.place, settled.overage) == (State.APPLIED, Place(1, 9), -2)
    assert settled.after == (PARCEL,)
    assert await corrections.pending(1, 10) == (1, [])
    assert await corrections.unfinished() == []


def replace_state(done: Settlement) -> Settlement:
    """What ended stays as it is."""
    return done._replace(state=State.REFUSED, refused="too late")


async def test_a_key_and_a_version_are_given_once(corrections: SqlCorrections) -> None:
    await corrections.add([INTENT], NEVER)
    for taken in (
        replace(INTENT, version=2),
        replace(INTENT, key="b"),
        replace(INTENT, bucket=2, target=None, version=0),
    ):
        with pytest.raises(KeyTaken):
            await corrections.add([replace(INTENT, key="new", version=3), taken], NEVER)
    await corrections.add([replace(INTENT, tenant="other", bucket=2)], NEVER)
    _, listed = await corrections.pending(1, 10)
    assert [one.number for one in listed] == [1]


async def test_numbers_of_a_bucket_have_no_holes_whoever_asks(corrections: SqlCorrections) -> None:
    backfill = replace(INTENT, kind=RecordType.BACKFILL, target=None, version=0)

    async def add(name: str) -> None:
        await corrections.add([replace(backfill, key=f"{name}{n}") for n in range(3)], NEVER)

    await asyncio.gather(*(add(name) for name in "abcdef"))
    acknowledged, listed = await corrections.pending(1, 100)
    assert acknowledged == 0
    assert [one.number for one in listed] == list(range(1, 19))
    await corrections.settle(1, [Settlement(1, State.APPLIED, Place(1, 1))])
    acknowledged, listed = await corrections.pending(1, 2)
    assert (acknowledged, [one.number for one in listed]) == (1, [2, 3])


async def test_seals_are_noted_with_what_is_listed_after_them(corrections: SqlCorrections) -> None:
    start, end = ms(9), ms(10)
    assert await corrections.seal("demo", "acme", start, end, "ann")
    assert not await corrections.seal("demo", "acme", start, end, "ann")
    await corrections.add(
        [
            replace(INTENT, at_ms=start),
            replace(INTENT, key="b", account="globex", version=2),
            replace(INTENT, key="c", at_ms=end, version=3),
        ],
        NEVER,
    )
    found = (await corrections.pending(1, 10))[1]
    assert [one.sealed for one in found] == [True, False, False]
    by_rule = SqlCorrections(corrections.definitions, lambda: end + 3 * DAY)
    await by_rule.add([replace(INTENT, key="d", account="globex", version=4)], SealRule(4))
    await by_rule.add([replace(INTENT, key="e", account="globex", version=5)], SealRule(3))
    found = (await corrections.pending(1, 10))[1]
    assert [one.sealed for one in found[3:]] == [False, True]


def ms(month: int) -> int:
    """The beginning of a month of 2026."""
    return int(datetime(2026, month, 1, tzinfo=UTC).timestamp()) * 1000


async def test_an_event_waits_once_and_is_resolved_once(corrections: SqlCorrections) -> None:
    items = [ReviewItem(0, key, "{}", "too old", "ann", 0) for key in ("a", "b", "a")]
    assert await corrections.put_in_review("demo", items) == {"a", "b"}
    first, second = await corrections.review("demo", 0, 10)
    assert await corrections.review("demo", first.id, 10) == [second]
    assert await corrections.review("other", 0, 10) == []
    assert await corrections.review_item("other", first.id) is None
    for expected in (True, False):
        resolved = await corrections.resolve(
            "demo", first.id, accepted=False, reason="x", actor="ann"
        )
        assert resolved is expected
    assert await corrections.put_in_review("demo", items) == {"b"}
