"""How the processes log: one line for each event on stderr, of our own loggers and of everybody else's.

A line passes in this order: what is repeated too often goes, context and time come, exceptions become text, secrets go,
and what is left is JSON, or coloured text for people. docs/observability.md names the fields.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog
from pydantic import SecretStr

from meter.core.redact import HIDDEN, Redactor, passwords_in, secret_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping
    from types import TracebackType

    from pydantic_settings import BaseSettings

    Event = MutableMapping[str, Any]

__all__ = [
    "LEVELS",
    "Repeats",
    "configure_logs",
    "present_level",
    "secrets_in",
    "set_level",
    "tell_repeats",
]

LEVELS: Final = ("debug", "info", "warning", "error")
_NUMBERS: Final = {name: logging.getLevelName(name.upper()) for name in LEVELS}
_OTHERS: Final = {"debug": "info", "info": "warning", "warning": "warning", "error": "error"}
"""The level of libraries' loggers at each of ours: what they think is worth telling seldom is."""
LONGEST: Final = 16_384
"""Characters of a value; what is longer is cut."""
OVERLAP: Final = 4_096
DEEPEST: Final = 6

SAME: Final = 3
"""So many lines that say the same are written in a window …"""
ALIKE: Final = 50
"""… and so many that differ in their facts alone …"""
WINDOW_SECONDS: Final = 10.0
MOST_KINDS: Final = 2_000
_STDLIB: Final = frozenset({"_record", "_from_structlog"})
"""What structlog needs of a library's record."""
_PASSING: Final = frozenset(
    {*_STDLIB, "exc_info", "pause", "request_id", "seconds", "span_id", "trace_id"}
)
"""Facts in which lines differ that say the same."""
_FIRST: Final = {"timestamp": 0, "level": 1, "event": 2, "logger": 3, "part": 4, "pid": 5}
"""In this order, before all others."""


class _Kind:
    """Lines that say the same, in the present window."""

    __slots__ = ("left_out", "passed", "since")

    def __init__(self, since: float) -> None:
        self.since, self.passed, self.left_out = since, 0, 0


class Repeats:
    """Leaves out what has been said often enough lately, and says how often that was. Of debug lines nothing.

    A processor of structlog; may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[Any, ...], _Kind] = {}
        self._lock = threading.Lock()

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        """The event, with `left_out` if more were meanwhile; raise `structlog.DropEvent` for one too many."""
        if method == "debug":
            return event
        now = self._clock()
        alike = method, event.get("logger"), str(event["event"]) if "_record" not in event else ""
        with self._lock:
            general, before = self._kind(alike, now)
            if general.passed >= ALIKE:
                general.left_out += 1
                raise structlog.DropEvent
            facts = [f"{key}={value}"[:200] for key, value in event.items() if key not in _PASSING]
            exact, untold = self._kind((*alike, *facts), now)
            before += untold
            if exact.passed >= SAME:
                exact.left_out += 1
                raise structlog.DropEvent
            general.passed += 1
            exact.passed += 1
        if before:
            event["left_out"] = before
        return event

    def _kind(self, key: tuple[Any, ...], now: float) -> tuple[_Kind, int]:
        """The window that `now` is in, and how many were left out in one that nobody has told of."""
        found, untold = self._kinds.pop(key, None), 0
        if found is not None and now - found.since >= WINDOW_SECONDS:
            untold = found.left_out
            found = None
        if found is None:
            if len(self._kinds) >= MOST_KINDS:
                # The one that was said longest ago is forgotten.
                self._kinds.pop(next(iter(self._kinds)))
            found = _Kind(now)
        self._kinds[key] = found
        return found, untold

    def over(self) -> list[tuple[str, str, int]]:
        """The windows that are over: level, event, and how many lines were left out. They begin anew."""
        now, told = self._clock(), []
        with self._lock:
            for key, kind in list(self._kinds.items()):
                if now - kind.since >= WINDOW_SECONDS:
                    del self._kinds[key]
                    if kind.left_out:
                        told.append((str(key[0]), str(key[2] or key[1]), kind.left_out))
        return told


_repeats = Repeats()


def tell_repeats() -> None:
    """Say what was left out in windows that are over. Call it every few seconds."""
    for level, event, times in _repeats.over():
        log = getattr(_log, level, _log.warning)
        log("left out", of=event, times=times, within_seconds=WINDOW_SECONDS)


class _Hide:
    """A processor: plain values without secrets, whatever was logged."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        """The event with nothing in it that could show more when it is rendered."""
        names = sorted(event, key=lambda name: _FIRST.get(name, len(_FIRST)))
        return {
            name: event[name] if name in _STDLIB else self._plain(name, event[name], 0)
            for name in names
        }

    def _plain(self, name: str, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if secret_name(name):
            return HIDDEN
        if isinstance(value, int | float):
            return value
        if depth < DEEPEST and isinstance(value, Mapping):
            return {
                self._text(str(key)): self._plain(str(key), one, depth + 1)
                for key, one in value.items()
            }
        if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
            return [self._plain("", one, depth + 1) for one in value]
        return self._text(_as_text(value))

    def _text(self, text: str) -> str:
        if len(text) <= LONGEST:
            return self._redact(text)
        # Cut behind the place where it ends, and then at it: a secret there is found whole.
        shown = self._redact(text[: LONGEST + OVERLAP])[:LONGEST]
        return f"{shown}… [{len(text) - LONGEST} more]"


def _as_text(value: Any) -> str:
    if isinstance(value, bytes | bytearray):
        return value[: LONGEST + OVERLAP].decode(errors="replace")
    return value if isinstance(value, str) else repr(value)


class _Lines:
    """A logger of structlog that has a name and writes to whatever stderr is at the moment."""

    _lock = threading.Lock()

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Write a line, whole."""
        with self._lock:
            try:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                return  # nobody reads any more, and there is nowhere to say so

    log = debug = info = warn = warning = error = critical = fatal = failure = exception = msg


