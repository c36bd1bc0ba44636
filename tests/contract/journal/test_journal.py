"""What every journal of emergency uses has to do."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import pytest

from enforcer.adapters.journal.files import FileJournal
from enforcer.adapters.journal.kafka import KafkaJournal
from enforcer.core.commands import Sent
from enforcer.core.emergency import Use
from enforcer.errors import JournalUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from enforcer.ports.journal import Journal
    from meter.adapters.kafka.client import KafkaOptions

SLOTS = 3
OLD = 3.0
"""What others wrote in Kafka so many seconds ago is counted by anybody."""


def use(quantity: int, bucket: int = 0, customer: str = "acme") -> Use:
    sent = Sent("e", 1, 2, 3, 4) if quantity % 2 else None
    return Use("demo", customer, "api.calls", "", 1, bucket, quantity, 1_000, b"{}", sent=sent)


class Maker(Protocol):
    """Makes the journal of the enforcer with this number."""

    def __call__(self, number: int = 0) -> Journal: ...


@pytest.fixture(params=["files", "kafka"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    if request.param == "files":
        return lambda _number=0: FileJournal(tmp_path / "journal", SLOTS)
    options: KafkaOptions = request.getfixturevalue("kafka")
    return lambda number=0: KafkaJournal(options, number, old=OLD)


async def counted(journal: Journal, *, discard: bool = True) -> dict[str, list[Use]]:
    """What is to be counted, by journal."""
    found: dict[str, list[Use]] = {}
    async with aclosing(journal.seal()) as parts:
        async for part in parts:
            async with aclosing(part.batches(2)) as batches:
                async for batch in batches:
                    assert len(batch) <= 2
                    found.setdefault(part.journal, []).extend(batch)
            if discard:
                await part.discard()
    return found


async def test_uses_come_back_once_in_order_and_numbered_by_bucket(make: Maker) -> None:
    journal = make()
    assert await journal.left_over() == []
    await asyncio.gather(*(journal.append(use(number, number % 2)) for number in range(1, 8)))
    (uses,) = (await counted(journal)).values()
    assert [one.quantity for one in uses] == list(range(1, 8))
    for bucket in (0, 1):
        numbers = [one.number for one in uses if one.bucket == bucket]
        assert numbers == list(range(1, len(numbers) + 1))
    assert await counted(journal) == {}
    await journal.close()


async def test_numbers_go_on_over_the_parts_of_a_journal(make: Maker) -> None:
    journal = make()
    names, numbers = set(), []
    for quantity in (1, 2, 3):
        await journal.append(use(quantity))
        ((name, uses),) = (await counted(journal)).items()
        names.add(name)
        numbers += [one.number for one in uses]
    assert (len(names), numbers) == (1, [1, 2, 3])
    await journal.close()


async def test_what_was_not_discarded_comes_again(make: Maker) -> None:
    journal = make()
    await journal.append(use(1))
    first = await counted(journal, discard=False)
    await journal.append(use(2))
    again = await counted(journal)
    (name,) = first
    assert again == {name: [*first[name], *again[name][1:]]}
    assert [one.number for one in again[name]] == [1, 2]
    await journal.close()


async def test_a_successor_finds_what_was_left_and_weighs_it(make: Maker) -> None:
    journal = make()
    await journal.append(use(5))
    await journal.close()
    successor = make()
    assert [one.quantity for one in await successor.left_over()] == [5]
    await successor.append(use(7))
    found = await counted(successor)
    assert sorted(one.quantity for uses in found.values() for one in uses) == [5, 7]
    assert len(found) == 2
    await successor.close()


async def test_a_living_enforcer_s_journal_is_its_own(make: Maker) -> None:
    first, second = make(0), make(1)
    await second.append(use(2))
    await first.append(use(1))
    ((_, uses),) = (await counted(second)).items()
    assert [one.quantity for one in uses] == [2]
    await first.close()
    async with asyncio.timeout(30):
        while not (found := await counted(second)):  # noqa: ASYNC110 - asks again and again
            await asyncio.sleep(0.1)
    ((_, uses),) = found.items()
    assert [one.quantity for one in uses] == [1]
    await second.close()


async def test_one_enforcer_more_than_there_may_be_has_no_journal(tmp_path: Path) -> None:
    def make() -> FileJournal:
        return FileJournal(tmp_path / "journal", SLOTS)

    journals = [make() for _ in range(SLOTS)]
    for one in journals:
        await one.append(use(1))
    surplus = make()
    with pytest.raises(JournalUnavailableError, match="METERGATE_MOST_ENFORCERS"):
        await surplus.append(use(1))
    await journals[1].close()
    await surplus.append(use(1))
    for one in (journals[0], journals[2], surplus):
        await one.close()


async def test_a_caller_that_goes_away_loses_nothing_of_others(make: Maker) -> None:
    journal = make()
    tasks = [asyncio.create_task(journal.append(use(number))) for number in range(1, 5)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (uses,) = (await counted(journal)).values()
    assert [one.quantity for one in uses] == [1, 2, 3, 4]
    await journal.close()
