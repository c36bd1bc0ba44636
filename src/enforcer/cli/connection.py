"""The way to a gateway: where it is, who asks, and what its faults mean for a command."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from google.rpc import error_details_pb2  # type: ignore[import-untyped]  # has no stubs
from grpc_status import rpc_status

from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import find_folder
from enforcer.client.errors import ConfigurationError
from enforcer.client.tls import bare, credentials_from, secured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "API_KEY",
    "CHANNEL_OPTIONS",
    "ENDPOINT",
    "Gateway",
    "calling",
    "credentials",
    "failure",
    "find_gateway",
    "reason_of",
]

ENDPOINT = "METERGATE_ENDPOINT"
API_KEY = "METERGATE_API_KEY"

CHANNEL_OPTIONS: Final = [
    # gRPC would wait up to two minutes before it tries a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name, how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # No connection shared through gRPC's global pool: each channel stands for one client.
    ("grpc.use_local_subchannel_pool", 1),
    # An endpoint is an address; a proxy in the environment is meant for the web.
    ("grpc.enable_http_proxy", 0),
]

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_LAST_PORT = 65535

_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: Status.BAD_INPUT,
    grpc.StatusCode.NOT_FOUND: Status.BAD_INPUT,
    grpc.StatusCode.ALREADY_EXISTS: Status.BAD_INPUT,
    grpc.StatusCode.FAILED_PRECONDITION: Status.BAD_INPUT,
    grpc.StatusCode.OUT_OF_RANGE: Status.BAD_INPUT,
    grpc.StatusCode.UNAVAILABLE: Status.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Status.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Status.UNAVAILABLE,
    grpc.StatusCode.ABORTED: Status.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Status.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: Status.NO_ACCESS,
    grpc.StatusCode.PERMISSION_DENIED: Status.NO_ACCESS,
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """Address and API key of a gateway, and where the key came from (never shown itself)."""

    endpoint: str
    api_key: str
    key_source: str
    tls: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.api_key}"),)

    def channel(self) -> grpc.Channel:
        """A way to it, for calls that are waited for."""
        if not self.tls:
            return grpc.insecure_channel(self.endpoint, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(self.endpoint, credentials(), options=CHANNEL_OPTIONS)

    def aio_channel(self) -> grpc.aio.Channel:
        """The same for asyncio."""
        if not self.tls:
            return grpc.aio.insecure_channel(self.endpoint, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.endpoint, credentials(), options=CHANNEL_OPTIONS)


def credentials(ca_file: str | None = None) -> grpc.ChannelCredentials:
    """For TLS, as the environment has them. Raise `CommandError`."""
    try:
        return credentials_from(ca_file)
    except ConfigurationError as error:
        raise CommandError(str(error)) from error


def find_gateway(data_dir: Path | None) -> Gateway:
    """The gateway to ask: by `--data-dir`, else by the environment, else by the data folder."""
    folder = find_folder(data_dir)
    endpoint = "" if data_dir else os.environ.get(ENDPOINT, "")
    api_key = "" if data_dir else os.environ.get(API_KEY, "").strip()
    key_source = API_KEY if api_key else str(folder.api_key)
    endpoint_source = ENDPOINT if endpoint else str(folder.endpoint)
    endpoint = endpoint or folder.read(folder.endpoint)
    api_key = api_key or folder.read(folder.api_key)
    hint = (
        "start a gateway with `metergate up`, name its data folder with --data-dir or "
        f"METERGATE_DATA_DIR, or set {ENDPOINT} and {API_KEY}"
    )
    if not endpoint:
        raise CommandError(f"no gateway found in {folder.path}: {hint}", Status.UNAVAILABLE)
    tls, address = secured(endpoint), bare(endpoint)
    parts = _ADDRESS.fullmatch(address)
    if parts is None or not 0 < int(parts[2]) <= _LAST_PORT:
        raise CommandError(
            f"{endpoint_source} is {endpoint!r}: not an address; HOST:PORT is expected, "
            "such as 127.0.0.1:50051, or grpcs://HOST:PORT for TLS"
        )
    if not api_key:
        raise CommandError(f"no API key found in {folder.path}: {hint}", Status.NO_ACCESS)
    if not (api_key.isascii() and api_key.isprintable()):
        raise CommandError(
            f"the API key in {key_source} has characters that no key has", Status.NO_ACCESS
        )
    return Gateway(address, api_key, key_source, tls)


@contextlib.contextmanager
def calling(gateway: Gateway) -> Iterator[grpc.Channel]:
    """A channel for one command; gRPC errors inside end the command with their meaning."""
    with gateway.channel() as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise failure(error, gateway) from error


def reason_of(error: grpc.RpcError) -> str:
    """`ErrorInfo.reason` of a fault, empty if it has none."""
    info = _detail(error, error_details_pb2.ErrorInfo())
    return str(info.reason) if info else ""


def _detail(error: grpc.RpcError, into: Any) -> Any:
    """The detail of a fault that has the type of `into`; None if it has none."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # reads two methods both have
    except ValueError:
        return None
    for detail in status.details if status is not None else ():
        if detail.Unpack(into):
            return into
    return None


def failure(error: grpc.RpcError, gateway: Gateway) -> CommandError:
    """What a gRPC error means for a command."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    reason = reason_of(error)
    status = _STATUSES.get(code, Status.INTERNAL)
    if reason:
        message = f"{details} [{reason}]"
        if code is grpc.StatusCode.UNAUTHENTICATED:
            message += f"; the key used is the one in {gateway.key_source}"
        request = _detail(error, error_details_pb2.RequestInfo())
        if request and code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE):
            message += f"; in the gateway's log it is {request.request_id}"
    elif code is grpc.StatusCode.UNAVAILABLE:
        message = (
            f"the gateway at {gateway.endpoint} is not reachable ({details}); "
            "is `metergate up` running?"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"the gateway at {gateway.endpoint} did not answer in time; try again"
    else:
        message = f"{details or 'no details'} [{code.name}]"
    return CommandError(message, status)
