"""Options that several commands have, and the values that they take."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from enforcer.cli.exits import CommandError
from enforcer.core.model import MAX_QUANTITY
from enforcer.v1 import enforcer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CustomerArgument",
    "DataDirOption",
    "DimensionOption",
    "FeatureArgument",
    "JsonOption",
    "KeyOption",
    "ModeName",
    "ModeOption",
    "QuantityOption",
    "TimeoutOption",
    "TtlOption",
    "VersionOption",
    "dimensions",
    "duration",
    "mode",
]


class ModeName(StrEnum):
    """How a check treats limits."""

    ENFORCE = "enforce"
    CHECK_ONLY = "check_only"
    BEST_EFFORT = "best_effort"
    RECORD_ONLY = "record_only"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object on one line.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="The gateway's data folder. Default: METERGATE_DATA_DIR, else .metergate here or in "
        "a folder above.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Wait so long for an answer."),
]
CustomerArgument = Annotated[
    str, typer.Argument(metavar="CUSTOMER", help="A node of an account's tree.")
]
FeatureArgument = Annotated[str, typer.Argument(metavar="FEATURE", help="As named in the catalog.")]
QuantityOption = Annotated[
    int | None,
    typer.Option(
        "--quantity",
        "-n",
        min=1,
        max=MAX_QUANTITY,
        metavar="NUMBER",
        help="In the feature's own unit. Default: 1.",
    ),
]
ModeOption = Annotated[ModeName, typer.Option("--mode", help="How limits are treated.")]
KeyOption = Annotated[
    str,
    typer.Option(
        "--key", help="Idempotency key: the same key again gets the original answer.", metavar="KEY"
    ),
]
DimensionOption = Annotated[
    list[str] | None,
    typer.Option("--dimension", "-d", metavar="NAME=VALUE", help="To report by; may be repeated."),
]
VersionOption = Annotated[
    str,
    typer.Option(
        "--product-version", metavar="VERSION", help="The version of the product that asks."
    ),
]
TtlOption = Annotated[
    str, typer.Option("--ttl", metavar="TIME", help="Such as 30s, 5m, 2h. Default: the feature's.")
]

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)")


def mode(name: ModeName) -> pb.Mode.ValueType:
    """The mode that a name stands for."""
    return pb.Mode.Value(f"MODE_{name.name}")


def dimensions(pairs: Sequence[str] | None, option: str = "--dimension") -> dict[str, str]:
    """`["region=eu"]` as a map."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise CommandError(f"{option} {pair!r}: NAME=VALUE is expected, such as region=eu")
        if name in found:
            raise CommandError(f"{option} names {name!r} twice; each name may have one value")
        found[name] = value
    return found


def duration(text: str, option: str = "--ttl") -> Duration | None:
    """`"90s"`, `"5m"` as a duration; None for the empty text."""
    if not text:
        return None
    matched = _DURATION.fullmatch(text.strip())
    if matched is None:
        raise CommandError(
            f"{option} {text!r}: a number with ms, s, m, h or d is expected, such as 90s"
        )
    found = Duration()
    try:
        found.FromTimedelta(timedelta(seconds=float(matched[1]) * _UNITS[matched[2]]))
    except (OverflowError, ValueError) as error:
        raise CommandError(f"{option} {text!r} is too long") from error
    return found
