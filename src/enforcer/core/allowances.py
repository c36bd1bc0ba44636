"""Blocks of supply that clients decide from by themselves: how large they are, and how long they are out.

A block is held like a reservation, with three differences: it is asked for in `Mode.ALLOWANCE`, which grants a share of
what is left; it never outlives the slice of time that it was taken in; and when nobody has told what was used of it, all
of it counts as used. So no limit is passed, whatever its holder does or whether it is heard of again.
"""

from __future__ import annotations

from enforcer.core.model import MAX_QUANTITY

__all__ = ["GRACE_MS", "SHARE", "block", "dated", "ends", "sought"]

SHARE = 8
"""A block is at most this part of what is left, so that clients share the end of a quota."""
GRACE_MS = 5_000
"""How long after the end of its lifetime a block is still taken back."""


def sought(quantity: int) -> int:
    """How much has to be left for a whole block of `quantity`."""
    return min(quantity * SHARE, MAX_QUANTITY)


def block(left: int) -> int:
    """The share of what is left of what was sought: rounded up, so 1 at least while there is something."""
    return -(-left // SHARE)


def ends(now: int, ttl_ms: int, stop: int) -> int:
    """When a block's lifetime ends. `stop`: the end of the slice it is taken in (0: never), hence of every period."""
    return min(now + ttl_ms, stop) if stop else now + ttl_ms


def dated(now: int, gone: int) -> int:
    """When what becomes of a block is reported: within its lifetime, hence in its period. `gone`: when it is given up."""
    return min(now, gone - GRACE_MS - 1)
