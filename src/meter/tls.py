"""Certificates from files: read together, held against each other, and read again when they have changed.

A new connection has the files as they are now, connections that are open keep what they began with. Files that do not
fit each other, such as a certificate whose key has not come yet, leave everything as it was.
"""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import structlog

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NAMES", "CertificateError", "Certificates", "Material", "TlsFiles"]

_log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
TRIES = 3
"""A file may be replaced while it is read."""


class CertificateError(Exception):
    """Files cannot be used; the message names the setting. No `MeterError`: those load gRPC, which Envoy's parent does not."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


NAMES: Final = (
    "METERGATE_TLS_CERT_FILE",
    "METERGATE_TLS_KEY_FILE",
    "METERGATE_TLS_CLIENT_CA_FILE",
)
"""Settings of what products ask."""


class TlsFiles(NamedTuple):
    """PEM files of one side of TLS, and the settings that name them.

    `certificate`, with what leads to its authority, and its private `key` without a passphrase: a server has both, a
    client both or none. `authorities`: whose certificates are taken from the other side. Without: a server asks for
    none, a client takes those that the system trusts.
    """

    certificate: Path | None
    key: Path | None
    authorities: Path | None = None
    names: tuple[str, str, str] = NAMES

    @property
    def named(self) -> list[tuple[str, Path]]:
        """Those that there are, each with its setting."""
        return [(name, place) for name, place in zip(self.names, self[:3], strict=True) if place]


class Material(NamedTuple):
    """What is in the files."""

    certificate: bytes | None
    key: bytes | None
    authorities: bytes | None


def _refuse_passphrase() -> NoReturn:
    # OpenSSL would ask for it at the terminal.
    raise ValueError("is encrypted: give a key without a passphrase")


class Certificates:
    """The files as they were last whole. Safe to use from several threads.

    Raise `CertificateError`, which names the setting, when they cannot be used at the beginning.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._lock = threading.Lock()
        self._stamp = self._stamped()
        self._material, self._context = self._read()
        self._base = self._context
        self._told = ""

    @property
    def material(self) -> Material:
        """What is in the files, as it was last taken."""
        return self._material

    def renewed(self) -> bool:
        """Look at the files; whether others are used from now on. Never raises: the last ones that fit stay."""
        with self._lock:
            try:
                stamp = self._stamped()
                if stamp == self._stamp:
                    return False
                self._stamp = stamp
                material, context = self._read()
            except (CertificateError, OSError) as error:
                if str(error) != self._told:  # once, not for each handshake
                    self._told = str(error)
                    _log.warning("new certificate not taken, the last one stays", error=self._told)
                return False
            self._told = ""
            changed = material != self._material
            self._material, self._context = material, context
        if changed:
            _log.info("new certificate", files=[str(place) for _, place in self.files.named])
        return changed

    def context(self) -> ssl.SSLContext:
        """For a server of this process: each handshake looks at the files first.

        A certificate is asked for where there are authorities, but not demanded: what needs one says so itself.
        """

        def hello(asking: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            self.renewed()
            asking.context = self._context

        self._base.sni_callback = hello
        return self._base

    def _stamped(self) -> _Stamp:
        found = []
        for setting, place in self.files.named:
            try:
                facts = place.stat()
            except OSError as error:
                raise _unreadable(setting, place, error) from error
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        return tuple(found)

    def _read(self) -> tuple[Material, ssl.SSLContext]:
        for _ in range(TRIES):
            before = self._stamped()
            found = self._bytes()  # first, as it tells which file cannot be read
            context = self._made()
            if self._stamped() == before:
                return found, context
        raise CertificateError(f"{self.files.named[0][0]}: changes while it is read")

    def _bytes(self) -> Material:
        found: dict[Path, bytes] = {}
        for setting, place in self.files.named:
            try:
                found[place] = place.read_bytes()
            except OSError as error:
                raise _unreadable(setting, place, error) from error
        certificate, key, authorities, _ = self.files
        return Material(
            found[certificate] if certificate else None,
            found[key] if key else None,
            found[authorities] if authorities else None,
        )

    def _made(self) -> ssl.SSLContext:
        """OpenSSL's own reading: it says whether a key fits its certificate."""
        files = self.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # Nobody goes on with a session of before a change of certificates or authorities.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if files.certificate is not None and files.key is not None:
            self._load(context, files.certificate, files.key)
        if files.authorities is not None:
            try:
                context.load_verify_locations(files.authorities)
            except ssl.SSLError as error:
                raise CertificateError(
                    f"{files.names[2]}: {files.authorities} has no certificate in PEM"
                ) from error
            except OSError as error:
                raise _unreadable(files.names[2], files.authorities, error) from error
            context.verify_mode = ssl.CERT_OPTIONAL
            context.minimum_version = ssl.TLSVersion.TLSv1_3  # in 1.2 sessions have numbers, too
        return context

    def _load(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        of_certificate, of_key, _ = self.files.names
        try:
            context.load_cert_chain(certificate, key, _refuse_passphrase)
        except ValueError as error:
            raise CertificateError(f"{of_key}: {key} {error}") from error
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise CertificateError(
                    f"{of_key}: {key} is not the key of {certificate}"
                ) from error
            # OpenSSL tells what is wrong, but not in which of the files.
            if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
                why = f"{of_certificate}: {certificate} has no certificate in PEM"
            elif b"PRIVATE KEY-----" not in key.read_bytes():
                why = f"{of_key}: {key} has no private key in PEM"
            else:
                told = error.reason or error
                why = f"{of_certificate}, {of_key}: {certificate} and {key} cannot be used: {told}"
            raise CertificateError(why) from error
        except OSError as error:
            raise _unreadable(of_certificate, certificate, error) from error


def _unreadable(setting: str, place: Path, error: OSError) -> CertificateError:
    return CertificateError(f"{setting}: cannot read {place}: {error.strerror or error}")
