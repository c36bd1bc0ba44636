"""What an Envoy is told: over either counter store, on a clock that tests move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from enforcer.catalog.ratelimit import parse_domains
from enforcer.errors import InvalidRequestError, NotFoundError, StoreUnavailableError
from enforcer.gateway import Gateway
from enforcer.gateway.programs import Programs
from enforcer.gateway.ratelimit import RateLimits
from enforcer.ports.definitions import Caller
from enforcer.ratelimit import rls_pb2 as rls
from enforcer.ratelimit.descriptor_pb2 import RateLimitDescriptor

if TYPE_CHECKING:
    from tests.fixtures.gateway import Service

OK, OVER, SKIPPED = 1, 2, 0
Limit = rls.RateLimitResponse.RateLimit
CATALOG = """\
version: 1
features: [{key: calls}, {key: bytes}, {key: seats}, {key: flags}, {key: endless}, {key: mixed}]
accounts:
  - key: acme
    entitlements:
      - {feature: calls, key: daily, model: quota, limit: 10, per: day}
      - {feature: calls, key: speed, model: rate, limit: 5, per: 1s}
      - {feature: bytes, key: pot, model: quota, limit: 9007199254740000, per: total}
      - {feature: seats, model: concurrent, seats: 2}
      - {feature: endless, model: payg, per: month}
      - {feature: mixed, key: monthly, model: quota, limit: 3, per: month}
      - {feature: mixed, key: prepaid, model: credits, grants: [{key: g, amount: 5}]}
    nodes: [{key: acme-team}]
  - key: globex
    entitlements: [{feature: calls, key: hourly, model: quota, limit: 100, per: hour}]
"""
MAPPING = """\
version: 1
domains:
  - domain: shop
    tenant: demo
    rules:
      - {match: {user: "*"}, customer: "{user}", feature: calls}
      - {match: {user: "*", id: "*"}, customer: "{user}", feature: calls, idempotency_key: "{id}", dimensions: {id: "{id}"}}
      - {match: {sent: "*", user: "*"}, customer: "{user}", feature: bytes, quantity: "{sent}"}
      - {match: {user: "*", of: "*"}, customer: "{user}", feature: "{of}"}
      - {match: {guest: "*"}, customer: "{guest}", feature: calls, unknown: allow}
      - {match: {done: "*"}, customer: "{done}", feature: calls, mode: record_only}
      - {match: {look: "*"}, customer: "{look}", feature: calls, mode: check_only}
      - {match: {fixed: typo}, customer: nobody, feature: calls}
      - {match: {fixed: feature}, customer: acme, feature: none}
      - {match: {fixed: seats}, customer: acme, feature: seats}
  - {domain: strict, tenant: demo, unmapped: refuse, headers: false, rules: [
      {match: {user: "*"}, customer: "{user}", feature: calls}]}
  - {domain: shop, tenant: other, rules: []}
