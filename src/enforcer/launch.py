"""Starts an enforcer process on the transport that is wanted: `python -m enforcer.launch`.

Where that is Envoy, this process only watches over Envoy, whose interpreter imports everything else: so nothing that takes
long is imported here before it is known.
"""

from __future__ import annotations

import sys

import structlog

from enforcer import settings as settings_module
from enforcer.errors import MisconfiguredError
from enforcer.transport.edge import edge_of
from enforcer.transport.envoy import MISCONFIGURED, chosen, run_envoy
from meter.core.redact import redacted
from meter.logs import configure_logs, secrets_in
from meter.open_files import allow_many_files

__all__ = ["main"]

_log = structlog.get_logger("enforcer.launch")  # also when it is run as a program

APPLICATION = "enforcer.inside:application"
"""What Envoy runs."""


def main() -> int:
    """Run the process; return its exit status: 0, or 78 with one line on stderr for wrong settings."""
    try:
        settings = settings_module.load()
        configure_logs(
            settings.log_level,
            form=settings.log_format,
            part="enforcer",
            secrets=secrets_in(settings),
        )
        allow_many_files()
        transport, why = chosen(settings.transport)
        _log.info("transport", transport=transport, because=why)
        if transport == "envoy":
            return run_envoy(settings.listen, APPLICATION, edge_of(settings))
        from enforcer.app import run  # noqa: PLC0415 - see the module

        run(settings)
    except MisconfiguredError as error:
        sys.stderr.write(f"enforcer: {redacted(error.message)}\n")
        return MISCONFIGURED
    return 0


if __name__ == "__main__":
    sys.exit(main())
