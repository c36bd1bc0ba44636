"""Events over real HTTP, over both counter stores: what is answered, what is counted, and what is not."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from enforcer.gateway import Gateway
from enforcer.gateway.events import Events
from enforcer.gateway.programs import Programs
from enforcer.metrics import Metrics
from enforcer.transport.callers import Callers
from enforcer.transport.events import LARGEST_BODY, EventsEndpoint
from enforcer.transport.http import HttpServer
from meter.health import Health
from tests.fixtures.valkey import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.fixtures.gateway import Service

CATALOG = """
version: 1
features:
  - {key: tokens, event_type: prompt, value_property: $.tokens, group_by: {model: $.model}}
  - {key: prompts, meter: count, event_type: prompt}
  - {key: calls}
  - {key: bool}
accounts:
  - key: acme
    entitlements:
      - {feature: tokens, model: quota, limit: 10, per: month}
      - {feature: prompts, model: payg, per: month}
      - {feature: calls, model: payg, per: month}
      - {feature: bool, model: boolean}
"""
ONE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def event(number: str, **fields: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": number,
        "source": "tests",
        "type": "prompt",
        "subject": "acme",
        "data": {"tokens": 12, "model": "gpt-4"},
        **fields,
    }


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    said: Any


class Sender:
    """A product that sends events over HTTP."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self._port = service, port

    async def post(
        self, content: Any, kind: str = ONE, *, key: str | None = "check", **headers: str
    ) -> Answer:
        """Post; what is no bytes as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        every = {"content-type": kind, **{n.replace("_", "-"): v for n, v in headers.items()}}
        if key is not None:
            every["authorization"] = f"Bearer {self.service.keys.get(key, key)}"
        return await asyncio.to_thread(self._post, body, every)

    def _post(self, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("POST", "/v1/events", body, headers)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        if raw:
            assert response.headers["content-type"] == "application/problem+json"
        told = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, told, json.loads(raw) if raw else None)

    async def used(self, feature: str) -> int:
        """What counts against acme's limit."""
        balance = await self.service.door.balance(feature)
        return int(balance.limits[-1].used)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A server that tests may kill."""
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def sender(service: Service) -> AsyncIterator[Sender]:
    await service.apply(CATALOG)
    definitions, store = service.definitions, service.store
    gateway = Gateway(
        store,
        Programs(definitions, store, now_ms=service.clock),
        await definitions.lease_secret(),
    )
    server = HttpServer("127.0.0.1:0", Metrics(), Health())
    serving = asyncio.create_task(server.serve())
    server.events = EventsEndpoint(Events(definitions, gateway), Callers(definitions), Metrics())
    yield Sender(service, server.port)
    server.stop()
    await serving


async def test_one_event_feeds_two_meters_past_their_limits_and_counts_once(sender: Sender) -> None:
    for _ in range(2):
        assert await sender.post(event("1")) == Answer(204, await headers(sender), None)
    assert (await sender.used("tokens"), await sender.used("prompts")) == (12, 1)


async def headers(sender: Sender) -> dict[str, str]:
    """What a 204 carries: nothing that tells of a body."""
    told = (await sender.post([], BATCH)).headers
    assert "content-type" not in told
    return told


async def test_the_three_modes_name_an_event_alike(sender: Sender) -> None:
    sent = event("1")
    binary = {f"ce_{name}": value for name, value in sent.items() if name != "data"}
    answers = [
        await sender.post(sent["data"], "application/json", **binary),
        await sender.post(sent),
        await sender.post([sent, sent], BATCH),
        await sender.post([sent], "application/json"),
    ]
    assert [answer.status for answer in answers] == [204] * 4
    assert await sender.used("tokens") == 12


async def test_a_type_without_declaration_is_a_feature(sender: Sender) -> None:
    data = {"quantity": 5, "dimensions": {"region": "eu"}}
    assert (await sender.post(event("1", type="calls", data=data))).status == 204
    assert (await sender.post(event("2", type="calls", data=None))).status == 204
    assert await sender.used("calls") == 6


async def test_a_batch_tells_what_it_refused_and_records_the_rest(sender: Sender) -> None:
    old = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    batch = [
        event("ok"),
        event("none", type="unknown"),
        event("part", data={"tokens": 1.5}),
        event("who", subject="nobody"),
        event("old", time=old),
        event("version", specversion="0.3"),
        event("yes", type="bool", data=None),
        event("zero", data={"tokens": 0}),
    ]
    for _ in range(2):
        answer = await sender.post(batch, BATCH)
        assert answer.status == 422
        assert (answer.said["status"], answer.said["accepted"]) == (422, 2)
        told = [
            (one["index"], one["id"], one["feature"], one["reason"])
            for one in answer.said["errors"]
        ]
        assert told == [
            (1, "none", "unknown", "UNKNOWN_FEATURE"),
            (2, "part", "tokens", "BAD_QUANTITY"),
            (3, "who", "tokens", "UNKNOWN_CUSTOMER"),
            (3, "who", "prompts", "UNKNOWN_CUSTOMER"),
            (4, "old", "tokens", "BAD_TIME"),
            (4, "old", "prompts", "BAD_TIME"),
            (5, "version", "", "BAD_EVENT"),
            (6, "yes", "bool", "MODE_NOT_SUPPORTED"),
        ]
        assert not any(one["retryable"] for one in answer.said["errors"])
        assert "data.tokens is 1.5" in answer.said["errors"][1]["message"]
        assert "backfill" in answer.said["errors"][4]["message"]
    assert (await sender.used("tokens"), await sender.used("prompts")) == (12, 2)


async def test_the_same_name_with_another_quantity_is_refused(sender: Sender) -> None:
    assert (await sender.post(event("1"))).status == 204
    answer = await sender.post(event("1", data={"tokens": 13}))
    assert (answer.status, answer.said["errors"][0]["reason"]) == (422, "IDEMPOTENCY_MISMATCH")
    assert await sender.used("tokens") == 12


async def test_a_large_batch_feeds_several_meters(sender: Sender) -> None:
    batch = [event(str(number), data={"tokens": 1}) for number in range(1000)]
    assert (await sender.post(batch, BATCH)).status == 204
    assert (await sender.used("tokens"), await sender.used("prompts")) == (1000, 1000)


async def test_who_sends_is_asked_first(sender: Sender) -> None:
    for key in (None, "wrong"):
        answer = await sender.post(b"not even JSON", key=key)
        assert (answer.status, answer.said["reason"]) == (401, "BAD_API_KEY")
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = await sender.post(event("1"), key="stranger")
    assert (answer.status, answer.said["errors"][0]["reason"]) == (422, "UNKNOWN_CUSTOMER")


async def test_another_tenants_event_of_the_same_name_is_another_event(sender: Sender) -> None:
    catalog = "version: 1\nfeatures: [{key: tokens}]\naccounts:\n- key: acme\n  entitlements:\n"
    await sender.service.apply(
        f"{catalog}  - {{feature: tokens, model: payg, per: month}}\n", key="stranger"
    )
    assert (await sender.post(event("1"))).status == 204
    # The stranger declares no type: the same event is a feature that it does not have.
    answer = await sender.post(event("1"), key="stranger")
    assert answer.said["errors"][0]["reason"] == "UNKNOWN_FEATURE"
    assert (await sender.post(event("1", type="tokens"), key="stranger")).status == 204
    assert await sender.used("tokens") == 12


@pytest.mark.parametrize(
    ("content", "kind", "status", "reason"),
    [
        (b"{", ONE, 400, "BAD_JSON"),
        (b"[" * 100_000, ONE, 400, "BAD_JSON"),
        (b"{}", "text/plain", 415, "BAD_CONTENT_TYPE"),
        (b"[]", ONE, 422, "BAD_EVENT"),
        ([event("1")] * 1001, BATCH, 413, "BAD_BATCH"),
        (b" " * (LARGEST_BODY + 1), ONE, 413, "BODY_TOO_LARGE"),
        (event("1", time="yesterday"), ONE, 422, "BAD_TIME"),
        (event("1", subject="\0"), ONE, 422, "UNKNOWN_CUSTOMER"),
        (event("1", subject="x" * 129), ONE, 422, "BAD_CUSTOMER"),
        (event("1", data={"tokens": 1, "model": "x" * 257}), ONE, 422, "BAD_DIMENSIONS"),
        (event("1" * 10_000, data={}), ONE, 422, "BAD_QUANTITY"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("service", ["memory"], indirect=True)
async def test_each_fault_has_its_status(
    sender: Sender, content: Any, kind: str, status: int, reason: str
) -> None:
    answer = await sender.post(content, kind)
    assert (answer.status, answer.said["reason"]) == (status, reason)


@pytest.mark.parametrize("service", ["memory"], indirect=True)
async def test_compressed_bodies_are_refused(sender: Sender) -> None:
    answer = await sender.post(b"x", content_encoding="gzip")
    assert (answer.status, answer.said["reason"]) == (415, "BAD_CONTENT_TYPE")


@pytest.mark.parametrize("service", ["memory"], indirect=True)
async def test_a_changed_declaration_counts_soon(sender: Sender) -> None:
    assert (await sender.post(event("0"))).status == 204
    await sender.service.apply(
        "version: 1\nfeatures: [{key: tokens, event_type: prompt, value_property: $.n}]"
    )
    give_up = time.monotonic() + 10
    while (await sender.post(event("1", data={"n": 1}))).status != 204:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    assert await sender.used("tokens") == 13


@pytest.mark.parametrize("service", ["redis"], indirect=True)
async def test_while_counters_are_away_senders_are_asked_to_come_again(
    sender: Sender, valkey: ValkeyProcess
) -> None:
    assert (await sender.post(event("1"))).status == 204
    valkey.kill()
    answer = await sender.post([event("2"), event("bad", data={})], BATCH)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    told = {(one["id"], one["reason"]): one["retryable"] for one in answer.said["errors"]}
    assert told["2", "STORE_UNAVAILABLE"]
    assert not told["bad", "BAD_QUANTITY"]
