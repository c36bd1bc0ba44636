"""Protobuf's wire format, for the few messages of which very many are made.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

__all__ = ["SHORT", "VARINTS", "embedded", "items_of", "question_of", "varint"]

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


def items_of(message: bytes) -> list[bytes] | None:
    """The items of a message that has nothing but a `repeated` field 1 of messages; None for any other."""
    found: list[bytes] = []
    at, size = 0, len(message)
    try:
        while at < size:
            length, begin = message[at + 1], at + 2
            if message[at] != 0x0A:  # noqa: PLR2004 - the tag of field 1
                return None
            if length > 0x7F:  # noqa: PLR2004 - a varint goes on
                length, begin = length & 0x7F | message[at + 2] << 7, at + 3
                if length >= SHORT:
                    return None
            at = begin + length
            found.append(message[begin:at])
    except IndexError:
        return None
    return found if at == size else None


def question_of(message: bytes) -> tuple[int, bytes] | None:
    """A number in field 1 and a message in field 2, the latter of less than 128 bytes; None for any other message."""
    at, number, shift = 1, 0, 0
    try:
        while (part := message[at]) > 0x7F and shift < 63:  # noqa: PLR2004 - of a varint's bytes
            number |= (part & 0x7F) << shift
            at, shift = at + 1, shift + 7
        number |= part << shift
        begin = at + 3
        if message[0] != 0x08 or message[at + 1] != 0x12:  # noqa: PLR2004 - tags
            return None
        if message[at + 2] != len(message) - begin or len(message) - begin > 0x7F:  # noqa: PLR2004
            return None
    except IndexError:
        return None
    return None if number > _ALL else (number, message[begin:])
