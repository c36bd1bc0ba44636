"""Journal files: unfinished ends, damage, and disks that take nothing more."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcer.adapters.journal.files import FileJournal
from enforcer.adapters.journal.frames import HEAD, frame, frames
from enforcer.core.emergency import Use
from enforcer.errors import JournalUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def use(quantity: int) -> Use:
    return Use("demo", "acme", "api.calls", "", 1, 0, quantity, 1_000, b"{}")


async def quantities(journal: FileJournal) -> list[int]:
    found: list[int] = []
    async with aclosing(journal.seal()) as parts:
        async for part in parts:
            async for batch in part.batches(100):
                found += [one.quantity for one in batch]
            await part.discard()
    return found


def the_file(folder: Path) -> Path:
    (path,) = [one for one in folder.glob("*/*.journal") if one.stat().st_size > len(HEAD)]
    return path


async def written(folder: Path, *amounts: int) -> Path:
    """The file of an enforcer that is gone."""
    journal = FileJournal(folder, 1)
    for amount in amounts:
        await journal.append(use(amount))
    await journal.close()
    return the_file(folder)


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(0, 200))
def test_of_a_file_cut_anywhere_the_whole_frames_are_read(contents: list[bytes], cut: int) -> None:
    data = b"".join(frame(content) for content in contents)[:cut]
    read = [content for _, content in frames(data, 0)]
    assert read == contents[: len(read)]
    if len(read) < len(contents):
        assert len(b"".join(map(frame, contents[: len(read) + 1]))) > len(data)


@settings(max_examples=30)
@given(cut=st.integers(1, 60))
def test_an_unfinished_end_is_cut_off(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    async def story() -> None:
        folder = tmp_path_factory.mktemp("journal")
        path = await written(folder, 1, 2)
        whole = path.stat().st_size
        last = whole - sum(len(one) for one in (HEAD, *_frames(path)[:1]))
        with path.open("r+b") as opened:
            opened.truncate(whole - min(cut, last))
        assert await quantities(FileJournal(folder, 1)) == [1]
        assert not list(folder.glob("*/*.damaged"))
        assert not path.exists()

    asyncio.run(story())


def _frames(path: Path) -> list[bytes]:
    data, start, found = path.read_bytes(), len(HEAD), []
    for end, _ in frames(data, start):
        found.append(data[start:end])
        start = end
    return found


def test_damage_in_the_middle_is_kept_for_people(tmp_path: Path) -> None:
    path = asyncio.run(written(tmp_path, 1, 2, 3))
    first, second, third = _frames(path)
    broken = bytes([second[-1] ^ 1])
    path.write_bytes(HEAD + first + second[:-1] + broken + third)
    assert asyncio.run(quantities(FileJournal(tmp_path, 1))) == [1]
    (kept,) = tmp_path.glob("*/*.damaged")
    assert kept.read_bytes() == second[:-1] + broken + third


async def test_a_file_without_its_first_line_is_no_journal(tmp_path: Path) -> None:
    path = await written(tmp_path, 1)
    path.write_bytes(HEAD[:5])
    assert await quantities(FileJournal(tmp_path, 1)) == []


async def test_nothing_is_answered_before_it_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    journal = FileJournal(tmp_path, 1)
    await journal.left_over()
    monkeypatch.setattr(os, "fsync", fsync)
    for amount in (1, 2, 3):
        await journal.append(use(amount))
        assert synced[-1] == the_file(tmp_path).stat().st_size
    assert len(synced) == 3
    await asyncio.gather(*(journal.append(use(4)) for _ in range(500)))
    assert len(synced) < 20, "uses that wait together share a sync"
    await journal.close()


async def test_a_failed_sync_is_no_answer_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path, 1)
    await journal.append(use(1))
    fail = [True]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if fail.pop() if fail else False:
            raise OSError(errno.EIO, "no")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(JournalUnavailableError) as caught:
        await journal.append(use(2))
    assert caught.value.certain
    await journal.append(use(3))
    assert await quantities(journal) == [1, 3]
    await journal.close()


async def test_what_cannot_be_taken_back_is_told_and_its_number_given_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path, 1)
    await journal.append(use(1))
    with monkeypatch.context() as patch:

        def fail(*_: int) -> None:
            raise OSError(errno.EIO, "no")

        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(JournalUnavailableError) as caught:
            await journal.append(use(2))
    assert not caught.value.certain
    await journal.append(use(3))
    names = set()
    async with aclosing(journal.seal()) as parts:
        async for part in parts:
            async for batch in part.batches(10):
                names |= {(part.journal, one.number) for one in batch}
    assert len(names) == 3
    await journal.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 4 kB: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
async def test_a_full_disk_refuses_and_keeps_what_was_written(tmp_path: Path) -> None:
    journal, kept, refused = FileJournal(tmp_path, 1), [], []
    for amount in range(1, 200):
        try:
            await journal.append(use(amount))
            kept.append(amount)
        except JournalUnavailableError as error:
            refused.append(error)
    assert refused
    assert all(error.certain for error in refused)
    assert await quantities(journal) == kept
    await journal.close()


async def test_a_journal_has_a_largest_size(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, 1, most_bytes=1_000)
    uses = (journal.append(use(1)) for _ in range(100))

    async def all_of_them() -> None:
        for one in uses:
            await one

    with pytest.raises(JournalUnavailableError, match="1000 bytes"):
        await all_of_them()
    uses.close()
    counted = await quantities(journal)
    assert 5 < len(counted) < 20
    await journal.append(use(1))
    await journal.close()
