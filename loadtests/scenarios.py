"""What is asked: a catalog of accounts of its own for each run, and what an arrival does with them.

The names of the accounts have the run in them: a gateway that is used again counts from nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.arrivals import Stretch, steady
from loadtests.sessions import Call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadtests.sessions import Session

__all__ = ["CALLS", "SCENARIOS", "SEATS", "Options", "Scenario", "Steady", "make"]

CALLS: Final = "load.calls"
SEATS: Final = "load.seats"
PLENTY: Final = 1_000_000_000
TIGHT_ONE_IN: Final = 20


class Options(msgspec.Struct, frozen=True):
    """What a scenario is asked to be like. `run` tells runs apart; not every scenario heeds all."""

    run: str
    rate: float
    seconds: float
    customers: int = 100


class Scenario(ABC):
    """One kind of traffic. Everything about an arrival follows from its number."""

    about: ClassVar[str]
    """A sentence."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def session(self, number: int) -> Session:
        """What the `number`-th arrival does."""

    def plan(self) -> tuple[Stretch, ...]:
        """How many arrivals are due when."""
        return steady(self.options.rate, self.options.seconds)

    def names(self) -> list[str]:
        """The customers."""
        return [self.name(place) for place in range(self.options.customers)]

    def pairs(self) -> list[tuple[str, str]]:
        """Customers and features whose usage has to agree at the end."""
        return [(name, CALLS) for name in self.names()]

    def name(self, place: int) -> str:
        """One of them."""
        return f"load-{self.options.run}-{place:04}"

    def limit(self, place: int) -> int:
        """The hard quota of a customer."""
        return PLENTY

    def catalog(self) -> str:
        """The accounts, as YAML: a hard quota and a rate on one level."""
        return _document(
            (
                name,
                [
                    f"{{feature: {CALLS}, model: quota, limit: {self.limit(place)}, per: total}}",
                    f"{{feature: {CALLS}, model: rate, limit: {PLENTY}, per: 1s, burst: {PLENTY}}}",
                ],
            )
            for place, name in enumerate(self.names())
        )

    def check(self, place: int, key: str) -> pb.CheckRequest:
        """One call of a customer, under a key of its own."""
        return pb.CheckRequest(
            customer=self.name(place),
            feature=CALLS,
            quantity=1,
            idempotency_key=f"{self.options.run}/{key}",
        )

    def anybody(self, number: int) -> int:
        """A customer, all alike often; the same one for the same number."""
        return ((number * 0x9E3779B1) >> 8) % self.options.customers


class Steady(Scenario):
    """Full checks; one customer in twenty runs into its quota half way."""

    about = "Full checks at one rate, spread over all customers; one in twenty runs into its quota."

    def session(self, number: int) -> Session:
        yield Call("Check", self.check(self.anybody(number), str(number)))

    def limit(self, place: int) -> int:
        if place % TIGHT_ONE_IN < TIGHT_ONE_IN - 1:
            return PLENTY
        asked_for = self.options.rate * self.options.seconds / self.options.customers
        return max(int(asked_for / 2), 1)


def _document(accounts: Iterable[tuple[str, list[str]]]) -> str:
    lines = ["version: 1", "features:"]
    lines += [f"  - {{key: {CALLS}, unit: call, meter: sum}}", f"  - {{key: {SEATS}, unit: seat}}"]
    lines += ["accounts:"]
    for name, entitlements in accounts:
        lines += [f"  - key: {name}", "    entitlements:"]
        lines += [f"      - {one}" for one in entitlements]
    return "\n".join(lines) + "\n"


SCENARIOS: Final[dict[str, type[Scenario]]] = {"steady": Steady}


def make(name: str, options: Options) -> Scenario:
    """The scenario of this name, one of `SCENARIOS`."""
    return SCENARIOS[name](options)
