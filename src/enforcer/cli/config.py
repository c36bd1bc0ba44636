"""The commands `config …`: whether the settings of this environment work out, which they are, and which there are.

What is wrong is found by the classes that the processes themselves read their settings with.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from enforcer.catalog.ratelimit import read_domains
from enforcer.cli import known
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.options import JsonOption  # noqa: TC001 - typer reads annotations at run time
from enforcer.cli.output import print_json, print_table
from enforcer.cli.reference import reference
from enforcer.errors import CatalogInvalidError
from enforcer.settings import Settings as EnforcerSettings
from meter.environment import no_json, secrets_folder
from meter.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_settings import BaseSettings

__all__ = ["Fault", "Given", "app", "faults_of", "given"]

app = typer.Typer(name="config", help="The settings of the processes: METERGATE_….")


class ProcessName(StrEnum):
    """A program whose settings are meant."""

    ENFORCER = "enforcer"
    METER = "meter"


ProcessOption = Annotated[
    list[ProcessName] | None,
    typer.Option(
        "--process",
        help="Whose settings are meant; may be repeated. The relay and the rollup are the meter. Default: all.",
    ),
]
EnvFileOption = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Lines NAME=VALUE, read in place of the environment.",
    ),
]


@dataclass(frozen=True, slots=True)
class Given:
    """What a process would find: value and origin by name."""

    values: Mapping[str, str]
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """A setting that is wrong, and why. Never with its value: it may be a secret."""

    name: str
    """Empty when several do not go together: `message` names them."""
    processes: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}: {self.message}" if self.name else self.message


def given(env_file: Path | None = None) -> Given:
    """The variables of Metergate, of the environment or of the file, and in the folder of secrets.

    Raise `CommandError` for a file that cannot be read, or has a line that is none.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    if env_file is None:
        found, origin = dict(os.environ), "environment"
    else:
        found, origin = _read(env_file), str(env_file)
    for name, value in found.items():
        if name.upper().startswith(known.PREFIX):
            values[name.upper()], origins[name.upper()] = value, origin
    with _environment(values):
        try:
            folder = secrets_folder()
        except ValueError as error:
            raise CommandError(str(error)) from error
    for file in sorted(folder.iterdir()) if folder else ():
        name = file.name.upper()
        if name.startswith(known.PREFIX) and name not in values and file.is_file():
            try:
                values[name] = file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise CommandError(f"cannot read {file}: {type(error).__name__}") from error
            origins[name] = str(file)
    return Given(values, origins)


def _read(file: Path) -> dict[str, str]:
    """The lines of a file as `docker run --env-file` and compose read them: no interpolation."""
    from dotenv import dotenv_values  # noqa: PLC0415 - only here

    try:
        found = dotenv_values(file, interpolate=False) if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {file}: {error}") from error
    if found is None:
        raise CommandError(f"cannot read {file}: there is no such file")
    if bare := [name for name, value in found.items() if value is None]:
        raise CommandError(f"{file}: {bare[0]!r} has no value; lines are NAME=VALUE")
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With no other variables of Metergate than these: what reads the environment then reads them."""
    before = dict(os.environ)
    for name in before:
        if name.upper().startswith(known.PREFIX):
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def faults_of(values: Mapping[str, str], processes: Sequence[str]) -> list[Fault]:
    """What the processes would refuse to start with, and names that nobody reads."""
    found: dict[tuple[str, str], list[str]] = {}
    with _environment(values):
        for process in processes:
            for name, message in _refused(process):
                found.setdefault((name, message), []).append(process)
    read = {setting.name for setting in known.known()} | known.OTHERS.keys()
    return [
        *(
            Fault(name, tuple(who), f"{message}{_allowed(name, message)}")
            for (name, message), who in found.items()
        ),
        *(Fault(name, (), _unknown(name, read)) for name in sorted(values.keys() - read)),
    ]


def _refused(process: str) -> list[tuple[str, str]]:
    """Name and message of each fault of one process's settings, in the present environment."""
    settings, faults = _build(known.PROCESSES[process])
    if not isinstance(settings, EnforcerSettings):
        return faults
    # What the enforcer looks at when it starts.
    if settings.journal_kafka:
        kafka, more = _build(KafkaSettings)
        faults += more
        if isinstance(kafka, KafkaSettings) and not kafka.kafka_servers:
            faults.append(("METERGATE_KAFKA_SERVERS", "is needed by METERGATE_JOURNAL_KAFKA"))
    if settings.ratelimit_file is not None:
        try:
            read_domains(settings.ratelimit_file)
        except CatalogInvalidError as error:
            faults.append(("METERGATE_RATELIMIT_FILE", " ".join(error.message.split())))
    return faults


def _build(kind: type[BaseSettings]) -> tuple[BaseSettings | None, list[tuple[str, str]]]:
    try:
        return kind(_secrets_dir=secrets_folder()), []
    except SettingsError as error:
        name, _, message = no_json(error).rpartition(": ")
        return None, [(name, message)]
    except ValidationError as error:
        return None, [
            (
                f"{known.PREFIX}{str(fault['loc'][0]).upper()}" if fault["loc"] else "",
                "is not set"
                if fault["type"] == "missing"
                else fault["msg"].removeprefix("Value error, "),
            )
            for fault in error.errors(include_url=False, include_input=False)
        ]


def _allowed(name: str, message: str) -> str:
    """What would be right, where the message does not say it."""
    for setting in known.known():
        if setting.name == name and setting.allowed != message:
            words = f"{setting.form}, {setting.allowed}" if setting.allowed else setting.form
            return f" (allowed: {words})"
    return ""


def _unknown(name: str, read: set[str]) -> str:
    near = get_close_matches(name, sorted(read), n=1, cutoff=0.8)
    meant = f"; is {near[0]} meant?" if near else ""
    return f"there is no such setting{meant} (`metergate config reference` lists all)"


@app.command("check")
def check(
    *, process: ProcessOption = None, env_file: EnvFileOption = None, json: JsonOption = False
) -> None:
    """Name every setting that is wrong or unknown, with what is allowed. Exit status 1 if there are any.

    Nothing is connected to.
    """
    processes = [one.value for one in process or ProcessName]
    faults = faults_of(given(env_file).values, processes)
    if json:
        print_json(
            {
                "faults": [
                    {"name": one.name, "processes": one.processes, "message": one.message}
                    for one in faults
                ]
            }
        )
    else:
        for fault in faults:
            typer.echo(str(fault))
        wrong = "1 wrong setting" if len(faults) == 1 else f"{len(faults)} wrong settings"
        typer.echo(wrong if faults else f"fine for {' and '.join(processes)}")
    raise typer.Exit(Status.REFUSED if faults else Status.OK)


@app.command("show")
def show(
    *, process: ProcessOption = None, env_file: EnvFileOption = None, json: JsonOption = False
) -> None:
    """List the settings with their values, and where each comes from. Secrets and passwords are not shown."""
    found = given(env_file)
    rows = []
    for setting in {
        one.name: one for name in process or ProcessName for one in known.of_process(name.value)
    }.values():
        value = found.values.get(setting.name, setting.default)
        rows.append(
            (
                setting.name,
                known.redacted(setting, value or ""),
                found.origins.get(setting.name, "default" if value is not None else "not set"),
            )
        )
    if json:
        print_json(
            {
                "settings": [
                    {"name": name, "value": value, "from": origin} for name, value, origin in rows
                ]
            }
        )
    else:
        print_table(["setting", "value", "from"], rows)


@app.command("reference")
def reference_() -> None:
    """Print what docs/configuration.md has: every setting, what it allows and means."""
    typer.echo(reference(), nl=False)
