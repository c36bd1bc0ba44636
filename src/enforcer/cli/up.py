"""The command `up`: a whole gateway in one terminal, from an empty folder or on earlier data."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import grpc
import typer

from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.catalog.ratelimit import read_domains
from enforcer.cli import leftovers
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import find_folder
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
)
from enforcer.cli.parts import (
    BUCKETS,
    OWN_CERTIFICATE,
    Plan,
    channel_to,
    database_url,
    socket_folder,
)
from enforcer.cli.supervisor import PartFailedError, Supervisor
from enforcer.cli.terminal import Terminal
from enforcer.errors import CatalogInvalidError, MisconfiguredError
from enforcer.transport.edge import certificates_of
from enforcer.transport.envoy import chosen
from enforcer.v1 import catalog_pb2
from enforcer.v1.catalog_pb2_grpc import CatalogServiceStub
from meter.errors import MeterError
from meter.tls import NAMES, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.cli.folder import DataFolder
    from enforcer.cli.kafka import FolderKafka

__all__ = ["claimed", "default_workers", "sample_catalog", "up"]

TENANT: Final = "demo"
START_SECONDS: Final = 120.0
"""Valkey may have a long file to load, the meter a long queue to roll up."""
MOST_DEFAULT_WORKERS: Final = 8
LAST_PORT: Final = 65535


def default_workers() -> int:
    """One enforcer per core. One Valkey has enough with a few."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_DEFAULT_WORKERS)


