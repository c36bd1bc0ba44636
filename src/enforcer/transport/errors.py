"""From errors to gRPC statuses: one place for all services.

With `google.rpc.ErrorInfo` (AIP-193), `RetryInfo` where it is known when a retry can help, and `RequestInfo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from enforcer.errors import DOMAIN, MetergateError
from enforcer.transport.calllog import CLIENTS
from meter.core.redact import redacted

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["message_of", "status_of"]

MOST_BYTES = 6_000
"""A status travels in HTTP/2 headers, which peers bound to 8 KiB: the message twice, as text and in the details."""
MOST_COST = 18
"""Of one character: four bytes in UTF-8."""


def _cost(character: str) -> int:
    """Bytes of a character in the headers: percent-encoded in the text, in base64 in the details."""
    size = len(character.encode())
    plain = " " <= character <= "~" and character != "%"
    return (1 if plain else 3 * size) + -(-4 * size // 3)


def _bounded(message: str) -> str:
    """Cut a very long message (a catalog with many issues) at a line, or else where it is full."""
    if MOST_COST * len(message) <= MOST_BYTES:
        return message
    spent = 0
    for place, character in enumerate(message):
        spent += _cost(character)
        if spent > MOST_BYTES:
            lines, _, rest = message[:place].rpartition("\n")
            return f"{lines or rest}\n…"
    return message


def message_of(error: MetergateError) -> str:
    """What clients read. What a store that is away has said may tell where it is, and with which password."""
    return error.message if error.code in CLIENTS else redacted(error.message)


def status_of(error: MetergateError, request_id: str = "") -> status_pb2.Status:
    """The whole status. `request_id` names the call in the server's log."""
    message = _bounded(message_of(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    if pause := error.metadata.get("retry_after_ms"):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(pause))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.code.value, message=message, details=packed)
