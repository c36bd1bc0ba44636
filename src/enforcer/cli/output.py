"""What commands print: JSON for scripts, tables for people, nothing fancy without a terminal.

Messages become JSON under their proto field names, every field present. 64-bit integers are JSON
numbers, not the strings of protobuf's own mapping: all of ours stay within 2^53 - 1.
"""

from __future__ import annotations

import json
import math
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = [
    "as_json",
    "number",
    "print_json",
    "print_table",
    "seconds",
    "short_name",
    "when",
]

LONG_SECONDS = 120
_LONG = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def as_json(message: Message) -> dict[str, Any]:
    """A message as a JSON object; see the module."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _numbers(message.DESCRIPTOR, found)
    return found


def _numbers(descriptor: Any, found: dict[str, Any]) -> None:
    """Turn the strings of 64-bit fields into numbers, in place."""
    for field in descriptor.fields:
        if field.name not in found:
            continue
        value = found[field.name]
        if field.cpp_type in _LONG:
            found[field.name] = (
                [int(one) for one in value] if isinstance(value, list) else int(value)
            )
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            # Timestamps and durations are strings by now, maps of strings have no field `fields`.
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, dict) and not field.message_type.GetOptions().map_entry:
                    _numbers(field.message_type, one)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: str = "") -> None:
    """A table; the columns named in `numbers` (space-separated) are set right.

    Without a terminal: aligned plain text that is never cut or coloured.
    """
    right = set(numbers.split())
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
        from rich.markup import escape  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    for row in (columns, *rows):
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def number(value: int) -> str:
    """A quantity for people: 1,234,567."""
    return f"{value:,}"


def seconds(duration: Duration) -> str:
    """A duration for people: `2.5 s`, or `11:30:59` from two minutes on, rounded up."""
    exact = duration.seconds + duration.nanos / 1e9
    if exact < LONG_SECONDS:
        return f"{exact:g} s"
    return str(timedelta(seconds=math.ceil(exact)))


def when(moment: Timestamp) -> str:
    """A time for people, in UTC, to the second."""
    return f"{moment.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def short_name(name: str, prefix: str) -> str:
    """An enum value's name as the catalog and the command line spell it: `quota`."""
    return name.removeprefix(prefix).lower()
