"""What is asked: a catalog of accounts of its own for each run, and what an arrival does with them.

The names of the accounts have the run in them: a gateway that is used again counts from nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.arrivals import Spacing, arrivals, length, spike, steady
from loadtests.sessions import Call, Pause
from loadtests.traces import FEATURES, paced, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.cli.trace import Row
    from loadtests.arrivals import Stretch
    from loadtests.sessions import Session

__all__ = ["CALLS", "NOT_ALL_HEED", "SCENARIOS", "SEATS", "Options", "Scenario", "make"]

CALLS: Final = "load.calls"
SEATS: Final = "load.seats"
PLENTY: Final = 1_000_000_000
TIGHT_ONE_IN: Final = 20
HOT_OF_TEN: Final = 9
SPIKE_HEADROOM: Final = 2
SEAT_SHORTAGE: Final = 1.2


class Options(msgspec.Struct, frozen=True):
    """What a scenario is asked to be like. `run` tells runs apart; not every scenario heeds all."""

    run: str
    rate: float
    seconds: float
    customers: int = 100
    spacing: Spacing = Spacing.POISSON
    seed: int = 1
    batch: int = 100
    factor: float = 5.0
    hold: float = 2.0
    trace: str = ""


class Scenario(ABC):
    """One kind of traffic. Everything about an arrival follows from its number."""

    about: ClassVar[str]
    """A sentence."""
    heeds: ClassVar[frozenset[str]] = frozenset()
    """Which of the options that not all heed."""
    bounded: ClassVar[bool] = False
    """There are only as many sessions as moments."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def session(self, number: int) -> Session:
        """What the `number`-th arrival does."""

    def plan(self) -> tuple[Stretch, ...]:
        """How many arrivals are due when."""
        return steady(self.options.rate, self.options.seconds)

    def moments(self) -> Iterator[float]:
        """When arrivals are due, seconds since the beginning, ascending."""
        return arrivals(self.plan(), self.options.spacing, self.options.seed)

    @property
    def seconds(self) -> float:
        """How long the plan is."""
        return length(self.plan())

    def names(self) -> list[str]:
        """The customers."""
        return [self.name(place) for place in range(self.options.customers)]

    def pairs(self) -> list[tuple[str, str]]:
        """Customers and features whose usage has to agree at the end."""
        return [(name, CALLS) for name in self.names()]

    def name(self, place: int) -> str:
        """One of them."""
        return f"load-{self.options.run}-{place:04}"

    def entitlements(self, place: int) -> list[str]:
        """Of a customer, as YAML: a hard quota and a rate on one level."""
        return [
            f"{{feature: {CALLS}, model: quota, limit: {self.limit(place)}, per: total}}",
            f"{{feature: {CALLS}, model: rate, limit: {PLENTY}, per: 1s, burst: {PLENTY}}}",
        ]

    def limit(self, place: int) -> int:
        """The hard quota of a customer."""
        return PLENTY

    def features(self) -> list[str]:
        """Those that the catalog has to name, as YAML."""
        return [f"{{key: {CALLS}, unit: call, meter: sum}}"]

    def catalog(self) -> str:
        """The accounts, as YAML."""
        lines = ["version: 1", "features:", *(f"  - {one}" for one in self.features())]
        lines.append("accounts:")
        for place, name in enumerate(self.names()):
            lines += [f"  - key: {name}", "    entitlements:"]
            lines += [f"      - {one}" for one in self.entitlements(place)]
        return "\n".join(lines) + "\n"

    def check(self, place: int, key: str) -> pb.CheckRequest:
        """One call of a customer, under a key of its own."""
        return pb.CheckRequest(
            customer=self.name(place), feature=CALLS, quantity=1, idempotency_key=self.key(key)
        )

    def key(self, text: str) -> str:
        """An idempotency key of this run."""
        return f"{self.options.run}/{text}"

    def anybody(self, number: int) -> int:
        """A customer, all alike often; the same one for the same number."""
        return ((number * 0x9E3779B1) >> 8) % self.options.customers

    def asked_of_each(self) -> float:
        """How many checks a customer makes on average."""
        return self.options.rate * self.options.seconds / self.options.customers


class Steady(Scenario):
    """Full checks; one customer in twenty runs into its quota half way."""

    about = "Full checks at one rate, spread over all customers; one in twenty runs into its quota."

    def session(self, number: int) -> Session:
        yield Call("Check", self.check(self.anybody(number), str(number)))

    def limit(self, place: int) -> int:
        if place % TIGHT_ONE_IN < TIGHT_ONE_IN - 1:
            return PLENTY
        return max(int(self.asked_of_each() / 2), 1)


