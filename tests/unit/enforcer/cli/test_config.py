"""Settings are found wrong before a process starts, and the reference says what the classes do."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from enforcer.cli import known, main
from enforcer.cli.reference import reference
from enforcer.settings import load
from meter.settings import load as load_meter

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[4]
TOKEN = "a token of sixteen or more"
FINE = {
    "METERGATE_DATABASE_URL": "postgresql+asyncpg://metergate:hidden@db/definitions",
    "METERGATE_INTERNAL_TOKEN": TOKEN,
}


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("METERGATE_"):
            monkeypatch.delenv(name)
    for name, value in FINE.items():
        monkeypatch.setenv(name, value)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["config", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_reference_is_what_the_classes_have() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), (
        "write it anew: metergate config reference > docs/configuration.md"
    )


def test_every_setting_says_what_it_means() -> None:
    assert [one.name for one in known.known() if not one.meaning] == []
    assert len(known.known()) > 50


def test_every_variable_that_the_source_names_is_in_the_reference() -> None:
    listed = {one.name for one in known.known()} | known.OTHERS.keys()
    named = {
        name
        for file in (ROOT / "src").rglob("*.py")
        for text in ast.walk(ast.parse(file.read_text()))
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        for name in re.findall(r"METERGATE_[A-Z_]*[A-Z]", text.value)
    }
    assert len(named) > 30
    assert named <= listed | {"METERGATE_METER", "METERGATE_KAFKA", "METERGATE_METER_TLS"}


def test_settings_that_work_out_are_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check") == 0
    assert capsys.readouterr().out == "fine for enforcer and meter\n"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"BUCKETS": "0"}, ["METERGATE_BUCKETS: ", "1 to 65,536"]),
        ({"BUCKETS": "many"}, ["METERGATE_BUCKETS: ", "whole number"]),
        ({"TRANSPORT": "http"}, ["METERGATE_TRANSPORT: ", "`auto`, `envoy` or `grpcio`"]),
        ({"REDIS_URL": "localhost"}, ["METERGATE_REDIS_URL: must begin with redis://"]),
        ({"METER_ROLES": "reports"}, ["METERGATE_METER_ROLES: must be rollup, relay"]),
        ({"METER_ROLES": "[1"}, ["METERGATE_METER_ROLES: must be rollup, relay"]),
        ({"METER_ROLES": "relay"}, ["needs METERGATE_KAFKA_SERVERS"]),
        ({"METER_DATABASE_URL": "mysql://x"}, ["METERGATE_METER_DATABASE_URL: must begin with"]),
        ({"CLICKHOUSE_CLUSTER": "a b"}, ["METERGATE_CLICKHOUSE_CLUSTER: must be a cluster's name"]),
        ({"CLICKHOUSE_CLUSTER": "one"}, ["needs a METERGATE_CLICKHOUSE_URL over HTTP"]),
        ({"JOURNAL_KAFKA": "1"}, ["METERGATE_KAFKA_SERVERS: is needed by METERGATE_JOURNAL_KAFKA"]),
        ({"RATELIMIT_FILE": "missing.yaml"}, ["METERGATE_RATELIMIT_FILE: "]),
        ({"KAFKA_SERVER": "a:1"}, ["METERGATE_KAFKA_SERVER: ", "is METERGATE_KAFKA_SERVERS meant?"]),
        ({"LOG_LEVEL": "loud", "MOST_CALLS": "0"}, ["METERGATE_LOG_LEVEL", "METERGATE_MOST_CALLS"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    told: Sequence[str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"METERGATE_{name}", value)
    assert run("check") == 1
    said = capsys.readouterr().out
    for part in told:
        assert part in said
    assert said.count("\n") == len(settings) + 1


def test_a_missing_setting_is_named_for_the_process_that_needs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METERGATE_DATABASE_URL")
    assert run("check", "--json") == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault == {
        "name": "METERGATE_DATABASE_URL",
        "processes": ["enforcer"],
        "message": "is not set (allowed: text, must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://)",
    }
    assert run("check", "--process", "meter") == 0


def test_a_file_stands_in_for_the_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "gateway.env"
    file.write_text(f"# ours\nMETERGATE_INTERNAL_TOKEN={TOKEN}\nMETERGATE_BUCKETS=1024\nPATH=/x\n")
    assert run("check", "--env-file", str(file), "--process", "meter") == 0
    assert run("check", "--env-file", str(file)) == 1
    assert "METERGATE_DATABASE_URL: is not set" in capsys.readouterr().out
    assert os.environ["METERGATE_DATABASE_URL"] == FINE["METERGATE_DATABASE_URL"]
    file.write_text("METERGATE_BUCKETS\n")
    assert run("check", "--env-file", str(file)) == 2
    assert run("check", "--env-file", str(tmp_path / "none")) == 2


def test_secrets_are_read_from_their_folder_and_the_environment_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metergate_internal_token").write_text("of the file, long enough\n")
    (tmp_path / "metergate_database_url").write_text("sqlite+aiosqlite:///of-the-file")
    (tmp_path / "metergate_databas_url").write_text("x")
    monkeypatch.setenv("METERGATE_SECRETS_DIR", str(tmp_path))
    monkeypatch.delenv("METERGATE_INTERNAL_TOKEN")
    for settings in (load(), load_meter()):
        assert settings.internal_token.get_secret_value() == "of the file, long enough"
    assert load().database_url == FINE["METERGATE_DATABASE_URL"]
    assert run("check") == 1
    assert "METERGATE_DATABAS_URL: there is no such setting; is METERGATE_DATABASE_URL meant?" in (
        capsys.readouterr().out
    )
    monkeypatch.setenv("METERGATE_SECRETS_DIR", str(tmp_path / "none"))
    assert run("check") == 2
    assert "METERGATE_SECRETS_DIR: there is no such folder" in capsys.readouterr().err


def test_what_holds_is_shown_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METERGATE_REDIS_URL", "redis+sentinel://app:hidden@a:1,b:2/main")
    monkeypatch.setenv("METERGATE_CLICKHOUSE_URL", "http://:hidden@ch:8123/default")
    monkeypatch.setenv(
        "METERGATE_METER_DATABASE_URL", "postgresql+asyncpg://m:hid@d/en@db/x?password=hidden&a=b"
    )
    monkeypatch.setenv("METERGATE_KAFKA_PASSWORD", "hidden")
    assert run("show", "--json") == 0
    said = capsys.readouterr().out
    assert "hidden" not in said
    assert TOKEN not in said
    shown = {one["name"]: (one["value"], one["from"]) for one in json.loads(said)["settings"]}
    assert shown["METERGATE_REDIS_URL"] == (
        "redis+sentinel://app:***@a:1,b:2/main",
        "environment",
    )
    assert shown["METERGATE_DATABASE_URL"][0] == "postgresql+asyncpg://metergate:***@db/definitions"
    assert (
        shown["METERGATE_METER_DATABASE_URL"][0]
        == "postgresql+asyncpg://m:***@db/x?password=***&a=b"
    )
    assert shown["METERGATE_CLICKHOUSE_URL"][0] == "http://:***@ch:8123/default"
    assert shown["METERGATE_INTERNAL_TOKEN"] == ("***", "environment")
    assert shown["METERGATE_BUCKETS"] == ("8", "default")
