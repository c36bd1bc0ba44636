"""How commands end: one line on stderr, a status that tells its kind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from enforcer.cli import main
from enforcer.cli.connection import API_KEY, ENDPOINT
from enforcer.cli.folder import DATA_DIR

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "Missing command"),
        (["chekc"], 2, "Did you mean 'check'"),
        (["check", "a"], 2, "FEATURE"),
        (["check", "a", "b", "--mode", "x"], 2, "'best_effort'"),
        (["check", "a", "b", "--quantity", "0"], 2, "greater than or equal to 1"),
        (["check", "a", "b", "--quantity", "9007199254740992"], 2, "9007199254740991"),
        (["check", "a", "b", "-d", "region"], 2, "NAME=VALUE is expected"),
        (["check", "a", "b", "-d", "r=1", "-d", "r=2"], 2, "names 'r' twice"),
        (["check", "a", "b"], 3, "no gateway found"),
        (["lease", "acquire", "a", "b", "--ttl", "soon"], 2, "such as 90s"),
        (["usage", "--from", "lately"], 2, "ISO 8601"),
        (["usage", "--zone", "Mars/Olympus"], 2, "such as Europe/Berlin"),
        (["usage", "--window", "week"], 2, "'quarter_hour'"),
        (["usage", "--filter", "x"], 2, "NAME=VALUE"),
        (["usage", "--aggregate", "max"], 2, "needs --meter"),
        (["seats", "--by", "team"], 2, "'account'"),
        (["seats", "--from", "lately"], 2, "ISO 8601"),
        (["denials", "--window", "week"], 2, "'quarter_hour'"),
        (["audit"], 3, "no gateway found"),
        (["void", "5-1-17", "-r", "x"], 2, "such as 5/1-17"),
        (["void", "5/1-17"], 2, "--reason"),
        (["amend", "5/1-17", "-1", "-r", "x"], 2, "No such option"),
        (["backfill", "missing.jsonl"], 2, "cannot read missing.jsonl"),
        (["corrections", "--record", "5"], 2, "such as 5/1-17"),
        (["review", "accept", "0", "-r", "x"], 2, "greater than or equal to 1"),
        (["seal", "2026-10"], 3, "no gateway found"),
        (["apply", "missing.yaml"], 3, "no gateway found"),
        (["replay", "missing.csv", "--customers", ","], 2, "--customers is empty"),
        (["replay", "missing.csv", "--speed", "0"], 2, "real, max or a number above 0"),
        (["replay", "missing.csv", "--map", "x"], 2, "COLUMN=FEATURE"),
        (["config", "check", "--process", "relay"], 2, "'enforcer'"),
        (["migrate"], 2, "set METERGATE_DATABASE_URL"),
        (["key", "create", "demo", "--role", "root"], 2, "'admin'"),
        (["key", "create", "demo", "--role", "admin"], 2, "METERGATE_DATABASE_URL is not set"),
        (["health", "relay"], 2, "enforcer or meter is expected"),
        (["health", "meter"], 2, "METERGATE_METER_METRICS_LISTEN is not set"),
        (["health", "--url", "ftp://x/"], 2, "--url has to be like"),
        (["up", "--port", "70000"], 2, "65535"),
        (["up", "--port", "7000", "--http-port", "7000"], 2, "choose two"),
        (["up", "--workers", "0"], 2, "greater than or equal to 1"),
        (["up", "--transport", "http"], 2, "choose auto, envoy or grpcio"),
    ],
)
def test_a_wrong_command_says_what_is_allowed_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str
) -> None:
    assert run(*arguments) == status
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.startswith("metergate: ")
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_help_and_version_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "usage" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("metergate ")


def test_a_fault_of_our_own_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METERGATE_DEBUG", raising=False)
    monkeypatch.setattr("enforcer.cli.audit.find_gateway", lambda _: 1 / 0)
    assert run("audit") == 5
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupted_command_ends_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("enforcer.cli.audit.find_gateway", interrupted)
    assert run("audit") == 130


def test_a_command_imports_neither_databases_nor_kafka_that_it_does_not_need() -> None:
    asked = "import sys; from enforcer.cli.app import _app; _app(['check']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "enforcer.cli.checks" in loaded
    assert not loaded & {"sqlalchemy", "alembic", "aiokafka", "enforcer.cli.up"}
