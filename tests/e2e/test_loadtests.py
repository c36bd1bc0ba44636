"""Load tests on a real gateway: low rates, a few seconds, and the check of the sums at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enforcer.cli.connection import calling
from enforcer.v1 import catalog_pb2
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.catalog_pb2_grpc import CatalogServiceStub
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from loadtests import __main__ as loadtests
from loadtests.gateway import Target, started
from loadtests.processes import Sender
from loadtests.result import Result, load
from loadtests.scenarios import CALLS, Options, make
from loadtests.told import IN_DOUBT

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A gateway for the runs of this file, whose enforcers may be killed."""
    with started(["--workers", "2"]) as running:
        yield running


def test_a_run_starts_a_gateway_checks_the_sums_and_leaves_json_and_a_page(tmp_path: Path) -> None:
    """As `make loadtest` does it."""
    command = [sys.executable, "-m", "loadtests", "run", "steady", "--rate", "60", "--seconds", "3"]
    command += ["--customers", "20", "--generators", "2", "--up", "--workers 1"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    made = load(folder)
    assert made.agrees
    assert made.calls == made.allowed + made.denied
    # Six standard deviations of a Poisson count around 180.
    assert 100 < made.calls < 260
    assert made.agreement.told == made.agreement.counted == made.agreement.reported == made.allowed
    assert made.denied == made.agreement.denied_reported > 0  # the tight quota was met
    assert made.errors == {}
    assert 0 < made.latency_ms["p50"] <= made.latency_ms["p99"] <= made.latency_ms["max"]
    names = {"enforcer-1", "generator-1", "generator-2", "meter", "valkey"}
    assert set(made.processes) == names
    assert all(one.megabytes for one in made.processes.values())
    # The others may have worked for less than a tick of the system's accounts.
    assert made.processes["meter"].seconds > 0
    assert "All agree" in (folder / "index.html").read_text()
    assert json.loads((folder / "result.json").read_text())["parameters"]["up"] == "--workers 1"


def run(target: Target, results: Path, scenario: str, *words: str) -> tuple[int, Result]:
    """A run on a gateway that is there: its exit status and what it left."""
    command = ["run", scenario, *words, "--data-dir", str(target.folder)]
    status = loadtests.main([*command, "--results", str(results)])
    (folder,) = results.iterdir()
    return status, load(folder)


def test_the_sums_of_seats_agree(target: Target, tmp_path: Path) -> None:
    words = ["--rate", "20", "--seconds", "2", "--customers", "4", "--hold", "0.6"]
    status, made = run(target, tmp_path, "seats", *words)
    assert (status, made.agreement.findings, made.errors) == (0, [], {})
    seats = made.agreement.seats
    assert seats is not None
    assert seats.granted == made.allowed > 0
    assert 0 < seats.surely_ms <= seats.perhaps_ms
    # Taken, renewed and given back, or refused.
    assert made.calls == 3 * made.allowed + made.denied


def test_the_sums_of_a_trace_agree(target: Target, tmp_path: Path) -> None:
    words = ["--rate", "20", "--seconds", "2", "--customers", "4"]
    status, made = run(target, tmp_path, "trace", *words)
    assert (status, made.agreement.findings, made.errors) == (0, [], {})
    assert made.calls == 40
    assert made.agreement.told == made.agreement.reported > 40 * 3


def test_users_of_locust_agree_too(target: Target, tmp_path: Path) -> None:
    """Headless, in a process of its own: here nothing is patched."""
    words = ["--tool", "locust", "--users", "4", "--rate", "20", "--seconds", "3"]
    status, made = run(target, tmp_path, "steady", *words, "--customers", "4")
    assert (status, made.agreement.findings, made.errors) == (0, [], {})
    # Users that wait for their answers do the rate at most.
    assert 10 <= made.calls == made.allowed <= 64
    assert (made.tool, made.parameters["users"]) == ("locust", 4)
    assert made.processes["generator"].megabytes
    assert "locust" not in sys.modules
    assert "gevent" not in sys.modules


def test_sums_agree_when_the_enforcers_are_killed_under_load(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls without an answer are asked again under their keys: each counts once."""

    def kill() -> None:
        for name, pid in target.pids().items():
            if name.startswith("enforcer"):
                os.kill(pid, signal.SIGKILL)

    begin = Sender.begin

    def begin_and_kill(sender: Sender, moment: float) -> None:
        begin(sender, moment)
        threading.Timer(1.0, kill).start()

    monkeypatch.setattr(Sender, "begin", begin_and_kill)
    words = ["--rate", "150", "--seconds", "3", "--customers", "4"]
    status, made = run(target, tmp_path, "hotkey", *words)
    assert (status, made.agreement.findings) == (0, [])
    assert made.errors
    assert made.errors.keys() <= IN_DOUBT
    assert made.agreement.asked_again >= sum(made.errors.values())
    assert made.agreement.told == made.allowed + sum(made.errors.values())


def test_use_that_no_client_was_told_of_is_a_finding(
    target: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody else consumes under a name of the run: the totals differ by one."""
    options = Options("tampered", rate=20, seconds=2, customers=3)
    scenario = make("hotkey", options)
    with calling(target.gateway) as channel:
        CatalogServiceStub(channel).Apply(
            catalog_pb2.ApplyRequest(document=scenario.catalog(), file_name="load.yaml"),
            metadata=target.gateway.metadata,
            timeout=60,
        )
        answer = EnforcerServiceStub(channel).Check(
            pb.CheckRequest(customer=scenario.name(1), feature=CALLS),
            metadata=target.gateway.metadata,
            timeout=60,
        )
    assert answer.allowed
    monkeypatch.setattr(loadtests, "new_run", lambda: options.run)
    words = ["--rate", "20", "--seconds", "2", "--customers", "3"]
    status, made = run(target, tmp_path, "hotkey", *words)
    assert status == 1
    assert f"{scenario.name(1)} {CALLS}: clients were told" in capsys.readouterr().out
    assert made.agreement.counted == made.agreement.reported == made.agreement.told + 1
    (page,) = tmp_path.glob("*/index.html")
    assert "findings" in page.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "scenario 'nonsense' is unknown"),
        ([], "which SCENARIO? There are steady"),
        (["steady", "--rate", "0"], "'--rate': Input should be greater than or equal to 0.1"),
        (["steady", "--rate", "fast"], "'--rate': Input should be a valid number"),
        (
            ["steady", "--seconds", "7200"],
            "'--seconds': Input should be less than or equal to 3600",
        ),
        (["steady", "--batch", "5"], "steady does not heed --batch; batch does"),
        (["seats", "--trace", "x.csv"], "seats does not heed --trace; trace does"),
        (["trace", "--trace", "none.csv"], "none.csv is not a regular file"),
        (["steady", "--rate", "200000", "--seconds", "3600"], "more than 100,000,000 calls"),
        (["steady", "--ui", "8089"], "--tool open does not heed --ui"),
        (["steady", "--tool", "locust", "--spacing", "even"], "--tool locust does not heed"),
        (
            ["steady", "--tool", "wrk"],
            "'--tool': Value error, 'wrk' is not one of 'open', 'locust'",
        ),
        (["steady", "--endpoint", "192.0.2.1:50051"], "--elsewhere says that this one may be"),
        (["steady", "--endpoint", "127.0.0.1"], "HOST:PORT is expected"),
        (["steady", "--endpoint", "127.0.0.1:1", "--up", "--workers 1"], "name a running one"),
    ],
)
def test_bad_arguments_are_told_and_start_nothing(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METERGATE_API_KEY", "mg_none")
    assert loadtests.main(["run", *words, "--results", str(tmp_path / "results")]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "results").exists()


def test_an_address_needs_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("METERGATE_API_KEY", raising=False)
    assert loadtests.main(["run", "steady", "--endpoint", "127.0.0.1:1"]) == 4
    assert "METERGATE_API_KEY" in capsys.readouterr().err
