"""Who asks whether to send calls here, and who watches, when a process is about to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2 as pb

from enforcer.transport.health import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STATUS = pb.HealthCheckResponse


async def asked(*requests: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckRequest]:
    for request in requests:
        yield request


def watch(health: Health) -> Any:
    (_, method) = health.methods()
    answer: Any = method.answer
    return answer(None, asked(pb.HealthCheckRequest()))


async def test_who_watches_goes_on_until_told_and_who_asks_anew_is_sent_away() -> None:
    health = Health(["enforcer.v1.EnforcerService"])
    health.turn(serving=True)
    watched = watch(health)
    assert (await anext(watched)).status == STATUS.SERVING
    waiting = asyncio.ensure_future(anext(watched))
    await asyncio.sleep(0)
    health.leave()
    assert health.ended.is_set()
    assert [answer.status async for answer in watch(health)] == [STATUS.NOT_SERVING]
    health.turn(serving=True)  # it does not come back
    assert not health.serving
    assert not waiting.done()
    health.end()
    assert (await waiting).status == STATUS.NOT_SERVING
    assert [answer async for answer in watched] == []
