"""What is logged, by whomever, leaves the process by one way: one line of JSON, without secrets, not too often."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from pydantic import SecretStr

from enforcer.settings import Settings as EnforcerSettings
from meter import logs
from meter.logs import (
    ALIKE,
    LONGEST,
    SAME,
    Repeats,
    configure_logs,
    present_level,
    secrets_in,
    set_level,
    tell_repeats,
)
from meter.settings import Settings as MeterSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN = "correct horse battery"
KEY = "mg_1a2b3c4d_hunter2hunter2"
URL = "postgresql+asyncpg://me:hunter2hunter2@db/x"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Everything as it was afterwards; nothing is remembered of other tests."""
    made = Clock()
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook, present_level()
    monkeypatch.setattr(logs, "_repeats", Repeats(made))
    configure_logs("info", form="json", part="enforcer", secrets=[KNOWN])
    yield made
    root.handlers[:], root.level, sys.excepthook, threading.excepthook, logs._level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


log = structlog.get_logger("enforcer.somewhere")


@pytest.mark.usefixtures("clock")
def test_a_line_names_time_level_event_and_who_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("buckets are closed", buckets=[1, 2], pause=0.5)
    (line,) = lines(capsys)
    assert list(line)[:6] == ["timestamp", "level", "event", "logger", "part", "pid"]
    assert line["timestamp"].endswith("Z")
    assert line | {"level": "warning", "logger": "enforcer.somewhere", "part": "enforcer"} == line
    assert (line["buckets"], line["pause"]) == ([1, 2], 0.5)


def fail(text: str) -> None:
    raise ValueError(text)


class Loud:
    def __repr__(self) -> str:
        return f"<Loud {URL}>"


def _exception() -> None:
    try:
        fail(URL)
    except ValueError:
        log.exception("failed")


def _library_exception() -> None:
    try:
        fail(URL)
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")


def _thread() -> None:
    thread = threading.Thread(target=fail, args=(URL,))
    thread.start()
    thread.join()


def _uncaught() -> None:
    try:
        fail(URL)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)


