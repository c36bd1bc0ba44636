"""Passwords and keys are in no error, no log and no text of the settings, also when what they open is away."""

from __future__ import annotations

import asyncio
import hmac
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from enforcer.adapters.counters.redis import RedisCounters, RedisOptions
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.errors import MetergateError, UnauthenticatedError
from enforcer.settings import Settings, load
from enforcer.transport.callers import Callers
from meter.adapters.clickhouse.client import ClickHouse
from meter.adapters.sql.marks import SqlMarks
from meter.errors import MeterError
from meter.errors import UnauthenticatedError as NotInternalError
from meter.settings import load as load_meter
from meter.transport.calls import INTERNAL, Caller
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

WORD = "hunter2-very-secret"
TOKEN = f"{WORD}-token"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+asyncpg://u:{WORD}@127.0.0.1:1/x"
    for name, value in {
        "INTERNAL_TOKEN": TOKEN,
        "DATABASE_URL": url,
        "METER_DATABASE_URL": url,
        "REDIS_URL": f"redis://:{WORD}@127.0.0.1:1/0",
        "CLICKHOUSE_URL": f"http://u:{WORD}@127.0.0.1:1/x",
        "KAFKA_PASSWORD": WORD,
    }.items():
        monkeypatch.setenv(f"METERGATE_{name}", value)


def test_settings_show_none_of_them() -> None:
    for found in (load(), load_meter()):
        assert WORD not in repr(found)
        assert WORD not in str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", f"http://:{WORD}@h"),
        ("REDIS_URL", f"redis+sentinel://:{WORD}@a/main"),
        ("DATABASE_URL", f"mysql://u:{WORD}@h/x"),
        ("METER_DATABASE_URL", f"mysql://u:{WORD}@h/x"),
        ("LISTEN", WORD),
    ],
)
def test_what_is_wrong_with_a_setting_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"METERGATE_{name}", value)
    with pytest.raises(MetergateError) as told:
        load()
    assert f"METERGATE_{name}" in told.value.message
    assert WORD not in "".join(traceback.format_exception(told.value))


async def _definitions(port: int) -> None:
    definitions = SqlDefinitions(f"postgresql+asyncpg://u:{WORD}@127.0.0.1:{port}/x", 1)
    try:
        await definitions.caller("mg_key")
    finally:
        await definitions.close()


async def _marks(port: int) -> None:
    marks = SqlMarks(f"postgresql+asyncpg://u:{WORD}@127.0.0.1:{port}/x")
    try:
        await marks.migrate()
    finally:
        await marks.close()


async def _clickhouse(port: int) -> None:
    client = ClickHouse(f"http://u:{WORD}@127.0.0.1:{port}/x", "reader")
    try:
        await client.rows("SELECT 1")
    finally:
        await client.close()


@pytest.mark.parametrize("ask", [_definitions, _marks, _clickhouse])
async def test_a_store_that_is_away_is_told_without_its_password(
    ask: Callable[[int], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((MetergateError, MeterError)) as told:
        await ask(free_port())
    assert WORD not in str(told.value)
    assert WORD not in "".join(traceback.format_exception(told.value))
    assert WORD not in "".join(capfd.readouterr())


async def test_a_redis_that_is_away_is_told_without_its_password(
    capfd: pytest.CaptureFixture[str],
) -> None:
    nobody: Any = None
    url = f"redis://:{WORD}@127.0.0.1:{free_port()}/0"
    counters = RedisCounters(RedisOptions(url, 1), nobody)
    counters.start()
    await asyncio.sleep(0)
    why = counters.last_error
    await counters.close()
    assert WORD not in why
    assert WORD not in "".join(capfd.readouterr())


async def test_a_key_that_nobody_knows_is_not_repeated() -> None:
    class Nobody:
        async def caller(self, _: str) -> None:
            return None

    callers = Callers(Nobody())  # type: ignore[arg-type]  # all that it asks them
    for header in (f"Bearer mg_0_{WORD}", f"Basic {WORD}", WORD):
        with pytest.raises(UnauthenticatedError) as told:
            await callers.sender(header)
        assert WORD not in told.value.message
        assert WORD not in repr(told.value.metadata)
    assert not callers._known, "who is unknown is not remembered"


class _Context:
    def __init__(self, token: str) -> None:
        self._token = token

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(INTERNAL, self._token)]


def test_the_internal_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    caller = Caller(TOKEN)
    right: Any = _Context(TOKEN)
    wrong: Any = _Context(TOKEN[:-1])
    caller.check(right)
    with pytest.raises(NotInternalError) as told:
        caller.check(wrong)
    assert len(compared) == 2
    assert WORD not in told.value.message


def test_the_settings_of_the_token_are_no_text() -> None:
    assert TOKEN not in repr(Settings.model_validate(load().model_dump()))
