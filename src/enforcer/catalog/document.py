"""A YAML document as values that know their lines.

Parsed by libyaml, as a file of some thousand accounts takes a parser in Python ten seconds, in which checks of the
same process wait again and again. What plain scalars mean is YAML 1.2's core schema: `no` and `on` are text, and so are
dates. Tags say nothing but for that schema's own.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

__all__ = ["List", "Map", "UnreadableError", "load"]

DEEPEST: Final = 64
"""Mappings and lists in each other."""
LONGEST_INTEGER: Final = 1024
"""In bits: Python prints no integers of many thousands, and issues show what is wrong."""
MOST_VALUES: Final = 1_000_000
"""Of a document with its aliases written out: each use of an alias is read again."""
_LONGEST: Final = LONGEST_INTEGER + 3
"""Digits: as many in base 2, with sign and prefix."""
_TOO_DEEP: Final = f"is nested too deep: more than {DEEPEST} levels"
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCHEMA: Final = "tag:yaml.org,2002:"
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(
    r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|(?P<decimal>[0-9][0-9_]*))", re.ASCII
)
_FLOAT: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?", re.ASCII
)
_INFINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", re.ASCII)


class UnreadableError(ValueError):
    """What is in `line`, from 1, is nothing that can be read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


class Map(dict[Any, Any]):
    """A mapping: the line it begins in, and those of its keys. `size` and `depth` are with aliases written out."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.size, self.depth = line, 1, 1
        self.lines: dict[Any, int] = {}


class List(list[Any]):
    """A list: the line it begins in, and those of its items; otherwise as `Map`."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line, self.size, self.depth = line, 1, 1
        self.lines: list[int] = []


_NOTHING: Final = object()


class _Level:
    """A mapping or list that is being read; of a mapping also the key that waits for its value."""

    def __init__(self, value: Map | List) -> None:
        self.value = value
        self.key: Any = _NOTHING
        self.key_line = 0
        self.merges = False
        self.merged: list[Map] = []

    def put(self, value: Any, line: int, *, merge: bool) -> None:
        """The next item, key or value. `merge`: it is `<<`, as a key."""
        into = self.value
        _grow(into, value, line)
        if isinstance(into, List):
            into.append(value)
            into.lines.append(line)
        elif self.key is _NOTHING:
            self.key, self.key_line, self.merges = _fixed(value), line, merge
        else:
            if self.merges:
                self.merged += _maps(value, self.key_line)
            elif self.key in into:
                raise UnreadableError(self.key_line, f"found duplicate key {self.key!r}")
            else:
                into[self.key], into.lines[self.key] = value, self.key_line
            self.key = _NOTHING

    def whole(self) -> Map | List:
        """The mapping with what it merges: its own keys, and of others the first ones, count."""
        for other in self.merged:
            assert isinstance(self.value, Map)
            for key, value in other.items():
                if key not in self.value:
                    self.value[key], self.value.lines[key] = value, other.lines[key]
        return self.value


def _grow(into: Map | List, value: Any, line: int) -> None:
    """Count what is put into it, before anything is done with that: aliases make little text much."""
    if isinstance(value, Map | List):
        into.size += value.size
        into.depth = max(into.depth, 1 + value.depth)
        if into.depth > DEEPEST:
            raise UnreadableError(line, _TOO_DEEP)
    else:
        into.size += 1
    if into.size > MOST_VALUES:
        message = f"has more than {MOST_VALUES} values with its aliases written out"
        raise UnreadableError(line, message)


def _fixed(value: Any) -> Any:
    """As a key."""
    if isinstance(value, Map):
        return tuple((key, _fixed(one)) for key, one in value.items())
    if isinstance(value, List):
        return tuple(map(_fixed, value))
    return value


def _maps(value: Any, line: int) -> list[Map]:
    found = value if isinstance(value, List) else [value]
    if not all(isinstance(one, Map) for one in found):
        raise UnreadableError(line, "`<<` merges a mapping, or a list of mappings")
    return list(found)


