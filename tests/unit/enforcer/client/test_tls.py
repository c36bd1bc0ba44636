"""Endpoints that speak TLS, and the files that a client needs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from enforcer.client.channel import ENDPOINT, target_of, wants_tls
from enforcer.client.errors import ConfigurationError
from enforcer.client.tls import CA, CERTIFICATE, KEY, credentials_from
from tests.fixtures.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CA, CERTIFICATE, KEY, ENDPOINT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", ["grpcs://", "https://"])
def test_a_scheme_before_an_endpoint_says_tls(scheme: str) -> None:
    assert wants_tls(f"{scheme}gateway.example:443")
    assert target_of(f"{scheme}gateway.example:443") == "dns:///gateway.example:443"
    several = [f"{scheme}10.0.0.1:1", f"{scheme}10.0.0.2:1"]
    assert wants_tls(several)
    assert target_of(several) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    assert not wants_tls("gateway.example:443")


def test_the_environment_says_it_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "grpcs://10.0.0.1:1,grpcs://10.0.0.2:1")
    assert wants_tls(None)
    assert target_of(None) == "ipv4:10.0.0.1:1,10.0.0.2:1"


def test_some_over_tls_and_some_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="all of them over TLS, or none"):
        target_of(["grpcs://10.0.0.1:1", "10.0.0.2:1"])


def test_files_are_found_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "client")
    monkeypatch.setenv(CA, str(authority.write(tmp_path / "ca.pem")))
    monkeypatch.setenv(CERTIFICATE, str(certificate))
    monkeypatch.setenv(KEY, str(key))
    assert isinstance(credentials_from(), grpc.ChannelCredentials)


def test_what_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue(tmp_path, "client")
    _, other = authority.issue(tmp_path, "other")
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ConfigurationError, match=r"other\.key is not the key of .*client\.pem"):
        credentials_from(None, certificate, other)
    with pytest.raises(ConfigurationError, match="nowhere"):
        credentials_from(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="empty: not what is needed"):
        credentials_from(empty)
    monkeypatch.setenv(CERTIFICATE, str(certificate))
    with pytest.raises(ConfigurationError, match=f"{CERTIFICATE} and {KEY}: name both"):
        credentials_from()
    assert key.exists()
