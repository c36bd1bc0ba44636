"""Reading YAML with the place of everything: values of the right type, or an issue that says what is allowed."""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from enforcer.catalog.document import List, Map, UnreadableError
from enforcer.catalog.document import load as load_document
from enforcer.core.model import MAX_QUANTITY
from enforcer.errors import CatalogInvalidError

__all__ = ["Issue", "Reader", "load", "refuse"]

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}")
_DURATION = re.compile(r"([0-9]{1,18})\s*(ms|s|m|h|d|w)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_LATEST = 253_402_300_800_000
"""The year 10000, in ms."""
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d(?P<time>[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(?P<zone> ?[Zz]|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_LONGEST_TEXT = 1000
_LONGEST_LINE = 500


class Issue(NamedTuple):
    """Something wrong in a catalog file; `line` from 1."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


def refuse(issues: list[Issue]) -> CatalogInvalidError:
    """The error that lists all issues in the order of the file, each in one line of bounded length."""
    ordered = sorted(issues, key=lambda issue: (issue.line, issue.field))
    first = ordered[0]
    return CatalogInvalidError(
        "\n".join(_shortened(" ".join(str(issue).split())) for issue in ordered),
        file=_shortened(first.file),
        line=str(first.line),
        field=_shortened(first.field),
        issues=str(len(ordered)),
    )


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"


def load(document: str, file_name: str) -> Any:
    """The document with line numbers. Raise `CatalogInvalidError` if it is no YAML."""
    try:
        return load_document(document)
    except UnreadableError as error:
        raise refuse([Issue(file_name, error.line, "-", error.message)]) from error


class Reader:
    """A mapping of the document. Every `take_…` marks its field as known; `finish` reports all that are not."""

    def __init__(self, value: Any, path: str, line: int, issues: list[Issue], file: str) -> None:
        self.path, self.line, self.issues, self.file = path, line, issues, file
        self._known: list[Any] = []
        self._is_map = isinstance(value, Map)
        self._map: Map = value if isinstance(value, Map) else Map(line)
        if not self._is_map:
            self.issue("", f"is {_kind(value)}, must be a mapping")

    def issue(self, name: str, message: str) -> None:
        """Note what is wrong with a field (or with the mapping itself). What is no mapping lacks no fields."""
        if name and not self._is_map:
            return
        where = self.path if not name else f"{self.path}.{name}" if self.path else name
        self.issues.append(Issue(self.file, self.line_of(name), where or "-", message))

    def line_of(self, name: Any) -> int:
        """Where a field stands; where the mapping begins if it has none."""
        return self._map.lines.get(name, self.line)

    def _raw(self, name: str) -> Any:
        self._known.append(name)
        return self._map.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null. Marks it as known."""
        self._known.append(name)
        return self._map.get(name) is not None

    def names(self) -> list[Any]:
        """The fields that are there, for mappings whose fields are data."""
        return list(self._map)

    def take_all(self) -> None:
        """Report no field of this mapping as unknown."""
        self._known += list(self._map)

    def finish(self) -> None:
        """Report unknown fields, with the nearest known ones."""
        for name in self._map:
            if name in self._known:
                continue
            near = difflib.get_close_matches(str(name)[:100], map(str, self._known), n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"allowed: {', '.join(map(str, dict.fromkeys(self._known)))}"
            )
            field = self._below(str(name))
            self.issues.append(
                Issue(self.file, self.line_of(name), field, f"unknown field; {hint}")
            )

    def text(self, name: str, default: str | None = None) -> str:
        """Any text; required without a default."""
        value = self._raw(name)
        if value is None:
            if default is None:
                self.issue(name, "is required")
            return default or ""
        if not isinstance(value, str):
            self.issue(name, f"is {_kind(value)}, must be text (put it in quotes)")
            return default or ""
        if len(value) > _LONGEST_TEXT:
            self.issue(name, f"has {len(value)} characters, at most {_LONGEST_TEXT} are possible")
            return default or ""
        return str(value)

    def key(self, name: str, default: str | None = None) -> str:
        """A name for machines: letters, digits and . _ @ : + -, at most 128. Empty if it is none."""
        value = self.text(name, default)
        if value and not _KEY.fullmatch(value):
            self.issue(
                name, f"{value!r} is no key: 1 to 128 letters, digits or . _ @ : + -, no spaces"
            )
            return ""
        return value

    def choice(self, name: str, allowed: list[str], default: str | None = None) -> str:
        """One of a few words."""
        value = self.text(name, default)
        if value not in allowed and (value or default is not None):
            self.issue(name, f"is {value!r}, must be one of {', '.join(allowed)}")
        return value if value in allowed else (default or allowed[0])

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.issue(name, f"is {_kind(value)}, must be true or false")
            return default
        return value

    def integer(
        self, name: str, default: int | None = None, least: int = 0, most: int = MAX_QUANTITY
    ) -> int:
        """An integer within bounds; required without a default."""
        value = self._raw(name)
        if value is None:
            if default is None:
                self.issue(name, "is required")
            return default if default is not None else least
        if isinstance(value, bool) or not isinstance(value, int):
            self.issue(name, f"is {_kind(value)}, must be an integer from {least} to {most}")
            return least
        if not least <= value <= most:
            self.issue(name, f"is {value}, must be from {least} to {most}")
            return least
        return int(value)

    def decimal(self, name: str, default: Decimal | None = None) -> Decimal:
        """A number without the errors of floats; at most nine decimals, not negative."""
        value = self._raw(name)
        if value is None:
            if default is None:
                self.issue(name, "is required")
            return default if default is not None else Decimal()
        number = _number(value)
        if number is None:
            self.issue(name, f"is {_kind(value)}, must be a number from 0 (in quotes to be exact)")
            return Decimal()
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and (exponent < -9 or number > 10**15):  # noqa: PLR2004 - see text
            self.issue(name, f"is {number}, must have at most 9 decimals and be at most 10^15")
            return Decimal()
        return number or Decimal()

    def duration(
        self, name: str, default: int | None = None, least: int = 1, most: int = _LATEST
    ) -> int:
        """A length of time in ms, written like 30s, 5m, 24h, 14d."""
        value = self._raw(name)
        if value is None:
            if default is None:
                self.issue(name, "is required")
            return default if default is not None else least
        match = _DURATION.fullmatch(str(value)) if isinstance(value, str) else None
        if match is None:
            self.issue(name, f"is {_kind(value)}, must be a duration like 500ms, 30s, 5m, 24h, 14d")
            return least
        length = int(match[1]) * _UNITS[match[2]]
        if not least <= length <= most:
            self.issue(name, f"is {value}, must be from {_length(least)} to {_length(most)}")
            return least
        return length

    def moment(self, name: str) -> int | None:
        """A time in ms: a date (midnight UTC), or a time with its zone."""
        value = self._raw(name)
        if value is None:
            return None
        return self.as_moment(name, value)

    def as_moment(self, name: str, value: Any) -> int | None:
        """A value that was read already, as a time in ms."""
        moment = _moment(value)
        if moment is None:
            self.issue(
                name, "must be a date (2026-01-31) or a time with its zone (2026-01-31T12:00:00Z)"
            )
        return moment

    def zone(self, name: str) -> str:
        """An IANA zone."""
        value = self.text(name, "UTC")
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            self.issue(name, f"{value!r} is no time zone; write an IANA name like Europe/Berlin")
            return "UTC"
        return value

    def value(self, name: str) -> Any:
        """Whatever stands there."""
        return self._raw(name)

    def child(self, name: str) -> Reader | None:
        """A mapping below, if there is one."""
        value = self._raw(name)
        if value is None:
            return None
        return Reader(value, self._below(name), self.line_of(name), self.issues, self.file)

    def children(self, name: str) -> list[Reader]:
        """The mappings of a list below."""
        value = self._raw(name)
        if value is None:
            return []
        if not isinstance(value, List):
            self.issue(name, f"is {_kind(value)}, must be a list")
            return []
        return [
            Reader(
                item,
                f"{self._below(name)}[{place}]",
                line,
                self.issues,
                self.file,
            )
            for place, (item, line) in enumerate(zip(value, value.lines, strict=True))
        ]

    def _below(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _length(milliseconds: int) -> str:
    """As it is written: 10s, 24h, 366d."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNITS[unit] == 0:
            return f"{milliseconds // _UNITS[unit]}{unit}"
    return f"{milliseconds}ms"


def _number(value: Any) -> Decimal | None:
    """A finite number from 0; None if it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value).replace("_", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() and number >= 0 else None


def _moment(value: Any) -> int | None:
    """A time in ms since 1970; None if it is no time, has no zone or is not between 1970 and 9999."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match["time"] and not match["zone"]):
        return None
    try:
        moment = datetime.fromisoformat(str(value).replace(" Z", "Z").upper())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        milliseconds = (moment - _EPOCH) // _MS
    except (ValueError, OverflowError):
        return None
    return milliseconds if 0 <= milliseconds < _LATEST else None


def _kind(value: Any) -> str:  # noqa: PLR0911 - one for each kind
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return repr(str(value))
        case Map():
            return "a mapping"
        case List():
            return "a list"
        case _:
            return type(value).__name__
