"""Certificates from files: read together, held against each other, and read again when they have changed.

A new connection has the files as they are now, connections that are open keep what they began with. Files that do not
fit each other, such as a certificate whose key has not come yet, leave everything as it was.
"""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import structlog

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CertificateError", "Certificates", "Material", "TlsFiles"]

_log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
TRIES = 3
"""A file may be replaced while it is read."""


class CertificateError(Exception):
    """Files cannot be used; the message names the setting. No `MeterError`: those load gRPC, which Envoy's parent does not."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TlsFiles(NamedTuple):
    """PEM files of a server, or of a client that shows a certificate, and the settings that name them."""

    certificate: Path
    key: Path
    authorities: Path | None = None
    """Whose certificates are taken from the other side. None: for a server, it asks for none."""
    prefix: str = "METERGATE_TLS_"

    @property
    def certificate_setting(self) -> str:
        """Names the file of the certificate and those between it and its authority."""
        return f"{self.prefix}CERT_FILE"

    @property
    def key_setting(self) -> str:
        """Names the file of its private key."""
        return f"{self.prefix}KEY_FILE"

    @property
    def authorities_setting(self) -> str:
        """Names the file of the authorities of clients."""
        return f"{self.prefix}CLIENT_CA_FILE"


class Material(NamedTuple):
    """What is in the files."""

    certificate: bytes
    key: bytes
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
            except CertificateError as error:
                _log.warning("new certificate not taken, the last one stays", error=error.message)
                return False
            changed = material != self._material
            self._material, self._context = material, context
        if changed:
            _log.info("new certificate", file=str(self.files.certificate))
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
        for setting, place in self._named():
            try:
                facts = place.stat()
            except OSError as error:
                raise _unreadable(setting, place, error) from error
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        return tuple(found)

    def _named(self) -> list[tuple[str, Path]]:
        files = self.files
        named = [(files.certificate_setting, files.certificate), (files.key_setting, files.key)]
        if files.authorities is not None:
            named.append((files.authorities_setting, files.authorities))
        return named

    def _read(self) -> tuple[Material, ssl.SSLContext]:
        for _ in range(TRIES):
            before = self._stamped()
            context, found = self._made(), self._bytes()
            if self._stamped() == before:
                return found, context
        raise CertificateError(f"{self.files.certificate_setting}: changes while it is read")

    def _bytes(self) -> Material:
        found = []
        for setting, place in self._named():
            try:
                found.append(place.read_bytes())
            except OSError as error:
                raise _unreadable(setting, place, error) from error
        return Material(found[0], found[1], found[2] if len(found) > 2 else None)  # noqa: PLR2004

    def _made(self) -> ssl.SSLContext:
        """OpenSSL's own reading: it says whether a key fits its certificate."""
        files = self.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(files.certificate, files.key, _refuse_passphrase)
        except ValueError as error:
            raise CertificateError(f"{files.key_setting}: {files.key} {error}") from error
        except ssl.SSLError as error:
            raise CertificateError(self._misfit(error)) from error
        except OSError as error:
            raise _unreadable(files.certificate_setting, files.certificate, error) from error
        if files.authorities is not None:
            try:
                context.load_verify_locations(files.authorities)
            except ssl.SSLError as error:
                raise CertificateError(
                    f"{files.authorities_setting}: {files.authorities} has no certificate in PEM"
                ) from error
            except OSError as error:
                raise _unreadable(files.authorities_setting, files.authorities, error) from error
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _misfit(self, error: ssl.SSLError) -> str:
        files = self.files
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{files.key_setting}: {files.key} is not the key of {files.certificate}"
        # OpenSSL tells what is wrong, but not in which of the files.
        if b"-----BEGIN CERTIFICATE-----" not in files.certificate.read_bytes():
            return f"{files.certificate_setting}: {files.certificate} has no certificate in PEM"
        if b"PRIVATE KEY-----" not in files.key.read_bytes():
            return f"{files.key_setting}: {files.key} has no private key in PEM"
        return (
            f"{files.certificate_setting}, {files.key_setting}: {files.certificate} and {files.key} "
            f"cannot be used: {error.reason or error}"
        )


def _unreadable(setting: str, place: Path, error: OSError) -> CertificateError:
    return CertificateError(f"{setting}: cannot read {place}: {error.strerror or error}")
