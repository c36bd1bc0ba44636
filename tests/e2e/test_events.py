"""Events over HTTP reach the reports of the whole gateway, once, and only their own tenant's."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from enforcer.adapters.definitions.sql import SqlDefinitions
from tests.fixtures.stack import metergate

if TYPE_CHECKING:
    from tests.fixtures.stack import Stack

CATALOG = """
version: 1
features:
  - {key: ev.tokens, event_type: ev-prompt, value_property: $.tokens, group_by: {model: $.model}}
  - {key: ev.prompts, meter: count, event_type: ev-prompt}
accounts:
  - key: sender
    entitlements:
      - {feature: ev.tokens, model: payg, per: month}
      - {feature: ev.prompts, model: payg, per: month}
"""
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def event(number: int, tokens: int, model: str = "gpt-4") -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": str(number),
        "source": "e2e",
        "type": "ev-prompt",
        "subject": "sender",
        "data": {"tokens": tokens, "model": model},
    }


def post(
    stack: Stack, content: Any, kind: str, *, key: str = "", path: str = "/v1/events", **more: str
) -> tuple[int, Any]:
    """Status and what was said; a gateway that asks to come again is asked again."""
    headers = {
        "content-type": kind,
        "authorization": f"Bearer {key or stack.api_key}",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    told = stack.events("ready")[-1]["events"]
    assert told.endswith("/v1/events")
    request = urllib.request.Request(  # noqa: S310 - the stack's own
        told.removesuffix("/v1/events") + path, json.dumps(content).encode(), headers, method="POST"
    )
    give_up = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the stack's own
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = json.loads(error.read())
            if error.code != 503 or time.monotonic() > give_up:
                return error.code, said
            time.sleep(0.2)


async def another_tenant(stack: Stack) -> str:
    """The key of a tenant beside the sample's."""
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{stack.folder / 'definitions.db'}", 8)
    try:
        await definitions.ensure_tenant("rival")
        return await definitions.create_api_key("rival", "admin")
    finally:
        await definitions.close()


def usage(stack: Stack, meter: str, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.json("usage", "--meter", meter, "--customer", "sender", *more)
    return found


def test_events_of_every_mode_reach_the_reports_once(stack: Stack) -> None:
    stack.apply(CATALOG)
    first = event(1, 12)
    # The gateway's two workers may have read what is declared just before.
    give_up = time.monotonic() + 10
    while post(stack, first, STRUCTURED)[0] != 204:
        assert time.monotonic() < give_up
    binary = {f"ce_{name}": value for name, value in event(2, 30).items() if name != "data"}
    batch = [event(3, 100, "small"), event(4, 200, "small"), event(1, 12)]
    for _ in range(3):
        assert post(stack, first, STRUCTURED) == (204, b"")
        assert post(stack, {"tokens": 30, "model": "gpt-4"}, "application/json", **binary)[0] == 204
        assert post(stack, batch, BATCH, path="/api/v1/events")[0] == 204
    status, said = post(stack, [event(5, 1000), event(6, -1)], BATCH)
    assert (status, said["accepted"]) == (422, 1)
    rival = asyncio.run(another_tenant(stack))
    status, said = post(stack, first, STRUCTURED, key=rival)
    assert (status, said["errors"][0]["reason"]) == (422, "UNKNOWN_CUSTOMER")
    audit = stack.json("audit")
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)
    assert usage(stack, "ev.tokens")["total"] == 12 + 30 + 100 + 200 + 1000
    by_model = usage(stack, "ev.tokens", "--group-by", "model")["rows"]
    sums: dict[str, int] = {}
    for row in by_model:
        model = row["dimensions"]["model"]
        sums[model] = sums.get(model, 0) + int(row["quantity"])
    assert sums == {"gpt-4": 1042, "small": 300}
    assert sum(int(row["value"]) for row in usage(stack, "ev.prompts")["rows"]) == 5
    done = metergate(
        "usage", "--meter", "ev.tokens", "--json",
        METERGATE_ENDPOINT=stack.endpoint, METERGATE_API_KEY=rival,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"] == 0
