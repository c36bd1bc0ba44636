"""The commands `backup` and `restore`: the data of a data folder, copied so that what is restored counts once.

The stores are copied in the order in which records pass through them, so that each copy has what the one before it gave
away: journals, Valkey, then rollups with their marks, then the definitions (docs/backup.md says what each order would
cost). Checks go on meanwhile. The rollups stand still while they are copied: the copy is what a kill at that instant
would have left, which the meter goes on from.
"""

from __future__ import annotations

import hashlib
import json as json_module
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import redis
import typer

from enforcer.cli import leftovers
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import find_folder
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
)
from enforcer.cli.output import print_json
from enforcer.cli.parts import socket_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enforcer.cli.folder import DataFolder

__all__ = ["backup", "copy_rollups", "copy_sqlite", "copy_valkey", "restore"]

FORMAT: Final = 1
NOTE: Final = "backup.json"
KEPT: Final = ("api-key", "internal-token", "kafka.json", "seeded")
"""Small files of the folder; two of them are secrets."""
REWRITE_SECONDS: Final = 600.0
STOPPED_SECONDS: Final = 10.0
_REWRITE: Final = "auto-aof-rewrite-percentage"
_GO_ON: Final = (
    "import os, signal, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), signal.SIGCONT)"
)


def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="New, or an empty folder.")],
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Copy the data of a gateway, running or not. Checks go on; reports wait while the rollups are copied.

    The copy has secrets (an API key, what signs tokens): it is made readable by its owner alone.
    """
    folder, target = find_folder(data_dir), target.expanduser().absolute()
    if not folder.definitions.exists():
        raise CommandError(f"{folder.path} has no data: name the folder with --data-dir")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CommandError(f"{target} is there already: name a new folder")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    began = _now()
    running = dict(leftovers.leftovers(folder.children))
    if running:
        _copy_running(folder, target, running)
    else:
        with folder.locked():
            _copy_stopped(folder, target)
    for name in KEPT:
        if (file := folder.path / name).exists():
            shutil.copy2(file, target / name)
    note = {
        "format": FORMAT,
        "version": version("metergate"),
        "began": began,
        "ended": _now(),
        "running": bool(running),
        "files": _sums(target),
    }
    (target / NOTE).write_text(json_module.dumps(note, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in _files(target))
    if json:
        print_json({"backup": str(target), "began": began, "ended": note["ended"], "bytes": size})
    else:
        typer.echo(f"{target}: {size:,} bytes, as of {began}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Made by `metergate backup`.")],
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Make a data folder of a backup, where there is none. Then start it with `metergate up`.

    Its first start opens a new generation in every bucket: nothing that was decided after the backup can be taken for
    something else. What it lacks can be sent again under its idempotency keys.
    """
    source, folder = source.expanduser().absolute(), find_folder(data_dir)
    note = _checked(source)
    if folder.path.exists() and any(folder.path.iterdir()):
        raise CommandError(
            f"{folder.path} is there already: move it away, it may have what the backup lacks; "
            "or name a new folder with --data-dir"
        )
    folder.create()
    for place in source.iterdir():
        if place.is_dir():
            copy = folder.path / place.name
            shutil.copytree(place, copy, symlinks=True, dirs_exist_ok=True)
        elif place.name != NOTE:
            shutil.copy2(place, folder.path / place.name)
    if folder.kafka.exists():
        typer.echo(
            "the records go through Kafka: set the rollup's consumer group back to before "
            f"{note['began']} first (docs/backup.md)",
            err=True,
        )
    if json:
        print_json({"restored": str(folder.path), "as_of": note["began"]})
    else:
        typer.echo(f"{folder.path}: as of {note['began']}. Start it with `metergate up`")


# -- copies of single stores


def copy_valkey(client: redis.Redis, folder: Path, target: Path) -> None:
    """Copy the append-only file of a running server. It may end in the middle of a command: Valkey cuts that off."""
    asked: Any = client
    before = asked.config_get(_REWRITE)[_REWRITE]
    asked.config_set(_REWRITE, "0")
    try:
        give_up = time.monotonic() + REWRITE_SECONDS
        while asked.info("persistence")["aof_rewrite_in_progress"]:
            if time.monotonic() > give_up:
                raise CommandError("Valkey rewrites its file without end", Status.UNAVAILABLE)
            time.sleep(0.1)
        # The manifest names files that are only appended to: while none is rewritten it stays true.
        shutil.copytree(folder, target, symlinks=True, ignore=shutil.ignore_patterns("*.log"))
    finally:
        asked.config_set(_REWRITE, before)


