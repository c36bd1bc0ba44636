"""Traces: CSV files whose rows stand for requests, read one row at a time.

A trace is read twice, so that a malformed row is known before anything is sent. Between the two
only sums are kept: its size does not matter.
"""

from __future__ import annotations

import csv
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from enforcer.cli.exits import CommandError
from enforcer.core.model import MAX_QUANTITY

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

__all__ = ["DEFAULT_COLUMNS", "EACH_ROW", "TIME_COLUMN", "Row", "Summary", "Trace", "columns_from"]

EACH_ROW: Final = "*"
"""Stands for a column that says 1 in each row."""

TIME_COLUMN: Final = "TIMESTAMP"
DEFAULT_COLUMNS: Final = (
    (EACH_ROW, "llm.requests"),
    ("ContextTokens", "llm.input_tokens"),
    ("GeneratedTokens", "llm.output_tokens"),
)
"""The format of the Azure LLM inference traces."""

_DIGITS: Final = len(str(MAX_QUANTITY))


@dataclass(frozen=True, slots=True)
class Row:
    """`number` counts data rows from 1, malformed ones included; `line` is the line in the file.

    `at`: seconds since the first row, None without a time column. `quantities`: feature → amount,
    zeros left out.
    """

    number: int
    line: int
    at: float | None
    quantities: dict[str, int]


@dataclass(slots=True)
class Summary:
    """What the first reading found."""

    digest: str
    rows: int = 0
    skipped: int = 0
    requested: dict[str, int] = field(default_factory=dict)


class _MalformedError(Exception):
    """A row that cannot be read; the text names line and column."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a row the columns are."""

    width: int
    time: int | None
    places: tuple[tuple[int | None, str, str], ...]


def columns_from(mappings: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`["ContextTokens=llm.input_tokens"]` as pairs; the default format for none."""
    found = []
    for mapping in mappings:
        column, sign, feature = (part.strip() for part in mapping.partition("="))
        if not (column and sign and feature):
            raise CommandError(
                f"--map {mapping!r}: COLUMN=FEATURE is expected, such as "
                "ContextTokens=llm.input_tokens; the column * counts rows"
            )
        found.append((column, feature))
    features = [feature for _, feature in found]
    if twice := sorted({name for name in features if features.count(name) > 1}):
        raise CommandError(f"--map gives {twice[0]} two columns; each feature may have one")
    return tuple(found) or DEFAULT_COLUMNS


class Trace:
    """A trace file and what its columns stand for."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[tuple[str, str]] = DEFAULT_COLUMNS,
        *,
        skip_bad: bool = False,
        needs_time: bool = False,
    ) -> None:
        self.path = path
        self._columns = tuple(columns)
        self._skip_bad = skip_bad
        self._needs_time = needs_time

    def survey(self) -> Summary:
        """Read the whole file. Raise `CommandError` at the first malformed row."""
        with self._opened():
            if not self.path.is_file():
                raise CommandError(
                    f"{self.path} is not a regular file: a trace is read twice, once to check it"
                )
            with self.path.open("rb") as opened:
                digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        summary = Summary(digest.hexdigest())
        summary.requested = {feature: 0 for _, feature in self._columns}
        for row in self._read(summary):
            summary.rows += 1
            for feature, quantity in row.quantities.items():
                summary.requested[feature] += quantity
        return summary

    def rows(self) -> Iterator[Row]:
        """The rows again, for sending."""
        return self._read(Summary(""))

    @contextmanager
    def _opened(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CommandError(f"{self.path}: not UTF-8 text; a trace is CSV in UTF-8") from error

    def _read(self, summary: Summary) -> Iterator[Row]:
        with self._opened(), self.path.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            number, first, layout = 0, None, None
            while True:
                try:
                    fields = next(reader, None)
                    if fields is None:
                        break
                    if not fields or (len(fields) == 1 and not fields[0].strip()):
                        continue
                    if layout is None:
                        layout = self._layout(fields, reader.line_num)
                        continue
                    number += 1
                    at, quantities = _parse(layout, fields)
                except (csv.Error, _MalformedError) as error:
                    if layout is None or not self._skip_bad:
                        hint = "nothing was sent; --skip-bad leaves malformed rows out"
                        if not summary.digest:
                            hint = "the file has changed since it was checked"
                        raise CommandError(
                            f"{self.path}:{reader.line_num}: {error}; {hint}"
                        ) from error
                    summary.skipped += 1
                    continue
                first = at if first is None else first
                since = (at - first).total_seconds() if at and first else None
                yield Row(number, reader.line_num, since, quantities)
        if layout is None:
            raise CommandError(f"{self.path} is empty; a line with column names is expected")

    def _layout(self, header: list[str], line: int) -> _Layout:
        names = [name.strip() for name in header]
        wanted = [column for column, _ in self._columns if column != EACH_ROW]
        wanted += [TIME_COLUMN] if self._needs_time else []
        for column in wanted:
            if names.count(column) != 1:
                fault = "no" if column not in names else "more than one"
                raise CommandError(
                    f"{self.path}:{line}: {fault} column {column}; the file has "
                    f"{', '.join(names)}; name others with --map COLUMN=FEATURE"
                )
        places = tuple(
            (None if column == EACH_ROW else names.index(column), column, feature)
            for column, feature in self._columns
        )
        time = names.index(TIME_COLUMN) if TIME_COLUMN in names else None
        return _Layout(len(names), time, places)


def _parse(layout: _Layout, fields: list[str]) -> tuple[datetime | None, dict[str, int]]:
    if len(fields) != layout.width:
        raise _MalformedError(f"{len(fields)} columns where {layout.width} are expected")
    at = None if layout.time is None else _time(fields[layout.time])
    quantities = {}
    for place, column, feature in layout.places:
        quantity = 1 if place is None else _quantity(fields[place], column)
        if quantity:
            quantities[feature] = quantity
    return at, quantities


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _MalformedError(
            f"column {TIME_COLUMN} is {text!r}; a time such as 2023-11-16 18:17:03.97 is expected"
        ) from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _quantity(text: str, column: str) -> int:
    digits = text.strip()
    # Before int(): it would take "1_000" and Arabic digits, and long for a million digits.
    if digits.isascii() and digits.isdigit() and len(digits.lstrip("0")) <= _DIGITS:
        quantity = int(digits)
        if quantity <= MAX_QUANTITY:
            return quantity
    shown = text if len(text) <= _DIGITS * 2 else f"{text[: _DIGITS * 2]}..."
    raise _MalformedError(
        f"column {column} is {shown!r}; a whole number from 0 to {MAX_QUANTITY} is expected"
    )
