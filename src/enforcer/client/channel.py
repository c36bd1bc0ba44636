"""Where the gateway is, and the gRPC channel to it: balanced over all its addresses, healthy ones only."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Final

from enforcer.client.errors import ConfigurationError
from enforcer.client.tls import bare, secured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.client.options import Options

__all__ = ["API_KEY", "ENDPOINT", "api_key_of", "channel_options", "target_of", "wants_tls"]

ENDPOINT: Final = "METERGATE_ENDPOINT"
API_KEY: Final = "METERGATE_API_KEY"

SERVICE_CONFIG: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # An address whose health service says NOT_SERVING, as a draining gateway does, gets no calls.
    "healthCheckConfig": {"serviceName": "enforcer.v1.EnforcerService"},
}
LONGEST_PROBE: Final = 5.0
CONNECT_SECONDS: Final = 5.0

_V4: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}):(\d{1,5})")
_V6: Final = re.compile(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})")
_NAME: Final = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?):(\d{1,5})")
_LAST_PORT: Final = 65535
_ALLOWED: Final = (
    "HOST:PORT is expected, or several addresses IP:PORT of one kind; several gateways behind one "
    "name are all found by that name"
)


def target_of(endpoints: str | Sequence[str] | None) -> str:
    """The gRPC target of one or several addresses; None: those in METERGATE_ENDPOINT, by commas.

    `grpcs://` or `https://` before each of them says that they speak TLS, see `wants_tls`.
    """
    source = "endpoints"
    if endpoints is None:
        endpoints, source = os.environ.get(ENDPOINT, ""), ENDPOINT
    if isinstance(endpoints, str):
        endpoints = endpoints.split(",")
    found = [one.strip() for one in endpoints if one.strip()]
    if not found:
        raise ConfigurationError(f"no gateway is named: {_ALLOWED} (also in {ENDPOINT})")
    if len({secured(one) for one in found}) > 1:
        raise ConfigurationError(f"{source} is {','.join(found)!r}: all of them over TLS, or none")
    found = [bare(one) for one in found]
    if len(found) == 1 and found[0].startswith(("dns:", "unix:", "ipv4:", "ipv6:", "xds:")):
        return found[0]
    for pattern, scheme in ((_V4, "ipv4:"), (_V6, "ipv6:")):
        if all(_matches(pattern, one) for one in found):
            return scheme + ",".join(found)
    if len(found) == 1 and _matches(_NAME, found[0]):
        return f"dns:///{found[0]}"
    raise ConfigurationError(f"{source} is {','.join(found)!r}: {_ALLOWED}")


def wants_tls(endpoints: str | Sequence[str] | None) -> bool:
    """Whether these endpoints, as `target_of` has them, are to be asked over TLS."""
    found = os.environ.get(ENDPOINT, "") if endpoints is None else endpoints
    first = found if isinstance(found, str) else next(iter(found), "")
    return secured(first.strip())


def _matches(pattern: re.Pattern[str], endpoint: str) -> bool:
    address = pattern.fullmatch(endpoint)
    return address is not None and 0 < int(address[2]) <= _LAST_PORT


def api_key_of(api_key: str | None) -> str:
    """The API key; None: the one in METERGATE_API_KEY. It is never shown in an error."""
    found = (os.environ.get(API_KEY, "") if api_key is None else api_key).strip()
    if not found:
        raise ConfigurationError(f"no API key is given: pass api_key or set {API_KEY}")
    if not (found.isascii() and found.isprintable()):
        raise ConfigurationError("the API key has characters that no key has")
    return found


def channel_options(options: Options) -> list[tuple[str, str | int]]:
    """What the channel is opened with."""
    found: list[tuple[str, str | int]] = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        # gRPC would wait up to two minutes before it tries a restarted gateway again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In spite of its name, how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        # Two clients in one process have connections of their own.
        ("grpc.use_local_subchannel_pool", 1),
        # An endpoint is an address; a proxy in the environment is meant for the web.
        ("grpc.enable_http_proxy", 0),
    ]
    if options.keepalive:
        probe = int(min(options.keepalive, LONGEST_PROBE) * 1000)
        found += [
            ("grpc.keepalive_time_ms", int(options.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", probe),
            # What the answer to a probe is really waited for: a minute, if nothing is said.
            ("grpc.http2.ping_timeout_ms", probe),
            # The question about health that stays open counts as a call, so idle connections are probed, too.
            ("grpc.keepalive_permit_without_calls", 0),
        ]
    return found
