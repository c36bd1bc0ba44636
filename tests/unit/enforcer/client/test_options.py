from __future__ import annotations

from typing import Any

import pytest

from enforcer.client import ConfigurationError, Options
from enforcer.client.channel import api_key_of, target_of


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        ("127.0.0.1:50051", "ipv4:127.0.0.1:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[fe80::2]:2"], "ipv6:[::1]:1,[fe80::2]:2"),
        ("gateway.internal:50051", "dns:///gateway.internal:50051"),
        ("localhost:50051", "dns:///localhost:50051"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
        ("dns:///gateway:50051", "dns:///gateway:50051"),
    ],
)
def test_addresses_become_one_target(endpoints: Any, target: str) -> None:
    assert target_of(endpoints) == target


@pytest.mark.parametrize(
    "endpoints",
    [
        "",
        [],
        "localhost",
        "localhost:0",
        "localhost:65536",
        "http://localhost:50051",
        "127.0.0.1:1,[::1]:1",
        ["a.example:1", "b.example:1"],
        "local host:1",
    ],
)
def test_what_is_no_address_is_refused_with_what_is(endpoints: Any) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT is expected"):
        target_of(endpoints)


def test_endpoint_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERGATE_ENDPOINT", "127.0.0.1:7")
    monkeypatch.setenv("METERGATE_API_KEY", " mg_x\n")
    assert target_of(None) == "ipv4:127.0.0.1:7"
    assert api_key_of(None) == "mg_x"
    monkeypatch.delenv("METERGATE_ENDPOINT")
    monkeypatch.delenv("METERGATE_API_KEY")
    with pytest.raises(ConfigurationError, match="METERGATE_ENDPOINT"):
        target_of(None)
    with pytest.raises(ConfigurationError, match="METERGATE_API_KEY"):
        api_key_of(None)


def test_a_key_that_cannot_be_one_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        api_key_of("mg_geheim\nß")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", "5"),
        ("timeout", True),
        ("largest_batch", 257),
        ("largest_batch", 0),
        ("most_in_flight", 1.5),
        ("keepalive", -1),
        ("keepalive", 0.5),
        ("connections", 0),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Options(**{name: value})


def test_keep_alive_can_be_off() -> None:
    assert Options(keepalive=0).keepalive == 0
