"""Envoy's part of `Edge`: TLS with certificates that it reads again, and bounds for connections, streams, slow clients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from enforcer.transport.edge import (
    HANDSHAKE_SECONDS,
    HEADER_SECONDS,
    LARGEST_HEADERS,
    UNREAD_SECONDS,
    certificates_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from enforcer.transport.edge import Edge
    from meter.tls import TlsFiles

__all__ = ["Secrets", "guard"]

_TYPES: Final = "type.googleapis.com/envoy.extensions"
_TLS: Final = f"{_TYPES}.transport_sockets.tls.v3"
_OWN, _CLIENTS = "own", "clients"
PROBE_SECONDS: Final = 60
"""A silent connection is asked after so long whether anybody is there, and ended when nobody answers in a third of it."""

WINDOW_UPDATES: Final = 10_000
"""For each frame of data that is sent. gRPC's clients widen a window with nearly every message of a stream that they
send or read, and a thousand answers may travel in one frame: by Envoy's own bound (10) that was a flood, which ended the
connection. Each of them costs less than the check that it comes with."""


class Secrets:
    """Tells an Envoy where its certificates are, and when to read them again.

    Envoy takes note of files that are moved into a folder that it watches, which is here a private one: so certificates
    may be written in place, too, and are taken only when they fit each other. Raise `MisconfiguredError` when they do
    not at the beginning.
    """

    def __init__(self, files: TlsFiles, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._certificates = certificates_of(files)
        self._watched = folder / "certificates"
        self._watched.mkdir(mode=0o700)
        self._write(
            _OWN,
            tls_certificate={
                "certificate_chain": _file(files.certificate),
                "private_key": _file(files.key),
                "watched_directory": {"path": str(self._watched)},
            },
        )
        if files.authorities is not None:
            self._write(
                _CLIENTS,
                validation_context={
                    "trusted_ca": _file(files.authorities),
                    "watched_directory": {"path": str(self._watched)},
                },
            )

    def renew(self) -> None:
        """Let Envoy read them again if they have changed."""
        if self._certificates.renewed():
            new = self._folder / "changed.new"
            new.touch()
            new.replace(self._watched / "changed")

    def socket(self) -> dict[str, Any]:
        """The `transport_socket` of a filter chain."""
        context: dict[str, Any] = {
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [self._source(_OWN)],
        }
        if self._files.authorities is not None:
            context["validation_context_sds_secret_config"] = self._source(_CLIENTS)
        return {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_TLS}.DownstreamTlsContext",
                "common_tls_context": context,
                "require_client_certificate": self._files.authorities is not None,
            },
        }

    def _source(self, name: str) -> dict[str, Any]:
        path = str(self._place(name))
        return {
            "name": name,
            "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"},
        }

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _write(self, name: str, **secret: Any) -> None:
        resource = {"@type": f"{_TLS}.Secret", "name": name, **secret}
        self._place(name).write_text(json.dumps({"resources": [resource]}), encoding="utf-8")


def guard(configuration: dict[str, Any], edge: Edge, secrets: Secrets | None) -> None:
    """Put the bounds of `edge` into Envoy's `configuration`, which has one listener with one filter chain."""
    (listener,) = configuration["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (manager,) = chain["filters"]
    if secrets is not None:
        configuration["node"] = {"id": "enforcer", "cluster": "metergate"}  # SDS asks for one
        chain["transport_socket"] = secrets.socket()
        chain["transport_socket_connect_timeout"] = f"{HANDSHAKE_SECONDS}s"
    manager["typed_config"] |= {
        "server_header_transformation": "PASS_THROUGH",  # nobody needs to know
        "max_request_headers_kb": LARGEST_HEADERS // 1024,
        "request_headers_timeout": f"{HEADER_SECONDS}s",
        "stream_flush_timeout": f"{UNREAD_SECONDS}s",
        "http2_protocol_options": {
            "max_concurrent_streams": edge.most_streams,
            "max_inbound_window_update_frames_per_data_frame_sent": WINDOW_UPDATES,
            "connection_keepalive": {
                "interval": f"{PROBE_SECONDS}s",
                "timeout": f"{PROBE_SECONDS // 3}s",
            },
        },
    }
    configuration["overload_manager"]["resource_monitors"].append(
        {
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": f"{_TYPES}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": edge.most_connections,
            },
        }
    )


def _file(place: Path | None) -> dict[str, str]:
    assert place is not None, "a server has both"
    return {"filename": str(place.absolute())}
