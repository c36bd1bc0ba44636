"""What every internal call has in common: who calls, for which tenant, and how faults are answered."""

from __future__ import annotations

import hmac
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf import any_pb2
from google.rpc import (  # type: ignore[import-untyped]
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc_status import rpc_status

from meter.errors import DOMAIN, MeterError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

__all__ = ["INTERNAL", "TENANT", "Caller", "faults"]

_log = structlog.get_logger(__name__)

INTERNAL = "x-metergate-internal"
"""Metadata: the deployment's internal token."""
TENANT = "x-metergate-tenant"
"""Metadata: the key of the tenant on whose behalf the enforcer asks."""


class Caller:
    """Tells the enforcer from others by the internal token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def check(self, context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
        """Return the call's metadata. Raise `UnauthenticatedError` unless it has the token."""
        metadata = {
            str(key): value if isinstance(value, str) else value.decode(errors="replace")
            for key, value in context.invocation_metadata() or ()
        }
        if not hmac.compare_digest(metadata.get(INTERNAL, "").encode(), self._token):
            raise UnauthenticatedError("the internal token is missing or wrong")
        return metadata

    def tenant(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """Check the token and return the tenant's key. Raise `UnauthenticatedError` without one."""
        tenant = self.check(context).get(TENANT, "")
        if not tenant:
            raise UnauthenticatedError(f"metadata {TENANT} does not name a tenant")
        return tenant


@asynccontextmanager
async def faults(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Answer errors of the body with a status that carries `google.rpc.ErrorInfo`."""
    failed: MeterError | None = None
    try:
        yield
    except MeterError as error:
        failed = error
        if error.retryable:
            _log.warning(
                "call failed",
                code=error.code.name,
                reason=error.reason,
                error=error.message,
                tenant=_tenant(context),
            )
    except Exception:  # noqa: BLE001  # logged here, answered as INTERNAL without its text
        _log.exception("call failed", code="INTERNAL", tenant=_tenant(context))
        failed = MeterError("internal error")
    if failed is not None:
        abort: Any = context  # the stubs lack abort_with_status
        await abort.abort_with_status(rpc_status.to_status(_status(failed)))


def _tenant(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """On whose behalf somebody says to ask."""
    pairs: Any = context.invocation_metadata() or ()  # the stubs take pairs for something else
    return next((str(value) for name, value in pairs if name == TENANT), "")


def _status(error: MeterError) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    code = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=code, message=error.message, details=[detail])
