"""What may be used while the counters are away: a bounded amount of each feature that fails open.

The amount of a feature is divided among the enforcers that a deployment may have. What an enforcer allowed lies in its
journal until it is counted; only then is its share free again, so that a store that comes and goes gives nothing away.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from enforcer.core.commands import Sent  # noqa: TC001 - read by msgspec

__all__ = ["Shares", "Use", "decode_use", "encode_use"]


class Use(msgspec.Struct, frozen=True, omit_defaults=True, rename={}):
    """One emergency use, with all that it takes to count it.

    `number` is its place among those of its bucket in the journal, dense from 1; `key` what `idempotency()` gave for the
    client's key, if it sent one; `at` is when it was allowed, in ms; `body` the record's, without its time and place in
    the journal; `sent` where its check may have run all the same.
    """

    tenant: str
    customer: str
    feature: str
    version: str
    account_id: int
    bucket: int
    quantity: int
    at: int
    body: bytes
    number: int = 0
    key: bytes = b""
    sent: Sent | None = None

    @property
    def holder(self) -> tuple[str, str, str]:
        """Whose share it is taken from."""
        return self.tenant, self.customer, self.feature


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Use).decode


def encode_use(use: Use) -> bytes:
    """For a journal."""
    return _encode(use)


def decode_use(data: bytes) -> Use:
    """Raise `ValueError` (msgspec's) when `data` is no use."""
    return _decode(data)


class Shares:
    """What each customer has used of each feature, and is not counted yet. `enforcers`: how many share the amounts."""

    def __init__(self, enforcers: int) -> None:
        self._enforcers = enforcers
        self._used: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def left(self, holder: tuple[str, str, str], amount: int) -> int:
        """What this enforcer may still allow of a feature's `amount`."""
        return max(0, amount // self._enforcers - self._used.get(holder, 0))

    def take(self, holder: tuple[str, str, str], quantity: int) -> None:
        """Before the use is journaled."""
        self._used[holder] += quantity

    def give_back(self, holder: tuple[str, str, str], quantity: int) -> None:
        """After the use was counted, or could not be journaled."""
        rest = self._used.get(holder, 0) - quantity
        if rest > 0:
            self._used[holder] = rest
        else:
            self._used.pop(holder, None)