def load(document: str) -> Any:
    """The document's value: `Map`, `List`, str, int, float, bool or None. Raise `UnreadableError`."""
    try:
        return _read(document)
    except yaml.reader.ReaderError as error:
        line = document.encode(errors="replace")[: error.position].count(b"\n") + 1
        raise UnreadableError(line, f"not YAML: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What is missing at the end is missed behind the last line.
        line = 1 if mark is None else min(mark.line, document.rstrip().count("\n")) + 1
        raise UnreadableError(line, f"not YAML: {error.problem or error}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise UnreadableError(1, f"not YAML: {error}") from error


def _read(document: str) -> Any:
    reading = _Reading()
    for event in yaml.parse(document, Loader=_LOADER):
        reading.take(event)
    return reading.found


class _Reading:
    """Makes a value of events. What is deep is no recursion."""

    def __init__(self) -> None:
        self.found: Any = None
        self._levels: list[_Level] = []
        self._anchors: dict[str, Any] = {}
        self._documents = 0

    def take(self, event: Any) -> None:
        """One event of the parser."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, line)
            self._note(event, value)
            self._put(value, line, merge=value == "<<" and not event.style)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._levels) >= DEEPEST:
                raise UnreadableError(line, _TOO_DEEP)
            collection = Map(line) if isinstance(event, yaml.MappingStartEvent) else List(line)
            self._note(event, collection)
            self._levels.append(_Level(collection))
        elif isinstance(event, yaml.CollectionEndEvent):
            whole = self._levels.pop().whole()
            self._put(whole, whole.line)
        elif isinstance(event, yaml.AliasEvent):
            self._put(self._meant(event.anchor, line), line)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise UnreadableError(line, "a second document begins; a file has one")

    def _note(self, event: Any, value: Any) -> None:
        """The last one of a name counts."""
        if event.anchor:
            self._anchors[event.anchor] = value

    def _meant(self, anchor: str, line: int) -> Any:
        if anchor not in self._anchors:
            raise UnreadableError(line, f"no &{anchor} comes before *{anchor}")
        value = self._anchors[anchor]
        if any(level.value is value for level in self._levels):
            raise UnreadableError(line, f"*{anchor} stands in what it means")
        return value

    def _put(self, value: Any, line: int, *, merge: bool = False) -> None:
        if self._levels:
            self._levels[-1].put(value, line, merge=merge)
        else:
            self.found = value


def _scalar(event: Any, line: int) -> Any:
    """What it means; text where it is quoted or has another tag."""
    text, tag = event.value, event.tag
    if "\0" in text or not _is_unicode(text):
        raise UnreadableError(line, f"has a character that is no text: {text!r}")
    if tag is None and not event.style:
        return _plain(text, line)
    kind = (tag or "").removeprefix(_SCHEMA)
    if kind not in ("null", "bool", "int", "float"):
        return text
    value = _plain(text, line)
    fits = {
        "null": value is None,
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }
    if not fits[kind]:
        raise UnreadableError(line, f"{text[:40]!r} is no {kind}")
    # By its digits: what is too large is infinite then.
    return float(str(value)) if kind == "float" else value


def _plain(text: str, line: int) -> Any:
    """By YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), with `_` between digits and 0b as well."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if match := _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        if digits[-1] in "box":  # and none of its own behind it
            return text
        # Python reads no decimals of many thousand digits.
        number = int(digits, 10 if match["decimal"] else 0) if len(digits) <= _LONGEST else None
        if number is None or number.bit_length() > LONGEST_INTEGER:
            raise UnreadableError(line, f"has an integer of more than {LONGEST_INTEGER} bits")
        return number
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return float(text.replace(".", "")) if _INFINITE.fullmatch(text) else text


def _is_unicode(value: str) -> bool:
    """False for halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
