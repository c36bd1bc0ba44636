"""Certificates are read together, held against each other, and read again when all of them fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meter.tls import CertificateError, Certificates, TlsFiles
from tests.fixtures.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

CERT, KEY, CLIENTS = (
    "METERGATE_TLS_CERT_FILE",
    "METERGATE_TLS_KEY_FILE",
    "METERGATE_TLS_CLIENT_CA_FILE",
)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsFiles:
    return TlsFiles(*authority.issue(tmp_path, "own"), authority.write(tmp_path / "clients.pem"))


def test_files_that_fit_are_read(files: TlsFiles, authority: Authority) -> None:
    found = Certificates(files)
    assert found.material.authorities == authority.pem
    assert b"BEGIN CERTIFICATE" in (found.material.certificate or b"")
    assert b"PRIVATE KEY" in (found.material.key or b"")
    assert not found.renewed()


@pytest.mark.parametrize(
    ("field", "setting"), [("certificate", CERT), ("key", KEY), ("authorities", CLIENTS)]
)
@pytest.mark.parametrize("kind", ["missing", "empty", "a folder"])
def test_a_file_that_cannot_be_used_is_named_with_its_setting(
    files: TlsFiles, field: str, setting: str, kind: str, tmp_path: Path
) -> None:
    place = tmp_path / "wrong"
    if kind == "empty":
        place.touch()
    elif kind == "a folder":
        place.mkdir()
    with pytest.raises(CertificateError) as told:
        Certificates(files._replace(**{field: place}))  # type: ignore[arg-type]  # all of them are paths
    assert told.value.message.startswith(f"{setting}: ")
    assert str(place) in told.value.message


def test_a_key_of_another_certificate_is_told(
    files: TlsFiles, authority: Authority, tmp_path: Path
) -> None:
    _, other = authority.issue(tmp_path, "other")
    with pytest.raises(CertificateError, match=rf"{KEY}: .*other.key is not the key of .*own.pem"):
        Certificates(files._replace(key=other))


def test_a_key_with_a_passphrase_is_told_and_nobody_is_asked_for_it(
    files: TlsFiles, tmp_path: Path
) -> None:
    place = tmp_path / "locked.key"
    place.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    with pytest.raises(CertificateError, match=rf"{KEY}: .* is encrypted"):
        Certificates(files._replace(key=place))


def test_new_files_are_taken_when_both_have_come(
    files: TlsFiles, authority: Authority, tmp_path: Path
) -> None:
    found = Certificates(files)
    before = found.material
    certificate, key = authority.issue(tmp_path, "next")
    assert files.certificate is not None
    assert files.key is not None
    files.certificate.write_bytes(certificate.read_bytes())
    assert not found.renewed()
    assert found.material == before
    files.key.unlink()
    assert not found.renewed(), "a file that is away for a moment changes nothing"
    files.key.write_bytes(key.read_bytes())
    assert found.renewed()
    assert found.material.key == key.read_bytes()
    assert not found.renewed(), "once"


def test_what_was_refused_tells_nothing_of_the_key(files: TlsFiles, tmp_path: Path) -> None:
    place = tmp_path / "broken.key"
    assert files.key is not None
    lines = files.key.read_text().splitlines()
    place.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    with pytest.raises(CertificateError) as told:
        Certificates(files._replace(key=place))
    assert lines[1][:8] not in told.value.message
    assert lines[1][::-1][:8] not in told.value.message