class Spike(Scenario):
    """Customers may go twice as fast as they do: what comes beyond in the spike is refused."""

    about = "Full checks; in the third of five equal parts at a multiple of the rate, beyond what customers may."
    heeds = frozenset({"factor"})

    def plan(self) -> tuple[Stretch, ...]:
        return spike(self.options.rate, self.options.seconds, self.options.factor)

    def session(self, number: int) -> Session:
        yield Call("Check", self.check(self.anybody(number), str(number)))

    def entitlements(self, place: int) -> list[str]:
        a_minute = max(round(self.options.rate / self.options.customers * SPIKE_HEADROOM * 60), 1)
        burst = max(a_minute // 60, 4)
        return [
            f"{{feature: {CALLS}, model: quota, limit: {PLENTY}, per: total}}",
            f"{{feature: {CALLS}, model: rate, limit: {a_minute}, per: 1m, burst: {burst}}}",
        ]


class HotKey(Scenario):
    """One customer makes nine of ten checks: one bucket, one packed state, one enforcer's cache line."""

    about = "Full checks at one rate, nine of ten of one customer, the rest spread over the others."

    def session(self, number: int) -> Session:
        hot = number % 10 < HOT_OF_TEN
        yield Call("Check", self.check(0 if hot else self.anybody(number), str(number)))


class Batch(Scenario):
    """`CheckBatch` with full checks of many customers."""

    about = "Calls of many full checks each, of customers alike."
    heeds = frozenset({"batch"})

    def session(self, number: int) -> Session:
        size = self.options.batch
        items = [
            self.check(self.anybody(number * size + item), f"{number}/{item}")
            for item in range(size)
        ]
        yield Call("CheckBatch", pb.CheckBatchRequest(items=items))


class Seats(Scenario):
    """Somebody takes a seat, renews it half way, and gives it back; more come than there are seats."""

    about = "Seats taken, renewed half way, given back; a fifth more are wanted than there are."
    heeds = frozenset({"hold"})

    def session(self, number: int) -> Session:
        answer: pb.AcquireLeaseResponse = yield Call(
            "AcquireLease",
            pb.AcquireLeaseRequest(
                customer=self.name(self.anybody(number)),
                feature=SEATS,
                holder=f"user-{number}",
                idempotency_key=self.key(str(number)),
            ),
        )
        if not answer.check.allowed:
            return
        yield Pause(self.options.hold / 2)
        yield Call("RenewLease", pb.RenewLeaseRequest(token=answer.lease.token))
        yield Pause(self.options.hold / 2)
        yield Call("ReleaseLease", pb.ReleaseLeaseRequest(token=answer.lease.token))

    def pairs(self) -> list[tuple[str, str]]:
        return [(name, SEATS) for name in self.names()]

    def features(self) -> list[str]:
        return [f"{{key: {SEATS}, unit: seat}}"]

    def entitlements(self, place: int) -> list[str]:
        wanted = self.options.rate * self.options.hold / self.options.customers
        seats = max(int(wanted / SEAT_SHORTAGE), 1)
        ttl = max(int(self.options.hold * 2), 60)
        return [
            f"{{feature: {SEATS}, model: concurrent, seats: {seats}, mode: floating, ttl: {ttl}s}}"
        ]


class Trace(Scenario):
    """Rows of a trace as atomic batches, with its own bunches and pauses, at another mean rate."""

    about = "Requests to language models with their tokens, each an atomic batch, in the bunches of a trace."
    heeds = frozenset({"trace"})
    bounded = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        path = Path(options.trace) if options.trace else None
        self._rows: list[tuple[float, Row]] = list(
            paced(rows_of(path, options.seed), options.rate, options.seconds)
        )

    def moments(self) -> Iterator[float]:
        return (at for at, _ in self._rows)

    def session(self, number: int) -> Session:
        row = self._rows[number][1]
        items = [
            pb.CheckRequest(
                customer=self.name(self.anybody(number)),
                feature=feature,
                quantity=quantity,
                idempotency_key=self.key(f"{number}/{feature}"),
            )
            for feature, quantity in row.quantities.items()
        ]
        yield Call("CheckBatch", pb.CheckBatchRequest(items=items, atomic=True))

    def pairs(self) -> list[tuple[str, str]]:
        return [(name, feature) for name in self.names() for feature in FEATURES]

    def features(self) -> list[str]:
        return [f"{{key: {feature}, meter: sum}}" for feature in FEATURES]

    def entitlements(self, place: int) -> list[str]:
        return [f"{{feature: {feature}, model: payg, per: month}}" for feature in FEATURES]


SCENARIOS: Final[dict[str, type[Scenario]]] = {
    "steady": Steady,
    "spike": Spike,
    "hotkey": HotKey,
    "batch": Batch,
    "seats": Seats,
    "trace": Trace,
}

NOT_ALL_HEED: Final = frozenset().union(*(one.heeds for one in SCENARIOS.values()))
"""Options that only some of them heed."""


def make(name: str, options: Options) -> Scenario:
    """The scenario of this name, one of `SCENARIOS`."""
    return SCENARIOS[name](options)
