"""HTTP: metrics, liveness and readiness for operators, and events for products that send them this way."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from enforcer.errors import MisconfiguredError
from enforcer.transport.connections import Connections, protocol
from enforcer.transport.edge import LARGEST_HEADERS, Edge, certificates_of
from enforcer.transport.headers import Protected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request

    from enforcer.metrics import Metrics
    from meter.health import Health

__all__ = ["HttpServer"]

DRAIN_SECONDS = 10
_PLAIN = Edge()


class _Server(uvicorn.Server):
    """Signals belong to the composition root."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves at `listen`, a port that workers may share. `health` says whether to send calls, and what is missing."""

    def __init__(self, listen: str, metrics: Metrics, health: Health, edge: Edge = _PLAIN) -> None:
        async def show_metrics(_: Request) -> Response:
            return Response(await metrics.text(), media_type=CONTENT_TYPE_LATEST)

        async def live(_: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def ready(_: Request) -> Response:
            fine, page = health.page()
            return JSONResponse(page, status_code=200 if fine else 503)

        async def events(request: Request) -> Response:
            if self.events is None:
                return PlainTextResponse("starting\n", 503, {"retry-after": "1"})
            return await self.events(request)

        self.events: Callable[[Request], Awaitable[Response]] | None = None
        """What answers events; until it is set they are asked to come again."""
        app = Starlette(
            routes=[
                Route("/v1/events", events, methods=["POST"]),
                # Where OpenMeter's clients send them.
                Route("/api/v1/events", events, methods=["POST"]),
                Route("/metrics", show_metrics),
                Route("/healthz", live),
                Route("/readyz", ready),
            ]
        )
        self._connections = Connections(edge.most_connections)
        files = edge.tls
        context = None if files is None else certificates_of(files).context()
        certified = files is not None and files.authorities is not None
        self._server = _Server(
            uvicorn.Config(
                Protected(app, tls=files is not None, certified=certified),
                http=protocol(self._connections),
                ws="none",
                log_config=None,  # its loggers say it as all others do
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                # Who asks is not what a header says.
                proxy_headers=False,
                h11_max_incomplete_event_size=LARGEST_HEADERS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                ssl_context_factory=None if context is None else lambda _, __: context,
            )
        )
        self._socket = _bound(listen)
        self.port: int = self._socket.getsockname()[1]

    async def serve(self) -> None:
        """Until `stop`."""
        await self._server.serve(sockets=[self._socket])

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._connections.open

    def stop(self) -> None:
        """Let `serve` end."""
        self._server.should_exit = True


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        opened.bind((host, int(port)))
    except OSError as error:
        opened.close()
        raise MisconfiguredError(
            f"METERGATE_HTTP_LISTEN: cannot listen on {listen}: {error.strerror}"
        ) from error
    return opened
