"""deploy/compose.yaml: valid by the specification, without a password, and every setting is one that the processes have."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from enforcer.cli.config import faults_of
from tests.fixtures.image import steps
from tests.fixtures.tools import ToolError

if TYPE_CHECKING:
    from tests.fixtures.tools import Tool

DEPLOY = Path(__file__).parents[3] / "deploy"
PROCESSES = {"enforcer": "enforcer", "relay": "meter", "rollup": "meter"}
COMMANDS = {"migrate", "topics", "key"}
STORES = {"valkey", "postgres", "kafka", "clickhouse"}
WATCHERS = {"prometheus", "grafana"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as a user has it, with secrets."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(DEPLOY / "compose.yaml", folder)
    shutil.copy(DEPLOY / "compose_secrets.py", folder)
    subprocess.run([sys.executable, "compose_secrets.py"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def services(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(folder / "compose.yaml")["services"]
    return found


def settings_of(name: str, services: dict[str, Any], folder: Path) -> dict[str, str]:
    """What the processes of a service find: the image's, the service's, and the files of its secrets."""
    of_image = next(
        step.value for step in steps() if step.cmd == "ENV" and "METERGATE_LISTEN" in step.value
    )
    given = dict(zip(of_image[::2], of_image[1::2], strict=True))
    given |= services[name].get("environment", {})
    assert all(isinstance(text, str) for text in given.values()), f"{name}: quote every value"
    secrets = services[name].get("secrets", [])
    given |= {one.upper(): (folder / "secrets" / one).read_text().strip() for one in secrets}
    found = {key: text for key, text in given.items() if key.startswith("METERGATE_")}
    found.pop("METERGATE_SECRETS_DIR", None)
    return found


def test_it_is_valid_by_the_specification(compose_spec: Tool, folder: Path) -> None:
    model = json.loads(compose_spec.run("-format", "json", "compose.yaml", cwd=folder))
    assert model["services"].keys() == {*PROCESSES, *COMMANDS, *STORES, *WATCHERS}
    wrong = (folder / "compose.yaml").read_text().replace("stop_grace_period", "stop_grace")
    (folder / "wrong.yaml").write_text(wrong)
    with pytest.raises(ToolError, match="stop_grace"):
        compose_spec.run("wrong.yaml", cwd=folder)


def test_what_watches_finds_what_it_watches(services: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert len(mounted) == 3
    assert [place for place in mounted if not (DEPLOY / place).is_dir()] == []
    prometheus = YAML(typ="safe").load(DEPLOY / "prometheus" / "prometheus.yml")
    ports = {"enforcer": 8080, "meter": 9464, "relay": 9464}
    assert services["rollup"]["networks"]["stores"]["aliases"] == ["meter"]
    scraped = {
        name: one["port"]
        for job in prometheus["scrape_configs"]
        for one in job.get("dns_sd_configs", [])
        for name in one["names"]
    }
    assert scraped == ports
    sources = DEPLOY / "grafana" / "provisioning" / "datasources"
    urls = [
        one["url"]
        for file in sources.iterdir()
        for one in YAML(typ="safe").load(file)["datasources"]
    ]
    assert urls == ["http://prometheus:9090"]
    assert set(services["prometheus"]["networks"]) & set(services["grafana"]["networks"])


@pytest.mark.parametrize("name", PROCESSES)
def test_the_settings_of_each_process_work_out(
    name: str, services: dict[str, Any], folder: Path
) -> None:
    settings = settings_of(name, services, folder)
    assert len(settings) > 8
    assert [str(fault) for fault in faults_of(settings, [PROCESSES[name]])] == []


def test_processes_agree_on_what_all_have_to_have_alike(
    services: dict[str, Any], folder: Path
) -> None:
    alike = ("BUCKETS", "KAFKA_SERVERS", "KAFKA_PARTITIONS", "REDIS_URL", "INTERNAL_TOKEN")
    for name in alike:
        found = {settings_of(one, services, folder)[f"METERGATE_{name}"] for one in PROCESSES}
        assert len(found) == 1, name
    environment = services["topics"]["environment"]
    for name in ("KAFKA_SERVERS", "KAFKA_PARTITIONS"):
        assert (
            environment[f"METERGATE_{name}"]
            == services["relay"]["environment"][f"METERGATE_{name}"]
        )
    assert faults_of(settings_of("migrate", services, folder), []) == []


def test_no_password_is_in_it_and_what_is_secret_is_read_from_files(folder: Path) -> None:
    text = (folder / "compose.yaml").read_text()
    written = {file.name: file.read_text() for file in (folder / "secrets").iterdir()}
    assert not re.search(r"PASSWORD: |requirepass|://[^/\s]*:[^/\s]*@", text)
    named = set(re.findall(r"file: \./secrets/(\w+)", text))
    assert named == written.keys()
    # Of each store the same in both places.
    user = re.search(r"postgresql\+asyncpg://metergate:(.+)@", written["metergate_database_url"])
    assert user is not None
    assert user[1] == written["postgres_password"].strip()
    assert written["valkey_conf"].split()[1] in written["metergate_redis_url"]
    assert (folder / "secrets").stat().st_mode & 0o077 == 0
    # They stay what they are; a part of them is refused.
    again = [sys.executable, "compose_secrets.py"]
    subprocess.run(again, cwd=folder, check=True)
    assert {file.name: file.read_text() for file in (folder / "secrets").iterdir()} == written
    (folder / "secrets" / "valkey_conf").unlink()
    done = subprocess.run(again, cwd=folder, check=False, capture_output=True, text=True)
    assert (done.returncode, "lacks valkey_conf" in done.stderr) == (1, True)
    (folder / "secrets" / "valkey_conf").write_text(written["valkey_conf"])


def test_nothing_that_runs_is_root_or_reached_from_elsewhere(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert service.get("healthcheck") or name == "enforcer", name
        assert "privileged" not in service
    for name in {*PROCESSES, *COMMANDS}:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert "user" not in services[name]
    for name in STORES:
        assert services[name]["networks"] == ["stores"]
        assert any(volume.startswith(f"{name}:") for volume in services[name]["volumes"])
    assert {name for name in services if ":latest" in str(services[name]["image"])} == set()
    assert os.access(DEPLOY / "Dockerfile", os.R_OK)
