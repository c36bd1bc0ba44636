"""The commands `kafka …`: topics, and messages that were no records.

They reach Kafka themselves, as METERGATE_KAFKA_… say, or as the gateway of the data folder does.
"""

from __future__ import annotations

import asyncio
import json as json_module
import os
import secrets
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import find_folder
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
)
from enforcer.cli.output import print_json
from meter.adapters.kafka.client import KafkaOptions, prepare_topics, quiet_driver
from meter.adapters.kafka.dead_letters import DeadLetter, read_dead_letters, replay_dead_letter
from meter.errors import MeterError, UnavailableError
from meter.settings import load_kafka

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from enforcer.cli.folder import DataFolder

__all__ = ["FolderKafka", "app", "folder_kafka"]

T = TypeVar("T")

PARTITIONS: Final = 8
"""Of the topic of `metergate up --kafka`: one for each of its buckets."""
SHOWN_BYTES: Final = 200

app = typer.Typer(name="kafka", help="Topics of records, and messages that were none.")


@dataclass(frozen=True, slots=True)
class FolderKafka:
    """Where the records of a data folder go: once through Kafka, always through this topic."""

    servers: str
    topic: str
    partitions: int

    @property
    def options(self) -> KafkaOptions:
        """For clients; what the environment says of access to the brokers holds here too."""
        return replace(
            KafkaOptions.of(load_kafka()),
            servers=self.servers,
            topic=self.topic,
            partitions=self.partitions,
            group=f"{self.topic}.rollup",
        )

    @property
    def settings(self) -> dict[str, str]:
        """For the processes of the gateway."""
        return {
            "METERGATE_KAFKA_SERVERS": self.servers,
            "METERGATE_KAFKA_TOPIC": self.topic,
            "METERGATE_KAFKA_PARTITIONS": str(self.partitions),
            "METERGATE_KAFKA_GROUP": self.options.group,
        }


def folder_kafka(folder: DataFolder, servers: str | None) -> FolderKafka | None:
    """What `up` has to do with Kafka: what it was told now, and on its first start with it.

    Raise `CommandError` when the folder's records go through Kafka and no broker is named: those that
    were trimmed from the outbox would be missed.
    """
    noted = folder.read(folder.kafka)
    known = FolderKafka(**json_module.loads(noted)) if noted else None
    if not servers:
        if known is None:
            return None
        raise CommandError(
            f"the records of {folder.path} go through Kafka: start with --kafka {known.servers} "
            "(or the address it has now)"
        )
    for server in servers.split(","):
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise CommandError(f"--kafka {server!r}: HOST:PORT is expected, such as localhost:9092")
    if known is None:
        known = FolderKafka(servers, f"metergate.{secrets.token_hex(4)}", PARTITIONS)
    found = replace(known, servers=servers)
    folder.write_secret(folder.kafka, json_module.dumps(asdict(found)))
    return found


def _options(folder: DataFolder) -> KafkaOptions:
    if not os.environ.get("METERGATE_KAFKA_SERVERS") and (noted := folder.read(folder.kafka)):
        return FolderKafka(**json_module.loads(noted)).options
    options = KafkaOptions.of(load_kafka())
    if not options.servers:
        raise CommandError(
            "no Kafka is known: set METERGATE_KAFKA_SERVERS=HOST:PORT, or name a data folder of "
            "`metergate up --kafka` with --data-dir"
        )
    return options


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; the meter's errors become the command's."""
    quiet_driver()
    try:
        return asyncio.run(work)
    except UnavailableError as error:
        raise CommandError(error.message, Status.UNAVAILABLE) from error
    except MeterError as error:
        raise CommandError(error.message) from error


@app.command("init")
def init(
    *,
    replication: Annotated[
        int,
        typer.Option(
            "--replication", min=1, max=100, help="Copies of each record; 3 for real use."
        ),
    ] = 1,
    retention_hours: Annotated[
        int,
        typer.Option(
            "--retention-hours", min=1, help="Records older than this are deleted from the topic."
        ),
    ] = 168,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Create the topics of records and of dead letters where they are missing.

    With several copies a record is acknowledged when all but one have it (min.insync.replicas).
    """
    options = _options(find_folder(data_dir))
    made = _run(
        prepare_topics(
            options, create=True, replication=replication, retention_hours=retention_hours
        )
    )
    if json:
        print_json({"topics": [{"name": name, "created": new} for name, new in made.items()]})
        return
    for name, new in made.items():
        typer.echo(f"{name}: {'created' if new else 'is there'}")


@app.command("dead-letters")
def dead_letters(*, json: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """List the messages of the topic that were no records. Exit status 1 if there are any."""
    options = _options(find_folder(data_dir))

    async def read() -> list[DeadLetter]:
        return [letter async for letter in read_dead_letters(options)]

    letters = _run(read())
    if json:
        print_json({"dead_letters": [_shown(letter) for letter in letters]})
    else:
        for letter in letters:
            value = (letter.value or b"")[:SHOWN_BYTES].decode(errors="backslashreplace")
            typer.echo(
                f"{letter.number}  partition {letter.partition} offset {letter.offset}  "
                f"{letter.reason}: {value}"
            )
        typer.echo(f"{len(letters)} dead letters")
    raise typer.Exit(Status.REFUSED if letters else Status.OK)


@app.command("resend")
def resend(
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Of the dead letter.")],
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Put a dead letter into its partition once more, as when its reader was at fault."""
    options = _options(find_folder(data_dir))

    async def again() -> tuple[DeadLetter, int]:
        async for letter in read_dead_letters(options, first=number):
            if letter.number == number:
                return letter, await replay_dead_letter(options, letter)
            break
        raise CommandError(f"there is no dead letter {number}: `metergate kafka dead-letters`")

    letter, offset = _run(again())
    if json:
        print_json({"number": number, "partition": letter.partition, "offset": offset})
    else:
        typer.echo(f"dead letter {number} is at offset {offset} of partition {letter.partition}")


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "value": (letter.value or b"").decode(errors="backslashreplace"),
    }
