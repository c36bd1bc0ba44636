"""Where commands look for a gateway, and who may have a data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import DATA_DIR, FOLDER_NAME, DataFolder, find_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR, raising=False)


def test_the_nearest_folder_above_is_taken(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / FOLDER_NAME).mkdir()
    assert find_folder(None, start=below).path == tmp_path / FOLDER_NAME
    (tmp_path / "a" / FOLDER_NAME).mkdir()
    assert find_folder(None, start=below).path == tmp_path / "a" / FOLDER_NAME


def test_without_any_it_is_here(tmp_path: Path) -> None:
    assert find_folder(None, start=tmp_path).path == tmp_path / FOLDER_NAME


def test_somebody_elses_folder_above_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FOLDER_NAME).mkdir()
    below = tmp_path / "a"
    below.mkdir()
    monkeypatch.setattr("enforcer.cli.folder.os.getuid", lambda: 12345)
    assert find_folder(None, start=below).path == below / FOLDER_NAME


def test_the_option_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "named"))
    assert find_folder(None).path == tmp_path / "named"
    assert find_folder(tmp_path / "chosen").path == tmp_path / "chosen"


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    folder.write_secret(folder.api_key, "k")
    assert folder.api_key.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.read(folder.api_key) == "k"


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    first = folder.secret(folder.internal_token)
    assert len(first) >= 32
    assert folder.secret(folder.internal_token) == first


def test_a_folder_in_use_names_its_process(tmp_path: Path) -> None:
    with (
        DataFolder(tmp_path).locked(),
        pytest.raises(CommandError, match=r"in use.*\(pid \d+\)"),
        DataFolder(tmp_path).locked(),
    ):
        pass
    with DataFolder(tmp_path).locked():
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"cannot write the data folder .*--data-dir"):
        DataFolder(tmp_path / "file" / "data").create()


def test_a_key_that_cannot_be_read_is_a_matter_of_access(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.api_key.mkdir()
    with pytest.raises(CommandError) as error:
        folder.read(folder.api_key)
    assert error.value.status is Status.NO_ACCESS
