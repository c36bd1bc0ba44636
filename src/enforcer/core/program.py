"""The compiled form of a customer's terms for one feature: what the rules and the scripts execute.

A program is valid for one epoch of the account and one slice of time, in which no entitlement begins or ends and no
period turns. Everything that depends on the calendar or on who inherits what is decided when it is compiled; what is
left is arithmetic on counters.

A program is a list of **chains**. A check passes if every chain can take its quantity. A constraint is a chain of its
own; the supply is one chain, whose views are drawn in order. A **view** is a range of a counter: the quota is the
range `[0, limit)` of a count and its overage the range `[limit, limit + overage)` of the same count, so that a changed
limit moves the border between them and nothing else.

Counters live in **slots**, and all slots of a node and feature in one packed value, its state. This module defines
how states and programs are packed for the scripts; both are sequences of little-endian doubles.

    state    VERSION, epoch, then for each slot: slot code, fields
    slot     code = id x 8 + family; fields by family:
      COUNT    period start, ordinal, used, held, a, b    (ROLL: a = carry; MONEY: a = spent, b = remainder of the
                                                           price's denominator; THROTTLE: a = tokens, b = at)
      BUCKET   tokens, at
      RING10, RING24   newest slot number, held, then the counts of slot numbers modulo 11 or 25
    program  how many doubles, then VERSION, epoch, slice start, slice end, forced reason, levels, chains, then
      level    number of slots, slot codes
      chain    flags (1 shadow, 2 supply), reason, number of views, views
      view     shape, code, level (from 0), slot's place in the state (from 1, its code's), flags (1 top), lower,
               upper, start, end, then by shape:
        COUNT      ordinal
        ROLL       ordinal, limit, minimum, maximum, first ordinal
        MONEY      ordinal, numerator, denominator, cap
        THROTTLE   ordinal, tokens per ms, burst
        BUCKET     tokens per ms
        RING10, RING24   ms per slot
        SEATS      seat mode, seats without overdraft
             behind the doubles texts, each behind its length: account, suffix, body of denials, each level's suffix
    code     id x 65536 + part x 256 + kind x 16 + flags (1 denied, 2 shadow)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "DENIED",
    "FIELDS",
    "RING_SLOTS",
    "SHADOW",
    "VERSION",
    "Chain",
    "Family",
    "Kind",
    "Label",
    "Level",
    "Model",
    "Program",
    "Reason",
    "Shape",
    "View",
    "split_code",
]

VERSION = 1
DENIED = 1
SHADOW = 2


class Reason(IntEnum):
    """Why a check was decided so; the numbers are those of enforcer.v1.Reason."""

    ALLOWED = 1
    NOT_ENTITLED = 2
    NOT_STARTED = 3
    EXPIRED = 4
    TRIAL_EXPIRED = 5
    SUSPENDED = 6
    VERSION_NOT_COVERED = 7
    RATE_LIMITED = 8
    QUOTA_EXCEEDED = 9
    CREDITS_EXHAUSTED = 10
    SPEND_CAP_REACHED = 11
    TIER_LIMIT_REACHED = 12
    NO_SEATS = 13
    CAP_REACHED = 14
    BATCH_DENIED = 15
    EMERGENCY_EXHAUSTED = 16


class Kind(IntEnum):
    """What a limit is to its reader; the numbers are those of enforcer.v1.LimitKind."""

    QUOTA = 1
    OVERAGE = 2
    CREDITS = 3
    OVERDRAFT = 4
    PAYG = 5
    TIER = 6
    RATE = 7
    WINDOW = 8
    SEATS = 9


class Model(IntEnum):
    """The licence model that a program is counted under: that of what is drawn first, else of what gives.

    NONE: nothing entitles at the moment. Rates beside something that gives are no model of their own.
    """

    NONE = 0
    BOOLEAN = 1
    CONFIG = 2
    QUOTA = 3
    PAYG = 4
    RATE = 5
    CREDITS = 6
    TIERED = 7
    CONCURRENT = 8


_MODELS = {
    Kind.QUOTA: Model.QUOTA,
    Kind.OVERAGE: Model.QUOTA,
    Kind.CREDITS: Model.CREDITS,
    Kind.OVERDRAFT: Model.CREDITS,
    Kind.PAYG: Model.PAYG,
    Kind.TIER: Model.TIERED,
}


class Family(IntEnum):
    """What a slot holds."""

    COUNT = 1
    BUCKET = 2
    RING10 = 3
    RING24 = 4


RING_SLOTS = {Family.RING10: 11, Family.RING24: 25}
"""Counts kept: one more than the window is divided into, since the oldest may still be half inside it."""

FIELDS = {Family.COUNT: 6, Family.BUCKET: 2, Family.RING10: 13, Family.RING24: 27}
"""Doubles in a slot of each family, its code not counted."""


class Shape(IntEnum):
    """How a view reads its slot."""

    COUNT = 1
    ROLL = 2
    MONEY = 3
    THROTTLE = 4
    BUCKET = 5
    RING10 = 6
    RING24 = 7
    SEATS = 8


FAMILY_OF = {
    Shape.COUNT: Family.COUNT,
    Shape.ROLL: Family.COUNT,
    Shape.MONEY: Family.COUNT,
    Shape.THROTTLE: Family.COUNT,
    Shape.BUCKET: Family.BUCKET,
    Shape.RING10: Family.RING10,
    Shape.RING24: Family.RING24,
}


@dataclass(frozen=True, slots=True)
class View:
    """A range `[lower, upper)` of one counter. See the module's docstring for the fields of each shape.

    `level` is the place of its node in `Program.levels`. `start` and `end` (0: never) bound the counter's period.
    `top`: the last view of its slot, which shows all that lies beyond. `extra` holds the shape's own fields.
    """

    shape: Shape
    kind: Kind
    id: int
    level: int
    lower: int
    upper: int
    part: int = 0
    start: int = 0
    end: int = 0
    top: bool = True
    extra: tuple[float, ...] = ()

    @property
    def code(self) -> int:
        """The view's name in replies: see the module."""
        return self.id << 16 | self.part << 8 | self.kind << 4

    @property
    def slot(self) -> int:
        """The slot's code; 0 for seats, which live in sets of their own."""
        return 0 if self.shape is Shape.SEATS else self.id << 3 | FAMILY_OF[self.shape]