def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.startswith("METERGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("METERGATE_REDIS_URL", "redis://:hunter2hunter2@h:1/0")
    monkeypatch.setenv("METERGATE_DATABASE_URL", URL)
    monkeypatch.setenv("METERGATE_METER_DATABASE_URL", URL)
    monkeypatch.setenv("METERGATE_CLICKHOUSE_URL", "http://u:hunter2hunter2@h:8123/db")
    monkeypatch.setenv("METERGATE_INTERNAL_TOKEN", "hunter2hunter2hunter2")
    monkeypatch.setenv("METERGATE_KAFKA_PASSWORD", "hunter2hunter2")


@pytest.mark.parametrize(
    "say",
    [
        lambda: log.warning("cannot reach postgresql://me:hunter2hunter2@db"),
        lambda: log.warning("away", error=URL),
        lambda: log.warning("away", error=ValueError(URL)),
        lambda: log.warning("away", found={"deep": [{"er": (URL, KEY.encode())}]}),
        lambda: log.warning("away", authorization="hunter2hunter2", n=1),
        lambda: log.warning("away", headers={"x-metergate-internal": "hunter2hunter2"}),
        lambda: log.warning("away", thing=Loud(), secret=SecretStr("hunter2hunter2")),
        lambda: log.warning("away", found={KEY: 1}),
        _exception,
        _library_exception,
        _thread,
        _uncaught,
        lambda: warnings.warn(f"ResourceWarning: {URL}", stacklevel=1),
        lambda: logging.getLogger("uvicorn.error").error("bad header: Bearer %s", KEY),
        lambda: logging.getLogger("alembic.runtime").warning("on %s", URL),
        lambda: logging.getLogger("aiokafka").critical("{'sasl_plain_password': 'hunter2hunter2'}"),
        lambda: logging.getLogger("clickhouse_connect").warning("http://u:hunter2hunter2@h:8123"),
        lambda: logging.getLogger("opentelemetry.exporter").error("authorization=hunter2hunter2"),
        lambda: logging.getLogger("sqlalchemy").error("x", extra={"password": "hunter2hunter2"}),
    ],
)
@pytest.mark.usefixtures("clock")
def test_no_secret_leaves_by_any_way(capsys: pytest.CaptureFixture[str], say: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        say()
    told = capsys.readouterr().err
    assert "redacted" in told or "**********" in told
    assert "hunter2" not in told
    assert json.loads(told)["event"]


@pytest.mark.usefixtures("clock")
def test_what_the_process_knows_is_hidden_in_whatever_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.warning("the server said", text=f"<<{KNOWN}>>")
    assert lines(capsys)[0]["text"] == "<<[redacted]>>"


@pytest.mark.usefixtures("clock")
def test_a_secret_at_the_place_where_a_text_is_cut_is_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.warning("long", text="x" * (LONGEST - 9) + " " + KEY + "y" * 10_000)
    text = lines(capsys)[0]["text"]
    assert "hunter2" not in text
    assert len(text) < LONGEST + 100
    assert text.endswith("more]")


def test_settings_show_no_secret_and_know_all_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(monkeypatch)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x=1")
    settings: list[EnforcerSettings | MeterSettings] = [
        EnforcerSettings(),  # type: ignore[call-arg]  # from the environment
        MeterSettings(),  # type: ignore[call-arg]
    ]
    for one in settings:
        assert "hunter2" not in f"{one!r} {one}"
        assert {"hunter2hunter2", "hunter2hunter2hunter2"} <= secrets_in(one)


def test_one_and_the_same_warning_is_written_a_few_times_and_then_counted(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(SAME + 7):
        log.warning("no connection to Redis", error="refused", pause=number)
    log.warning("no connection to Redis", error="another reason")
    assert len(lines(capsys)) == SAME + 1
    tell_repeats()
    assert lines(capsys) == [], "its time is not over"
    clock.now = 10.0
    tell_repeats()
    (line,) = lines(capsys)
    assert (line["of"], line["times"], line["level"]) == ("no connection to Redis", 7, "warning")
    log.warning("no connection to Redis", error="refused")
    assert len(lines(capsys)) == 1


def test_where_nobody_tells_of_them_the_next_line_does(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(SAME + 7):
        log.warning("not drained", error="refused")
    lines(capsys)
    clock.now = 10.0
    log.warning("not drained", error="refused")
    log.warning("not drained", error="refused")
    assert [line.get("left_out") for line in lines(capsys)] == [7, None]
    tell_repeats()
    assert lines(capsys) == [], "it is told once"


def test_one_kind_of_warning_with_ever_other_facts_is_bounded_too(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(ALIKE + 30):
        log.info("call failed", error=f"no customer {number}")
    assert len(lines(capsys)) == ALIKE
    clock.now = 10.0
    tell_repeats()
    assert [line["times"] for line in lines(capsys)] == [30]


@pytest.mark.usefixtures("clock")
def test_libraries_are_bounded_by_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(SAME + 2):
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
    assert len(lines(capsys)) == SAME


def test_kinds_are_remembered_in_bounded_number() -> None:
    repeats = Repeats(Clock())
    for number in range(10_000):
        repeats(None, "warning", {"event": f"number {number}", "logger": "x"})
    assert len(repeats._kinds) <= logs.MOST_KINDS


@pytest.mark.usefixtures("clock")
def test_the_level_changes_at_run_time_and_libraries_stay_quieter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = logging.getLogger("aiosqlite")
    told = {}
    for level in logs.LEVELS:
        set_level(level)
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)(f"ours {level}")
            getattr(library, name)(f"theirs {level}")
        found = lines(capsys)
        told[level] = [(one["logger"], one["level"]) for one in found]
    ours, theirs = "enforcer.somewhere", "aiosqlite"
    assert [one for one in told["debug"] if one[0] == ours] == [
        (ours, name) for name in ("debug", "info", "warning", "error")
    ]
    assert (theirs, "debug") not in told["debug"]
    assert (theirs, "info") not in told["info"]
    assert told["error"] == [(ours, "error"), (theirs, "error")]
    with pytest.raises(ValueError, match="must be one of debug, info, warning, error"):
        set_level("loud")


@pytest.mark.usefixtures("clock")
def test_people_get_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", form="console", secrets=[KNOWN])
    log.warning("away", error=URL, why=KNOWN)
    told = capsys.readouterr().err
    assert "away" in told
    assert "hunter2" not in told
    assert KNOWN not in told
    with pytest.raises(json.JSONDecodeError):
        json.loads(told)


@pytest.mark.usefixtures("clock")
def test_a_wrong_format_of_a_library_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    (handler,) = [one for one in logging.getLogger().handlers if isinstance(one, logs._Handler)]
    handler.handle(logging.makeLogRecord({"name": "a.library", "msg": "%d", "args": ("x",)}))
    assert "a.library" in lines(capsys)[0]["event"]
