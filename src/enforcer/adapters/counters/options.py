"""How long the store may take and how much it may have on its way."""

from __future__ import annotations

from dataclasses import dataclass, field

from enforcer.adapters.counters.scripts import SERVER_CLOCK
from enforcer.core.breaker import BreakerOptions

__all__ = ["RedisOptions"]


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Bounds of the store. Times in seconds but for `window_ms`.

    `window_ms`: answers are remembered at least so long. `in_flight`: batches on their way at once. `batch`: checks in
    one of them. `reply_timeout`: a silent server is given up. `patience`: how long a call waits for a connection.
    `cluster`: the server is one node of several, among which buckets may move. `fail_open_wait`: a check that has a failure policy to fall back on waits no longer than that; None: none has.
    """

    url: str
    buckets: int
    window_ms: int = 86_400_000
    in_flight: int = 4
    batch: int = 256
    connect_timeout: float = 1.0
    reply_timeout: float = 2.0
    patience: float = 1.0
    clock: str = SERVER_CLOCK
    fail_open_wait: float | None = None
    cluster: bool = False
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
