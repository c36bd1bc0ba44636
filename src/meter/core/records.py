"""The usage record: what one decision leaves behind in its bucket's outbox.

A stream entry `<generation>-<sequence>` has two fields:

`b`  the body: JSON written by the enforcer (`Body`), the same bytes that the client's request was turned into;
`e`  the effects: little-endian doubles written by the script that decided (`Effects`).

Effects: a header of `HEADER` doubles, then for each counter that changed an entry of `ENTRY` doubles.

    header  version, type, now, granted, overage, reason, count, quantity, extra
    entry   limit, period, used, held

- `now`        server time of the decision, ms since 1970
- `granted`    units consumed (or held, for a hold); 0 for denials
- `overage`    how much of `granted` went past an included amount
- `reason`     enforcer.v1.Reason
- `count`      how many decisions this record stands for: 1, or for merged denials their number
- `quantity`   what was asked for, over all of `count`
- `extra`      DENIAL: id of the limit that denied, or 0; HOLD, LEASE_START: when it ends in ms; LEASE_END,
               LEASE_EXPIRED: start of the lease in ms, and `quantity` 1 when the holder's device was unbound; COMMIT,
               RELEASE and HOLD_EXPIRED: what was held, and `reason` 1 when a commit named no quantity; GENERATION: the
               previous generation, and in `quantity` the last sequence number there; ALLOWANCE: when the block's lifetime
               ends in ms; ALLOWANCE_USE and UNACCOUNTED: the size of the block
- a block of supply that a client decides from by itself (ALLOWANCE) is held like a reservation. What its holder tells
               to have used is ALLOWANCE_USE; when nobody tells, all of it counts as used, and UNACCOUNTED says so.
               Both have as `now` at the latest the last millisecond of the lifetime: they are of the period that the
               block was taken from
- an EMERGENCY record says that a use in an enforcer's journal had been counted by its check before: it holds the place
- `limit`      the id of the entitlement or grant whose counter changed; id + `SIDE` is the counter's second pair of
               numbers: money spent and remainder, or what rolled over. 0 is a note and no counter: how the entry
               number `period // 2` (from 1) is held, `period % 2` tells overage, `used` and `held` are the width of a
               rolling quota's slot and 0, or numerator and denominator of the price
- `period`     start of the counter's period in ms; the slot's number for rolling quotas; 0 without periods
- `used`, `held`  the change, may be negative

Corrections (VOID, AMEND, BACKFILL) have the difference that they make: `granted`, `overage` and `count` may be negative
or 0, `quantity` is what counts from now on, and `extra` is 1 where the window of the body's `at` is sealed: then the
usage is an adjustment in the window of `now`. VOID and AMEND name in their body the record that they correct.

Usage is what records of `USAGE`, `COMMIT`, `ALLOWANCE_USE` and corrections have granted; their time is the body's `at` or else `now`. The
sum of `used` and `held` per (limit, period) over all records of a bucket is the ledger: what the counters must show. Only what a
REPAIR changed is no part of it: it brought counters to the ledger. A REPAIR with the quantity 1 is: it brought the ledger to
the leases that there are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import msgspec

__all__ = [
    "ENTRY",
    "HEADER",
    "SIDE",
    "VERSION",
    "Body",
    "Effect",
    "Effects",
    "RecordType",
    "decode_body",
    "decode_effects",
    "encode_body",
    "encode_effects",
]

VERSION = 1
HEADER = 9
ENTRY = 4
SIDE = 1 << 32
"""Added to a limit's id: see the module."""


class RecordType(IntEnum):
    """What happened."""

    USAGE = 1
    DENIAL = 2
    HOLD = 3
    COMMIT = 4
    RELEASE = 5
    HOLD_EXPIRED = 6
    LEASE_START = 7
    LEASE_END = 8
    LEASE_EXPIRED = 9
    GENERATION = 10
    VOID = 11
    AMEND = 12
    BACKFILL = 13
    REPAIR = 14
    EMERGENCY = 15
    ALLOWANCE = 16
    ALLOWANCE_USE = 17
    UNACCOUNTED = 18


class Body(msgspec.Struct, frozen=True, omit_defaults=True, rename={}):
    """Who used what. Short names: these bytes pass through every stage.

    `t` tenant, `a` account (key of the tree's root), `c` customer (key of the node), `f` feature, `m` meter,
    `q` quantity asked for, `k` idempotency key, `d` dimensions, `at` time of the event in ms if the client gave one,
    `id` lease, reservation or allowance, `h` holder of a lease, `p` fingerprint of the parameters that came
    with `k`, in hex. A GENERATION record's body has empty strings. Of corrections: `n`
    number in the bucket's list of corrections, `of` generation and sequence of the record that is corrected, `v` which
    version of it this is (1 for the first correction), `by` who corrects, `w` why.
    `j`, `jn`: the journal of a use that was allowed while the counters were away, and its number there among
    those of its bucket, dense from 1; `at` is when it was allowed.
    `tp`: the `traceparent` of the call, if it is traced (`meter.core.traced`); no parameter of the call, and always last.
    """

    t: str
    a: str
    c: str
    f: str
    m: str
    q: int = 0
    k: str = ""
    d: dict[str, str] = msgspec.field(default_factory=dict)
    at: int = 0
    id: str = ""
    h: str = ""
    n: int = 0
    of: tuple[int, ...] = ()
    v: int = 0
    by: str = ""
    w: str = ""
    p: str = ""
    j: str = ""
    jn: int = 0
    tp: str = ""


class Effect(NamedTuple):
    """The change of one counter: `limit` id, start of its `period` in ms, deltas of used and held."""

    limit: int
    period: int
    used: int
    held: int


@dataclass(frozen=True, slots=True)
class Effects:
    """See the module's docstring for the fields."""

    type: RecordType
    now: int
    granted: int = 0
    overage: int = 0
    reason: int = 0
    count: int = 1
    quantity: int = 0
    extra: int = 0
    entries: tuple[Effect, ...] = ()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Body)


def encode_body(body: Body) -> bytes:
    """JSON without what has its default value."""
    return _encoder.encode(body)


def decode_body(data: bytes) -> Body:
    """Raise `ValueError` (msgspec's) when `data` is not a body."""
    return _decoder.decode(data)


def encode_effects(effects: Effects) -> bytes:
    """Doubles as the module describes."""
    values: list[float] = [
        VERSION,
        effects.type,
        effects.now,
        effects.granted,
        effects.overage,
        effects.reason,
        effects.count,
        effects.quantity,
        effects.extra,
    ]
    for entry in effects.entries:
        values += (entry.limit, entry.period, entry.used, entry.held)
    return struct.pack(f"<{len(values)}d", *values)


def decode_effects(data: bytes) -> Effects:
    """Raise `ValueError` when `data` is not effects of a known version."""
    count, rest = divmod(len(data), 8)
    if rest or count < HEADER or (count - HEADER) % ENTRY:
        message = f"{len(data)} bytes are not effects"
        raise ValueError(message)
    values = struct.unpack(f"<{count}d", data)
    if values[0] != VERSION:
        message = f"effects of version {values[0]:.0f}, known is {VERSION}"
        raise ValueError(message)
    whole = list(map(int, values))
    entries = [Effect._make(whole[at : at + ENTRY]) for at in range(HEADER, count, ENTRY)]
    kind, now, granted, overage, reason, many, quantity, extra = whole[1:HEADER]
    return Effects(
        RecordType(kind), now, granted, overage, reason, many, quantity, extra, tuple(entries)
    )
