"""The meter's pages for operators: metrics, liveness, readiness.

They are served by threads. Liveness asks the event loop: a process whose loop stands still is not alive, however well
its threads answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from meter.errors import MisconfiguredError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client.registry import Collector

    from meter.health import Health

__all__ = ["Pages"]

LOOP_SECONDS: Final = 5.0
"""A loop that has not come to a question within so long stands still."""
STANDS: Final = f"the event loop has not moved for {LOOP_SECONDS:g} s\n"
_JSON: Final = "application/json"


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Probes come every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Pages:
    """Serves `/metrics`, `/healthz` and `/readyz` at `listen` (`host:port`). Make it on the event loop."""

    def __init__(self, listen: str, registry: Collector, health: Health) -> None:
        loop, metrics = asyncio.get_running_loop(), make_wsgi_app(registry)

        def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            match environ["PATH_INFO"]:
                case "/healthz":
                    moves = _moves(loop)
                    return _text(start, "ok\n" if moves else STANDS, fine=moves)
                case "/readyz":
                    ready, page = health.page()
                    return _text(start, json.dumps(page) + "\n", fine=ready, kind=_JSON)
                case "/metrics" | "/":
                    found: Iterable[bytes] = metrics(environ, start)
                    return found
                case _:
                    start("404 Not Found", [("content-type", "text/plain")])
                    return [b"there are /metrics, /healthz and /readyz\n"]

        host, _, port = listen.rpartition(":")
        try:
            self._server = make_server(host.strip("[]"), int(port), answer, _Server, _Quiet)
        except OSError as error:
            raise MisconfiguredError(
                f"METERGATE_METER_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _text(
    start: StartResponse, text: str, *, fine: bool, kind: str = "text/plain"
) -> Iterable[bytes]:
    start("200 OK" if fine else "503 Service Unavailable", [("content-type", kind)])
    return [text.encode()]


def _moves(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop comes to what it is asked."""
    try:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(LOOP_SECONDS)
    except (TimeoutError, RuntimeError):  # the latter: it is closed
        return False
    return True