def copy_rollups(pid: int, folder: Path, target: Path) -> None:
    """Copy ClickHouse's folder and the marks of the meter with this `pid`, which stands still meanwhile.

    They are of one instant, so that a slice is in both, in doubt, or in none.
    """
    with _standing_still(pid):
        shutil.copytree(folder / "clickhouse", target / "clickhouse", symlinks=True)
        copy_sqlite(folder / "meter.db", target / "meter.db")


def copy_sqlite(file: Path, target: Path) -> None:
    """Copy a database as of one instant, whoever uses it."""
    with (
        closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


@contextmanager
def _standing_still(pid: int) -> Iterator[None]:
    """Stop the process; it goes on afterwards, also when this one is killed meanwhile."""
    with subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-I", "-S", "-c", _GO_ON, str(pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as keeper:
        assert keeper.stdin is not None
        try:
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError as error:
                raise CommandError(
                    f"the meter (pid {pid}) has ended: try again in a moment", Status.UNAVAILABLE
                ) from error
            _until_stopped(pid)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            keeper.stdin.close()


def _until_stopped(pid: int) -> None:
    """A signal is only asked for by `kill`. Where the system does not tell of it, a moment is waited."""
    stat = Path(f"/proc/{pid}/stat")
    give_up = time.monotonic() + STOPPED_SECONDS
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "Tt":
        if time.monotonic() > give_up:
            raise CommandError(f"the meter (pid {pid}) does not stand still", Status.UNAVAILABLE)
        time.sleep(0.01)
    if not stat.exists():
        time.sleep(0.2)


# -- the whole


def _copy_running(folder: DataFolder, target: Path, running: dict[str, int]) -> None:
    if "meter" not in running or "valkey" not in running:
        raise CommandError(
            "the gateway is starting or stopping: try again in a moment", Status.UNAVAILABLE
        )
    if folder.journal.exists():
        shutil.copytree(folder.journal, target / "journal", copy_function=_if_there)
    socket = socket_folder(folder) / "valkey.sock"
    try:
        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            copy_valkey(client, folder.valkey, target / "valkey")
    except redis.RedisError as error:
        raise CommandError(f"Valkey: {error}", Status.UNAVAILABLE) from error
    copy_rollups(running["meter"], folder.path, target)
    copy_sqlite(folder.definitions, target / folder.definitions.name)


def _if_there(source: str, target: str) -> None:
    """Copy a journal; one that was counted meanwhile is gone, and what it had is in Valkey."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _copy_stopped(folder: DataFolder, target: Path) -> None:
    for place in (folder.journal, folder.valkey, folder.path / "clickhouse"):
        if place.exists():
            shutil.copytree(place, target / place.name, symlinks=True)
    for file in (folder.path / "meter.db", folder.definitions):
        if file.exists():
            copy_sqlite(file, target / file.name)


def _checked(source: Path) -> dict[str, Any]:
    """The note of a backup that is whole."""
    try:
        note: dict[str, Any] = json_module.loads((source / NOTE).read_text(encoding="utf-8"))
        known = note["format"]
        files: dict[str, str] = note["files"]
    except FileNotFoundError as error:
        raise CommandError(
            f"{source} is no backup, or one that was cut short: it has no {NOTE}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{source / NOTE} cannot be read: {error}") from error
    if known != FORMAT:
        raise CommandError(
            f"{source} has format {known} of version {note.get('version')}; this version "
            f"({version('metergate')}) reads format {FORMAT}"
        )
    found = _sums(source)
    for name in sorted(files.keys() | found.keys()):
        if files.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not what was written"
            raise CommandError(f"{source}: {name} {what}: the backup is damaged")
    return note


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but the note."""
    found = {}
    for file in _files(folder):
        if file == folder / NOTE:
            continue
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found[str(file.relative_to(folder))] = digest
    return found


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
