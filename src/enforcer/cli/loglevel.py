"""The command `log-level`: how much all processes of a deployment log, for a time."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from enforcer.cli.connection import calling, find_gateway
from enforcer.cli.options import (
    DataDirOption,
    JsonOption,
    TimeoutOption,
    duration,
)
from enforcer.cli.output import as_json, print_json, print_table, short_name, when
from enforcer.v1 import operations_pb2 as pb
from enforcer.v1.operations_pb2_grpc import OperationsServiceStub

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["log_level"]


class LevelName(StrEnum):
    """What is logged at the least; `default`: as the settings say."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    DEFAULT = "default"


class PartName(StrEnum):
    """Whose level it is."""

    ALL = "all"
    ENFORCER = "enforcer"
    RELAY = "relay"
    ROLLUP = "rollup"


def log_level(
    level: Annotated[
        LevelName | None,
        typer.Argument(metavar="[LEVEL]", help="debug, info, warning, error, or default."),
    ] = None,
    *,
    lifetime: Annotated[
        str, typer.Option("--for", metavar="TIME", help="1s to 24h. Default: 15m.")
    ] = "",
    part: Annotated[
        PartName, typer.Option("--part", help="Which processes. Goes before what is set for all.")
    ] = PartName.ALL,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 10,
) -> None:
    """Let every process log more or less for a time; without LEVEL show what is set.

    They learn it within two seconds, and return by themselves.
    """
    gateway = find_gateway(data_dir)
    answer: Message
    with calling(gateway) as channel:
        stub = OperationsServiceStub(channel)
        if level is None:
            listed = stub.ListLogLevels(
                pb.ListLogLevelsRequest(), timeout=timeout, metadata=gateway.metadata
            )
            answer = listed
            rows = [
                [
                    short_name(pb.Part.Name(one.part), "PART_").replace("unspecified", "all"),
                    short_name(pb.LogLevel.Name(one.level), "LOG_LEVEL_"),
                    when(one.until),
                ]
                for one in listed.levels
            ]
        else:
            wanted = "UNSPECIFIED" if level is LevelName.DEFAULT else level.name
            whose = "UNSPECIFIED" if part is PartName.ALL else part.name
            done = stub.SetLogLevel(
                pb.SetLogLevelRequest(
                    level=pb.LogLevel.Value(f"LOG_LEVEL_{wanted}"),
                    part=pb.Part.Value(f"PART_{whose}"),
                    lifetime=duration(lifetime, "--for"),
                ),
                timeout=timeout,
                metadata=gateway.metadata,
            )
            answer = done
            until = when(done.until) if done.HasField("until") else "now: as the settings say"
            rows = [[part.value, level.value, until]]
    if json:
        print_json(as_json(answer))
    elif rows:
        print_table(["part", "level", "until"], rows)
    else:
        typer.echo("nothing is set: all log at the level of their settings")
