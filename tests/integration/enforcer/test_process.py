"""An enforcer as a process on either transport, over a Valkey that stands still: what waits, and what never runs."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import psutil
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from enforcer.transport.envoy import obstacle
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from tests.chaos.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

AT_ONCE = 40
BATCHES = 4
"""On their way at once; what comes after them waits in the enforcer."""


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture(params=["grpcio", "envoy"])
async def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Deployment]:
    if request.param == "envoy" and (missing := obstacle()):
        pytest.skip(missing)
    settings = {
        "METERGATE_TRANSPORT": request.param,
        "METERGATE_MOST_CALLS": str(AT_ONCE),
        # However slow the machine is, the connection is not given up.
        "METERGATE_STORE_REPLY_SECONDS": "60",
        "METERGATE_STORE_PATIENCE_SECONDS": "60",
    }
    async with Deployment(tmp_path, names="a", **settings) as made:
        yield made


def may_open_many_files(gateway: Deployment) -> bool:
    """They began with as few as is usual."""
    pids = [one.process.pid for one in gateway.processes if one.process is not None]
    found = [psutil.Process(pid) for pid in pids]
    found += [child for one in found for child in one.children()]
    limits = {one.rlimit(psutil.RLIMIT_NOFILE) for one in found}
    return all(soft == most for soft, most in limits)


async def test_what_waits_is_bounded_and_never_runs_after_its_deadline(
    gateway: Deployment,
) -> None:
    assert may_open_many_files(gateway)
    metadata = (("authorization", f"Bearer {gateway.key}"),)
    async with grpc.aio.insecure_channel(gateway.enforcers[0].listen) as channel:
        stub: Any = EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]

        def check(customer: str, key: str, timeout: float = 60) -> Any:
            request = pb.CheckRequest(customer=customer, feature="held", idempotency_key=key)
            return stub.Check(request, metadata=metadata, timeout=timeout)

        async def used(customer: str) -> int:
            request = pb.GetBalanceRequest(customer=customer, feature="held")
            balance = await stub.GetBalance(request, metadata=metadata, timeout=60)
            return sum(limit.used for limit in balance.limits)

        for customer in ("ada", "bob"):
            assert (await check(customer, "first")).allowed
        gateway.valkey.signal(signal.SIGSTOP)
        try:
            sent = []
            for place in range(BATCHES):
                sent.append(check("ada", f"sent-{place}"))
                await asyncio.sleep(0.1)
            late = [failure(check("bob", f"late-{place}", 0.5)) for place in range(10)]
            codes = [error.code() for error in await asyncio.gather(*late)]
            assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 10
            await asyncio.sleep(1)  # A deadline comes to the server as a span: there it ends later.
            waiting = [check("ada", f"waiting-{place}") for place in range(AT_ONCE - BATCHES)]
            await asyncio.sleep(0.5)
            refused = await failure(check("bob", "refused"))
        finally:
            gateway.valkey.signal(signal.SIGCONT)
        assert all(answer.allowed for answer in await asyncio.gather(*sent, *waiting))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(refused)  # type: ignore[arg-type]
        assert status is not None
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.ToMilliseconds() > 0
        assert await used("bob") == 1, "only the first"
        assert await used("ada") == 1 + AT_ONCE
