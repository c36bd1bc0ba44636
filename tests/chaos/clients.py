"""Clients that never give up, and what they saw: the side of the truth that the gateway has to agree with."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1 import enforcer_pb2_grpc
from meter.v1 import usage_pb2, usage_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

__all__ = ["CUSTOMERS", "Clients", "Record", "Saw", "reason_of", "record_of"]

CUSTOMERS: Final = ("ada", "bob")
"""In buckets of their own."""
THINK_SECONDS: Final = 0.02
NOT_RUN: Final = ("STORE_UNAVAILABLE", "COUNTERS_REBUILDING", "TERMS_CHANGING")
"""A check that fails with these has consumed nothing, and with any other perhaps."""
RETRIED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.DATA_LOSS,
)
CORRECTIONS: Final = ("Void", "Amend")
"""They need the meter, too: no checks."""
OF_USAGE: Final = (*CORRECTIONS, "Report")
BATCH: Final = 100
LOST_BLOCKS: Final = 0.25

Record = tuple[int, int, int]


def record_of(record: pb.RecordId) -> Record:
    return record.bucket, record.generation, record.sequence


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Code and stable reason of a failed call."""
    failed: Any = error  # a call in all but its class
    status = rpc_status.from_call(failed)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return f"{error.code().name} {info.reason}"
    return f"{error.code().name}"


@dataclass
class Saw:
    """What clients were told of one customer's feature."""

    granted: int = 0
    records: list[Record] = field(default_factory=list)
    answers: dict[str, tuple[pb.CheckRequest, Record | None]] = field(default_factory=dict)
    degraded: int = 0
    """Allowed by failure policy: their records come when the counters are back."""
    unknown: int = 0
    """Checks without key whose answer never came."""
    unknown_quantity: int = 0
    out: int = 0
    """In blocks that were taken and never returned."""


