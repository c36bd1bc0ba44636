"""The format of a journal file: a line that names it, then frames of length, checksum and content.

A frame whose end or checksum is wrong was being written when its process or machine died: nobody was answered. What
stands behind it is cut off; where it contains whole frames it may be more than an unfinished end, and is kept.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HEAD", "frame", "frames", "whole_frame_in"]

HEAD = b"metergate journal 1\n"
LONGEST = 1 << 20
_LOOKED_AT = 1 << 16
_PREFIX = struct.Struct("<II")


def frame(content: bytes) -> bytes:
    """Length, checksum, content."""
    return _PREFIX.pack(len(content), crc32(content)) + content


def frames(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The whole frames from `at` on: where each one ends, and its content."""
    while True:
        content = _content(data, at)
        if content is None:
            return
        at += _PREFIX.size + len(content)
        yield at, content


def whole_frame_in(data: bytes, at: int) -> bool:
    """Whether a whole frame begins at `at`, where reading ended, or a little behind it."""
    last = min(len(data), at + _LOOKED_AT)
    return any(_content(data, start) is not None for start in range(at, last))


def _content(data: bytes, at: int) -> bytes | None:
    start = at + _PREFIX.size
    if start > len(data):
        return None
    length, checksum = _PREFIX.unpack_from(data, at)
    if not 0 < length <= min(LONGEST, len(data) - start):
        return None
    content = data[start : start + length]
    return content if crc32(content) == checksum else None
