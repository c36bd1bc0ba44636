"""Checks through the client: together where they can be, repeated under their key, within their deadline."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from enforcer.adapters.meter import OPTIONS as METER_OPTIONS
from enforcer.cli.connection import CHANNEL_OPTIONS
from enforcer.client import (
    CallError,
    Check,
    Client,
    ClosedError,
    ConfigurationError,
    InvalidRequestError,
    Mode,
    NoAccessError,
    Options,
    OverloadedError,
    Reason,
    UnavailableError,
    Verdict,
)
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from tests.fixtures.fake_gateway import KEY, Arrived, FakeGateway, RefusalError, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def test_a_lone_check_is_a_unary_call_with_key_deadline_and_credentials(
    fake: FakeGateway,
) -> None:
    async with fake.client(timeout=20, attempt_timeout=10) as client:
        verdict = await client.check("acme", "api.calls", 5, dimensions={"region": "eu"})
    assert verdict == Verdict(allowed=True, granted=5)
    [call] = fake.calls
    assert call.method == "Check"
    assert (call.request.customer, call.request.feature, call.request.quantity) == (
        "acme",
        "api.calls",
        5,
    )
    assert dict(call.request.dimensions) == {"region": "eu"}
    assert len(call.request.idempotency_key) == 32
    assert call.remaining is not None
    assert 5 < call.remaining <= 10
    assert call.metadata["authorization"] == f"Bearer {KEY}"


async def test_what_is_asked_at_once_travels_together_and_each_gets_its_own_answer(
    fake: FakeGateway,
) -> None:
    async with fake.client(largest_batch=64) as client:
        answers = await asyncio.gather(
            *(client.check(f"c{number}", "api.calls", number) for number in range(1, 101))
        )
    assert [answer.granted for answer in answers] == list(range(1, 101))
    assert sorted(fake.sizes) == [36, 64]
    assert set(fake.names) == {"CheckBatch"}
    keys = [key for call in fake.calls for key in call.keys]
    assert len(set(keys)) == 100


async def test_checks_collect_while_as_many_calls_travel_as_may(fake: FakeGateway) -> None:
    held = asyncio.Event()

    async def hold(_: Arrived) -> None:
        await held.wait()

    fake.before = hold
    async with fake.client(most_in_flight=2) as client:
        first = []
        for number in range(2):
            first.append(asyncio.create_task(client.check("acme", "first")))
            await eventually(lambda: len(fake.calls) == number + 1)  # noqa: B023 - awaited here
        rest = [asyncio.create_task(client.check("acme", "rest")) for _ in range(50)]
        await asyncio.sleep(0.1)  # long enough for a third call, if there were one
        assert fake.sizes == [1, 1]
        held.set()
        await asyncio.gather(*first, *rest)
    assert fake.sizes == [1, 1, 50]
    assert fake.used["acme", "rest"] == 50


async def test_a_denial_is_data_and_counts_as_no(fake: FakeGateway) -> None:
    def deny(_: pb.CheckRequest) -> pb.CheckResponse:
        answer = pb.CheckResponse(reason=pb.REASON_QUOTA_EXCEEDED)
        answer.retry_after.FromMilliseconds(1500)
        answer.limits.add(kind=pb.LIMIT_KIND_QUOTA, id="q", customer="acme", limit=3, used=3)
        return answer

    fake.answer = deny
    async with fake.client() as client:
        verdict = await client.check("acme", "export.pdf")
    assert not verdict
    assert verdict.reason is Reason.QUOTA_EXCEEDED
    assert verdict.retry_after is not None
    assert verdict.retry_after.total_seconds() == 1.5
    assert [(limit.id, limit.limit, limit.used) for limit in verdict.limits] == [("q", 3, 3)]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
async def test_what_ran_and_was_not_answered_is_asked_again_under_its_key_and_counts_once(
    fake: FakeGateway, code: grpc.StatusCode
) -> None:
    async def lose(_: Arrived) -> None:
        if len(fake.calls) < 3:
            raise RefusalError(code)

    fake.after = lose
    async with fake.client() as client:
        verdict = await client.check("acme", "api.calls", 7)
        assert verdict.replayed
        await client.check("acme", "api.calls", 1)
    keys = [call.request.idempotency_key for call in fake.calls]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert fake.used["acme", "api.calls"] == 8


async def test_a_lost_batch_is_asked_again_under_its_keys_and_counts_once(
    fake: FakeGateway,
) -> None:
    async def lose(_: Arrived) -> None:
        if len(fake.calls) < 3:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.after = lose
    async with fake.client() as client:
        verdicts = await asyncio.gather(*(client.check("acme", "api.calls") for _ in range(30)))
    assert all(verdicts)
    assert fake.used["acme", "api.calls"] == 30
    keys = {key for call in fake.calls for key in call.keys}
    assert len(keys) == 30


async def test_one_check_that_fails_does_not_spoil_its_neighbours(fake: FakeGateway) -> None:
    def answer(request: pb.CheckRequest) -> pb.CheckResponse | pb.CheckFault:
        if request.customer == "nobody":
            return pb.CheckFault(code=5, reason="UNKNOWN_CUSTOMER", message="no such customer")
        return FakeGateway.allow(request)

    fake.answer = answer
    async with fake.client() as client:
        answers = await client.check_each(
            [Check("acme", "a", 2), Check("nobody", "a"), Check("acme", "a", 3)]
        )
    assert [bool(one) for one in answers if isinstance(one, Verdict)] == [True, True]
    assert isinstance(answers[1], CallError)
    assert (answers[1].reason, answers[1].code) == (
        "UNKNOWN_CUSTOMER",
        grpc.StatusCode.NOT_FOUND,
    )
    assert fake.sizes == [3]


async def test_a_fault_inside_a_batch_that_passes_is_waited_out(fake: FakeGateway) -> None:
    async def count(_: Arrived) -> None:
        return

    def answer(request: pb.CheckRequest) -> pb.CheckResponse | pb.CheckFault:
        if len(fake.calls) == 1 and request.customer == "b":
            return pb.CheckFault(code=14, reason="STORE_UNAVAILABLE", message="away")
        return FakeGateway.allow(request)

    fake.before, fake.answer = count, answer
    async with fake.client() as client:
        answers = await client.check_each([Check("a", "f"), Check("b", "f")])
    assert answers == [Verdict(allowed=True, granted=1)] * 2
    assert fake.names == ["CheckBatch", "Check"]


async def test_a_check_among_others_comes_again_when_the_gateway_says(fake: FakeGateway) -> None:
    def answer(request: pb.CheckRequest) -> pb.CheckResponse | pb.CheckFault:
        if len(fake.calls) == 1 and request.customer == "b":
            full = pb.CheckFault(code=8, reason="OVERLOADED", message="full")
            full.retry_after.FromMilliseconds(200)
            return full
        return FakeGateway.allow(request)

    fake.answer = answer
    async with fake.client() as client:
        answers = await client.check_each([Check("a", "f"), Check("b", "f")])
    assert answers == [Verdict(allowed=True, granted=1)] * 2
    assert fake.calls[1].at - fake.calls[0].at >= 0.2


async def test_what_a_retry_cannot_help_is_told_at_once_by_its_reason(fake: FakeGateway) -> None:
    async def refuse(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "BAD_QUANTITY")

    fake.before = refuse
    async with fake.client() as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.check("acme", "api.calls", 0)
    assert caught.value.reason == "BAD_QUANTITY"
    assert not caught.value.retryable
    assert len(fake.calls) == 1


async def test_an_unknown_key_is_no_access_also_for_a_whole_batch(fake: FakeGateway) -> None:
    async def refuse(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.UNAUTHENTICATED, "BAD_API_KEY")

    fake.before = refuse
    async with fake.client() as client:
        answers = await client.check_each([Check("a", "f"), Check("b", "f")])
    assert [type(one) for one in answers] == [NoAccessError, NoAccessError]
    assert answers[0] is not answers[1]


async def test_no_answer_within_the_deadline_is_told_at_the_deadline(fake: FakeGateway) -> None:
    async def hang(_: Arrived) -> None:
        await asyncio.sleep(SECONDS_TOO_LONG)

    fake.before = hang
    async with fake.client() as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await client.check("acme", "api.calls", timeout=0.3)
        assert 0.29 <= time.monotonic() - started < 5
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        # Shorter attempts leave time for another one.
    fake.calls.clear()
    async with fake.client(attempt_timeout=0.3) as client:
        with pytest.raises(UnavailableError):
            await client.check("acme", "api.calls", timeout=2.5)
    assert len(fake.calls) >= 2
    assert len({call.request.idempotency_key for call in fake.calls}) == 1


SECONDS_TOO_LONG = 60


async def test_the_gateway_s_word_on_when_to_come_again_is_kept(fake: FakeGateway) -> None:
    wait = 0.4

    async def refuse(_: Arrived) -> None:
        if len(fake.calls) == 1:
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", retry_after=wait)

    fake.before = refuse
    async with fake.client() as client:
        assert await client.check("acme", "api.calls")
        first, second = fake.calls
        assert second.at - first.at >= 0.39
        # Where the deadline comes first, there is nothing to wait for.
        fake.calls.clear()
        wait = 60
        started = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await client.check("acme", "api.calls", timeout=50)
        assert time.monotonic() - started < 30
        assert caught.value.retry_after == wait


async def test_a_full_gateway_that_names_no_time_is_not_asked_again(fake: FakeGateway) -> None:
    async def refuse(_: Arrived) -> None:
        raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED)

    fake.before = refuse
    async with fake.client() as client:
        with pytest.raises(UnavailableError):
            await client.check("acme", "api.calls")
    assert len(fake.calls) == 1


async def test_more_checks_than_may_wait_are_refused_and_the_others_answered(
    fake: FakeGateway,
) -> None:
    async with fake.client(most_waiting=10) as client:
        answers = await asyncio.gather(
            *(client.check("acme", "f") for _ in range(12)), return_exceptions=True
        )
        assert [type(one) for one in answers] == [Verdict] * 10 + [OverloadedError] * 2
        assert fake.used["acme", "f"] == 10
        # A list may be longer: it waits for its turn.
        assert all(await client.check_each([Check("acme", "f")] * 33))
    assert fake.used["acme", "f"] == 43


async def test_a_check_that_nobody_waits_for_any_more_is_not_sent(fake: FakeGateway) -> None:
    held = asyncio.Event()

    async def hold(_: Arrived) -> None:
        await held.wait()

    fake.before = hold
    async with fake.client(most_in_flight=1) as client:
        first = asyncio.create_task(client.check("acme", "first"))
        await eventually(lambda: len(fake.calls) == 1)
        given_up = asyncio.create_task(client.check("acme", "given up"))
        late = asyncio.create_task(client.check("acme", "late", timeout=0.05))
        kept = asyncio.create_task(client.check("acme", "kept"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(UnavailableError):
            await late
        held.set()
        assert await first
        assert await kept
        assert given_up.cancelled()
    assert fake.used == {("acme", "first"): 1, ("acme", "kept"): 1}


async def test_a_large_check_travels_alone(fake: FakeGateway) -> None:
    large = {f"k{number}": "v" * 1500 for number in range(16)}
    async with fake.client() as client:
        await client.check_each(
            [Check("a", "f"), Check("b", "f", dimensions=large), Check("c", "f"), Check("d", "f")]
        )
    assert sorted(fake.sizes) == [1, 1, 2]


async def test_all_or_none_is_one_call_under_its_keys(fake: FakeGateway) -> None:
    async def lose(_: Arrived) -> None:
        if len(fake.calls) == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE)

    fake.after = lose
    async with fake.client() as client:
        verdicts = await client.check_all([Check("acme", "a", 2), Check("acme", "b", 3)])
        with pytest.raises(ConfigurationError, match="1 to 256"):
            await client.check_all([])
    assert [verdict.granted for verdict in verdicts] == [2, 3]
    assert [call.request.atomic for call in fake.calls] == [True, True]
    assert fake.calls[0].keys == fake.calls[1].keys
    assert fake.used == {("acme", "a"): 2, ("acme", "b"): 3}


async def test_a_check_that_consumes_nothing_needs_no_key(fake: FakeGateway) -> None:
    async with fake.client() as client:
        await client.check("acme", "f", mode=Mode.CHECK_ONLY)
        await client.check("acme", "f", key="order-17")
    assert [call.keys for call in fake.calls] == [[""], ["order-17"]]
    assert fake.calls[0].request.mode == pb.MODE_CHECK_ONLY


async def test_calls_are_balanced_over_healthy_gateways_and_survive_the_end_of_one(
    fakes: Callable[[], Awaitable[FakeGateway]],
) -> None:
    one, two, ill = await fakes(), await fakes(), await fakes()
    await ill.serving(yes=False)
    endpoints = [gateway.endpoint for gateway in (one, two, ill)]
    async with Client(endpoints, KEY, options=Options(timeout=20)) as client:
        async with asyncio.timeout(20):
            while not (one.calls and two.calls):
                await client.check("acme", "f")
        one.calls.clear()
        two.calls.clear()
        for _ in range(20):
            await client.check("acme", "f")
        assert len(one.calls) == len(two.calls) == 10
        assert not ill.calls
        await two.stop()
        for _ in range(20):
            assert await client.check("acme", "f")
    assert not ill.calls


async def test_a_gateway_that_is_slow_to_shake_hands_is_waited_for(fake: FakeGateway) -> None:
    host, _, port = fake.endpoint.rpartition(":")
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(host, int(port))
        writers.extend((here, writer))
        tasks.append(asyncio.create_task(forward(reader, here)))
        # As long as a far network, or a busy machine, may need for TLS and the first frame.
        await asyncio.sleep(1.5)
        tasks.append(asyncio.create_task(forward(there, writer)))

    proxy = await asyncio.start_server(slow, "127.0.0.1", 0)
    address = "{}:{}".format(*proxy.sockets[0].getsockname())

    async def by_client() -> bool:
        async with Client(address, KEY, options=Options(timeout=20)) as client:
            return bool(await client.check("acme", "f", timeout=15))

    async def by_channel(options: list[tuple[str, int]]) -> bool:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            request = pb.CheckRequest(customer="acme", feature="f", quantity=1)
            check = EnforcerServiceStub(channel).Check
            answer = await check(request, timeout=15, wait_for_ready=True)
            return bool(answer.allowed)

    # The commands' channels, and those from enforcers to the meter.
    others = (by_channel(options) for options in (CHANNEL_OPTIONS, METER_OPTIONS))
    assert await asyncio.gather(by_client(), *others) == [True] * 3
    proxy.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for one in writers:
        one.close()
    await asyncio.gather(*(one.wait_closed() for one in writers), return_exceptions=True)
    await proxy.wait_closed()


async def test_several_connections_take_turns(fake: FakeGateway) -> None:
    async with fake.client(connections=3) as client:
        for _ in range(9):
            await client.check("acme", "f")
    assert Counter(Counter(call.peer for call in fake.calls).values()) == {3: 3}


async def test_a_client_says_when_it_is_not_open(fake: FakeGateway) -> None:
    client = fake.client()
    with pytest.raises(ClosedError, match="not open"):
        await client.check("acme", "f")
    async with client:
        assert await client.check("acme", "f")

        def elsewhere() -> None:
            asyncio.run(client.check("acme", "f"))

        with pytest.raises(ConfigurationError, match="event loop"):
            await asyncio.to_thread(elsewhere)
    with pytest.raises(ClosedError, match="closed"):
        await client.check("acme", "f")
    with pytest.raises(ClosedError, match="once"):
        client.open()


async def test_closing_waits_for_what_was_sent_and_refuses_what_was_not(
    fake: FakeGateway,
) -> None:
    held = asyncio.Event()

    async def hold(_: Arrived) -> None:
        await held.wait()

    fake.before = hold
    client = fake.client(most_in_flight=1)
    client.open()
    sent = asyncio.create_task(client.check("acme", "sent"))
    await eventually(lambda: len(fake.calls) == 1)
    waiting = asyncio.create_task(client.check("acme", "waiting"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(client.close())
    with pytest.raises(ClosedError):
        await waiting
    held.set()
    assert await sent
    await closing
    await client.close()
    assert fake.used == {("acme", "sent"): 1}


async def test_observers_see_attempts_retries_and_answers_and_may_fail(fake: FakeGateway) -> None:
    async def lose(_: Arrived) -> None:
        if len(fake.calls) == 1:
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")

    class Seen:
        def __init__(self) -> None:
            self.told: list[tuple[object, ...]] = []

        def called(self, method: str, outcome: str, seconds: float, items: int) -> None:
            assert seconds > 0
            self.told.append(("called", method, outcome, items))

        def retrying(self, method: str, reason: str, pause: float) -> None:
            assert 0 < pause <= 1
            self.told.append(("retrying", method, reason))

        def decided(self, feature: str, verdict: Verdict) -> None:
            self.told.append(("decided", feature, verdict.allowed))
            raise RuntimeError("a broken observer")

        def lease_lost(self, feature: str, reason: str) -> None:
            raise AssertionError

        def decided_locally(self, feature: str, decisions: int, quantity: int) -> None:
            raise AssertionError

        def allowance_refilled(
            self, feature: str, outcome: str, granted: int, seconds: float
        ) -> None:
            raise AssertionError

        def allowance_returned(self, feature: str, used: int, returned: int) -> None:
            raise AssertionError

        def allowance_unreported(self, feature: str, used: int) -> None:
            raise AssertionError

    fake.after = lose
    seen = Seen()
    async with fake.client(observers=[seen]) as client:
        assert await client.check("acme", "f")
    assert seen.told == [
        ("called", "Check", "STORE_UNAVAILABLE", 1),
        ("retrying", "Check", "STORE_UNAVAILABLE"),
        ("called", "Check", "OK", 1),
        ("decided", "f", True),
    ]


def test_importing_the_client_loads_grpc_protobuf_and_its_messages_alone() -> None:
    program = (
        "import sys, grpc.aio; before = set(sys.modules); import enforcer.client; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}"
        " - sys.stdlib_module_names)); "
        "print(*sorted(name for name in sys.modules if name.startswith(('enforcer', 'meter'))"
        " and not name.startswith('enforcer.client')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    packages, own = done.stdout.splitlines()
    assert set(packages.split()) == {"enforcer", "google", "grpc"}
    assert own.split() == [
        "enforcer",
        "enforcer.v1",
        "enforcer.v1.enforcer_pb2",
        "enforcer.v1.enforcer_pb2_grpc",
    ]
