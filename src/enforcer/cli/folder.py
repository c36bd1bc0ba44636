"""The data folder: where a gateway keeps its data, and where commands find its address and key.

Without `--data-dir` or METERGATE_DATA_DIR it is the nearest folder `.metergate` here or above, as
git finds its repository; `up` makes one here if there is none. So commands work without arguments
below the place where the gateway was started, and two clones do not share data by accident.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from enforcer.cli.exits import CommandError, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DATA_DIR", "FOLDER_NAME", "DataFolder", "find_folder"]

DATA_DIR = "METERGATE_DATA_DIR"
FOLDER_NAME = ".metergate"


def find_folder(chosen: Path | None, *, start: Path | None = None) -> DataFolder:
    """The data folder by the rule above; it need not exist. `start` stands for the current one."""
    if chosen is None and (named := os.environ.get(DATA_DIR)):
        chosen = Path(named)
    if chosen is not None:
        return DataFolder(chosen.expanduser().absolute())
    here = (start or Path.cwd()).absolute()
    for place in (here, *here.parents):
        found = place / FOLDER_NAME
        # Somebody else's folder above (in /tmp, say) must not choose whom we send our key to.
        if found.is_dir() and found.stat().st_uid == os.getuid():
            return DataFolder(found)
    return DataFolder(here / FOLDER_NAME)


class DataFolder:
    """The files of one gateway's data folder, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.endpoint = path / "endpoint"
        self.api_key = path / "api-key"
        self.internal_token = path / "internal-token"
        self.lock = path / "lock"
        self.children = path / "children.json"
        self.seeded = path / "seeded"
        self.valkey = path / "valkey"
        self.journal = path / "journal"
        self.metrics = path / "metrics"
        self.definitions = path / "definitions.db"
        self.kafka = path / "kafka.json"

    def create(self) -> None:
        """Make the folder, for its owner only. Raise `CommandError` if that cannot be."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.valkey.mkdir(mode=0o700, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CommandError(
                f"cannot write the data folder {self.path}: {error.strerror}; "
                f"choose another with --data-dir or {DATA_DIR}"
            ) from error

    def write_secret(self, file: Path, text: str) -> None:
        """Write a file that only its owner can read, whole or not at all."""
        draft = file.with_name(f".{file.name}-{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            os.fchmod(descriptor, 0o600)
            opened.write(text + "\n")
            opened.flush()
            os.fsync(descriptor)
        draft.replace(file)

    def secret(self, file: Path) -> str:
        """The secret in `file`, made at random the first time."""
        if not (text := self.read(file)):
            text = secrets.token_urlsafe(32)
            self.write_secret(file, text)
        return text

    def read(self, file: Path) -> str:
        """The text of a file of this folder, empty if there is none."""
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(
                f"cannot read {file}: {error}; only the owner of the data folder can",
                Status.NO_ACCESS,
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raise `CommandError` when another process has it.

        The lock is the kernel's and ends with its process; the pid in the file is for people.
        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = self.read(self.lock) or "unknown"
                raise CommandError(
                    f"the data folder {self.path} is in use by another `metergate up` "
                    f"(pid {owner}); stop that one or choose another folder with --data-dir"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