@dataclass(frozen=True, slots=True)
class Chain:
    """Views drawn in order. `reason` is what a denial by this chain is called."""

    views: tuple[View, ...]
    reason: Reason
    shadow: bool = False
    supply: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """One node's counters of the feature: its keys' suffix `<node>:<feature>` and the slots of its state, by code."""

    suffix: str
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Label:
    """How a view is called towards clients: id in the catalog, the node's key, the tier's name and notification."""

    id: str
    customer: str
    tier: str = ""
    notify: bool = False
    refill: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """See the module's docstring.

    `verdict` is `Reason.ALLOWED`, or why everything is denied in this slice. `[start, end)` is the slice in ms (`end`
    0: never). `countable`: the feature has quantities. `lease_ttl_ms` is 0 unless the feature has seats.
    `denial_body` is the body of the record of a denial. `labels` by code without flags. `emergency` is what may be used
    while the counters are away, over all enforcers; 0: nothing, the feature fails closed.
    """

    tenant: str
    customer: str
    feature: str
    account_id: int
    account_key: str
    bucket: int
    epoch: int
    start: int
    end: int
    verdict: Reason
    levels: tuple[Level, ...]
    chains: tuple[Chain, ...]
    suffix: str
    denial_body: bytes
    labels: dict[int, Label]
    meter: str = ""
    feature_id: int = 0
    emergency: int = 0
    config: str = ""
    grace: bool = False
    countable: bool = True
    lease_ttl_ms: int = 0
    packed: bytes = field(default=b"", compare=False)
    heads: dict[tuple[float, float, float], tuple[bytes, bool]] = field(
        init=False, compare=False, repr=False
    )
    """For replies: how their limits begin and whether they are tiers, by code, limit and what was drawn."""
    bounds: list[tuple[tuple[int, str, int, float], ...]] = field(
        init=False, compare=False, repr=False
    )
    """For Envoys: the views of each chain that may deny, see `enforcer.gateway.ratelimit`; made when they first ask."""
    under: int = field(init=False, compare=False, repr=False)
    """What its decisions are counted under: account x 256 + `Model`, one number as every check adds to it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", {})
        object.__setattr__(self, "bounds", [])
        object.__setattr__(self, "under", self.account_id << 8 | self.model)

    @property
    def model(self) -> Model:
        """See `Model`."""
        if self.verdict is not Reason.ALLOWED:
            return Model.NONE
        supplies = [view for chain in self.chains if chain.supply for view in chain.views]
        if supplies:
            return _MODELS[supplies[0].kind]
        kinds = {view.kind for view in self.views}
        if Kind.SEATS in kinds:
            return Model.CONCURRENT
        if self.config:
            return Model.CONFIG
        if Kind.QUOTA in kinds:  # nothing but caps
            return Model.QUOTA
        return Model.RATE if kinds else Model.BOOLEAN

    @property
    def views(self) -> tuple[View, ...]:
        """All views in the order of replies."""
        return tuple(view for chain in self.chains for view in chain.views)

    def pack(self) -> bytes:
        """The program as the scripts read it: see the module."""
        places = []
        values: list[float] = [
            VERSION,
            self.epoch,
            self.start,
            self.end,
            0 if self.verdict is Reason.ALLOWED else self.verdict,
            len(self.levels),
            len(self.chains),
        ]
        for level in self.levels:
            values += (len(level.slots), *level.slots)
            place, of_level = 3, {}
            for slot in level.slots:
                of_level[slot] = place
                place += 1 + FIELDS[Family(slot & 7)]
            places.append(of_level)
        for chain in self.chains:
            values += (chain.shadow + 2 * chain.supply, chain.reason, len(chain.views))
            for view in chain.views:
                place = places[view.level][view.slot] if view.slot else 0
                values += (view.shape, view.code, view.level, place, view.top)
                values += (view.lower, view.upper, view.start, view.end, *view.extra)
        packed = struct.pack(f"<{1 + len(values)}d", len(values), *values)
        texts = str(self.account_id), self.suffix, *(level.suffix for level in self.levels)
        account, suffix, *suffixes = (text.encode() for text in texts)
        for text in (account, suffix, self.denial_body, *suffixes):
            packed += struct.pack("<d", len(text)) + text
        return packed


def split_code(code: int) -> tuple[int, Kind, int]:
    """A code without flags, its kind, and its flags."""
    return code & ~0xF, Kind(code >> 4 & 0xF), code & 0xF
