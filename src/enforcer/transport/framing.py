"""gRPC's own part of HTTP/2, without I/O: frames of messages, time limits, percent-encoded texts.

Source: gRPC over HTTP2, https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from google.rpc import status_pb2  # type: ignore[import-untyped]

__all__ = [
    "CODINGS",
    "HEAD",
    "INTERNAL",
    "LONGEST_REQUEST",
    "LONGEST_RESPONSE",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "Frames",
    "WireError",
    "compressed",
    "framed",
    "seconds",
    "sendable",
    "single",
    "status_trailers",
]

HEAD = 5
"""Bytes before each message: whether it is compressed, and its length."""
LONGEST_REQUEST = 8 * 1024 * 1024
LONGEST_RESPONSE = 64 * 1024 * 1024
_HEAD = struct.Struct(">BI")
CODINGS = b"identity,deflate,gzip"
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_UNITS = {
    b"H": 3600.0,
    b"M": 60.0,
    b"S": 1.0,
    b"m": 1e-3,
    b"u": 1e-6,
    b"n": 1e-9,
}
MOST_DIGITS = 8
# All that may stand in `grpc-message` as it is.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 8, 12, 13


class WireError(Exception):
    """The bytes of a request are no messages, or larger ones than are taken. `code`: google.rpc.Code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Frames:
    """Cuts a request into its messages as its bytes come."""

    def __init__(self, coding: bytes | None, longest: int) -> None:
        self._coding, self._longest = coding, longest
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raise `WireError`."""
        buffer = self._buffer
        buffer += data
        found = []
        at = 0
        while len(buffer) - at >= HEAD:
            size = int.from_bytes(buffer[at + 1 : at + HEAD], "big")
            if buffer[at] > 1:
                raise WireError(INTERNAL, "a message begins with a byte that is not 0 or 1")
            if size > self._longest:
                raise _too_large(size, self._longest)
            end = at + HEAD + size
            if len(buffer) < end:
                break
            message = bytes(buffer[at + HEAD : end])
            found.append(self._plain(message) if buffer[at] else message)
            at = end
        del buffer[:at]
        return found

    def end(self) -> None:
        """The request has ended. Raise `WireError` if that is within a message."""
        if self._buffer:
            raise WireError(INTERNAL, "the request ended within a message")

    def _plain(self, message: bytes) -> bytes:
        if self._coding not in _WINDOW:
            coding = (self._coding or b"none")[:40].decode("latin-1")
            raise WireError(UNIMPLEMENTED, f"grpc-encoding {coding!r}: send {CODINGS.decode()}")
        reader = zlib.decompressobj(_WINDOW[self._coding])
        try:
            plain = reader.decompress(message, self._longest + 1)
        except zlib.error as error:
            raise WireError(INTERNAL, f"a message cannot be decompressed: {error}") from error
        if len(plain) > self._longest:
            raise _too_large(len(plain), self._longest)
        if not reader.eof:
            raise WireError(INTERNAL, "a compressed message is cut off")
        return plain


def single(body: bytes) -> bytes | None:
    """The message of a body that is one whole, uncompressed message, as nearly all are; else None."""
    if len(body) >= HEAD:
        packed, size = _HEAD.unpack_from(body)
        if not packed and size == len(body) - HEAD:
            return body[HEAD:]
    return None


def framed(message: bytes) -> bytes:
    """A message as it travels."""
    return _HEAD.pack(0, len(message)) + message


def compressed(message: bytes) -> bytes:
    """A message as it travels with `grpc-encoding: gzip`."""
    writer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[b"gzip"])
    packed = writer.compress(message) + writer.flush()
    return b"\1" + len(packed).to_bytes(4, "big") + packed


def sendable(message: bytes) -> None:
    """Raise `WireError` for an answer that is larger than clients are asked to take."""
    if len(message) > LONGEST_RESPONSE:
        raise WireError(
            RESOURCE_EXHAUSTED,
            f"the answer has {len(message)} bytes, at most {LONGEST_RESPONSE} are sent",
        )


def seconds(timeout: bytes) -> float | None:
    """`grpc-timeout`; None for one that is not understood."""
    digits, unit = timeout[:-1], _UNITS.get(timeout[-1:])
    if unit is None or not digits.isdigit() or len(digits) > MOST_DIGITS:
        return None
    return int(digits) * unit


def status_trailers(status: status_pb2.Status) -> list[tuple[bytes, bytes]]:
    """What ends a call that failed."""
    found = [(b"grpc-status", str(status.code).encode())]
    if status.message:
        found.append((b"grpc-message", quote(status.message, safe=_PLAIN).encode()))
    if status.details:
        packed = b64encode(status.SerializeToString()).rstrip(b"=")
        found.append((b"grpc-status-details-bin", packed))
    return found


def _too_large(size: int, longest: int) -> WireError:
    return WireError(
        RESOURCE_EXHAUSTED, f"a message has {size} bytes or more, at most {longest} are taken"
    )
