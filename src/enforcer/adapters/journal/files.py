"""Journals as files of a folder that the enforcers of one machine share.

    <folder>/<slot>/lock                     held by the enforcer that has the slot, by the kernel, until it ends
    <folder>/<slot>/<boot>.<part>.journal    its uses, in parts that are sealed one after the other

There are as many slots as the deployment may have enforcers: one more finds none, and allows nothing. An enforcer takes
over what its slot has uncounted; slots whose enforcers are gone are counted by whoever finds them unlocked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
import structlog

from enforcer.adapters.journal.frames import HEAD, frame, frames, whole_frame_in
from enforcer.core.emergency import decode_use, encode_use
from enforcer.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from enforcer.core.emergency import Use

__all__ = ["FileJournal"]

_log = structlog.get_logger(__name__)
_SUFFIX = ".journal"
_T = TypeVar("_T")


class _Waiting(NamedTuple):
    use: Use
    written: asyncio.Future[None]


class FileJournal:
    """Implements `enforcer.ports.journal.Journal`. Uses that wait at the same time share one write and one sync.

    `slots`: how many enforcers may share the folder. `most_bytes`: how much this one's uncounted uses may fill. `steps` is
    called with the name of each step before it begins.
    """

    def __init__(
        self,
        folder: Path,
        slots: int,
        most_bytes: int = 1 << 30,
        steps: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._steps = steps
        self._folder, self._slots, self._most_bytes = folder, slots, most_bytes
        self._slot: _Slot | None = None
        self._part: _Part | None = None
        self._begin_boot()
        self._pending: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        # One thread: what is written keeps its order.
        self._thread = ThreadPoolExecutor(1, "journal")

    def _begin_boot(self) -> None:
        """A name that was never used, under which numbers begin again."""
        self._boot, self._parts = secrets.token_hex(8), 0
        self._numbers: defaultdict[int, int] = defaultdict(int)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def append(self, use: Use) -> None:
        written = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(use, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        await written

    async def _write_all(self) -> None:
        while self._pending:
            group, self._pending = self._pending, []
            numbers = self._numbers.copy()
            contents = []
            for use, _ in group:
                numbers[use.bucket] += 1
                numbered = msgspec.structs.replace(use, number=numbers[use.bucket])
                contents.append(frame(encode_use(numbered)))
            data = b"".join(contents)
            self._steps("journal")
            try:
                await self._in_thread(lambda data=data: self._write(data))  # type: ignore[misc]
            except JournalUnavailableError as error:
                for waiting in group:
                    _tell(waiting, error)
            else:
                self._steps("journaled")
                self._numbers = numbers
                for waiting in group:
                    _tell(waiting, None)

    # -- in the thread

    def _write(self, data: bytes) -> None:
        try:
            part = self._open_part()
            if self._size() + len(data) > self._most_bytes:
                message = f"the journal has reached its {self._most_bytes} bytes"
                raise JournalUnavailableError(message)
        except OSError as error:
            raise JournalUnavailableError(f"the journal cannot be opened: {error}") from error
        try:
            part.add(data)
        except OSError as error:
            certain = part.take_back()
            self._part = None
            if not certain:
                # What may be there has numbers, which nobody else may get.
                self._begin_boot()
            raise JournalUnavailableError(
                f"the journal cannot be written: {error}", certain=certain
            ) from error

    def _size(self) -> int:
        assert self._slot is not None
        return sum(path.stat().st_size for path in self._slot.files())

    def _claim(self) -> _Slot:
        """The slot of this enforcer: the first that nobody holds."""
        if self._slot is None:
            for number in range(self._slots):
                self._slot = _Slot.claim(self._folder / str(number))
                if self._slot is not None:
                    break
            else:
                message = (
                    f"all {self._slots} places for enforcers are taken in {self._folder}: "
                    "raise METERGATE_MOST_ENFORCERS"
                )
                raise JournalUnavailableError(message)
        return self._slot

    def _open_part(self) -> _Part:
        slot = self._claim()
        if self._part is None:
            self._parts += 1
            self._part = _Part.create(slot.folder / f"{self._boot}.{self._parts:06}{_SUFFIX}")
        return self._part

    def _left_over(self) -> list[Use]:
        return [use for path in self._claim().files() for use in _recover(path)]

    def _seal(self) -> list[Path]:
        slot = self._claim()
        if self._part is not None and self._part.used:
            self._part.close()
            self._part = None
        current = self._part.path if self._part else None
        return [path for path in slot.files() if path != current]

    def _others(self) -> list[Path]:
        own = self._claim().folder
        return sorted(path for path in self._folder.iterdir() if path.is_dir() and path != own)

    # -- what is to be counted

    async def left_over(self) -> Sequence[Use]:
        try:
            uses = await self._in_thread(self._left_over)
            # Ready before the first emergency: making it then would cost the first ones their time.
            await self._in_thread(self._open_part)
        except OSError as error:
            raise JournalUnavailableError(f"the journal cannot be opened: {error}") from error
        return uses

    async def seal(self) -> AsyncGenerator[_Sealed, None]:
        try:
            for path in await self._in_thread(self._seal):
                yield _Sealed(path, self._steps, own=True)
            for folder in await self._in_thread(self._others):
                slot = await asyncio.to_thread(_Slot.claim, folder)
                if slot is None:
                    continue
                try:
                    for path in await asyncio.to_thread(slot.files):
                        yield _Sealed(path, self._steps, own=False)
                finally:
                    slot.release()
        except OSError as error:
            raise JournalUnavailableError(f"the journal cannot be read: {error}") from error

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing

        def end() -> None:
            if self._part is not None:
                self._part.close()
                if not self._part.used:
                    self._part.path.unlink(missing_ok=True)
            if self._slot is not None:
                self._slot.release()

        await self._in_thread(end)
        self._thread.shutdown()


def _tell(waiting: _Waiting, error: JournalUnavailableError | None) -> None:
    if waiting.written.done():
        return  # nobody waits any more; the use counts all the same
    if error is None:
        waiting.written.set_result(None)
    else:
        waiting.written.set_exception(error)


class _Sealed:
    """Implements `enforcer.ports.journal.Sealed` on one file."""

    def __init__(self, path: Path, steps: Callable[[str], None], *, own: bool) -> None:
        self._path, self._steps, self.own = path, steps, own
        self.journal = f"{path.parent.name}.{path.name.split('.', 1)[0]}"

    async def batches(self, most: int) -> AsyncGenerator[Sequence[Use], None]:
        uses = await asyncio.to_thread(_recover, self._path)
        for at in range(0, len(uses), most):
            self._steps("count")
            yield uses[at : at + most]

    async def discard(self) -> None:
        self._steps("discard")

        def remove() -> None:
            self._path.unlink(missing_ok=True)
            _sync_folder(self._path.parent)

        await asyncio.to_thread(remove)


class _Slot:
    """A folder that one process holds."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder, self._descriptor = folder, descriptor

    @classmethod
    def claim(cls, folder: Path) -> _Slot | None:
        """None when another process has it."""
        new = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if new:
            _sync_folder(folder.parent)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(folder, descriptor)

    def files(self) -> list[Path]:
        """All parts, each journal's in order."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def release(self) -> None:
        os.close(self._descriptor)


class _Part:
    """A file that is written. Its first `_good` bytes are durable."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor, self._good = path, descriptor, len(HEAD)

    @property
    def used(self) -> bool:
        """Whether it has uses."""
        return self._good > len(HEAD)

    @classmethod
    def create(cls, path: Path) -> _Part:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        part = cls(path, descriptor)
        try:
            _write(descriptor, HEAD)
            os.fsync(descriptor)
            _sync_folder(path.parent)
        except OSError:
            part.close()
            raise
        return part

    def add(self, data: bytes) -> None:
        """Durable on return. Raise OSError."""
        _write(self._descriptor, data)
        os.fsync(self._descriptor)
        self._good += len(data)

    def take_back(self) -> bool:
        """Cut off what could not be made durable, and write here no more; whether that is certain.

        A sync that failed once says nothing any more about what it was asked for (so a new one proves nothing of the
        old bytes), but a shorter file does not have them.
        """
        try:
            os.ftruncate(self._descriptor, self._good)
            os.fsync(self._descriptor)
        except OSError as error:
            _log.exception("the end of a journal is in doubt", path=self.path.name, error=error)
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        os.close(self._descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _recover(path: Path) -> list[Use]:
    """The uses of a part that nobody writes; an unfinished end is cut off."""
    data = path.read_bytes()
    good = len(HEAD) if data.startswith(HEAD) else 0
    uses = []
    if good:
        for end, content in frames(data, good):
            try:
                uses.append(decode_use(content))
            except msgspec.MsgspecError:
                break
            good = end
    if good < len(data):
        _cut(path, data, good)
    return uses


def _cut(path: Path, data: bytes, good: int) -> None:
    """Cut a part to its whole frames; what looks like more than an unfinished end is kept beside it."""
    if whole_frame_in(data, good) or (not good and len(data) > len(HEAD)):
        kept = path.with_suffix(".damaged")
        kept.write_bytes(data[good:])
        _log.error("a journal is damaged", kept=kept.name, at=good, bytes=len(data) - good)
    else:
        _log.warning("cut an unfinished end off a journal", at=good, bytes=len(data) - good)
    with path.open("r+b") as opened:
        opened.truncate(good)
        os.fsync(opened.fileno())
