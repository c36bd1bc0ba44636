"""Mixed load: all that products ask of a gateway at once, on customers whose limits are reached again and again.

Beside the customers of `Clients`, whose limits are out of reach, each turn of a soak has a fresh account, whose quotas,
credits and spend cap are used to their last unit within the turn; what comes for it later is denied. One account is
limited in rate, seats and hours all the time.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from enforcer.v1 import enforcer_pb2 as pb
from meter.v1 import report_pb2, report_pb2_grpc, usage_pb2
from tests.chaos.books import Books, Cap, Kind, Rate, Seats, Stay, Told
from tests.chaos.clients import Clients, reason_of, record_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Sequence

    from tests.chaos.books import Pair

__all__ = ["FIXED", "Load", "account", "caps", "catalog", "rates", "seats", "shown_pairs"]

THINK: Final = 0.3
FIXED: Final = "always"
"""The account that is limited all the time."""
LIMITS: Final = {
    "s.quota": 600,
    "s.credits": 300,
    "s.tree": 150,
    "s.held": 150,
    "s.blocks": 150,
    "s.spend": 100,
}
"""Of an account in all."""
SIZES: Final = (1, 2, 4)
"""Of three accounts in a row: one is used up early in its turn, one about when its fault strikes, one late or never."""
NODES: Final = ("east", "west")
HOURLY: Final = {"s.hour": "calendar", "s.rolling": "rolling"}
HOURLY_LIMIT: Final = 500
SEATS: Final = {"s.floating": 2, "s.named": 2}
HOLDERS: Final = ("ann", "bea", "cyd", "dan")
TTL: Final = 10.0
RATES: Final = (
    Rate(FIXED, "s.window", 20, 1_000),
    Rate(FIXED, "s.bucket", 10, 1_000, burst=25),
)
FRESH: Final = 0.85
"""How many checks are for the newest account; the others are for one whose turn is over."""
ABANDONED: Final = 0.2
BURSTS: Final = 30
READER_SECONDS: Final = 1.0
OF_A_WRITE: Final = "Internal error from Core"
RECONNECT_SECONDS: Final = 30.0
"""In which calls over an old connection are answered."""
FEATURES: Final = (
    *LIMITS,
    *HOURLY,
    *SEATS,
    *(rate.feature for rate in RATES),
    *("s.payg", "s.told", "s.amended"),
)


def account(turn: int) -> str:
    """The fresh account of a turn."""
    return f"turn-{turn:03}"


def limit(turn: int, feature: str) -> int:
    """What its account may use of it in all."""
    return LIMITS[feature] * SIZES[turn % len(SIZES)]


def catalog(turns: int) -> str:
    """Of all accounts."""
    lines = ["version: 1", "features:", *(f"  - {{key: {feature}}}" for feature in FEATURES)]
    lines.append("plans:")
    for turn in range(len(SIZES)):
        most = {feature: limit(turn, feature) for feature in LIMITS}
        lines += [
            f"  - key: soak-{turn}",
            "    items:",
            f"      - {{feature: s.quota, model: quota, limit: {most['s.quota']}, per: total}}",
            f"      - {{feature: s.held, model: quota, limit: {most['s.held']}, per: total}}",
            f"      - {{feature: s.blocks, model: quota, limit: {most['s.blocks']}, per: total}}",
            f"      - {{feature: s.tree, model: quota, limit: {most['s.tree']}, per: total, cap: true}}",
            "      - {feature: s.payg, model: payg, per: month}",
            "      - {feature: s.told, model: payg, per: month}",
            "      - {feature: s.amended, model: payg, per: month}",
            "      - feature: s.spend",
            "        model: payg",
            "        per: year",
            f"        spend_cap: {most['s.spend']}",
            "        price: {amount: 1, currency: USD}",
            "      - feature: s.credits",
            "        model: credits",
            "        grants:",
            f"          - {{key: first, amount: {most['s.credits'] // 3}}}",
            f"          - {{key: second, amount: {most['s.credits'] * 2 // 3}, priority: 1}}",
        ]
    lines.append("accounts:")
    for turn in range(turns):
        most_of_a_node = limit(turn, "s.tree") * 2 // 3
        lines += [
            f"  - key: {account(turn)}",
            f"    subscriptions: [{{plan: soak-{turn % len(SIZES)}}}]",
            "    nodes:",
        ]
        for node in NODES:
            lines += [
                f"      - key: {account(turn)}-{node}",
                f"        entitlements: [{{feature: s.tree, model: quota, limit: {most_of_a_node}, per: total}}]",
            ]
    lines += [f"  - key: {FIXED}", "    entitlements:"]
    for rate in RATES:
        way = f"burst: {rate.burst}" if rate.burst else "algorithm: sliding_window"
        lines += [
            f"      - {{feature: {rate.feature}, model: rate, limit: {rate.limit}, per: {rate.per_ms}ms, {way}}}",
            f"      - {{feature: {rate.feature}, model: payg, per: month}}",
        ]
    lines += [
        f"      - {{feature: s.hour, model: quota, limit: {HOURLY_LIMIT}, per: hour}}",
        f"      - {{feature: s.rolling, model: quota, limit: {HOURLY_LIMIT}, per: hour, rolling: true}}",
    ]
    lines += [
        f"      - {{feature: {feature}, model: concurrent, seats: {most}, mode: {feature[2:]}, ttl: {TTL:.0f}s}}"
        for feature, most in SEATS.items()
    ]
    return "\n".join([*lines, ""])


def caps(turns: int) -> Iterator[Cap]:
    """What the catalog allows at most."""
    for turn in range(turns):
        key = account(turn)
        for feature in LIMITS:
            names = {f"{key}-{node}" for node in NODES} if feature == "s.tree" else {key}
            yield Cap(frozenset(names), feature, limit(turn, feature))
        for node in NODES:
            one = frozenset({f"{key}-{node}"})
            yield Cap(one, "s.tree", limit(turn, "s.tree") * 2 // 3)
    for feature, hours in HOURLY.items():
        yield Cap(frozenset({FIXED}), feature, HOURLY_LIMIT, hours)


def rates() -> Sequence[Rate]:
    """How fast at most."""
    return RATES


def seats() -> Iterator[Seats]:
    """How many seats at most."""
    for feature, most in SEATS.items():
        yield Seats(FIXED, feature, most, named=feature == "s.named")


class _Over(Exception):  # noqa: N818 - not an error
    """The load ends here."""


class Load(Clients):
    """Keeps `books`. `turn`: the number of the account that is fresh now."""

    def __init__(self, endpoints: Sequence[str], key: str, seed: int, patience: float) -> None:
        super().__init__(endpoints, key, seed, patience, THINK)
        self.books = Books()
        self.turn = 0
        self.counted: dict[str, int] = {}
        """Decisions, by kind of call."""
        self._over = False
        self._closing: set[asyncio.Task[None]] = set()

    async def reconnect(self) -> None:
        """Half of the connections, anew: with time the kernel has dealt all of them to the process that lived longest."""
        for place in self._dice.sample(range(len(self._channels)), len(self._channels) // 2):
            old = self._channels[place]
            self._channels[place] = await self._connected(self._endpoints[place])
            self._stubs[place], self._usage[place] = self._stubs_of(self._channels[place])
            task = asyncio.create_task(old.close(RECONNECT_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def finish(self) -> None:
        """Return when everybody has done what it had begun, and begins nothing more."""
        self._over = True
        self.go_on()
        await asyncio.gather(*self._tasks)

    def _work(self) -> Iterator[Coroutine[Any, Any, None]]:
        best = pb.MODE_BEST_EFFORT
        mine = [
            self._uses("s.quota"),
            self._uses("s.quota", best),
            self._uses("s.credits"),
            self._uses("s.credits", best),
            self._uses("s.spend"),
            self._uses("s.tree", nodes=NODES),
            self._uses("s.tree", best, nodes=NODES),
            self._uses("s.payg", pb.MODE_RECORD_ONLY),
            *(self._rated(rate) for rate in RATES for _ in range(3)),
            *(self._uses(feature, customer=FIXED) for feature in HOURLY),
            *(self._impatient(feature) for feature in ("s.quota", "s.payg", "s.spend", "s.told")),
            self._batches(),
            self._atomic_batches(),
            self._streams("s.quota"),
            self._streams("s.payg"),
            self._reserves("s.held"),
            self._reserves("s.held"),
            self._takes("s.blocks"),
            self._takes("s.blocks"),
            *(self._sits("s.floating", "") for _ in range(4)),
            *(self._sits("s.named", holder) for holder in HOLDERS),
            self._reports("s.told"),
            self._amends("s.amended"),
            self._reads(),
        ]
        for work in chain(super()._work(), mine):
            yield self._until_over(work)

    async def _until_over(self, work: Coroutine[Any, Any, None]) -> None:
        with suppress(_Over):
            await work

    async def _turn(self) -> None:
        if not self._over:
            await super()._turn()
        if self._over:
            raise _Over

    def _account(self) -> str:
        earlier = self.turn and self._dice.random() > FRESH
        return account(self._dice.randrange(self.turn) if earlier else self.turn)

    def _request(
        self,
        feature: str,
        mode: pb.Mode.ValueType = pb.MODE_ENFORCE,
        customer: str = "",
        most: int = 9,
    ) -> pb.CheckRequest:
        return pb.CheckRequest(
            customer=customer or self._account(),
            feature=feature,
            quantity=self._dice.randint(1, most),
            mode=mode,
            idempotency_key=uuid4().hex,
        )

    def _note(
        self, what: str, request: Any, answer: pb.CheckResponse, kind: str = Kind.USE
    ) -> None:
        """What a key was told in the end."""
        place = record_of(answer.record) if answer.HasField("record") else None
        granted = answer.granted if answer.allowed else 0
        self.counted[what] = self.counted.get(what, 0) + 1
        self.books.told[request.idempotency_key] = Told(
            request.customer, request.feature, kind, _asked(request), granted, place
        )

    # -- checks

    async def _uses(
        self,
        feature: str,
        mode: pb.Mode.ValueType = pb.MODE_ENFORCE,
        *,
        customer: str = "",
        nodes: Sequence[str] = (),
    ) -> None:
        while True:
            await self._turn()
            whose = f"{self._account()}-{self._dice.choice(nodes)}" if nodes else customer
            request = self._request(feature, mode, whose)
            self._note("checks", request, await self.ask("Check", request))

    async def _rated(self, rate: Rate) -> None:
        while True:
            await self._turn()
            request = self._request(rate.feature, pb.MODE_ENFORCE, rate.customer)
            asked = time.monotonic()
            answer = await self.ask("Check", request)
            self._note("checks", request, answer)
            if answer.allowed:
                uses = self.books.timed[rate.customer, rate.feature]
                uses.append((asked, time.monotonic(), answer.granted))

    async def _impatient(self, feature: str) -> None:
        """Gives up at the first failure: nobody tells it whether its check counted."""
        while True:
            await self._turn()
            request = self._request(feature)
            try:
                answer = await self.ask("Check", request, once=True)
            except grpc.aio.AioRpcError:
                self.books.told[request.idempotency_key] = Told(
                    request.customer, feature, Kind.USE, request.quantity, None, None
                )
            else:
                self._note("checks", request, answer)

    async def _batches(self) -> None:
        """Items that do not depend on each other; those that could not be decided are sent again."""
        while True:
            await self._turn()
            of = self._dice.choices(("s.quota", "s.credits", "s.payg", "s.spend"), k=6)
            items = [self._request(feature) for feature in of]
            while items:
                done = await self.ask("CheckBatch", pb.CheckBatchRequest(items=items))
                again = []
                for request, outcome in zip(items, done.items, strict=True):
                    if outcome.WhichOneof("outcome") == "response":
                        self._note("in batches", request, outcome.response)
                    else:
                        self._failed(outcome.fault)
                        again.append(request)
                items = again
                if items:
                    await self._turns()

    def _failed(self, fault: pb.CheckFault) -> None:
        """Count it as that of a call."""
        code = grpc.StatusCode.UNAVAILABLE
        assert fault.code == code.value[0], fault
        self.failures[f"{code.name} {fault.reason}"] += 1
        self.last_failure = time.monotonic()

    async def _atomic_batches(self) -> None:
        while True:
            await self._turn()
            customer = self._account()
            items = [
                self._request(feature, customer=customer)
                for feature in ("s.quota", "s.credits", "s.payg")
            ]
            batch = pb.CheckBatchRequest(items=items, atomic=True)
            done = await self.ask("CheckBatch", batch)
            answers = [item.response for item in done.items]
            for request, answer in zip(items, answers, strict=True):
                self._note("in atomic batches", request, answer)
            if len({answer.allowed for answer in answers}) != 1:
                self.books.findings.append(f"{customer}: a part of an atomic batch, {answers}")

    async def _streams(self, feature: str) -> None:
        """Three questions at a time; what a stream does not answer is asked by a call, under the same key."""
        while True:
            await self._turn()
            stream = self._dice.choice(self._stubs).CheckStream(metadata=self._metadata)
            try:
                for _ in range(BURSTS):
                    await self._turn()
                    asked = {number: self._request(feature) for number in range(3)}
                    open_ = await self._burst(stream, asked)
                    for request in asked.values():
                        self._note("in streams", request, await self.ask("Check", request))
                    if not open_:
                        break
            finally:
                stream.cancel()

    async def _burst(self, stream: Any, asked: dict[int, pb.CheckRequest]) -> bool:
        """Ask; remove what is answered. False: the stream has ended."""
        self._busy += 1
        try:
            async with asyncio.timeout(self._patience):
                for number, request in asked.items():
                    await stream.write(pb.CheckStreamRequest(id=number, check=request))
                for _ in range(len(asked)):
                    answer = await stream.read()
                    if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
                        return False
                    if answer.WhichOneof("outcome") == "response":
                        self._note("in streams", asked.pop(answer.id), answer.response)
                        self.answered += 1
                    else:
                        self._failed(answer.fault)
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
            # Of a write on a stream that has ended, grpc.aio knows no status but its own INTERNAL.
            if isinstance(error, grpc.aio.AioRpcError) and error.details() != OF_A_WRITE:
                self.failures[reason_of(error)] += 1
            else:
                self.failures["of a stream"] += 1
            self.last_failure = time.monotonic()
            return False
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            # The stream was reset at the other end: grpc.aio raises that as if this task had been cancelled.
            self.failures["of a stream"] += 1
            self.last_failure = time.monotonic()
            return False
        finally:
            self._busy -= 1
        return True

    # -- what is held

    def _for_a_time(self, kind: type[Any], feature: str, most: int, *, abandoned: bool) -> Any:
        """A request to hold something; what is abandoned is held for a second."""
        check = self._request(feature, most=most)
        return kind(
            customer=check.customer,
            feature=feature,
            quantity=check.quantity,
            idempotency_key=check.idempotency_key,
            ttl=Duration(seconds=1 if abandoned else 60),
        )

    async def _reserves(self, feature: str) -> None:
        while True:
            await self._turn()
            abandoned = self._dice.random() < ABANDONED
            request = self._for_a_time(pb.ReserveRequest, feature, 20, abandoned=abandoned)
            ends = time.monotonic() + request.ttl.seconds
            reserved = await self.ask("Reserve", request)
            self._note("reservations", request, reserved.check, Kind.HOLD)
            if abandoned or not reserved.check.allowed:
                continue
            await self._turns()
            name = reserved.reservation
            used = self._dice.randint(1, request.quantity)
            gone = None
            try:
                if self._dice.random() < ABANDONED:
                    await self.ask("Release", pb.ReleaseRequest(reservation=name))
                else:
                    done = await self.ask(
                        "Commit", pb.CommitRequest(reservation=name, quantity=used)
                    )
                    self._settled(request, done.record, done.committed, used)
            except grpc.aio.AioRpcError as error:
                gone = reason_of(error)
            if gone is not None:
                self._ended_rightly(gone, "RESERVATION_NOT_FOUND", ends, request)

    async def _turns(self) -> None:
        """Some time, and no pause in it: what was begun is to be ended, also when the load is over."""
        await asyncio.sleep(self._dice.uniform(0.5, 1.5) * self._think)
        await self._going.wait()

    def _settled(self, request: Any, record: pb.RecordId, used: int, wanted: int) -> None:
        pair = request.customer, request.feature
        if used != wanted:
            self.books.findings.append(f"{pair}: {used} were used, {wanted} was told")
        self.books.settled[record_of(record)] = pair, used

    def _ended_rightly(self, told: str, wanted: str, not_before: float, request: Any) -> None:
        """What is gone must have lived for its time."""
        early = time.monotonic() < not_before
        if early or wanted not in told:
            self.books.findings.append(
                f"{request.customer} {request.feature}, key {request.idempotency_key}: {told}"
                f"{', before its time' if early else ''}"
            )

    async def _takes(self, feature: str) -> None:
        """Blocks of supply. Of some nobody ever hears again."""
        while True:
            await self._turn()
            abandoned = self._dice.random() < ABANDONED
            request = self._for_a_time(pb.TakeAllowanceRequest, feature, 40, abandoned=abandoned)
            ends = time.monotonic() + request.ttl.seconds
            taken = await self.ask("TakeAllowance", request)
            self._note("allowances", request, taken.check, Kind.BLOCK)
            if abandoned or not taken.check.allowed:
                continue
            await self._turns()
            used = self._dice.randint(0, taken.check.granted)
            back = pb.ReturnAllowanceRequest(allowance=taken.allowance, used=used)
            try:
                done = await self.ask("ReturnAllowance", back)
            except grpc.aio.AioRpcError as error:
                self._ended_rightly(reason_of(error), "ALLOWANCE_EXPIRED", ends, request)
            else:
                self._settled(request, done.record, done.used, used)

    async def _sits(self, feature: str, holder: str) -> None:
        """Takes a seat, renews it, and gives it back or dies."""
        while True:
            await self._turn()
            request = pb.AcquireLeaseRequest(
                customer=FIXED, feature=feature, holder=holder, idempotency_key=uuid4().hex
            )
            asked = time.monotonic()
            acquired = await self.ask("AcquireLease", request)
            began = time.monotonic()
            self._note("leases", request, acquired.check, Kind.LEASE)
            if not acquired.check.allowed:
                continue
            end = await self._seated(request, acquired.lease, asked, began)
            who = holder or acquired.lease.id
            self.books.stays.append(Stay(FIXED, feature, who, began, end))

    async def _seated(self, request: Any, lease: pb.Lease, asked: float, began: float) -> float:
        """Return until when the seat was held for sure: a renewal lasts from when it was asked for, at least."""
        until = began + self._dice.uniform(0.2, 1.2 * TTL)
        surely = asked + TTL
        while not self._over and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, TTL / 4))
            await self._going.wait()
            asked = time.monotonic()
            try:
                await self.ask("RenewLease", pb.RenewLeaseRequest(token=lease.token))
            except grpc.aio.AioRpcError as error:
                self._ended_rightly(reason_of(error), "LEASE_EXPIRED", surely, request)
                return surely
            self.counted["renewals"] = self.counted.get("renewals", 0) + 1
            surely = asked + TTL
        if self._dice.random() < ABANDONED:
            return surely
        asked = time.monotonic()
        await self.ask("ReleaseLease", pb.ReleaseLeaseRequest(token=lease.token))
        return min(asked, surely)

    # -- usage from elsewhere, corrections, reports

    async def _reports(self, feature: str) -> None:
        while True:
            await self._turn()
            checks = [self._request(feature) for _ in range(5)]
            while checks:
                events = [
                    usage_pb2.UsageEvent(
                        customer=one.customer,
                        feature=feature,
                        quantity=one.quantity,
                        idempotency_key=one.idempotency_key,
                    )
                    for one in checks
                ]
                done = await self.ask("Report", usage_pb2.ReportRequest(events=events))
                again = []
                for request, outcome in zip(checks, done.outcomes, strict=True):
                    if not outcome.accepted:
                        self._failed(pb.CheckFault(code=outcome.code, reason=outcome.reason))
                        again.append(request)
                        continue
                    self.counted["reported events"] = self.counted.get("reported events", 0) + 1
                    place = outcome.bucket, outcome.generation, outcome.sequence
                    self.books.told[request.idempotency_key] = Told(
                        request.customer, feature, Kind.USE, *2 * (request.quantity,), place
                    )
                checks = again
                if checks:
                    await self._turns()

    async def _amends(self, feature: str) -> None:
        while True:
            await self._turn()
            request = self._request(feature)
            answer = await self.ask("Check", request)
            self._note("checks", request, answer)
            used = answer.record
            place = usage_pb2.RecordPlace(
                bucket=used.bucket, generation=used.generation, sequence=used.sequence
            )
            quantity = self._dice.randint(0, 20)
            amend = usage_pb2.AmendRequest(
                record=place, quantity=quantity, reason="a soak", idempotency_key=uuid4().hex
            )
            await self.ask("Amend", amend)
            self.counted["amendments"] = self.counted.get("amendments", 0) + 1
            self.books.corrected[request.customer, feature] += quantity - request.quantity

    async def _reads(self) -> None:
        """Reads reports all the time: what was reported once never becomes less, where nobody corrects."""
        most: dict[str, int] = {}
        while True:
            await self._turn()
            await asyncio.sleep(READER_SECONDS)
            meter = self._dice.choice(("calls", "s.quota", "s.credits", "s.payg", "s.told"))
            try:
                usage = await self._read("QueryUsage", report_pb2.QueryUsageRequest(meter=meter))
                asked = report_pb2.QueryConcurrencyRequest(feature="s.floating", customers=[FIXED])
                held = await self._read("QueryConcurrency", asked)
                await self._read("QueryDenials", report_pb2.QueryDenialsRequest())
            except grpc.aio.AioRpcError as error:
                if error.code() not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    raise
                continue
            self.counted["reports read"] = self.counted.get("reports read", 0) + 3
            if usage.total < most.get(meter, 0):
                self.books.findings.append(
                    f"the report of {meter} went from {most[meter]} to {usage.total}"
                )
            most[meter] = usage.total
            if any(row.peak > SEATS["s.floating"] for row in held.rows):
                self.books.findings.append(f"the report shows more seats than there are: {held}")

    async def _read(self, method: str, request: Any) -> Any:
        channel = self._dice.choice(self._channels)
        stub: Any = report_pb2_grpc.ReportServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        return await getattr(stub, method)(
            request, metadata=self._metadata, timeout=2 * self._patience
        )

    def all_told(self) -> Books:
        """With what the other customers' clients keep in their own way."""
        for (customer, feature), saw in self.saw.items():
            for key, (request, place) in saw.answers.items():
                self.books.told[key] = Told(
                    customer, feature, Kind.USE, *2 * (request.quantity,), place
                )
        return self.books


def _asked(request: Any) -> int:
    return int(request.quantity) if "quantity" in request.DESCRIPTOR.fields_by_name else 1


def shown_pairs(turns: int) -> Iterable[Pair]:
    """Whose counters are to be compared: those that never begin again, and count units."""
    for turn in range(turns):
        for feature in LIMITS:
            if feature not in ("s.tree", "s.spend"):
                yield account(turn), feature
