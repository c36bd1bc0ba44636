"""A data folder of an earlier version: brought up to date with all that it holds, and gone on with."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.stack import Stack

OLDER = Path(__file__).parents[1] / "older"
COMMIT = "d300ce5"
SOURCES = Path(__file__).parents[2] / "src"


def known(place: str) -> str:
    """The number of the newest migration in a folder of the sources."""
    return max(file.name[:4] for file in (SOURCES / place).glob("[0-9]*"))


def found(file: Path, table: str) -> str:
    with closing(sqlite3.connect(file)) as database:
        (number,) = database.execute(f"SELECT version_num FROM {table}").fetchone()  # noqa: S608 - our own
        return str(number)


def test_a_folder_of_an_earlier_version_is_migrated_with_all_it_holds(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    told = json.loads((OLDER / f"{COMMIT}.json").read_text())
    with tarfile.open(OLDER / f"{COMMIT}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / "data"
    before = found(folder / "definitions.db", "alembic_version")
    assert before < known("enforcer/adapters/definitions/migrations/versions")

    stack = new_stack("data").start()
    for meter, total in told["usage"].items():
        assert stack.json("usage", "--meter", meter)["total"] == total, meter
    first = stack.json("audit")
    assert first["records"] >= told["records"]
    (quota,) = stack.json("balance", "ada", "capped")["limits"]
    assert (quota["used"], quota["limit"]) == (60, 100)
    (quota,) = stack.json("balance", "ada", "held")["limits"]
    assert quota["used"] == 5
    # What signed its tokens is there: it is known, or has expired since.
    released = stack.run("release", told["reservation"])
    assert released.returncode == 0 or "[RESERVATION_NOT_FOUND]" in released.stderr, released

    # Checks go on where they were.
    assert stack.json("check", "ada", "capped", "--quantity", "41", status=1)["granted"] == 0
    last = stack.json("check", "ada", "capped", "--quantity", "40")
    assert last["allowed"]
    assert last["record"]["bucket"] == told["bucket"]
    assert last["record"]["generation"] > told["generation"]
    assert stack.json("usage", "--meter", "capped")["total"] == told["usage"]["capped"] + 40
    stack.json("audit")
    assert stack.stop() == 0
    assert found(folder / "definitions.db", "alembic_version") == known(
        "enforcer/adapters/definitions/migrations/versions"
    )
    assert found(folder / "meter.db", "meter_alembic_version") == known(
        "meter/adapters/sql/migrations/versions"
    )