class Clients:
    """Ten clients for each customer, each with one call at a time, at any of the endpoints.

    A call that is not answered within `patience` seconds is given up and made again. Between two calls of a client
    are some `think` seconds.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        key: str,
        seed: int,
        patience: float,
        think: float = THINK_SECONDS,
    ) -> None:
        self._patience, self._think = patience, think
        self._endpoints, self._dice = endpoints, random.Random(seed)
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._stack = AsyncExitStack()
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: list[Any] = []
        self._usage: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._going = asyncio.Event()
        self._ended = False
        self._busy = 0
        self._asked: dict[object, tuple[float, str]] = {}
        """Calls that wait: since when, and what they ask."""
        self.saw: defaultdict[tuple[str, str], Saw] = defaultdict(Saw)
        self.failures: Counter[str] = Counter()
        self.longest = 0.0
        self.answered = 0
        self.last_failure = 0.0

    async def __aenter__(self) -> Self:
        for endpoint in self._endpoints:
            channel = await self._connected(endpoint)
            checks, usage = self._stubs_of(channel)
            self._channels.append(channel)
            self._stubs.append(checks)
            self._usage.append(usage)
        self._going.set()
        self._tasks = [asyncio.create_task(one) for one in self._work()]
        return self

    async def _connected(self, endpoint: str) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        return await self._stack.enter_async_context(channel)

    @staticmethod
    def _stubs_of(channel: grpc.aio.Channel) -> tuple[Any, Any]:
        return (
            enforcer_pb2_grpc.EnforcerServiceStub(channel),  # type: ignore[no-untyped-call, unused-ignore]
            usage_pb2_grpc.UsageServiceStub(channel),  # type: ignore[no-untyped-call, unused-ignore]
        )

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        for one in ended:
            if isinstance(one, Exception):
                raise one

    def begin(self) -> None:
        """Note failures and waits afresh."""
        self.failures.clear()
        self.longest = 0.0

    async def pause(self) -> None:
        """Return when every call that was begun is answered; none is begun until `go_on`."""
        self._going.clear()
        while self._busy:
            self._check()
            await asyncio.sleep(0.01)

    def go_on(self) -> None:
        """After a pause."""
        self._going.set()

    async def wait_for_answers(self, count: int, within: float = 60) -> None:
        """Until so many more calls were answered."""
        wanted, give_up = self.answered + count, time.monotonic() + within
        while self.answered < wanted:
            self._check()
            assert time.monotonic() < give_up, f"no answers within {within} s: {self.failures}"
            await asyncio.sleep(0.01)

    async def quiet(self, seconds: float, within: float = 60) -> None:
        """Until no check has failed for so long, and none waits longer. A correction takes the meter's time."""
        began = time.monotonic()
        while True:
            self._check()
            now = time.monotonic()
            checks = (asked for asked in self._asked.values() if asked[1] not in CORRECTIONS)
            oldest, what = min(checks, default=(now, ""))
            if now - max(self.last_failure, began) > seconds and now - oldest < seconds:
                return
            assert now - began < within, (
                f"clients still fail after {within} s: {self.failures}, the last one "
                f"{now - self.last_failure:.1f} s ago; {what} waits for {now - oldest:.1f} s"
            )
            await asyncio.sleep(0.02)

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    # -- what they do

    def _work(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What each client does."""
        for customer in CUSTOMERS:
            yield self._checks(customer, "calls")
            yield self._checks(customer, "calls")
            yield self._checks(customer, "capped")
            yield self._checks(customer, "gauge")
            yield self._checks(customer, "open")
            yield self._without_key(customer, "loose")
            yield self._reservations(customer, "held")
            yield self._blocks(customer, "blocks")
            yield self._seats(customer, "seats")
            yield self._corrections(customer, "voided")

    async def _turn(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.5, 1.5) * self._think)
        await self._going.wait()

    async def _checks(self, customer: str, feature: str) -> None:
        saw = self.saw[customer, feature]
        while True:
            await self._turn()
            request = pb.CheckRequest(
                customer=customer,
                feature=feature,
                quantity=self._dice.randint(1, 9),
                idempotency_key=uuid4().hex,
            )
            response = await self.ask("Check", request)
            if response.allowed:
                record = record_of(response.record) if response.HasField("record") else None
                saw.granted += response.granted
                if record is None:
                    assert response.degraded
                    saw.degraded += 1
                else:
                    saw.records.append(record)
                saw.answers[request.idempotency_key] = (request, record)

    async def _without_key(self, customer: str, feature: str) -> None:
        saw = self.saw[customer, feature]
        while True:
            await self._turn()
            quantity = self._dice.randint(1, 9)
            request = pb.CheckRequest(customer=customer, feature=feature, quantity=quantity)
            try:
                response = await self.ask("Check", request, once=True)
            except grpc.aio.AioRpcError as error:
                if reason_of(error).partition(" ")[2] not in NOT_RUN:
                    saw.unknown += 1
                    saw.unknown_quantity += quantity
                continue
            saw.granted += response.granted
            saw.records.append(record_of(response.record))

    async def _reservations(self, customer: str, feature: str) -> None:
        saw = self.saw[customer, feature]
        while True:
            await self._turn()
            held = self._dice.randint(1, 9)
            reserved = await self.ask(
                "Reserve",
                pb.ReserveRequest(
                    customer=customer, feature=feature, quantity=held, idempotency_key=uuid4().hex
                ),
                keep=True,
            )
            quantity = self._dice.randint(1, held)
            done = await self.ask(
                "Commit",
                pb.CommitRequest(reservation=reserved.reservation, quantity=quantity),
                begun=True,
            )
            saw.granted += done.committed
            saw.records.append(record_of(done.record))

    async def _blocks(self, customer: str, feature: str) -> None:
        """Takes blocks of supply. Of one in four nobody ever hears again, as when its client was killed."""
        saw = self.saw[customer, feature]
        while True:
            await self._turn()
            wanted, lost = self._dice.randint(1, 9), self._dice.random() < LOST_BLOCKS
            taken = await self.ask(
                "TakeAllowance",
                pb.TakeAllowanceRequest(
                    customer=customer,
                    feature=feature,
                    quantity=wanted,
                    idempotency_key=uuid4().hex,
                    ttl=Duration(seconds=1) if lost else None,
                ),
                keep=not lost,
            )
            if lost:
                saw.out += taken.check.granted
                continue
            request = pb.ReturnAllowanceRequest(
                allowance=taken.allowance, used=self._dice.randint(0, taken.check.granted)
            )
            done = await self.ask("ReturnAllowance", request, begun=True)
            saw.granted += done.used
            saw.records.append(record_of(done.record))

    async def _seats(self, customer: str, feature: str) -> None:
        while True:
            await self._turn()
            acquired = await self.ask(
                "AcquireLease",
                pb.AcquireLeaseRequest(
                    customer=customer, feature=feature, idempotency_key=uuid4().hex
                ),
                keep=True,
            )
            await self.ask(
                "ReleaseLease", pb.ReleaseLeaseRequest(token=acquired.lease.token), begun=True
            )

    async def _corrections(self, customer: str, feature: str) -> None:
        """Uses something and voids it: in the end nothing was used."""
        self.saw[customer, feature] = Saw()
        while True:
            await self._turn()
            request = pb.CheckRequest(
                customer=customer, feature=feature, idempotency_key=uuid4().hex
            )
            used = (await self.ask("Check", request, keep=True)).record
            place = usage_pb2.RecordPlace(
                bucket=used.bucket, generation=used.generation, sequence=used.sequence
            )
            void = usage_pb2.VoidRequest(record=place, reason="a test", idempotency_key=uuid4().hex)
            await self.ask("Void", void, begun=True)

    async def ask(
        self,
        method: str,
        request: Any,
        *,
        once: bool = False,
        keep: bool = False,
        begun: bool = False,
    ) -> Any:
        """Call until it is answered, each time at another endpoint. `once`: raise the first failure.

        `keep`: a second call belongs to this one, which is `begun`: no pause comes between them.
        """
        if not begun:
            self._busy += 1
        answered = False
        asked = time.monotonic()
        self._asked[call := object()] = asked, method
        try:
            while True:
                stub = self._dice.choice(self._usage if method in OF_USAGE else self._stubs)
                try:
                    response = await getattr(stub, method)(
                        request, timeout=self._patience, metadata=self._metadata
                    )
                except grpc.aio.AioRpcError as error:
                    if method not in CORRECTIONS:
                        self.failures[reason_of(error)] += 1
                        self.last_failure = time.monotonic()
                    if once or error.code() not in RETRIED:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    answered = True
                    self.answered += 1
                    return response
                finally:
                    if method not in CORRECTIONS:
                        self.longest = max(self.longest, time.monotonic() - asked)
        finally:
            del self._asked[call]
            if not (keep and answered):
                self._busy -= 1

    async def ask_again(self, latest: int, within: float = 30) -> list[str]:
        """Send the latest checks with a key again; return what differs from its first answer.

        What a failure policy answers meanwhile, since the machine is slow, counts once by its key: it is asked again.
        """
        faults = []
        for saw in self.saw.values():
            known = list(saw.answers.values())[-latest:]
            give_up = time.monotonic() + within
            while known:
                part, known = known[:BATCH], known[BATCH:]
                batch = pb.CheckBatchRequest(items=[request for request, _ in part])
                response = await self.ask("CheckBatch", batch)
                for (request, record), outcome in zip(part, response.items, strict=True):
                    again = outcome.response
                    same = record in (None, record_of(again.record))
                    if again.degraded and time.monotonic() < give_up:
                        known.append((request, record))
                    elif not again.replayed or not same:
                        faults.append(f"{request.idempotency_key}: {record} then {outcome}")
        return faults
