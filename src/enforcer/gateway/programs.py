"""Compiled programs by who asks for what: on the hot path a dictionary lookup, and never a database call."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from enforcer.core.commands import EpochStale, SliceStale
from enforcer.core.compile import compile_program
from enforcer.core.model import Customer
from enforcer.errors import (
    InternalError,
    InvalidRequestError,
    NotFoundError,
    TermsChangingError,
)
from enforcer.gateway.asked import Name
from enforcer.gateway.stencils import Skeletons, Stencil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from enforcer.core.model import Feature
    from enforcer.core.program import Program
    from enforcer.ports.counters import CounterStore
    from enforcer.ports.definitions import Definitions

__all__ = ["Name", "Programs", "Rounds"]

MOST_READ = 32
"""Customers that are read at once. A reading costs what ten customers do; more would keep others from the processor."""
MOST_READINGS = 2
"""At the same time: one that gets no answer does not hold everybody up."""
CHANGING_SECONDS = 2.0
"""How long a call follows terms that change again and again."""


class Programs:
    """A bounded cache of programs and of the snapshots that they were compiled from.

    A program is good until the store says otherwise: it compares the epoch and the slice of every check with its own
    (`refresh`). What is unknown is not remembered: a customer that was just declared is found.
    """

    def __init__(
        self,
        definitions: Definitions,
        counters: CounterStore,
        size: int = 100_000,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._definitions, self._counters = definitions, counters
        self._size, self.now_ms = size, now_ms
        self._programs: dict[tuple[str, str, str, str], Stencil] = {}
        self._customers: dict[tuple[str, str], Customer] = {}
        self._features: dict[tuple[str, str], tuple[int, Feature]] = {}
        self._loading: dict[tuple[str, str], asyncio.Future[Customer | Exception | None]] = {}
        self._wanted: list[tuple[str, str]] = []
        self._reading: set[asyncio.Task[None]] = set()
        self.skeletons = Skeletons(self._programs.get)
        """What is known, by the messages of common checks."""

    def known(self, name: Name) -> Program | None:
        """The program, if it is there."""
        stencil = self._programs.get(name)
        return None if stencil is None else stencil.program

    async def get(self, name: Name) -> Program:
        """The program, from the cache or made now. Raise what is wrong with the name."""
        return self.known(name) or await self._make(name, self.now_ms())

    async def current(self, name: Name) -> Program:
        """The program of this moment by the local clock, for operations that the store does not hold against a slice."""
        program, now = await self.get(name), self.now_ms()
        if program.start <= now < (program.end or now + 1):
            return program
        return await self._make(name, now)

    async def reread(self, name: Name) -> Program:
        """The program by the definitions as they are, for a `no` that the store was not asked about."""
        customer = await self._load(name.tenant, name.customer)
        program = self.known(name)
        if program is not None and (program.account_id, program.epoch) == (
            customer.account_id,
            customer.epoch,
        ):
            return await self.current(name)
        return await self._make(name, self.now_ms())

    async def any_version(self, name: Name, *, reread: bool = False) -> Program:
        """A program for what does not depend on the product version that asks."""
        program, now = self.known(name), self.now_ms()
        if program is not None and not reread and program.start <= now < (program.end or now + 1):
            return program
        customer = None if reread else self._customers.get(name[:2])
        if customer is None:
            customer = await self._load(name.tenant, name.customer)
        feature = await self._feature(name, customer)
        program, version_matters = compile_program(customer, feature, now)
        if version_matters:
            return compile_program(customer, feature, now, released_ms=0)[0]
        self._keep(name, program)
        return program

    async def at(self, name: Name, at: int) -> Program:
        """The program of another time, by the present terms, for whichever product version. It is not kept."""
        customer = self._customers.get(name[:2]) or await self._load(name.tenant, name.customer)
        feature = await self._feature(name, customer)
        program, version_matters = compile_program(customer, feature, at)
        if version_matters:
            return compile_program(customer, feature, at, released_ms=0)[0]
        return program

    async def reconcile(self, name: Name, stale: EpochStale) -> None:
        """Make the customer's terms here and the epoch in the store the newest, whichever was behind."""
        customer = await self._load(name.tenant, name.customer)
        if stale.stored < customer.epoch:
            await self._counters.project(customer.bucket, customer.account_id, customer.epoch)

    async def refresh(self, name: Name, stale: EpochStale | SliceStale) -> None:
        """Mend what the store refused."""
        program = self.known(name)
        if isinstance(stale, SliceStale):
            await self._make(name, stale.now)
        elif program is None or stale.stored > program.epoch:
            joined = name[:2] in self._loading
            customer = await self._load(name.tenant, name.customer)
            if joined and customer.epoch < stale.stored:
                # That reading may have begun before the change.
                await self._load(name.tenant, name.customer)
            await self._make(name, self.now_ms())
        else:
            await self._counters.project(program.bucket, program.account_id, program.epoch)

    async def _make(self, name: Name, at: int) -> Program:
        known = self._customers.get(name[:2])
        if known is None:
            return await self._compile(name, await self._load(name.tenant, name.customer), at)
        try:
            return await self._compile(name, known, at)
        except InvalidRequestError:
            # What was known may be out of date, and the store is not asked about what cannot be compiled.
            customer = await self._load(name.tenant, name.customer)
            if customer.epoch == known.epoch:
                raise
        return await self._compile(name, customer, at)

    async def _compile(self, name: Name, customer: Customer, at: int) -> Program:
        feature = await self._feature(name, customer)
        released = None
        if name.version:
            released = feature.releases.get(name.version)
            if released is None:
                known = ", ".join(sorted(feature.releases)) or "none"
                raise InvalidRequestError(
                    "UNKNOWN_VERSION",
                    f"product version {name.version!r} of {name.feature!r} is not in the catalog; known: {known}",
                    feature=name.feature,
                )
        program, version_matters = compile_program(customer, feature, at, released)
        if version_matters and not name.version:
            raise InvalidRequestError(
                "PRODUCT_VERSION_REQUIRED",
                f"{name.feature!r} is covered for some versions only: send product_version",
                feature=name.feature,
            )
        self._keep(name, program)
        return program

    def _keep(self, name: Name, program: Program) -> None:
        if len(self._programs) >= self._size:
            for old in list(self._programs)[: self._size // 4]:
                self.skeletons.forget(self._programs.pop(old))
        known = self.known(name)
        if (
            known is None
            or known.account_id != program.account_id
            or known.epoch <= program.epoch  # one that was compiled meanwhile may be newer
        ):
            if before := self._programs.get(name):
                self.skeletons.forget(before)
            self._programs[name] = Stencil(name, program)

    async def _feature(self, name: Name, customer: Customer) -> Feature:
        """One that was read at an older revision than the customer is read again."""
        key = name.tenant, name.feature
        known = self._features.get(key)
        if known is not None and known[0] >= customer.revision:
            return known[1]
        feature = await self._definitions.feature(*key)
        if feature is None:
            raise NotFoundError(
                "UNKNOWN_FEATURE", f"no feature {name.feature!r}", feature=name.feature
            )
        if len(self._features) >= self._size:
            self._features.clear()
        self._features[key] = customer.revision, feature
        return feature

    async def _load(self, tenant: str, customer: str) -> Customer:
        """Read a customer from the definitions; those who ask for it at the same time share one reading."""
        key = tenant, customer
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.get_running_loop().create_future()
            self._wanted.append(key)
            # A reading that is over may still be in the set, until its callbacks have run.
            if sum(not one.done() for one in self._reading) < MOST_READINGS:
                reading = asyncio.create_task(self._read(), name="customers")
                self._reading.add(reading)
                reading.add_done_callback(self._reading.discard)
        found = await asyncio.shield(loading)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise NotFoundError("UNKNOWN_CUSTOMER", f"no customer {customer!r}", customer=customer)
        return found

    async def _read(self) -> None:
        """Read who is wanted: all at once who came while others were read. No timer delays a lone one."""
        while self._wanted:
            keys, self._wanted = self._wanted[:MOST_READ], self._wanted[MOST_READ:]
            outcomes: Sequence[Customer | Exception | None]
            try:
                outcomes = await self._definitions.resolve_all(keys)
            except Exception as error:  # noqa: BLE001 - raised by those who asked
                # Also by who came meanwhile: else the last one would wait for as many failures as there are readings.
                keys, self._wanted = keys + self._wanted, []
                outcomes = [error] * len(keys)
            for key, outcome in zip(keys, outcomes, strict=True):
                if isinstance(outcome, Customer):
                    self._remember(key, outcome)
                elif outcome is None:
                    self._customers.pop(key, None)
                self._loading.pop(key).set_result(outcome)

    def _remember(self, key: tuple[str, str], customer: Customer) -> None:
        if len(self._customers) >= self._size:
            for old in list(self._customers)[: self._size // 4]:
                del self._customers[old]
        self._customers[key] = customer


class Rounds:
    """How often one call is made again because what it was made with was out of date.

    `tries` times, and afresh whenever the terms have changed once more, within `CHANGING_SECONDS`.
    """

    def __init__(self, customer: str, tries: int) -> None:
        self._customer, self._tries, self._left = customer, tries, tries
        self._newest = 0
        self._until = time.monotonic() + CHANGING_SECONDS

    def another(self, stale: object) -> None:
        """Return if there is one more. Raise `TermsChangingError`, or `InternalError` when store and definitions do not come to agree."""
        self._left -= 1
        if isinstance(stale, EpochStale) and stale.stored > self._newest:
            self._newest, self._left = stale.stored, self._tries
            if time.monotonic() > self._until:
                raise TermsChangingError(self._customer)
        if self._left <= 0:
            raise InternalError(f"counters and definitions do not agree: {stale!r}")
