"""Traces for replay: a file's rows, or made ones, brought to another mean rate. Bunches and pauses stay."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Final

from enforcer.cli.exits import CommandError
from enforcer.cli.trace import EACH_ROW, Row, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["FEATURES", "made", "paced", "rows_of"]

COLUMNS: Final = (
    (EACH_ROW, "load.requests"),
    ("ContextTokens", "load.input_tokens"),
    ("GeneratedTokens", "load.output_tokens"),
)
"""As `metergate replay` reads the Azure traces, but for features that are only here."""
FEATURES: Final = tuple(feature for _, feature in COLUMNS)
MOST_ROWS: Final = 1_000_000
_BUSY: Final = (0.3, 4.0)
"""Mean arrivals a second of a made trace, calm and in a bunch."""
_STAYS: Final = 0.98
"""How likely calm stays calm, and a bunch a bunch, from one row to the next."""


def rows_of(path: Path | None, seed: int) -> Iterator[Row]:
    """The rows of a file, checked as a whole before the first; without one, made ones without end."""
    if path is None:
        return made(seed)
    trace = Trace(path, COLUMNS, needs_time=True)
    if not trace.survey().rows:
        raise CommandError(f"{path} has no rows")
    return trace.rows()


def made(seed: int) -> Iterator[Row]:
    """Bunches and pauses; many short questions and a few very long ones, as in the public traces."""
    dice = random.Random(seed)
    at, busy = 0.0, 0
    for number in itertools.count(1):
        quantities = {
            "load.requests": 1,
            "load.input_tokens": 1 + int(dice.lognormvariate(7, 1.2)),
            "load.output_tokens": 1 + int(dice.lognormvariate(3, 1)),
        }
        yield Row(number, number + 1, at, quantities)
        busy = busy if dice.random() < _STAYS else 1 - busy
        at += dice.expovariate(_BUSY[busy])


def paced(rows: Iterable[Row], rate: float, seconds: float) -> Iterator[tuple[float, Row]]:
    """So many rows as come in `seconds` at a mean of `rate`, with the moments when they are due.

    Their own time is stretched or shortened as a whole. Fewer rows are all that there are, at that rate.
    """
    count = max(round(rate * seconds), 1)
    if count > MOST_ROWS:
        raise CommandError(
            f"{rate:g} a second for {seconds:g} s are {count:,} rows; a trace may have {MOST_ROWS:,}"
        )
    some = list(itertools.islice(rows, count))
    first, last = some[0].at or 0.0, some[-1].at or 0.0
    if last < first:
        raise CommandError(f"the trace goes back in time: its row {len(some)} is before its first")
    wanted = len(some) / rate
    scale = wanted / (last - first) if last > first else 0.0
    # A row that lies before its predecessor is due at once.
    latest = 0.0
    for row in some:
        latest = max(latest, ((row.at or 0.0) - first) * scale)
        yield min(latest, wanted), row
