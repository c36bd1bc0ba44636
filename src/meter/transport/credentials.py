"""What gRPC's servers need for TLS, from files that may change while they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from meter.tls import Certificates

__all__ = ["server_credentials"]


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Each handshake looks at the files first. Where there are authorities, who has no certificate of theirs is refused."""

    def made() -> grpc.ServerCertificateConfiguration:
        certificate, key, authorities = certificates.material
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def fetch() -> Any:
        """None: as before. Called in threads of gRPC's."""
        return made() if certificates.renewed() else None

    return grpc.dynamic_ssl_server_credentials(
        made(), fetch, require_client_authentication=certificates.files.authorities is not None
    )
