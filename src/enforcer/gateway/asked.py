"""A check on its way: what a product asked for, and what the store is asked with the program of the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from enforcer.core.commands import NO_KEY, Ask, idempotency
from enforcer.core.program import Reason
from enforcer.core.rules import Mode
from enforcer.gateway.requests import dimensions_of
from meter.core.records import Body, encode_body
from meter.core.traced import current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from enforcer.core.commands import SeatAsk
    from enforcer.core.program import Program

__all__ = ["Asked", "Name", "misfit_of"]

_NONE: dict[str, str] = {}


class Name(NamedTuple):
    """Who asks for what: tenant, customer, feature, and the product version if one was named."""

    tenant: str
    customer: str
    feature: str
    version: str = ""


class Asked:
    """One check on its way: what is asked under which name, and the ask for the program of the moment."""

    __slots__ = (
        "at",
        "dimensions",
        "holder",
        "id",
        "key",
        "mode",
        "name",
        "op",
        "parameters",
        "quantity",
        "reservation",
        "seat",
        "ttl_ms",
    )

    def __init__(self, name: Name, quantity: int, mode: Mode, key: str) -> None:
        self.name, self.quantity, self.mode, self.key = name, quantity, mode, key
        self.dimensions, self.at, self.id, self.holder = _NONE, 0, "", ""
        self.op, self.parameters = "check", ()
        self.reservation, self.ttl_ms, self.seat = "", 0, None

    @classmethod
    def of(
        cls,
        name: Name,
        quantity: int,
        mode: Mode,
        key: str,
        dimensions: Mapping[str, str],
        at: int = 0,
    ) -> Asked:
        """With the parameters that a retry has to have as well. Raise what is wrong with the dimensions."""
        asked = cls(name, quantity, mode, key)
        if dimensions or name.version or at:
            asked.dimensions, asked.at = dimensions_of(dimensions), at
            asked.parameters = asked.dimensions, name.version, at
        return asked

    dimensions: dict[str, str]
    op: str
    parameters: tuple[object, ...]
    reservation: str
    ttl_ms: int
    seat: SeatAsk | None

    def ask(self, program: Program) -> Ask:
        """What to ask the store with this program; the record's body names its account and meter."""
        name, key, quantity, mode = self.name, self.key, self.quantity, self.mode
        named_by, finger = NO_KEY, ""
        if key:
            feature, customer, parameters = program.feature_id, name.customer, self.parameters
            named_by = idempotency(
                program.account_id,
                feature,
                key,
                self.op,
                customer,
                quantity,
                int(mode),
                *parameters,
            )
            # A rebuild after a loss answers retries from the record.
            finger = named_by[16:].hex()
        body = Body(
            name.tenant,
            program.account_key,
            name.customer,
            name.feature,
            program.meter,
            quantity,
            key,
            self.dimensions,
            self.at,
            self.id,
            self.holder,
            p=finger,
            tp=current.get(),
        )
        return Ask(
            program,
            quantity,
            mode,
            encode_body(body),
            named_by,
            self.reservation,
            self.ttl_ms,
            self.seat,
        )


def misfit_of(asked: Asked, program: Program) -> str:
    """Why the mode has no meaning for the feature, or nothing: see docs/modes.md."""
    if asked.op == "lease" or asked.mode is Mode.PEEK or asked.mode is Mode.CHECK_ONLY:
        return ""
    if program.lease_ttl_ms:
        return (
            f"{asked.name.feature!r} has seats: take one with AcquireLease; "
            "MODE_CHECK_ONLY tells whether one is free"
        )
    if (
        asked.mode in (Mode.RECORD_ONLY, Mode.ALLOWANCE)
        and not program.countable
        and program.verdict not in (Reason.NOT_ENTITLED, Reason.SUSPENDED)
    ):
        return (
            f"{asked.name.feature!r} has no quantity to record past a limit, or to take a block of"
        )
    return ""
