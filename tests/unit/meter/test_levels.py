"""A process keeps the level that is set for it, and returns by itself, also when nobody can tell it to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from meter import logs
from meter.adapters.levels import ALL, LevelWatch, SetLevel
from meter.errors import LogUnavailableError
from meter.logs import present_level

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Told:
    """What is set, by part, and whether it can be looked at."""

    def __init__(self) -> None:
        self.levels: dict[str, tuple[str, float]] = {}
        self.away = False

    async def read(self, parts: Sequence[str]) -> list[SetLevel]:
        if self.away:
            raise LogUnavailableError("refused")
        return [SetLevel(part, *self.levels[part]) for part in parts if part in self.levels]


class Rig:
    def __init__(self) -> None:
        self.told, self.now = Told(), 0.0
        levels: Any = self.told
        self.watch = LevelWatch(levels, ["relay", "rollup"], "info", lambda: self.now)


@pytest.fixture
def rig() -> Iterator[Rig]:
    root = logging.getLogger()
    before = root.level
    yield Rig()
    root.setLevel(before)
    logs._level = "info"
    structlog.reset_defaults()


async def test_what_is_set_for_all_holds_until_it_is_gone(rig: Rig) -> None:
    rig.told.levels[ALL] = "debug", 60.0
    await rig.watch.look()
    assert present_level() == "debug"
    rig.told.levels.clear()
    await rig.watch.look()
    assert present_level() == "info"


async def test_what_is_set_for_its_part_goes_before_and_other_parts_are_nothing_to_it(
    rig: Rig,
) -> None:
    rig.told.levels = {ALL: ("error", 60.0), "rollup": ("debug", 60.0), "enforcer": ("info", 60.0)}
    await rig.watch.look()
    assert present_level() == "debug"
    del rig.told.levels["rollup"]
    await rig.watch.look()
    assert present_level() == "error"


async def test_while_nobody_can_be_asked_it_holds_for_its_time_and_no_longer(rig: Rig) -> None:
    rig.told.levels[ALL] = "debug", 60.0
    await rig.watch.look()
    rig.told.away, rig.now = True, 59.0
    await rig.watch.look()
    assert present_level() == "debug"
    rig.now = 60.0
    await rig.watch.look()
    assert present_level() == "info"


async def test_the_change_itself_is_told_at_whatever_level(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.told.levels[ALL] = "error", 60.0
    await rig.watch.look()
    rig.told.levels.clear()
    await rig.watch.look()
    assert capsys.readouterr().out.count("log level") == 2
