"""Protobuf's wire format, for the few messages of which very many are made.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

__all__ = ["SHORT", "VARINTS", "embedded", "varint"]

SHORT: Final = 1 << 14
"""Numbers below have their varint in `VARINTS`."""
VARINTS: Final = [
    bytes((number,)) if number < 1 << 7 else bytes((number & 0x7F | 0x80, number >> 7))
    for number in range(SHORT)
]
_MORE: Final = [bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(SHORT)]
_MASK, _TWO, _THREE, _ALL = SHORT - 1, 1 << 28, 1 << 42, (1 << 64) - 1


def varint(number: int) -> bytes:
    """An int32, int64, uint64, bool or enum; negative ones in their ten bytes."""
    if 0 <= number < SHORT:
        return VARINTS[number]
    if 0 < number < _TWO:
        return _MORE[number & _MASK] + VARINTS[number >> 14]
    if 0 < number < _THREE:
        return _MORE[number & _MASK] + _MORE[number >> 14 & _MASK] + VARINTS[number >> 28]
    number &= _ALL
    packed = b""
    while number >= SHORT:
        packed += _MORE[number & _MASK]
        number >>= 14
    return packed + VARINTS[number]


def embedded(tag: bytes, message: bytes) -> bytes:
    """A message, text or bytes as a field of another message. `tag`: field number x 8 + 2, as a varint."""
    return tag + varint(len(message)) + message