"""
DEMO = Caller("demo", "k", "check")


class Asker:
    """An Envoy."""

    def __init__(self, service: Service, gateway: Gateway) -> None:
        self.service = service
        self.outcomes: list[str] = []
        domains = parse_domains(MAPPING, "mapping.yaml")
        self.limits = RateLimits(gateway, domains, self.outcomes.append)

    async def __call__(
        self, *descriptors: Any, domain: str = "shop", hits: int = 0, caller: Caller = DEMO
    ) -> rls.RateLimitResponse:
        request = rls.RateLimitRequest(
            domain=domain,
            hits_addend=hits,
            descriptors=[
                one if isinstance(one, RateLimitDescriptor) else described(**one)
                for one in descriptors
            ],
        )
        answer = await self.limits.should_rate_limit(caller, request.SerializeToString())
        return rls.RateLimitResponse.FromString(answer)

    async def used(self, feature: str = "calls", customer: str = "acme") -> int:
        balance = await self.service.door.balance(feature, customer=customer)
        return max((limit.used for limit in balance.limits if limit.kind != 7), default=0)


def described(hits: int | None = None, **entries: str) -> RateLimitDescriptor:
    made = RateLimitDescriptor(
        entries=[RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries.items()]
    )
    if hits is not None:
        made.hits_addend.value = hits
    return made


def codes(answer: rls.RateLimitResponse) -> tuple[int, list[int]]:
    return int(answer.overall_code), [int(status.code) for status in answer.statuses]


def headers(answer: rls.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in answer.response_headers_to_add}


@pytest.fixture
async def ask(service: Service) -> Asker:
    await service.apply(CATALOG)
    programs = Programs(service.definitions, service.store, now_ms=service.clock)
    return Asker(service, Gateway(service.store, programs, b"secret"))


async def test_the_nearest_limit_is_told_and_when_it_begins_afresh(ask: Asker) -> None:
    first = await ask({"user": "acme"}, hits=2)
    assert codes(first) == (OK, [OK])
    (status,) = first.statuses
    assert status.limit_remaining == 3
    assert status.current_limit == Limit(requests_per_unit=5, unit=Limit.SECOND, name="speed")
    assert 0 < status.duration_until_reset.ToMilliseconds() <= 1000
    assert headers(first) == {
        "x-ratelimit-limit": '5, 5;w=1;name="speed"',
        "x-ratelimit-remaining": "3",
        "x-ratelimit-reset": "1",
    }
    ask.service.clock.forward(10_000)
    assert codes(await ask({"user": "acme"}, hits=5)) == (OK, [OK])
    ask.service.clock.forward(10_000)
    (status,) = (await ask({"user": "acme"}, hits=3)).statuses
    assert status.limit_remaining == 0
    assert status.current_limit == Limit(requests_per_unit=10, unit=Limit.DAY, name="daily")
    assert status.duration_until_reset.ToSeconds() == 12 * 3600 - 20


async def test_a_refusal_says_when_to_come_again_and_consumes_nothing(ask: Asker) -> None:
    assert codes(await ask({"user": "acme"}, hits=5)) == (OK, [OK])
    refused = await ask({"user": "acme"}, hits=2)
    assert codes(refused) == (OVER, [OVER])
    assert headers(refused)["retry-after"] == "1"
    assert headers(refused)["x-ratelimit-remaining"] == "0"
    assert await ask.used() == 5
    never = await ask({"user": "acme"}, hits=11)
    assert codes(never) == (OVER, [OVER])
    assert "retry-after" not in headers(never), "waiting does not help"


async def test_descriptors_of_one_request_are_all_had_or_none(ask: Asker) -> None:
    team = described(user="acme-team", hits=1)
    refused = await ask(team, {"user": "acme", "sent": "9007199254740001"}, team)
    assert codes(refused) == (OVER, [OK, OVER, OK])
    assert await ask.used() == await ask.used("bytes") == 0
    assert codes(await ask(team, {"user": "acme", "sent": "900"}, team)) == (OK, [OK] * 3)
    assert (await ask.used(), await ask.used("bytes")) == (2, 900)


@pytest.mark.parametrize("hits", [None, 3])
async def test_a_descriptor_may_say_its_own_hits(ask: Asker, hits: int | None) -> None:
    assert codes(await ask(described(user="acme", hits=hits), hits=2)) == (OK, [OK])
    assert await ask.used() == (2 if hits is None else 3)


async def test_zero_hits_ask_without_consuming(ask: Asker) -> None:
    answer = await ask(described(user="acme", hits=0))
    assert codes(answer) == (OK, [OK])
    assert await ask.used() == 0
    await ask({"user": "acme"}, hits=5)
    peek = described(user="acme", hits=0)
    assert codes(await ask(peek)) == (OVER, [OVER])
    # What is only asked comes first; what it refuses is not consumed elsewhere.
    both = await ask({"user": "acme", "sent": "7"}, peek)
    assert codes(both) == (OVER, [SKIPPED, OVER])
    assert await ask.used("bytes") == 0
    assert codes(await ask({"look": "acme"})) == (OVER, [OVER])


async def test_what_has_happened_is_recorded_past_the_limit(ask: Asker) -> None:
    await ask({"user": "acme"}, hits=5)
    assert codes(await ask({"done": "acme"}, hits=20)) == (OK, [OK])
    assert await ask.used() == 25
    with pytest.raises(InvalidRequestError, match="one mode"):
        await ask({"done": "acme"}, {"user": "acme"})


async def test_what_no_rule_matches_passes_unless_the_domain_refuses(ask: Asker) -> None:
    answer = await ask({"generic_key": "x"}, {"user": "acme"})
    assert codes(answer) == (OK, [OK, OK])
    assert not answer.statuses[0].HasField("current_limit")
    assert await ask.used() == 1
    assert ask.outcomes == ["unmapped", "decided"]
    strict = await ask({"generic_key": "x"}, {"user": "acme"}, domain="strict")
    assert codes(strict) == (OVER, [OVER, SKIPPED])
    assert headers(strict) == {}
    assert await ask.used() == 1
    only = await ask({"generic_key": "x"})
    assert (codes(only), headers(only)) == ((OK, [OK]), {})


async def test_what_a_sender_makes_up_is_refused_instead_of_a_fault(ask: Asker) -> None:
    """A fault lets pass where `failure_mode_deny` is false."""
    for entries in (
        {"user": "nobody"},
        {"user": ""},
        {"user": "x" * 200},
        {"user": "acme", "of": "nothing"},
        {"user": "acme", "of": "seats"},
        {"user": "acme", "of": "flags"},
        {"user": "acme", "sent": "-5"},
        {"user": "acme", "sent": str(2**53)},
        {"user": "acme", "id": "x" * 300},
    ):
        answer = await ask(entries, {"user": "acme"})
        assert codes(answer)[0] == OVER, entries
        assert answer.statuses[0].code == OVER, entries
        assert "retry-after" not in headers(answer)
    assert codes(await ask({"user": "acme"}, {"user": "globex"}))[0] == OVER, "two accounts"
    assert codes(await ask(described(user="acme", hits=2**64 - 1)))[0] == OVER
    assert await ask.used() == 0
    answer = await ask({"user": "acme", "of": "endless"}, hits=2**32 - 1)
    assert codes(answer) == (OK, [OK])
    assert not answer.statuses[0].HasField("current_limit"), "nothing limits it"


async def test_somebody_unknown_passes_where_the_rule_says_so(ask: Asker) -> None:
    answer = await ask({"guest": "nobody"}, {"user": "acme"})
    assert codes(answer) == (OK, [OK, OK])
    assert await ask.used() == 1
    assert codes(await ask({"guest": "acme"})) == (OK, [OK])
    assert await ask.used() == 2
    assert ask.outcomes == ["unknown", "decided", "decided"]


async def test_what_the_rules_have_wrong_is_a_fault(ask: Asker) -> None:
    for value, reason in (("typo", "UNKNOWN_CUSTOMER"), ("feature", "UNKNOWN_FEATURE")):
        with pytest.raises(NotFoundError) as unknown:
            await ask({"fixed": value})
        assert unknown.value.reason == reason
    with pytest.raises(InvalidRequestError) as misused:
        await ask({"fixed": "seats"})
    assert misused.value.reason == "MODE_NOT_SUPPORTED"


async def test_what_cannot_be_honoured_is_a_fault(ask: Asker) -> None:
    limited = described(user="acme")
    limited.limit.SetInParent()
    back = described(user="acme")
    back.is_negative_hits = True
    many = [described(user="acme")] * 257
    for descriptors in ([], [limited], [back], [RateLimitDescriptor()], many):
        with pytest.raises(InvalidRequestError) as refused:
            await ask(*descriptors)
        assert refused.value.reason == "BAD_DESCRIPTOR"
    assert await ask.used() == 0


async def test_a_domain_belongs_to_a_tenant(ask: Asker) -> None:
    other = Caller("other", "k", "admin")
    assert codes(await ask({"user": "acme"}, caller=other)) == (OK, [OK]), "no rule there"
    for caller, domain in ((other, "strict"), (DEMO, "none"), (DEMO, "")):
        with pytest.raises(NotFoundError) as unknown:
            await ask({"user": "acme"}, domain=domain, caller=caller)
        assert unknown.value.reason == "UNKNOWN_DOMAIN"
    assert await ask.used() == 0


async def test_a_request_that_is_sent_again_is_counted_once(ask: Asker) -> None:
    for _ in range(3):
        answer = await ask({"user": "acme", "id": "r-1"}, hits=4)
        assert codes(answer) == (OK, [OK])
        assert answer.statuses[0].limit_remaining == 1, "the original answer"
    assert await ask.used() == 4
    assert codes(await ask({"user": "acme", "id": "r-1"}, hits=1)) == (OVER, [OVER])
    assert codes(await ask({"user": "acme", "id": "r-2"}, hits=1)) == (OK, [OK])
    assert await ask.used() == 5


async def test_a_supply_of_several_parts_is_told_as_a_whole(ask: Asker) -> None:
    (status,) = (await ask({"user": "acme", "of": "mixed"}, hits=2)).statuses
    assert (status.current_limit.requests_per_unit, status.limit_remaining) == (8, 6)
    assert (status.current_limit.name, status.current_limit.unit) == ("monthly", Limit.UNKNOWN)
    assert codes(await ask({"user": "acme", "of": "mixed"}, hits=6)) == (OK, [OK])
    assert codes(await ask({"user": "acme", "of": "mixed"})) == (OVER, [OVER])


async def test_a_limit_beyond_what_can_be_told_is_told_as_the_largest(ask: Asker) -> None:
    answer = await ask({"user": "acme", "sent": "40"})
    (status,) = answer.statuses
    assert status.current_limit.requests_per_unit == status.limit_remaining == 2**32 - 1
    assert headers(answer)["x-ratelimit-remaining"] == "9007199254739960"


async def test_while_the_counters_are_away_it_is_a_fault(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> None:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(ask.service.store, "decide", away)
    for descriptors in ([{"user": "acme"}], [{"user": "acme"}] * 2):
        with pytest.raises(StoreUnavailableError):
            await ask(*descriptors)
    # Nothing is asked of the counters here.
    assert codes(await ask({"generic_key": "x"})) == (OK, [OK])


async def test_what_comes_again_is_neither_parsed_nor_mapped(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that an Envoy's questions leave unseen costs them twice as much, and nothing else would tell."""
    domains = parse_domains(
        MAPPING.replace(
            'idempotency_key: "{id}", dimensions: {id: "{id}"}', 'idempotency_key: "{id}"'
        ),
        "mapping.yaml",
    )
    ask.limits = RateLimits(ask.limits._gateway, domains, ask.outcomes.append)
    before = [await ask({"user": "globex", "id": f"{number}"}) for number in range(10, 15)]

    def unseen(*_: Any) -> Any:
        raise AssertionError("it was looked at")

    monkeypatch.setattr("enforcer.gateway.ratelimit.parsed", unseen)
    monkeypatch.setattr(Gateway, "_asked", unseen)
    after = [await ask({"user": "globex", "id": f"{number}"}) for number in range(15, 20)]
    left = [one.statuses[0].limit_remaining for one in [*before, *after]]
    assert left == list(range(99, 89, -1))
    assert headers(after[-1])["x-ratelimit-remaining"] == "90"
    assert ask.outcomes == ["decided"] * 10
    assert await ask({"user": "globex", "id": "12"}) == before[2], (
        "the same id gets the same answer"
    )
    with pytest.raises(AssertionError, match="looked at"):
        await ask({"user": "acme", "id": "15"})


async def test_a_guest_nobody_knows_is_looked_for_once_a_question(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[str, str]] = []
    resolve = ask.service.definitions.resolve_all

    async def counted(keys: Any) -> Any:
        looked.extend(keys)
        return await resolve(keys)

    monkeypatch.setattr(ask.service.definitions, "resolve_all", counted)
    for number in range(1, 5):
        assert codes(await ask({"guest": "initech"})) == (OK, [OK])
        assert looked == [("demo", "initech")] * number
    assert ask.outcomes == ["unknown"] * 4
    # The same of one that was known, and is not any more.
    await ask.service.apply(CATALOG)
    assert [codes(await ask({"guest": "acme-team"})) for _ in range(3)] == [(OK, [OK])] * 3
    await ask.service.apply(CATALOG.replace("nodes: [{key: acme-team}]", "nodes: []"))
    looked.clear()
    for _ in range(5):
        assert codes(await ask({"guest": "acme-team"})) == (OK, [OK])
    assert ask.outcomes[4:] == ["decided"] * 3 + ["unknown"] * 5
    assert len(looked) == 6, "the first of them by what was known, too"
