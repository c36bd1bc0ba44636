"""From errors to gRPC statuses with `google.rpc.ErrorInfo` (AIP-193): one place for all services."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from enforcer.errors import DOMAIN, MetergateError

__all__ = ["status_of"]

LONGEST_MESSAGE = 4096
"""A status travels in HTTP/2 headers, which peers bound to 8 KiB."""


def status_of(error: MetergateError) -> status_pb2.Status:
    """The whole status. A very long message (a catalog with many issues) is cut at a line."""
    message = error.message
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE].rpartition("\n")[0] + "\n…"
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    return status_pb2.Status(code=error.code.value, message=message, details=[detail])
