"""One tenant's flood is refused; another's calls are taken meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from enforcer.errors import OverloadedError, TenantOverShareError, UnauthenticatedError
from enforcer.metrics import Metrics
from enforcer.ports.definitions import Caller
from enforcer.transport.callers import MOST_STRANGERS, Callers
from enforcer.transport.dispatch import Call, Dispatch, FailedError
from enforcer.transport.services import Method
from enforcer.transport.tenants import HEAVY, HOLD_SECONDS, MOST_HELD, Tenants, weight_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST = 6
TENANTS = {"flood": "loud", "calm": "quiet"}


class _Definitions:
    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def caller(self, key: str) -> Caller | None:
        self.asked += 1
        await self.answers.wait()
        return Caller(TENANTS[key], key, "check") if key in TENANTS else None


class Bare(Call):
    """Without metadata."""

    @property
    def metadata(self) -> dict[str, str]:
        return {}


class Served:
    """A dispatch whose calls wait until they may go on."""

    def __init__(self, tenants: Tenants) -> None:
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.going = asyncio.Event()
        self.definitions = _Definitions()
        self.callers = Callers(self.definitions)  # type: ignore[arg-type]  # all that it asks them
        kinds = (BytesValue, BytesValue, "check")
        self.method = Method("a.B", "Work", *kinds, self._work)
        self.streaming = Method("a.B", "Flow", *kinds, self._flow, stream=True)
        self.dispatch = Dispatch(
            [self.method, self.streaming],
            self.callers,
            Metrics(),
            tenants=tenants,
        )

    async def _work(self, call: Call, request: BytesValue) -> BytesValue:
        tenant = call.caller.tenant
        self.running[tenant] = self.running.get(tenant, 0) + 1
        self.most[tenant] = max(self.most.get(tenant, 0), self.running[tenant])
        try:
            if tenant == "loud":
                await self.going.wait()
        finally:
            self.running[tenant] -= 1
        return request

    async def _flow(self, call: Call, requests: Any) -> AsyncIterator[BytesValue]:
        async for request in requests:
            yield await self._work(call, request)

    async def ask(self, key: str, size: int = 0) -> str:
        """The reason of a refusal; empty: answered."""
        data = BytesValue(value=bytes(size)).SerializeToString()
        call = Bare(f"Bearer {key}", asyncio.get_running_loop().time(), None)
        try:
            await self.dispatch.unary(self.method, call, data)
        except FailedError as error:
            return reason(error)
        return ""

    async def stream(self, key: str) -> str:
        async def one() -> AsyncIterator[bytes]:
            yield b""

        call = Bare(f"Bearer {key}", asyncio.get_running_loop().time(), None)
        try:
            async for _ in self.dispatch.stream(self.streaming, call, one()):
                pass
        except FailedError as error:
            return reason(error)
        return ""


async def turns() -> None:
    """Let everybody come as far as they do without waiting."""
    for _ in range(10):
        await asyncio.sleep(0)


def reason(error: FailedError) -> str:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert error.status.details[0].Unpack(info)
    assert error.status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    return f"{info.reason} {info.metadata['limit']}"


async def flooded(served: Served, calls: int = 100, size: int = 0) -> asyncio.Future[list[str]]:
    """So many calls of one tenant have come; those that were taken wait."""
    for key in TENANTS:
        await served.callers.sender(f"Bearer {key}")  # known from here on
    flood = asyncio.gather(*(served.ask("flood", size) for _ in range(calls)))
    await turns()
    return flood


async def test_a_flood_has_its_share_and_another_tenant_is_served_meanwhile() -> None:
    refused: list[str] = []
    served = Served(Tenants(MOST, refused=refused.append))
    flood = await flooded(served)
    assert served.running["loud"] == MOST
    for _ in range(20):
        assert await served.ask("calm") == ""
    served.going.set()
    answers = await flood
    assert answers.count("") == served.most["loud"] == MOST
    assert answers.count("TENANT_OVER_SHARE concurrency") == len(refused) == 100 - MOST
    # What has ended counts no more.
    assert await served.ask("flood") == ""
    assert [share.running for share in served.dispatch.tenants._of.values()] == [0, 0]


async def test_a_refusal_is_told_later_so_that_who_asks_again_at_once_asks_seldom() -> None:
    served = Served(Tenants(MOST))
    flood = await flooded(served, MOST_HELD + MOST + 5)
    share = served.dispatch.tenants._of["loud"]
    assert share.held == MOST_HELD  # the last five know already: what is held has a bound, too
    assert served.dispatch._running == MOST, "what is held takes no room"
    served.going.set()
    answers = await flood
    assert answers.count("TENANT_OVER_SHARE concurrency") == MOST_HELD + 5
    assert share.held == served.dispatch._running == 0


async def test_one_refusal_of_a_flood_is_logged_and_all_say_the_same() -> None:
    refused: list[str] = []
    served = Served(Tenants(MOST, refused=refused.append))
    with structlog.testing.capture_logs() as logged:
        flood = await flooded(served, MOST + 50)
        served.going.set()
        answers = await flood
    assert answers.count("TENANT_OVER_SHARE concurrency") == len(refused) == 50
    assert 1 <= len([one for one in logged if one["event"] == "call failed"]) < 5


async def test_a_refusal_is_told_while_its_client_waits() -> None:
    tenants = Tenants(MOST)
    patient = asyncio.ensure_future(tenants.hold("loud", None))
    hasty = asyncio.ensure_future(tenants.hold("loud", HOLD_SECONDS / 10))
    done, _ = await asyncio.wait((patient, hasty), return_when=asyncio.FIRST_COMPLETED)
    assert done == {hasty}
    patient.cancel()  # its client has gone
    await asyncio.wait((patient,))
    assert tenants._of["loud"].held == 0


async def test_without_a_bound_a_tenant_may_have_all_there_is() -> None:
    served = Served(Tenants())
    flood = await flooded(served)
    assert served.running["loud"] == 100
    served.going.set()
    assert set(await flood) == {""}


async def test_a_large_request_counts_as_several_calls_however_few_there_are() -> None:
    served = Served(Tenants(20))
    flood = await flooded(served, size=HEAVY + 1)
    assert served.running["loud"] == 10 // weight_of(HEAVY + 1)
    assert await served.ask("calm") == ""
    served.going.set()
    await flood


async def test_what_is_larger_than_a_whole_share_passes_alone() -> None:
    served = Served(Tenants(MOST))
    assert await served.ask("calm", 100_000) == ""


async def test_streams_count_from_the_first_on() -> None:
    served = Served(Tenants(MOST))
    await served.ask("calm")
    streams = asyncio.gather(*(served.stream("flood") for _ in range(20)))
    await turns()
    assert served.running["loud"] == MOST // 2, "what is not counted is for calls"
    assert await served.stream("calm") == ""
    served.going.set()
    assert (await streams).count("TENANT_OVER_SHARE concurrency") == 20 - MOST // 2


def test_a_rate_lets_pass_what_it_says_and_tells_when_to_come_again() -> None:
    tenants = Tenants(rate=10)
    passed, now = 0, 1000.0
    for _ in range(300):  # three seconds, a hundred calls in each
        now += 0.01
        try:
            tenants.enter("a", 1, now).running -= 1
        except TenantOverShareError as error:
            wait = int(error.metadata["retry_after_ms"])
            assert 0 < wait <= 100, "the next call's time"
        else:
            passed += 1
    assert passed in range(39, 43), "a second's worth at once, then ten in each"
    tenants.enter("b", 1, now)
    now += 0.11
    tenants.enter("a", 1, now)


async def test_questions_of_a_stream_wait_for_their_turn() -> None:
    tenants = Tenants(4)
    held = tenants.enter("a", 2, 0.0)
    turn = asyncio.ensure_future(tenants.turn("a", 2))
    await asyncio.wait([turn], timeout=0.05)
    assert not turn.done()
    await asyncio.wait_for(tenants.turn("b", 2), 1)
    held.running -= 2
    assert (await asyncio.wait_for(turn, 1)).running == 2


async def test_made_up_keys_do_not_keep_the_database_from_known_ones() -> None:
    definitions = _Definitions()
    callers = Callers(definitions)  # type: ignore[arg-type]  # all that it asks them
    await callers.sender("Bearer calm")
    definitions.answers.clear()
    strangers = [
        asyncio.ensure_future(callers.sender(f"Bearer made-up-{number}"))
        for number in range(10 * MOST_STRANGERS)
    ]
    await turns()
    # It was known, and is looked up again as every few seconds.
    callers._known["Bearer calm"] = 0.0, callers._known["Bearer calm"][1]
    known = asyncio.ensure_future(callers.sender("Bearer calm"))
    await turns()
    assert definitions.asked == 1 + MOST_STRANGERS + 1
    definitions.answers.set()
    assert (await known).tenant == "quiet"
    found = await asyncio.gather(*strangers, return_exceptions=True)
    assert sum(isinstance(one, UnauthenticatedError) for one in found) == MOST_STRANGERS
    assert sum(isinstance(one, OverloadedError) for one in found) == 9 * MOST_STRANGERS
