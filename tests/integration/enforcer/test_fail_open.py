"""Features that fail open, on a server that is killed, paused, slow or emptied: what is allowed counts once."""

from __future__ import annotations

import asyncio
import shutil
import signal
import statistics
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis

from enforcer.catalog.ratelimit import parse_domains
from enforcer.errors import (
    InvalidRequestError,
    JournalUnavailableError,
    MetergateError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from enforcer.gateway.ratelimit import RateLimits
from enforcer.ports.definitions import Caller
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb
from meter.core.records import RecordType
from meter.health import State
from tests.fixtures.records import Records
from tests.fixtures.valkey import ValkeyProcess
from tests.outpost import AMOUNT, CATALOG, Outpost, outpost, records_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

EXHAUSTED = "REASON_EMERGENCY_EXHAUSTED"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A server of the test's own, to kill and pause."""
    process = ValkeyProcess(tmp_path / "valkey")
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def post(server: ValkeyProcess, tmp_path: Path) -> AsyncIterator[Outpost]:
    """An enforcer that has decided checks by the store."""
    async with outpost(server.url, tmp_path) as made:
        await made.serving()
        for feature in ("open", "flag", "closed"):
            assert not (await made.check(feature)).degraded
        yield made


@asynccontextmanager
async def paused(server: ValkeyProcess) -> AsyncIterator[None]:
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


def usage_of(server: ValkeyProcess, feature: str = "open") -> int:
    return sum(
        effects.granted
        for body, effects in records_of(server.url)
        if (body.c, body.f) == ("acme", feature) and effects.type is RecordType.USAGE
    )


async def agree(post: Outpost, server: ValkeyProcess, expected: int) -> None:
    """Counters, records and what clients were told are the same, and nothing is left to count."""
    await post.serving()
    await post.counting.count()
    assert await post.counting.count() == 0
    assert (await post.used(), usage_of(server)) == (expected, expected)


async def test_each_feature_follows_its_policy_while_the_server_is_away(
    post: Outpost, server: ValkeyProcess
) -> None:
    server.kill()
    seen = Counter([outcome for _, outcome in [await post.timed() for _ in range(20)]])
    assert seen == {"degraded": 20}
    with pytest.raises(StoreUnavailableError):
        await post.check("closed")
    answer = await post.check("open", 5)
    assert (answer.allowed, answer.granted, answer.degraded) == (True, 5, True)
    assert not answer.HasField("record")
    answer = await post.check("flag")
    assert (answer.allowed, answer.degraded) == (True, True)
    server.start()
    await agree(post, server, 26)
    assert usage_of(server, "flag") == 2
    emergency = [body for body, _ in records_of(server.url) if body.j]
    assert len(emergency) == 22
    assert [body.jn for body in emergency] == list(range(1, 23))
    assert all(body.at for body in emergency)
    assert (await post.check("open")).degraded is False


async def test_an_envoy_s_question_about_one_feature_follows_its_policy(
    post: Outpost, server: ValkeyProcess
) -> None:
    mapping = """\
version: 1
domains: [{domain: d, tenant: demo, rules: [{match: {of: "*"}, customer: acme, feature: "{of}"}]}]
"""
    limits = RateLimits(post.gateway, parse_domains(mapping, "mapping.yaml"))

    async def ask(*features: str) -> rls.RateLimitResponse:
        request = rls.RateLimitRequest(domain="d")
        for feature in features:
            request.descriptors.add().entries.add(key="of", value=feature)
        answer = await limits.should_rate_limit(
            Caller("demo", "k", "check"), request.SerializeToString()
        )
        return rls.RateLimitResponse.FromString(answer)

    server.kill()
    await post.held_back("flag")
    answer = await ask("open")
    assert (answer.overall_code, answer.statuses[0].code) == (1, 1)
    for features in (["closed"], ["open", "open"]):
        with pytest.raises(StoreUnavailableError):
            await ask(*features)
    server.start()
    await agree(post, server, 2)


async def test_beyond_the_share_checks_are_denied_and_the_share_comes_back_with_counting(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    async with outpost(server.url, tmp_path, enforcers=4) as post:
        await post.serving()
        await post.check("open")
        server.kill()
        await post.held_back("flag")
        share = AMOUNT // 4
        answers = await asyncio.gather(*(post.timed() for _ in range(share + 50)))
        assert Counter(outcome for _, outcome in answers) == {"degraded": share, EXHAUSTED: 50}
        denied = await post.check("open")
        assert (denied.allowed, denied.degraded, denied.granted) == (False, True, 0)
        other = await post.check("open", 2, customer="umbrella")
        assert (other.allowed, other.degraded) == (True, True)
        server.start()
        await agree(post, server, 1 + share)
        server.kill()
        assert (await post.check("open", share)).degraded


async def test_over_use_shows_as_overage(post: Outpost, server: ValkeyProcess) -> None:
    server.kill()
    await post.held_back("flag")
    assert (await post.check("open", 600)).allowed
    server.start()
    await agree(post, server, 601)
    over = sum(effects.overage for body, effects in records_of(server.url) if body.j)
    assert over == 101


async def test_modes_without_the_server(post: Outpost, server: ValkeyProcess) -> None:
    server.kill()
    await post.held_back("flag")
    only = await post.check("open", 10, mode=pb.MODE_CHECK_ONLY)
    assert (only.allowed, only.granted, only.degraded) == (True, 10, True)
    assert not (await post.check("open", AMOUNT + 1, mode=pb.MODE_CHECK_ONLY)).allowed
    best = await post.check("open", AMOUNT + 7, mode=pb.MODE_BEST_EFFORT)
    assert (best.allowed, best.granted, best.degraded) == (True, AMOUNT, True)
    assert not (await post.check("open", 1, mode=pb.MODE_BEST_EFFORT)).allowed
    # Usage that has happened cannot be denied: the client keeps it and asks again.
    with pytest.raises(StoreUnavailableError):
        await post.check("open", 1, mode=pb.MODE_RECORD_ONLY)
    assert (await post.check("flag", mode=pb.MODE_CHECK_ONLY)).allowed
    server.start()
    await agree(post, server, 1 + AMOUNT)


async def test_a_check_that_takes_nothing_is_answered_from_the_share_and_leaves_nothing(
    post: Outpost, server: ValkeyProcess
) -> None:
    server.kill()
    await post.held_back("closed")
    outcomes = post.outcomes
    outcomes.clear()
    for _ in range(2 * AMOUNT):  # far more than the share has, if each took its one
        only = await post.check("open", 1, mode=pb.MODE_CHECK_ONLY)
        assert (only.allowed, only.granted, only.degraded) == (True, 1, True)
        assert not only.HasField("record")
    assert (await post.check("open", AMOUNT, mode=pb.MODE_CHECK_ONLY)).granted == AMOUNT
    past = await post.check("open", AMOUNT + 1, mode=pb.MODE_CHECK_ONLY)
    assert (past.allowed, past.granted, past.degraded) == (False, 0, True)
    assert pb.Reason.Name(past.reason) == EXHAUSTED
    assert outcomes == {"check_only": 2 * AMOUNT + 2}
    # What fails closed has no answer in this mode either.
    with pytest.raises(StoreUnavailableError):
        await post.check("closed", mode=pb.MODE_CHECK_ONLY)
    assert outcomes["fail_closed"] == 1
    # Nothing was taken or journaled: the whole share is there, and after the outage there is nothing to count.
    assert (await post.check("open", AMOUNT)).granted == AMOUNT
    assert (await post.check("open", 1, mode=pb.MODE_CHECK_ONLY)).allowed is False
    assert outcomes["allowed"] == 1
    server.start()
    await agree(post, server, 1 + AMOUNT)
    assert len([body for body, _ in records_of(server.url) if body.j]) == 1


async def test_what_cannot_be_given_back_or_shown_fails_closed(
    post: Outpost, server: ValkeyProcess
) -> None:
    server.kill()
    gateway = post.gateway
    item = pb.CheckRequest(customer="acme", feature="open")
    both = pb.CheckBatchRequest(items=[item, item], atomic=True)
    calls: list[Coroutine[Any, Any, Any]] = [
        gateway.reservations.reserve("demo", pb.ReserveRequest(customer="acme", feature="open")),
        gateway.get_balance("demo", pb.GetBalanceRequest(customer="acme", feature="open")),
        gateway.leases.acquire("demo", pb.AcquireLeaseRequest(customer="acme", feature="seats")),
        gateway.check_batch("demo", both.SerializeToString()),
        post.check("seats", mode=pb.MODE_CHECK_ONLY),
    ]
    for call in calls:
        with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
            await call


async def test_items_of_an_independent_batch_follow_their_own_policies(
    post: Outpost, server: ValkeyProcess
) -> None:
    server.kill()
    features = ["open", "closed", "nobody", "flag", "open"]
    items = [pb.CheckRequest(customer="acme", feature=feature) for feature in features]
    request = pb.CheckBatchRequest(items=items)
    answer = await post.gateway.check_batch("demo", request.SerializeToString())
    response = pb.CheckBatchResponse.FromString(answer)
    told = [
        item.fault.reason if item.HasField("fault") else item.response.degraded
        for item in response.items
    ]
    assert told == [True, "STORE_UNAVAILABLE", "UNKNOWN_FEATURE", True, True]
    server.start()
    await agree(post, server, 3)


async def test_terms_are_as_they_were_last_seen(post: Outpost, server: ValkeyProcess) -> None:
    server.kill()
    await post.held_back("flag")
    answer = await post.check("open", customer="umbrella")
    assert (answer.allowed, answer.degraded) == (True, True)
    denied = await post.check("flag", customer="umbrella")
    assert (denied.allowed, denied.degraded) == (False, True)
    assert denied.reason == pb.REASON_NOT_ENTITLED
    assert (await post.timed(customer="nobody"))[1] == "UNKNOWN_CUSTOMER"


async def test_a_key_gets_one_answer_before_during_and_after(
    post: Outpost, server: ValkeyProcess
) -> None:
    await post.check("open", 3, idempotency_key="before")
    server.kill()
    await post.held_back("flag")
    for key in ("before", "during"):
        first = await post.check("open", 3, idempotency_key=key)
        again = await post.check("open", 3, idempotency_key=key)
        assert (first.allowed, first.replayed) == (True, False)
        assert (again.allowed, again.replayed, again.degraded) == (True, True, True)
    twins = await asyncio.gather(
        *(post.check("open", 2, idempotency_key="together") for _ in range(5))
    )
    assert sum(not twin.replayed for twin in twins) == 1
    with pytest.raises(InvalidRequestError, match="other parameters"):
        await post.check("open", 4, idempotency_key="during")
    server.start()
    await post.serving()
    # Asked again before the journal is counted: counted now, and not again with the journal.
    assert (await post.check("open", 3, idempotency_key="during")).allowed
    await agree(post, server, 1 + 3 + 3 + 2)
    after = await post.check("open", 2, idempotency_key="together")
    assert (after.replayed, after.granted) == (True, 2)
    kept = [effects for body, effects in records_of(server.url) if body.j]
    assert [one.type for one in kept].count(RecordType.EMERGENCY) == 2


async def test_a_check_that_ran_while_the_server_was_paused_counts_once(
    post: Outpost, server: ValkeyProcess
) -> None:
    async with paused(server):
        keyed = (post.timed(idempotency_key=f"k{number}") for number in range(20))
        outcomes = await asyncio.gather(*(post.timed() for _ in range(40)), *keyed)
        assert Counter(outcome for _, outcome in outcomes) == {"degraded": 60}
        # Long enough that the connection is given up, too.
        await asyncio.sleep(0.8)
    await agree(post, server, 61)
    before = [effects.type for body, effects in records_of(server.url) if body.j]
    assert before.count(RecordType.EMERGENCY) > 0, "nothing of it ran at the server: no test"


async def test_a_short_pause_counts_once_over_the_same_connection(
    post: Outpost, server: ValkeyProcess
) -> None:
    for _ in range(5):
        async with paused(server):
            outcomes = await asyncio.gather(*(post.timed() for _ in range(10)))
            assert Counter(outcome for _, outcome in outcomes) == {"degraded": 10}
        await post.serving()
    # What was sent meanwhile must not push out what the journal will ask for.
    for _ in range(200):
        while (await post.check("flag")).degraded:  # a server may be slow once
            await post.serving()
    await agree(post, server, 51)


async def test_a_successor_counts_what_its_predecessor_may_have_sent_once(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    async with paused_after(server, tmp_path) as told:
        pass
    async with outpost(server.url, tmp_path) as successor:
        await agree(successor, server, 1 + told["degraded"])


@asynccontextmanager
async def paused_after(server: ValkeyProcess, folder: Path) -> AsyncIterator[Counter[str]]:
    """An enforcer that ends while the server is paused, with batches of its own in the server's buffers."""
    async with outpost(server.url, folder) as post:
        await post.serving()
        await post.check("open")
        server.signal(signal.SIGSTOP)
        outcomes = await asyncio.gather(*(post.timed() for _ in range(30)))
    server.signal(signal.SIGCONT)
    yield Counter(outcome for _, outcome in outcomes)


async def test_what_may_have_run_is_never_told_to_be_denied(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    async with outpost(server.url, tmp_path) as post:
        await post.serving()
        await post.check("open")
        async with paused(server):
            outcomes = await asyncio.gather(
                *(post.timed(quantity=AMOUNT + 1) for _ in range(3)),
                *(post.timed(quantity=AMOUNT + 1, idempotency_key=f"{n}") for n in range(3)),
            )
        told = Counter(outcome for _, outcome in outcomes)
        assert told == {"OUTCOME_UNKNOWN": 3, "STORE_UNAVAILABLE": 3}


async def test_a_journal_that_was_counted_and_not_deleted_counts_nothing_more(
    post: Outpost, server: ValkeyProcess, tmp_path: Path
) -> None:
    server.kill()
    await post.held_back("flag")
    await post.check("open", 7)
    shutil.copytree(tmp_path / "journal", tmp_path / "copy")
    server.start()
    await agree(post, server, 8)
    for kept in (tmp_path / "copy").glob("*/*.journal"):
        shutil.copy(kept, tmp_path / "journal" / kept.parent.name)
    assert await post.counting.count() > 0
    await agree(post, server, 8)


async def test_a_lost_mark_holds_nothing_up(post: Outpost, server: ValkeyProcess) -> None:
    """A server on an old copy of its data: what comes later in the journal is counted all the same."""
    for mark in (None, "0"):
        server.kill()
        await post.held_back("flag")
        await post.check("open", 7)
        server.start()
        await post.serving()
        if mark is not None:
            with redis.Redis.from_url(server.url) as client:
                client.delete("{b0}:j")
        await post.counting.count()
    assert await post.used() == 15


async def test_a_restart_during_the_outage_has_no_new_share(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    async with outpost(server.url, tmp_path) as post:
        await post.serving()
        await post.check("open")
        server.kill()
        await post.held_back("flag")
        assert (await post.check("open", AMOUNT - 100)).allowed
    async with outpost(server.url, tmp_path) as post:
        assert (await post.timed(quantity=101))[1] == EXHAUSTED
        assert (await post.check("open", 100)).allowed
        server.start()
        await agree(post, server, 1 + AMOUNT)


async def test_use_of_customers_that_are_gone_is_recorded_beside_all_limits(
    post: Outpost, server: ValkeyProcess
) -> None:
    server.kill()
    await post.held_back("flag")
    assert (await post.check("open", 4)).allowed
    assert (await post.check("open", 5, customer="umbrella")).allowed
    server.start()
    await post.serving()
    less = CATALOG.replace("{feature: open, model: quota, limit: 500, per: year}", "").replace(
        "      - \n", ""
    )
    less = "prune: true\n" + less[: less.index("  - key: umbrella")]
    await post.apply(less)
    await post.counting.count()
    late = {
        body.c: effects for body, effects in records_of(server.url) if body.j and body.f == "open"
    }
    assert {name: (one.granted, one.overage) for name, one in late.items()} == {
        "acme": (4, 4),
        "umbrella": (5, 5),
    }
    assert all(not one.entries for one in late.values())


async def test_without_a_journal_that_can_be_written_features_fail_closed(
    post: Outpost, server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.kill()
    await post.held_back("flag")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("enforcer.adapters.journal.files.os.write", full)
        for _ in range(2):
            with pytest.raises(JournalUnavailableError):
                await post.check("open", idempotency_key="k")
    assert post.outcomes["journal_failed"] == 2
    answer = await post.check("open", AMOUNT, idempotency_key="k2")
    assert (answer.allowed, answer.replayed) == (True, False)
    server.start()
    await agree(post, server, 1 + AMOUNT)


async def test_how_the_server_is_found_is_the_truth(server: ValkeyProcess, tmp_path: Path) -> None:
    server.stop()
    async with outpost(server.url, tmp_path) as post:
        state, why = post.counters.standing()
        assert state is not State.UP, "no server was ever met"
        assert why
        server.start()
        await post.serving()
        assert post.counters.standing() == (State.UP, "")
        await post.check("open")
        server.kill()
        await post.held_back()
        state, why = post.counters.standing()
        assert state is State.AWAY, why
        server.start()
        await post.serving()
        assert post.counters.standing() == (State.UP, "")


async def test_an_emptied_server_is_an_outage_until_it_is_made_again(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    ledger = Records(server.url)
    async with outpost(server.url, tmp_path, ledger=ledger) as post:
        await post.serving()
        await post.check("open", 3)
        await post.check("closed")
        ledger.read()
        ledger.away = True
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        assert (await post.check("open", 4)).degraded
        assert (await post.timed("closed"))[1] == "COUNTERS_REBUILDING"
        with pytest.raises(MetergateError):
            await post.counting.count()
        quick = [await post.timed() for _ in range(20)]
        assert {outcome for _, outcome in quick} == {"degraded"}
        ledger.away = False
        await rebuilt(post)
        await post.counting.count()
        assert await post.used() == 27


async def rebuilt(post: Outpost) -> None:
    async with asyncio.timeout(20):
        while (await post.timed("closed"))[1] != "decided":
            pass


async def test_marks_are_made_again_from_the_records(server: ValkeyProcess, tmp_path: Path) -> None:
    """The journal was counted, its file is still there, and then the server is emptied."""
    ledger = Records(server.url)
    async with outpost(server.url, tmp_path, ledger=ledger) as post:
        await post.serving()
        await post.check("open")
        server.kill()
        await post.held_back("flag")
        await post.check("open", 7)
        shutil.copytree(tmp_path / "journal", tmp_path / "copy")
        server.start()
        await agree(post, server, 8)
        ledger.read()
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        await rebuilt(post)
        for kept in (tmp_path / "copy").glob("*/*.journal"):
            shutil.copy(kept, tmp_path / "journal" / kept.parent.name)
        assert await post.counting.count() > 0
        assert await post.used() == 8


async def test_answers_are_quick_while_the_server_is_away(
    post: Outpost, server: ValkeyProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for what in ("killed", "paused"):
        if what == "killed":
            server.kill()
        else:
            server.signal(signal.SIGSTOP)
        await post.held_back()
        closed = [await post.timed("closed") for _ in range(100)]
        assert {outcome for _, outcome in closed} == {"STORE_UNAVAILABLE"}
        alone = [await post.timed() for _ in range(100)]
        load = await asyncio.gather(*(post.timed("flag") for _ in range(400)))
        assert {outcome for _, outcome in (*alone, *load)} == {"degraded"}
        for name, found in (("closed", closed), ("alone", alone), ("400 at once", load)):
            times = sorted(seconds * 1_000 for seconds, _ in found)
            middle, high = statistics.median(times), times[int(len(times) * 0.99)]
            lines.append(f"{what}, {name}: p50 {middle:.2f} ms, p99 {high:.2f} ms")
        server.signal(signal.SIGCONT) if what == "paused" else server.start()
        await post.serving()
        await post.counting.count()
    with capsys.disabled():
        print("\n" + "\n".join(lines))  # noqa: T201 - a measurement
    await agree(post, server, usage_of(server))
