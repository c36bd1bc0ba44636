"""Ports, sockets and workers of a gateway."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from enforcer.cli import up as module
from enforcer.cli.exits import CommandError
from enforcer.cli.folder import DataFolder
from enforcer.cli.parts import LONGEST_SOCKET_FOLDER, Plan, socket_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for ports, option in (((port, 0), "--port"), ((0, port), "--http-port")):
            with (
                pytest.raises(CommandError, match=f"port {port} .*in use.*{option} PORT"),
                module.claimed("127.0.0.1", *ports),
            ):
                pass


def test_a_port_is_held_against_a_second_gateway() -> None:
    with (
        module.claimed("127.0.0.1", 0, 0) as (port, _),
        pytest.raises(CommandError, match="in use"),
        module.claimed("127.0.0.1", port, 0),
    ):
        pass


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CommandError, match="--host"), module.claimed("192.0.2.1", 0, 0):
        pass


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (4, 4), (64, 8)])
def test_there_is_a_worker_per_core_up_to_what_one_store_can_use(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert module.default_workers() == workers


def test_sockets_of_a_long_path_are_elsewhere_and_private(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / ("long" * 30))
    folder.create()
    place = socket_folder(folder)
    try:
        assert len(str(place)) <= LONGEST_SOCKET_FOLDER
        assert place.stat().st_mode & 0o777 == 0o700
        assert socket_folder(folder) == place
        place.chmod(0o755)
        with pytest.raises(CommandError, match="not a private folder"):
            socket_folder(folder)
    finally:
        place.rmdir()


def test_the_sample_catalog_comes_along() -> None:
    name, text = module.sample_catalog()
    assert name.endswith("sample-catalog.yaml")
    assert text


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:7000"),
        ("0.0.0.0", "127.0.0.1:7000"),  # noqa: S104 - what operators write
        ("::", "[::1]:7000"),
        ("::1", "[::1]:7000"),
        ("gateway.example", "gateway.example:7000"),
    ],
)
def test_clients_are_sent_to_an_address_that_they_can_reach(
    tmp_path: Path, host: str, endpoint: str
) -> None:
    plan = Plan(DataFolder(tmp_path), host, 7000, 7001, tmp_path, 1, "token")
    assert plan.endpoint == endpoint
