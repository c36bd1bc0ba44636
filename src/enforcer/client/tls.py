"""TLS to a gateway: endpoints that begin with grpcs:// or https://, and PEM files that the environment names.

The files are read when a client is made: one that lives longer than its certificate is made anew.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

import grpc

from enforcer.client.errors import ConfigurationError

__all__ = ["CA", "CERTIFICATE", "KEY", "bare", "credentials_from", "secured"]

CA: Final = "METERGATE_TLS_CA_FILE"
CERTIFICATE: Final = "METERGATE_TLS_CLIENT_CERT_FILE"
KEY: Final = "METERGATE_TLS_CLIENT_KEY_FILE"
_SCHEMES: Final = ("grpcs://", "https://")


def secured(endpoint: str) -> bool:
    """Whether it is to be asked over TLS."""
    return endpoint.startswith(_SCHEMES)


def bare(endpoint: str) -> str:
    """The endpoint without what says so."""
    return endpoint.partition("://")[2].rstrip("/") if secured(endpoint) else endpoint


def credentials_from(
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
) -> grpc.ChannelCredentials:
    """What gRPC needs to know the gateway, and to show a certificate where it asks for one.

    Without an argument: METERGATE_TLS_CA_FILE, METERGATE_TLS_CLIENT_CERT_FILE, METERGATE_TLS_CLIENT_KEY_FILE. No
    authorities named: those of the system. Raise `ConfigurationError`, which names the file.
    """
    authorities = _chosen(ca_file, CA)
    certificate, key = _chosen(cert_file, CERTIFICATE), _chosen(key_file, KEY)
    if (certificate is None) is not (key is None):
        raise ConfigurationError(f"{CERTIFICATE} and {KEY}: name both or none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authorities is not None:
            context.load_verify_locations(authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key, _refuse_passphrase)
        return grpc.ssl_channel_credentials(
            authorities.read_bytes() if authorities else None,
            key.read_bytes() if key else None,
            certificate.read_bytes() if certificate else None,
        )
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(f"{key} is not the key of {certificate}") from error
        named = " and ".join(str(one) for one in (authorities, certificate, key) if one)
        raise ConfigurationError(f"{named}: not what is needed in PEM") from error
    except OSError as error:
        for place in (authorities, certificate, key):
            if place is not None and not os.access(place, os.R_OK):
                raise ConfigurationError(f"cannot read {place}: {error.strerror}") from error
        raise
    except ValueError as error:
        raise ConfigurationError(f"{key} {error}") from error


def _chosen(given: str | Path | None, variable: str) -> Path | None:
    found = given or os.environ.get(variable)
    return Path(found) if found else None


def _refuse_passphrase() -> str:
    # OpenSSL would ask for it at the terminal.
    raise ValueError("is encrypted: give a key without a passphrase")
