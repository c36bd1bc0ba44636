"""What gRPC needs for TLS, made of files that may change while a process serves or asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from meter.tls import Certificates

__all__ = ["channel_credentials", "server_credentials"]


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Each handshake looks at the files first. Where there are authorities, who has no certificate of theirs is refused."""

    def made() -> grpc.ServerCertificateConfiguration:
        certificate, key, authorities = certificates.material
        assert key is not None, "a server has both"
        assert certificate is not None, "a server has both"
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def fetch() -> Any:
        """None: as before. Called in threads of gRPC's."""
        return made() if certificates.renewed() else None

    return grpc.dynamic_ssl_server_credentials(
        made(), fetch, require_client_authentication=certificates.files.authorities is not None
    )


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """Of a client, as the files were last taken."""
    certificate, key, authorities = certificates.material
    return grpc.ssl_channel_credentials(authorities, key, certificate)
