"""What the processes of a real gateway log: JSON, ids that users can quote, levels for a time, no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.client import Client
from enforcer.client.errors import NotFoundError
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from tests.fixtures.enforcer_process import EnforcerProcess
from tests.fixtures.meter_process import MeterProcess
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.stack import Stack


TAKEN_PORT = """
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
port = server.add_insecure_port("127.0.0.1:0")
try:
    server.add_insecure_port(f"127.0.0.1:{port}")
except RuntimeError as error:
    print(error)
"""
"""What gRPC's library in C has a word for."""


def logged(stack: Stack) -> list[tuple[str, dict[str, Any]]]:
    """The lines of the processes, each with its part's name."""
    return [
        (str(one["part"]), json.loads(one["line"]))
        for one in stack.events("log")
        if one["line"].startswith("{")
    ]


def wait_for(stack: Stack, wanted: Callable[[dict[str, Any]], bool], parts: set[str]) -> None:
    """Until each of the parts has logged such a line."""
    give_up = time.monotonic() + 30
    while not parts <= (found := {part for part, line in logged(stack) if wanted(line)}):
        assert time.monotonic() < give_up, f"only {found} of {parts}"
        time.sleep(0.05)


def test_a_level_reaches_every_process_and_ends_by_itself(stack: Stack) -> None:
    parts = {"meter", "enforcer-1", "enforcer-2"}
    done = stack.json("log-level", "debug", "--for", "4s")
    assert done["until"]
    assert [one["level"] for one in stack.json("log-level")["levels"]] == ["LOG_LEVEL_DEBUG"]
    wait_for(stack, lambda line: line.get("level_is") == "debug", parts)
    wait_for(
        stack,
        lambda line: (line.get("level_is"), line.get("level_was")) == ("info", "debug"),
        parts,
    )
    assert stack.json("log-level")["levels"] == []
    shown = stack.run("log-level", "debug", "--part", "rollup").stdout.splitlines()
    assert shown[0].split() == ["part", "level", "until"]
    assert shown[1].split()[:2] == ["rollup", "debug"]
    wait_for(stack, lambda line: (line.get("for_seconds") or 0) > 800, {"meter"})
    assert stack.json("log-level", "default", "--part", "rollup") == {}
    assert stack.run("log-level").stdout.startswith("nothing is set")
    refused = stack.run("log-level", "debug", "--for", "25h")
    assert refused.returncode == 2
    assert "1 second to 24 hours" in refused.stderr


def test_a_failed_call_is_found_in_the_log_by_the_id_that_its_client_has(stack: Stack) -> None:
    with grpc.insecure_channel(stack.endpoint) as channel:
        key = ("authorization", f"Bearer {stack.api_key}")
        with pytest.raises(grpc.RpcError) as failed:
            EnforcerServiceStub(channel).Check(
                pb.CheckRequest(customer="nobody", feature="api.calls"),
                metadata=(key, ("x-request-id", "quoted-by-a-user")),
                timeout=20,
            )
    call: Any = failed.value
    status = rpc_status.from_call(call)
    assert status is not None
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.request_id == "quoted-by-a-user"
    wait_for_id(stack, info.request_id, "enforcer.v1.EnforcerService/Check")


def wait_for_id(stack: Stack, name: str, method: str) -> None:
    give_up = time.monotonic() + 20
    while not (found := [one for _, one in logged(stack) if one.get("request_id") == name]):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    (line,) = found
    assert (line["event"], line["tenant"], line["method"]) == ("call failed", "demo", method)
    assert line["seconds"] >= 0
    assert (line["code"], line["part"]) in {
        ("NOT_FOUND", "enforcer"),
        ("INVALID_ARGUMENT", "enforcer"),
    }


async def test_the_python_client_has_the_id_too(stack: Stack) -> None:
    async with Client(stack.endpoint, stack.api_key) as client:
        with pytest.raises(NotFoundError) as failed:
            await client.check("nobody", "api.calls")
    wait_for_id(stack, failed.value.request_id, "enforcer.v1.EnforcerService/Check")


def test_events_over_http_answer_with_the_id(stack: Stack) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{stack.http}/v1/events",
        data=b"no json",
        headers={
            "Authorization": f"Bearer {stack.api_key}",
            "Content-Type": "application/cloudevents+json",
        },
    )
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(request, timeout=20)  # noqa: S310
    problem = json.loads(failed.value.read())
    assert problem["request_id"] == failed.value.headers["x-request-id"]
    wait_for_id(stack, problem["request_id"], "http/events")


def test_no_process_tells_its_secrets_whatever_is_away(tmp_path: Path) -> None:
    """Every store refuses the connection, and every address has a password."""
    secret = "hunter2hunter2hunter2"
    nobody = f"u:{secret}@127.0.0.1:{free_port()}"
    settings = {
        "METERGATE_INTERNAL_TOKEN": secret,
        "METERGATE_REDIS_URL": f"redis://{nobody}/0",
        "METERGATE_DATABASE_URL": f"postgresql+asyncpg://{nobody}/x",
        "METERGATE_METER_DATABASE_URL": f"postgresql+asyncpg://{nobody}/x",
        "METERGATE_CLICKHOUSE_URL": f"http://{nobody}/x",
        "METERGATE_LOG_LEVEL": "debug",
    }
    meter = MeterProcess(tmp_path / "meter", settings["METERGATE_REDIS_URL"], **settings)
    enforcer = EnforcerProcess(tmp_path / "enforcer.log", **settings)
    meter.start()
    enforcer.start()
    try:
        give_up = time.monotonic() + 60
        while '"waiting"' not in meter.log or '"waiting"' not in enforcer.log:
            assert time.monotonic() < give_up, meter.log + enforcer.log
            time.sleep(0.05)
    finally:
        meter.end()
        enforcer.end()
    assert secret not in meter.log + enforcer.log
    assert all(json.loads(line)["event"] for line in (meter.log + enforcer.log).splitlines())


@pytest.mark.parametrize("program", ["enforcer.launch, enforcer.app", "meter.app"])
def test_grpc_says_nothing_past_the_log_unless_it_is_asked_to(program: str) -> None:
    """In a new interpreter: what counts is what a program imports first."""
    unset = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    # The second without the program: that is what it would say.
    for before, asked in ((f"import {program}", {}), ("", {"GRPC_VERBOSITY": "ERROR"})):
        done = subprocess.run(
            [sys.executable, "-c", f"{before}\n{TAKEN_PORT}"],
            env=unset | asked,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Failed to bind" in done.stdout
        assert ("Failed to add port" in done.stderr) is bool(asked)
        assert asked or not done.stderr
