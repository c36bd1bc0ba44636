"""`metergate up`: starts, continues, refuses, ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from enforcer.cli.leftovers import identity
from enforcer.transport.envoy import chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.stack import Stack


def test_a_second_start_continues_on_the_same_data(new_stack: Callable[..., Stack]) -> None:
    first = new_stack().start()
    key = first.api_key
    assert first.json("check", "acme", "api.calls", "--quantity", "7")["granted"] == 7
    assert first.stop() == 0
    second = new_stack().start()
    assert second.api_key == key
    assert second.json("check", "acme", "api.calls", "--quantity", "5")["granted"] == 5
    (row,) = second.json("usage", "--customer", "acme", "--meter", "api.calls")["rows"]
    assert (row["quantity"], row["events"]) == (12, 2)
    second.json("audit")


def test_ctrl_c_ends_everything_in_order(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack("data", "--transport", "grpcio").start()
    assert stack.events("ready")[0]["transport"] == "grpcio"
    pids = stack.pids("")
    assert len(pids) >= 3
    assert stack.stop() == 0
    assert stack.events("stopped")
    assert not stack.events("restart")
    assert not any(identity(pid) for pid in pids)
    done = stack.run("check", "acme", "api.calls")
    assert done.returncode == 3
    assert "metergate up" in done.stderr


def test_a_kill_of_up_ends_everything_and_the_next_start_continues(
    new_stack: Callable[..., Stack],
) -> None:
    first = new_stack().start()
    first.json("check", "acme", "api.calls", "--quantity", "3")
    pids = first.pids("")
    first.signal(signal.SIGKILL)
    first.wait()
    give_up = time.monotonic() + 30
    while any(identity(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not any(identity(pid) for pid in pids)
    second = new_stack().start()
    assert second.json("usage", "--meter", "api.calls")["total"] == 3
    second.json("audit")


def test_a_killed_process_is_started_again(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack().start()
    for part in ("enforcer", "meter", "valkey"):
        (pid, *_) = stack.pids(part)
        os.kill(pid, signal.SIGKILL)
        give_up = time.monotonic() + 90
        while stack.pids(part)[:1] in ([pid], []) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert stack.pids(part)[:1] not in ([pid], [])
    give_up = time.monotonic() + 90
    for command in (("check", "acme", "api.calls"), ("audit",)):
        while stack.run(*command).returncode and time.monotonic() < give_up:
            time.sleep(0.2)
        stack.json(*command)
    assert len(stack.events("restart")) == 3


def test_two_gateways_cannot_share_a_folder(stack: Stack) -> None:
    done = stack.run("up", "--port", "0", "--http-port", "0")
    assert done.returncode == 2
    assert f"in use by another `metergate up` (pid {stack.pid})" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--port", "--http-port"])
def test_a_port_in_use_is_named(new_stack: Callable[..., Stack], option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = new_stack()
        done = stack.run("up", "--port", "0", "--http-port", "0", option, str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use; choose another with {option}" in done.stderr


def test_secrets_are_in_private_files_and_never_printed(stack: Stack) -> None:
    assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700
    for name in ("api-key", "endpoint", "internal-token"):
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600
    printed = "\n".join(stack.lines)
    assert stack.api_key not in printed
    assert (stack.folder / "internal-token").read_text().strip() not in printed


def test_up_takes_envoy_where_it_runs_and_says_why(stack: Stack) -> None:
    transport, why = chosen("auto")
    assert stack.events("ready")[0]["transport"] == transport
    assert any(f"{transport}: {why}" in line for line in stack.lines)
    envoys = [
        child.name() for pid in stack.pids("enforcer") for child in psutil.Process(pid).children()
    ]
    assert envoys == ["envoy"] * len(stack.pids("enforcer")) * (transport == "envoy")


def checks_counted(stack: Stack) -> float:
    """By what one of the workers tells."""
    with urllib.request.urlopen(f"{stack.http}/metrics", timeout=10) as reply:  # noqa: S310
        lines = reply.read().decode().splitlines()
    counted = 'enforcer_rpcs_total{code="OK",method="enforcer.v1.EnforcerService/Check"}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(counted))


def test_each_worker_tells_the_metrics_of_all(stack: Stack) -> None:
    before = checks_counted(stack)
    for _ in range(6):
        stack.json("check", "acme", "api.calls", "--mode", "check_only")
    give_up = time.monotonic() + 20
    while any(checks_counted(stack) < before + 6 for _ in range(6)):
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_a_wrong_key_is_a_matter_of_access(stack: Stack) -> None:
    from tests.fixtures.stack import metergate  # noqa: PLC0415 - the module is a plugin, too

    done = metergate(
        "check",
        "acme",
        "api.calls",
        METERGATE_ENDPOINT=stack.endpoint,
        METERGATE_API_KEY="mg_wrong",
    )
    assert done.returncode == 4
    assert "METERGATE_API_KEY" in done.stderr
    assert "mg_wrong" not in done.stderr


def test_a_process_that_cannot_work_ends_everything_with_its_last_lines(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack()
    stack.environment["METERGATE_METER_FLUSH_RECORDS"] = "many"
    stack.launch()
    assert stack.wait(60) == 5
    (failed,) = stack.events("failed")
    assert "meter" in failed["text"]
    assert any("METERGATE_METER_FLUSH_RECORDS" in line for line in failed["lines"])
    assert stack.events("stopped")
    assert "metergate: meter ended with status 78" in stack.lines
    assert not stack.events("restart")
