"""Load tests on a real gateway: low rates, a few seconds, and the check of the sums at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadtests import __main__ as loadtests
from loadtests.result import load
from loadtests.scenarios import CALLS, Options, make

if TYPE_CHECKING:
    from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[2]


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
    assert all(one.seconds > 0 for one in made.processes.values())
    assert "All agree" in (folder / "index.html").read_text()
    assert json.loads((folder / "result.json").read_text())["parameters"]["up"] == "--workers 1"


@pytest.mark.parametrize("scenario", ["seats", "trace"])
def test_the_sums_of_seats_and_of_traces_agree_too(
    scenario: str, stack: Stack, tmp_path: Path
) -> None:
    command = ["run", scenario, "--rate", "20", "--seconds", "2", "--customers", "4"]
    command += ["--hold", "0.6"] if scenario == "seats" else []
    status = loadtests.main([*command, "--data-dir", str(stack.folder), "--results", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    made = load(folder)
    assert (status, made.agreement.findings, made.errors) == (0, [], {})
    if scenario == "seats":
        seats = made.agreement.seats
        assert seats is not None
        assert seats.granted == made.allowed > 0
        assert seats.surely_ms > 0
        # Taken, renewed and given back, or refused.
        assert made.calls == 3 * made.allowed + made.denied
    else:
        assert made.calls == 40
        assert made.agreement.told == made.agreement.reported > 40 * 3


def test_use_that_no_client_was_told_of_is_a_finding(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Somebody else consumes under a name of the run: the totals differ by one."""
    options = Options("tampered", rate=20, seconds=2, customers=3)
    scenario = make("steady", options)
    stack.apply(scenario.catalog())
    assert stack.run("check", scenario.name(1), CALLS).returncode == 0
    monkeypatch.setattr(loadtests, "new_run", lambda: options.run)
    command = ["run", "steady", "--rate", "20", "--seconds", "2", "--customers", "3"]
    status = loadtests.main([*command, "--data-dir", str(stack.folder), "--results", str(tmp_path)])
    assert status == 1
    said = capsys.readouterr().out
    assert f"{scenario.name(1)} {CALLS}: clients were told" in said
    (folder,) = tmp_path.iterdir()
    made = load(folder)
    assert made.agreement.counted == made.agreement.reported == made.agreement.told + 1
    assert "findings" in (folder / "index.html").read_text()


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
