"""From what an Envoy tells of a request to what is checked: domains, their rules, and how one matches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.model import MAX_QUANTITY
from enforcer.core.rules import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Domain", "Rule", "Text", "UnusableError", "Wanted"]

_MOST_DIGITS = len(str(MAX_QUANTITY))


class UnusableError(ValueError):
    """A value of a descriptor is nothing that can be counted."""


class Text(NamedTuple):
    """Text with values of entries in it: `org-{org}` is `("org-", "org", "")`, names at the odd places."""

    parts: tuple[str, ...]

    @property
    def fixed(self) -> bool:
        """Whether it says the same for every descriptor."""
        return len(self.parts) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """Entries whose values it needs."""
        return self.parts[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """The text for these entries."""
        return "".join(values[part] if place % 2 else part for place, part in enumerate(self.parts))


class Wanted(NamedTuple):
    """A check that a descriptor asks for. `quantity` 0 asks whether one unit could be had."""

    customer: str
    feature: str
    quantity: int
    mode: Mode
    key: str
    dimensions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches descriptors that have exactly the entries of `match`, in any order; None there: any value.

    A hit is `quantity` units, or as many as the entry of that name says. `allow_unknown`: a customer or feature that
    nobody has declared passes, instead of being refused.
    """

    match: dict[str, frozenset[str] | None]
    customer: Text
    feature: Text
    quantity: int | str = 1
    mode: Mode = Mode.ENFORCE
    key: Text | None = None
    dimensions: dict[str, Text] = field(default_factory=dict)
    allow_unknown: bool = False

    def matches(self, values: Mapping[str, str]) -> bool:
        """Whether these are its entries."""
        return values.keys() == self.match.keys() and all(
            allowed is None or values[name] in allowed for name, allowed in self.match.items()
        )

    def wanted(self, values: Mapping[str, str], hits: int) -> Wanted:
        """What so many hits of a descriptor that matches ask for. Raise `UnusableError`."""
        units = self.quantity
        if isinstance(units, str):
            units = _integer(units, values[units])
        quantity = hits * units
        if quantity > MAX_QUANTITY:
            raise UnusableError(f"{hits} hits of {units} are more than {MAX_QUANTITY}")
        return Wanted(
            self.customer.fill(values),
            self.feature.fill(values),
            quantity,
            self.mode,
            self.key.fill(values) if self.key else "",
            {name: text.fill(values) for name, text in self.dimensions.items()},
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """The rules of one tenant's domain; the first that matches counts.

    `refuse_unmapped`: a descriptor without a rule is refused instead of let through. `headers`: the answer has headers
    for the client.
    """

    tenant: str
    name: str
    rules: tuple[Rule, ...]
    refuse_unmapped: bool = False
    headers: bool = True

    @property
    def identifying(self) -> frozenset[str]:
        """Entries whose value, whatever it is, tells requests apart and does nothing else: a key is made of it alone."""
        keys: set[str] = set()
        others: set[str] = set()
        for rule in self.rules:
            others |= {name for name, allowed in rule.match.items() if allowed is not None}
            for text in (rule.customer, rule.feature, *rule.dimensions.values()):
                others |= set(text.names)
            if isinstance(rule.quantity, str):
                others.add(rule.quantity)
            if rule.key:
                (keys if len(rule.key.names) == 1 else others).update(rule.key.names)
        return frozenset(keys - others)

    def find(self, entries: Sequence[tuple[str, str]]) -> tuple[Rule, dict[str, str]] | None:
        """The rule for a descriptor, and its entries by key. One that has a key twice matches none."""
        values = dict(entries)
        if len(values) == len(entries):
            for rule in self.rules:
                if rule.matches(values):
                    return rule, values
        return None


def _integer(name: str, value: str) -> int:
    """By hand: `int` takes signs, blanks, underscores and other scripts' digits, too."""
    if not (value.isascii() and value.isdigit()) or len(value) > _MOST_DIGITS:
        raise UnusableError(
            f"the entry {name!r} is {value[:40]!r}, no integer from 0 to {MAX_QUANTITY}"
        )
    return int(value)
