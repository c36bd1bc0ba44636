"""What an event of elsewhere says about usage: which meters it feeds, with how much, by which dimensions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from enforcer.core.model import MAX_QUANTITY

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DECLARED_BY_ITSELF", "EventMeter", "Measured", "Unmeasurable", "measure", "path_of"]

_PATH = re.compile(r"\$(?:\.[A-Za-z0-9_-]{1,64}){0,8}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,400}(?:\.[0-9]{0,400})?(?:[eE][+-]?[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class EventMeter:
    """How events of a type feed a feature's meter.

    `value` is where the event's data has the quantity, as `path_of` gives it; None: each event counts 1. `dimensions`
    are names with such places. `sums`: an event with the quantity 0 changes nothing, and may be left out.
    """

    feature: str
    event_type: str
    value: tuple[str, ...] | None
    dimensions: tuple[tuple[str, tuple[str, ...]], ...]
    sums: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What an event adds to a feature. The quantity 0 only where it changes nothing."""

    feature: str
    quantity: int
    dimensions: dict[str, str]


class Unmeasurable(ValueError):  # noqa: N818 - says what the data is
    """The data has not what the meter needs. `reason` is one of `enforcer.errors.REASONS`."""

    def __init__(self, reason: str, feature: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.feature, self.message = reason, feature, message


DECLARED_BY_ITSELF = "quantity", "dimensions"
"""Fields of the data that are read where no meter declares the event's type: the type is then the feature."""


def path_of(text: str) -> tuple[str, ...] | None:
    """A place such as `$.usage.tokens`, as names from the outside in; None if it is none."""
    return tuple(text.split(".")[1:]) if _PATH.fullmatch(text) else None


def measure(event_type: str, data: Any, meters: Sequence[EventMeter]) -> list[Measured]:
    """What the event adds to each of `meters`, or by itself where there are none. Raise `Unmeasurable`.

    `data` is what JSON can say, numbers with a point or an exponent as `Decimal`.
    """
    if not meters:
        return [_by_itself(event_type, data)]
    return [_by(meter, data) for meter in meters]


def _by(meter: EventMeter, data: Any) -> Measured:
    quantity = 1
    if meter.value is not None:
        found, value = _at(data, meter.value)
        where = f"data{''.join('.' + name for name in meter.value)}"
        if not found:
            raise Unmeasurable(
                "BAD_QUANTITY", meter.feature, f"{where} is missing, and {meter.feature!r} needs it"
            )
        quantity = _quantity(value, where, meter.feature, least=0 if meter.sums else 1)
    dimensions = {}
    for name, path in meter.dimensions:
        found, value = _at(data, path)
        if found and value is not None:
            where = f"data{''.join('.' + part for part in path)}"
            dimensions[name] = _text(value, where, meter.feature)
    return Measured(meter.feature, quantity, dimensions)


def _by_itself(feature: str, data: Any) -> Measured:
    if data is None:
        return Measured(feature, 1, {})
    if not isinstance(data, dict):
        raise Unmeasurable(
            "BAD_EVENT",
            feature,
            "data must be an object, with `quantity` and `dimensions` if they are needed",
        )
    quantity, dimensions = (data.get(name) for name in DECLARED_BY_ITSELF)
    if dimensions is None:
        dimensions = {}
    if not isinstance(dimensions, dict):
        raise Unmeasurable("BAD_DIMENSIONS", feature, "data.dimensions must be an object")
    return Measured(
        feature,
        1 if quantity is None else _quantity(quantity, "data.quantity", feature, least=1),
        {
            name: _text(value, f"data.dimensions.{name[:64]}", feature)
            for name, value in dimensions.items()
            if value is not None
        },
    )


def _at(data: Any, path: tuple[str, ...]) -> tuple[bool, Any]:
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return False, None
        data = data[name]
    return True, data


def _quantity(value: Any, where: str, feature: str, least: int) -> int:
    """An integer, however it is written: 12, 12.0, 1.2e1, "12"."""
    number: int | Decimal | None = None
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        number = Decimal(value)
    # Bounds before anything else: an exponent may mean more digits than there is memory.
    if number is None or not least <= number <= MAX_QUANTITY or number != int(number):
        raise Unmeasurable(
            "BAD_QUANTITY",
            feature,
            f"{where} is {_shown(value)}, must be an integer from {least} to {MAX_QUANTITY}",
        )
    return int(number)


def _text(value: Any, where: str, feature: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int() | Decimal():
            return str(value)
        case _:
            raise Unmeasurable(
                "BAD_DIMENSIONS", feature, f"{where} must be text, a number, true or false"
            )


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value[:40])
        case int() if value.bit_length() > 64:  # noqa: PLR2004 - an integer that is not worth its digits
            return "too large"
        case int() | Decimal():
            return str(value)[:40]
        case _:
            return "no number"
