"""The enforcer inside Envoy. Imported by Envoy's interpreter alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enforcer import settings as settings_module
from enforcer.app import serve
from enforcer.transport.lifespan import Application
from meter.logs import configure_logs, secrets_in

if TYPE_CHECKING:
    import asyncio

    from enforcer.transport.lifespan import Carry

__all__ = ["application"]


async def _serve(stop: asyncio.Event, carry: Carry) -> None:
    settings = settings_module.load()
    configure_logs(
        settings.log_level,
        form=settings.log_format,
        part="enforcer",
        secrets=secrets_in(settings),
    )
    await serve(settings, stop, carry)


application = Application(_serve)