def up(  # noqa: PLR0913 - a command's options
    *,
    data_dir: DataDirOption = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=LAST_PORT, help="For gRPC; 0 takes a free one.")
    ] = 50051,
    http_port: Annotated[
        int,
        typer.Option("--http-port", min=0, max=LAST_PORT, help="For HTTP; 0 takes a free one."),
    ] = 8080,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            max=64,
            metavar="NUMBER",
            help="Enforcer processes. Default: one per core, at most 8.",
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            "--transport",
            metavar="auto|envoy|grpcio",
            help="What carries the calls. Default: METERGATE_TRANSPORT, else auto.",
        ),
    ] = None,
    kafka: Annotated[
        str | None,
        typer.Option(
            "--kafka",
            metavar="HOST:PORT[,…]",
            help="Let the records pass through this Kafka; makes its topics there.",
        ),
    ] = None,
    ratelimit: Annotated[
        Path | None,
        typer.Option(
            "--ratelimit",
            metavar="FILE.yaml",
            help="Let Envoys ask, by this mapping file. Default: METERGATE_RATELIMIT_FILE, else none.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a gateway in this terminal until Ctrl-C: Valkey, the meter, and enforcers.

    Exit status 0: ended by Ctrl-C or SIGTERM, 2: a port or the folder is in use, 5: one of its
    processes cannot be kept running.

    The first start in a data folder loads the sample catalog and makes an API key; later starts
    continue on the same data. Prints `ready` when it answers.
    """
    carried, why = _transport(transport or os.environ.get("METERGATE_TRANSPORT") or "auto")
    mapping = _mapping(ratelimit)
    folder = find_folder(data_dir)
    folder.create()
    with folder.locked(), claimed(host, port, http_port) as (grpc_number, http_number):
        plan = Plan(
            folder,
            host,
            grpc_number,
            http_number,
            socket_folder(folder),
            workers or default_workers(),
            folder.secret(folder.internal_token),
            _kafka(folder, kafka),
            carried,
            mapping,
            _tls(),
        )
        if sys.stdout.isatty() and not json:
            # What the parts log passes through here to people; they themselves write to a pipe.
            os.environ.setdefault("METERGATE_LOG_FORMAT", "console")
        terminal = Terminal(as_json=json)
        terminal.say(f"transport    {carried}: {why}")
        try:
            asyncio.run(_Gateway(plan, terminal).run())
        finally:
            terminal.close()


def _transport(wanted: str) -> tuple[str, str]:
    if wanted not in {"auto", "envoy", "grpcio"}:
        raise CommandError(f"--transport is {wanted!r}; choose auto, envoy or grpcio")
    try:
        return chosen(wanted)
    except MisconfiguredError as error:
        raise CommandError(error.message) from error


def _mapping(chosen_file: Path | None) -> Path | None:
    """The mapping file, once it is found to be sound: else the enforcers would fail one by one."""
    named = os.environ.get("METERGATE_RATELIMIT_FILE")
    path = chosen_file or (Path(named) if named else None)
    if path is None:
        return None
    try:
        read_domains(path)
    except CatalogInvalidError as error:
        raise CommandError(error.message) from error
    return path.absolute()


def _kafka(folder: DataFolder, servers: str | None) -> FolderKafka | None:
    """As `folder_kafka`, imported only where there is a Kafka: it takes a sixth of what this program needs to start."""
    if not servers and not folder.kafka.exists():
        return None
    from enforcer.cli.kafka import folder_kafka  # noqa: PLC0415

    return folder_kafka(folder, servers)


def _tls() -> bool:
    """Whether the ports speak TLS, once its files are found to be sound."""
    named = [os.environ.get(name) for name in NAMES]
    if not any(named):
        return False
    certificate, key, clients = (Path(one) if one else None for one in named)
    if certificate is None or key is None:
        raise CommandError(f"{OWN_CERTIFICATE} and METERGATE_TLS_KEY_FILE: set both or none")
    try:
        certificates_of(TlsFiles(certificate, key, clients))
    except MisconfiguredError as error:
        raise CommandError(error.message) from error
    return True


class _Gateway:
    """One run of `up`."""

    def __init__(self, plan: Plan, terminal: Terminal) -> None:
        self._plan, self._terminal = plan, terminal
        self._folder = plan.folder
        self._stop = asyncio.Event()
        self._supervisor: Supervisor

    async def run(self) -> None:
        """Start, wait for the end, stop in order; raise `CommandError` when a part cannot work."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)
        self._supervisor = Supervisor(self._terminal, self._folder.children)
        ended = await asyncio.to_thread(leftovers.end_leftovers, self._folder.children)
        for name, pid in ended:
            self._terminal.say(f"ended {name} (pid {pid}), left over from an earlier start")
        start = asyncio.create_task(self._start())
        stop = asyncio.create_task(self._stop.wait())
        failure = asyncio.create_task(self._supervisor.failure())
        try:
            await asyncio.wait({start, stop, failure}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                await asyncio.wait({stop, failure}, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                raise failure.result()
        except PartFailedError as error:
            self._terminal.say(
                "\n".join((f"{error}; its last lines:", *(f"    {line}" for line in error.lines))),
                event="failed",
                lines=list(error.lines),
            )
            raise CommandError(str(error), Status.INTERNAL) from error
        finally:
            for task in (start, stop, failure):
                task.cancel()
            await asyncio.gather(start, stop, failure, return_exceptions=True)
            self._folder.endpoint.unlink(missing_ok=True)
            await self._stop_all()

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._terminal.say("stopping at once")
            self._supervisor.kill()
            self._terminal.close()
            os._exit(Status.INTERRUPTED)
        self._stop.set()

    async def _start(self) -> None:
        plan, supervisor = self._plan, self._supervisor
        self._terminal.say(f"data folder {self._folder.path}", event="data_folder")
        await supervisor.start(plan.valkey(), within=START_SECONDS)
        key = await self._definitions()
        shutil.rmtree(self._folder.metrics, ignore_errors=True)
        self._folder.metrics.mkdir(mode=0o700)
        if plan.kafka is not None:
            await self._topics(plan.kafka)
            await supervisor.start(plan.relay(), within=START_SECONDS)
        await supervisor.start(plan.meter(), within=START_SECONDS)
        await supervisor.start(*plan.enforcers(), within=START_SECONDS)
        if not self._folder.seeded.exists():
            await self._seed(key)
        self._folder.write_secret(self._folder.endpoint, plan.endpoint)
        http = plan.http_endpoint
        self._terminal.say(f"gRPC         {plan.endpoint}")
        self._terminal.say(f"HTTP         {http} (POST /v1/events, /metrics, /healthz, /readyz)")
        self._terminal.say(f"API key      in {self._folder.api_key}")
        self._terminal.say(
            "ready",
            event="ready",
            endpoint=plan.endpoint,
            http=http,
            events=f"{http}/v1/events",
            api_key_file=str(self._folder.api_key),
            workers=plan.workers,
            transport=plan.transport,
        )

    async def _definitions(self) -> str:
        """Bring the definitions' database up to date; return the API key of the folder."""
        definitions = SqlDefinitions(database_url(self._folder), int(BUCKETS))
        try:
            await definitions.migrate()
            if self._folder.api_key.exists():
                return self._folder.api_key.read_text(encoding="utf-8").strip()
            await definitions.ensure_tenant(TENANT)
            key = await definitions.create_api_key(TENANT, "admin")
        finally:
            await definitions.close()
        self._folder.write_secret(self._folder.api_key, key)
        return key

    async def _topics(self, kafka: FolderKafka) -> None:
        """Make the topics the first time; their number of partitions must be what it was."""
        from meter.adapters.kafka.client import prepare_topics  # noqa: PLC0415 - see _kafka

        try:
            await prepare_topics(kafka.options, create=True)
        except MeterError as error:
            raise CommandError(error.message, Status.UNAVAILABLE) from error
        self._terminal.say(f"Kafka        {kafka.servers}, topic {kafka.topic}")

    async def _seed(self, key: str) -> None:
        """Apply the sample catalog; a start that is cut short before the mark does it again."""
        name, document = sample_catalog()
        async with channel_to(self._plan.endpoint) as channel:
            try:
                await CatalogServiceStub(channel).Apply(
                    catalog_pb2.ApplyRequest(document=document, file_name=name),
                    metadata=(("authorization", f"Bearer {key}"),),
                    timeout=60,
                )
            except grpc.aio.AioRpcError as error:
                raise PartFailedError(
                    f"the sample catalog was refused: {error.details()}"
                ) from error
        self._folder.seeded.touch()
        self._terminal.say("loaded the sample catalog")

    async def _stop_all(self) -> None:
        """Who takes work first, who stores it last: each finds what it needs until it has ended."""
        names = self._supervisor.names
        if not names:
            return
        self._terminal.say("stopping")
        for group in ("enforcer", "relay", "meter", "valkey"):
            await self._supervisor.stop(*(name for name in names if name.startswith(group)))
        self._folder.children.unlink(missing_ok=True)
        # Perhaps among the system's temporary files; the next start makes it again.
        shutil.rmtree(self._plan.sockets, ignore_errors=True)
        self._terminal.say("stopped", event="stopped")


def sample_catalog() -> tuple[str, str]:
    """Name and text of the catalog that a new data folder starts with."""
    packaged = files("enforcer") / "sample-catalog.yaml"
    if packaged.is_file():
        return "sample-catalog.yaml", packaged.read_text(encoding="utf-8")
    # Installed in place: the wheel would have it in the package.
    path = Path(__file__).parents[3] / "deploy" / "sample-catalog.yaml"
    return "deploy/sample-catalog.yaml", path.read_text(encoding="utf-8")


@contextmanager
def claimed(host: str, port: int, http_port: int) -> Iterator[tuple[int, int]]:
    """Find both ports free and hold them; raise `CommandError` for one that is in use.

    They are held by sockets that do not listen, so that nobody else can take one while a worker
    restarts.
    """
    if port and port == http_port:
        raise CommandError(f"--port and --http-port are both {port}; choose two")
    with ExitStack() as held:
        yield _held(held, host, port, "--port"), _held(held, host, http_port, "--http-port")


def _held(stack: ExitStack, host: str, port: int, option: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Alone first: with SO_REUSEPORT a second gateway of this user would share the port in silence.
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(alone, host, port, option)
        number: int = alone.getsockname()[1]
    held = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _bind(held, host, number, option)
    return number


def _bind(opened: socket.socket, host: str, port: int, option: str) -> None:
    try:
        opened.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {port} on {host} is in use; choose another with {option} PORT "
                "(0 takes a free one)"
            ) from error
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address "
            f"with --host or port with {option}"
        ) from error
