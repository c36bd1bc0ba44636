"""Programs whose terms change while they are read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from enforcer.adapters.counters.memory import MemoryStore
from enforcer.core.commands import EpochStale
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import Customer, Feature, Node, Period, PeriodUnit, QuotaTerms
from enforcer.errors import (
    DefinitionsUnavailableError,
    InternalError,
    NotFoundError,
    TermsChangingError,
)
from enforcer.gateway import programs as module
from enforcer.gateway.gateway import Gateway
from enforcer.gateway.programs import Name, Programs, Rounds
from enforcer.v1 import enforcer_pb2 as pb
from tests.unit.enforcer.core.stories import NOW, given

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TERMS = QuotaTerms(100, Period(PeriodUnit.TOTAL))
CHECK = pb.CheckRequest(customer="acme", feature="f").SerializeToString()


class Declared:
    """Definitions of two accounts, in bucket 0, and of one feature; `after_reading` is called each time."""

    def __init__(self) -> None:
        self.epochs = {"acme": 1, "globex": 1}
        self.revision, self.emergency = 0, 0
        self.readings = 0
        self.asked: list[int] = []
        self.after_reading: Callable[[], None] = lambda: None

    async def resolve_all(self, names: Sequence[tuple[str, str]]) -> list[Customer | None]:
        self.readings += 1
        self.asked.append(len(names))
        found = [self._customer(*name) for name in names]
        self.after_reading()
        await asyncio.sleep(0)
        return found

    def _customer(self, tenant: str, customer: str) -> Customer | None:
        if customer not in self.epochs:
            return None
        number = list(self.epochs).index(customer) + 1
        return Customer(
            tenant,
            number,
            customer,
            0,
            self.epochs[customer],
            (Node(number, customer, entitlements=(given(customer, TERMS),)),),
            self.revision,
        )

    async def feature(self, _tenant: str, key: str) -> Feature:
        return Feature(1, key, key, {}, self.emergency)


class Stand:
    """A gateway over the specification of the counters."""

    def __init__(self) -> None:
        self.definitions = Declared()
        counters = MemoryCounters(lambda: NOW, 86_400_000)
        counters.open(0, 1)
        self.counters = MemoryStore(counters)
        self.programs = Programs(cast("Any", self.definitions), self.counters, now_ms=lambda: NOW)
        self.gateway = Gateway(self.counters, self.programs, b"secret")

    def change(self) -> None:
        """As an application of a catalog does it: committed, then projected."""
        self.definitions.epochs["acme"] += 1
        self.counters._counters.project(0, 1, self.definitions.epochs["acme"])

    async def emergency(self, customer: str) -> int:
        return (await self.programs.get(Name("demo", customer, "f"))).emergency


async def test_a_check_follows_terms_that_change_each_time_they_are_read() -> None:
    stand = Stand()

    def changes() -> None:
        if stand.definitions.readings < 20:
            stand.change()

    stand.definitions.after_reading = changes
    assert pb.CheckResponse.FromString(await stand.gateway.check("demo", CHECK)).allowed
    assert stand.definitions.readings == 20


async def test_a_check_is_given_up_when_they_change_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHANGING_SECONDS", 0.05)
    stand = Stand()
    stand.definitions.after_reading = stand.change
    with pytest.raises(TermsChangingError) as caught:
        await stand.gateway.check("demo", CHECK)
    assert caught.value.retryable
    assert caught.value.metadata["customer"] == "acme"
    stand.definitions.after_reading = lambda: None
    (limit,) = pb.CheckResponse.FromString(await stand.gateway.check("demo", CHECK)).limits
    assert limit.used == 1


def test_terms_that_stand_still_are_asked_for_only_so_often() -> None:
    rounds = Rounds("acme", 4)
    for _ in range(4):
        rounds.another(EpochStale(7))
    with pytest.raises(InternalError, match="do not agree"):
        rounds.another(EpochStale(7))


async def test_a_reading_that_began_before_the_change_is_not_taken_for_the_newest() -> None:
    stand, name = Stand(), Name("demo", "acme", "f")
    await stand.programs.get(name)
    stand.change()
    begun = asyncio.Event()
    stand.definitions.after_reading = begun.set
    old = asyncio.create_task(stand.programs.reread(name))
    await begun.wait()
    stand.change()
    await stand.programs.refresh(name, EpochStale(3))
    assert (await stand.programs.get(name)).epoch == 3
    await old
    assert (await stand.programs.get(name)).epoch == 3


async def test_a_changed_feature_is_read_again_for_every_account_whatever_their_epochs() -> None:
    stand = Stand()
    stand.definitions.epochs["acme"] = 25
    assert await stand.emergency("acme") == 0
    stand.definitions.emergency, stand.definitions.revision = 9, 1
    stand.definitions.epochs = {"acme": 26, "globex": 2}
    assert await stand.emergency("globex") == 9


async def test_customers_that_come_while_others_are_read_are_read_together() -> None:
    stand = Stand()
    names = [f"c{number}" for number in range(2 * module.MOST_READ)]
    stand.definitions.epochs = dict.fromkeys(names, 1)
    programs = await asyncio.gather(
        *(stand.programs.get(Name("demo", name, "f")) for name in names * 2)
    )
    assert [one.customer for one in programs] == names * 2
    assert stand.definitions.asked == [module.MOST_READ] * 2


async def test_one_that_is_not_there_and_a_reading_that_fails_are_told_to_those_who_asked() -> None:
    stand = Stand()

    async def emergencies(*names: str) -> list[Any]:
        return await asyncio.gather(*map(stand.emergency, names), return_exceptions=True)

    zero, missing, other = await emergencies("acme", "nobody", "globex")
    assert (zero, other) == (0, 0)
    assert isinstance(missing, NotFoundError)
    assert missing.metadata == {"customer": "nobody"}

    def fails() -> None:
        raise DefinitionsUnavailableError("away")

    stand.definitions.epochs |= {"initech": 1}
    stand.definitions.after_reading = fails
    assert [type(one) for one in await emergencies("initech", "umbrella", "acme")] == [
        DefinitionsUnavailableError,
        DefinitionsUnavailableError,
        int,
    ]
    stand.definitions.asked.clear()
    many = await emergencies(*(f"c{number}" for number in range(3 * module.MOST_READ)))
    assert {type(one) for one in many} == {DefinitionsUnavailableError}
    assert len(stand.definitions.asked) == 1, "whoever has waited for one failure has waited enough"
    stand.definitions.after_reading = lambda: None
    assert await emergencies("initech") == [0]


async def test_a_reading_without_an_answer_does_not_hold_up_the_next() -> None:
    stand, stuck = Stand(), asyncio.Event()
    read = stand.definitions.resolve_all

    async def resolve_all(names: Sequence[tuple[str, str]]) -> list[Customer | None]:
        if ("demo", "acme") in names:
            await stuck.wait()
        return await read(names)

    stand.definitions.resolve_all = resolve_all  # type: ignore[method-assign]
    waiting = asyncio.create_task(stand.emergency("acme"))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(stand.emergency("globex"), 10) == 0
    assert not waiting.done()
    stuck.set()
    assert await waiting == 0


@pytest.mark.parametrize("steps", range(12))
async def test_nobody_is_forgotten_at_whichever_step_of_a_reading_they_come(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(module, "MOST_READINGS", 1)
    stand = Stand()

    async def later() -> int:
        for _ in range(steps):
            await asyncio.sleep(0)
        return await stand.emergency("globex")

    async with asyncio.timeout(10):
        assert list(await asyncio.gather(stand.emergency("acme"), later())) == [0, 0]


async def test_who_gives_up_takes_nobody_along() -> None:
    stand = Stand()
    impatient = asyncio.create_task(stand.emergency("acme"))
    patient = asyncio.create_task(stand.emergency("acme"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == 0
    assert stand.definitions.readings == 1