def _name(logger: Any, _: str, event: Event) -> Event:
    """Who says it."""
    record = event.get("_record")
    event["logger"] = record.name if record is not None else getattr(logger, "name", "")
    return event


def secrets_in(settings: BaseSettings) -> set[str]:
    """Every secret that settings have, and those of the environment that belongs to them."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found.add(value.get_secret_value())
        elif isinstance(value, str):
            found |= passwords_in(value)
    for name, value in os.environ.items():
        if name.startswith(("METERGATE_", "OTEL_")):
            found |= passwords_in(value)
            if secret_name(name):
                found.add(value)
    return found - {""}


def configure_logs(
    level: str,
    *,
    form: Literal["auto", "json", "console"] = "auto",
    part: str = "",
    secrets: Iterable[str] = (),
) -> None:
    """Let everything that this process logs pass through one pipeline, also what libraries and uncaught errors say.

    `form` `auto` is `console` on a terminal. `part` stands in every line of JSON. `secrets` are hidden wherever they
    stand, beside what looks like one.
    """
    for_people = form == "console" or (form == "auto" and sys.stderr.isatty())

    def whose(_: Any, __: str, event: Event) -> Event:
        event["part"], event["pid"] = part, os.getpid()
        return event

    shared: list[Any] = [
        _name,
        _repeats,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *(() if for_people else (whose,)),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _Hide(Redactor(secrets)),
    ]
    render: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if for_people:
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, render], logger_factory=_Lines, cache_logger_on_first_use=False
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    set_level(level)


class _Handler(logging.Handler):
    """Libraries' records, by the same way out."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, unless it was said often enough."""
        try:
            _out.msg(self.format(record))
        except structlog.DropEvent:
            return
        except Exception:  # noqa: BLE001 - a library's wrong format must not end what it was about
            _out.msg(f'{{"event": "a record of {record.name} cannot be formatted"}}')


_out = _Lines()
_log = structlog.get_logger(__name__)
_level = "info"


def set_level(level: str) -> None:
    """From the next line on, in this process; libraries tell less. Raise `ValueError` for one that there is not."""
    global _level  # noqa: PLW0603 - logging is the process's, and so is its level
    if level not in LEVELS:
        raise ValueError(f"the level must be one of {', '.join(LEVELS)}, not {level!r}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_NUMBERS[level]))
    logging.getLogger().setLevel(_NUMBERS[_OTHERS[level]])
    _level = level


def present_level() -> str:
    """The level of this process at the moment."""
    return _level


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    _log.critical("the process fails", exc_info=(kind, error, traceback))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_type is not SystemExit and found.exc_value is not None:
        facts = (found.exc_type, found.exc_value, found.exc_traceback)
        name = found.thread.name if found.thread else ""
        _log.critical("a thread fails", thread=name, exc_info=facts)
