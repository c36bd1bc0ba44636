"""Checks as they travel: bytes. What many have in common is serialised once; a key is all that differs.

Written by hand, since making a message for each check, copying it into a batch and serialising that was
a third of what a check cost a client. tests/property/enforcer/client/test_questions.py holds it against protobuf.
"""

from __future__ import annotations

import os
from binascii import hexlify
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcer.client.errors import ConfigurationError
from enforcer.client.results import Mode
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from enforcer.client.results import Check

__all__ = ["Question", "Questions", "packed"]

_ENFORCE: Final = Mode.ENFORCE
MOST_FORMS: Final = 4096
LARGEST_FORM: Final = 1024
"""Bytes. Larger ones are not kept."""
KEY_LENGTH: Final = 32
_ITEM: Final = b"\x0a"
"""The tag of `CheckBatchRequest.items`."""
_KEY: Final = b"\x22"
"""The tag of `CheckRequest.idempotency_key`."""
_OWN_KEY: Final = _KEY + bytes([KEY_LENGTH])
_SEVEN_BITS: Final = 0x7F


class _Form(NamedTuple):
    """An item of a batch up to where its key follows; and where in it the request begins."""

    item: bytes
    start: int


_Same = tuple[str, str, int, int, str, tuple[tuple[str, str], ...]]
"""Customer, feature, quantity, mode, product version, dimensions."""


class Question:
    """A check that is asked: its bytes, until when it matters, and where its answer goes."""

    __slots__ = ("_start", "answered", "deadline", "item", "keyless", "place")

    item: bytes
    keyless: bool
    """Its key, the last of its bytes, is still to be made: it keeps it from then on."""
    answered: asyncio.Future[pb.CheckResponse]
    deadline: float
    place: object
    """Where it was asked, for those who trace calls."""

    def __init__(self, form: _Form, *, keyless: bool) -> None:
        self.item, self._start = form
        self.place = None
        self.keyless = keyless

    @property
    def request(self) -> bytes:
        """A `CheckRequest`."""
        if self.keyless:
            _give_keys([self])
        return self.item[self._start :]

    @property
    def message(self) -> pb.CheckRequest:
        """The same as a message, for those who look into it."""
        return pb.CheckRequest.FromString(self.request)


def packed(questions: Sequence[Question]) -> bytes:
    """A `CheckBatchRequest`."""
    _give_keys([one for one in questions if one.keyless])
    return b"".join([one.item for one in questions])


def _give_keys(questions: Sequence[Question]) -> None:
    """Keys that nobody else has. None is left over, which a forked process or a restored machine could use again."""
    keys = hexlify(os.urandom(KEY_LENGTH // 2 * len(questions)))
    end = 0
    for one in questions:
        begin, end = end, end + KEY_LENGTH
        one.item += keys[begin:end]
        one.keyless = False


class Questions:
    """Makes them, and remembers what is the same in many."""

    def __init__(self) -> None:
        self._forms: dict[_Same, _Form] = {}

    def ask(
        self,
        customer: str,
        feature: str,
        quantity: int,
        key: str | None,
        dimensions: Mapping[str, str] | None,
        mode: Mode,
        product_version: str,
    ) -> Question:
        """One that can travel. Raise `ConfigurationError` for what cannot."""
        # Left out is ENFORCE.
        number = 0 if mode is _ENFORCE else mode.value
        # `1.0` and `True` are equal to 1, but the first is no quantity.
        if not key and mode is not Mode.CHECK_ONLY and type(quantity) is int:
            try:
                parts = tuple(dimensions.items()) if dimensions else ()
                same = (customer, feature, quantity, number, product_version, parts)
                form = self._forms.get(same) or self._keep(same)
            except (
                AttributeError,
                TypeError,
            ) as error:  # what is no mapping, or holds what is no text
                raise _impossible(error) from error
            return Question(form, keyless=True)
        item = _serialised(customer, feature, quantity, number, product_version, dimensions, key)
        if key or mode is Mode.CHECK_ONLY:  # which consumes nothing, and needs no key
            head = _ITEM + _varint(len(item))
            return Question(_Form(head + item, len(head)), keyless=False)
        return Question(_form(item), keyless=True)

    def of(self, check: Check) -> Question:
        """The same."""
        return self.ask(
            check.customer,
            check.feature,
            check.quantity,
            check.key,
            check.dimensions,
            check.mode,
            check.product_version,
        )

    def _keep(self, same: _Same) -> _Form:
        customer, feature, quantity, mode, product_version, parts = same
        form = _form(_serialised(customer, feature, quantity, mode, product_version, dict(parts)))
        if len(form.item) <= LARGEST_FORM:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            self._forms[same] = form
        return form


def _form(fields: bytes) -> _Form:
    head = _ITEM + _varint(len(fields) + len(_OWN_KEY) + KEY_LENGTH)
    return _Form(head + fields + _OWN_KEY, len(head))


def _serialised(
    customer: str,
    feature: str,
    quantity: int,
    mode: int,
    product_version: str,
    dimensions: Mapping[str, str] | None,
    key: str | None = None,
) -> bytes:
    """A `CheckRequest`, without a key if none is given."""
    try:
        return pb.CheckRequest(
            customer=customer,
            feature=feature,
            quantity=quantity,
            idempotency_key=key or "",
            dimensions=dimensions,
            mode=mode,  # type: ignore[arg-type]  # the numbers of the enum
            product_version=product_version,
        ).SerializeToString()
    except (TypeError, ValueError) as error:
        raise _impossible(error) from error


def _impossible(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        "a check has texts for customer, feature, key, dimensions and product_version, and a "
        f"quantity from 1 to 2^53 - 1: {error}"
    )


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > _SEVEN_BITS:
        found.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
