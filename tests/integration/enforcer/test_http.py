"""The HTTP server of an enforcer as a library: what it logs goes where everything is logged."""

from __future__ import annotations

import logging

from enforcer.metrics import Metrics
from enforcer.transport.http import HttpServer


def test_its_loggers_have_no_way_out_of_their_own() -> None:
    server = HttpServer("127.0.0.1:0", Metrics(), lambda: (True, "ready"))
    try:
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
            logger = logging.getLogger(name)
            assert not logger.handlers
            assert logger.propagate or name == "uvicorn.access"
    finally:
        server._socket.close()
