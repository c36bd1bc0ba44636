"""Every environment variable of Metergate: name, form, default, meaning. Read from the settings classes themselves.

What a field allows is asked of its class, by values that nothing allows: so neither the reference (docs/configuration.md)
nor `metergate config` can say what the processes do not do.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from enforcer.settings import Settings as EnforcerSettings
from meter.settings import KafkaSettings
from meter.settings import Settings as MeterSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

__all__ = ["OTHERS", "PREFIX", "PROCESSES", "Setting", "known", "of_process", "redacted"]

PREFIX: Final = "METERGATE_"
PROCESSES: Final[dict[str, type[BaseSettings]]] = {
    "enforcer": EnforcerSettings,
    "meter": MeterSettings,
}
"""The class of each process that has one."""

OTHERS: Final[dict[str, str]] = {
    "METERGATE_SECRETS_DIR": "A folder with a file for each setting that is not to be in the environment, named like it "
    "in small letters: `metergate_internal_token`. The environment comes first. Read by the processes, and by the commands that read their settings.",
    "METERGATE_ENDPOINT": "`host:port` of the gateway that commands and clients ask. Default: the data folder's.",
    "METERGATE_API_KEY": "The API key of commands and clients. Default: the data folder's.",
    "METERGATE_TLS_CA_FILE": "PEM file of the authorities that commands and clients trust. Default: the system's.",
    "METERGATE_TLS_CLIENT_CERT_FILE": "PEM file of the certificate that commands and clients show.",
    "METERGATE_TLS_CLIENT_KEY_FILE": "PEM file of its private key.",
    "METERGATE_DEBUG": "`1`: a command shows the traceback of a fault of its own.",
    "METERGATE_CRASH_AT": "For tests: `process.step:number`, where a process kills itself.",
    "METERGATE_ENVOY_CONTROL": "Set by the enforcer for the Envoy that it starts. Nobody else sets it.",
}
"""What commands, clients and tests read, beside the settings of the processes."""

_KAFKA: Final = frozenset(KafkaSettings.model_fields)
_WRONG: Final = "\x01"
"""No field of text allows it."""
_SECRET_URLS: Final = frozenset(
    {"redis_url", "database_url", "meter_database_url", "clickhouse_url"}
)
"""They may have a password in them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable of a process."""

    name: str
    process: Literal["enforcer", "meter"]
    field: str
    form: str
    """What kind of value, for people."""
    allowed: str
    """Which of them; empty: any."""
    default: str | None
    """As the environment would have it; None: it has to be given."""
    meaning: str

    @property
    def secret(self) -> bool:
        """Whether the value itself must never be shown."""
        return self.form == "secret"

    @property
    def has_password(self) -> bool:
        """Whether there may be a password in it."""
        return self.field in _SECRET_URLS

    @property
    def kafka(self) -> bool:
        """Whether it is about Kafka, which an enforcer reads too when its journal is there."""
        return self.field in _KAFKA


@cache
def known() -> tuple[Setting, ...]:
    """The settings of all processes, in the order of their classes. One that two processes have is there twice."""
    return tuple(setting for process in PROCESSES for setting in of_process(process))


@cache
def of_process(process: str) -> tuple[Setting, ...]:
    """The settings of one process."""
    kind = PROCESSES[process]
    meanings = _meanings(kind)
    complaints = _complaints(kind)
    return tuple(
        Setting(
            f"{PREFIX}{name.upper()}",
            "enforcer" if process == "enforcer" else "meter",
            name,
            _form(field.annotation),
            _allowed(field, complaints.get(name, "")),
            None if field.is_required() else _shown(field.default),
            meanings.get(name, ""),
        )
        for name, field in kind.model_fields.items()
    )


def _meanings(kind: type[BaseSettings]) -> dict[str, str]:
    """The text under each field."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not issubclass(owner, kind.__mro__[-2]) or owner.__module__.startswith("pydantic"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as said)),
                ):
                    found[name] = " ".join(said.split())
    return found


def _complaints(kind: type[BaseSettings]) -> dict[str, str]:
    """What the class says of each text that it checks, when none of them can be."""
    wrong: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.annotation in {str, SecretStr}:
            wrong[name] = _WRONG
        elif get_origin(field.annotation) is frozenset:
            wrong[name] = frozenset({_WRONG})
    try:
        kind.model_validate(wrong)
    except ValidationError as error:
        return {
            str(fault["loc"][0]): fault["msg"].removeprefix("Value error, ")
            for fault in error.errors(include_url=False, include_input=False)
            if fault["type"] == "value_error" and fault["loc"]
        }
    return {}


def _form(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "word"
    if get_origin(annotation) in {Union, UnionType}:
        return _form(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is frozenset:
        return "list"
    forms: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "`true` or `false`",
        Path: "path",
        SecretStr: "secret",
        timedelta: "time",
    }
    return forms.get(annotation, "text")


def _allowed(field: FieldInfo, complaint: str) -> str:
    if get_origin(field.annotation) is Literal:
        return _either(f"`{word}`" for word in get_args(field.annotation))
    bounds: dict[str, Any] = {}
    for part in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if (bound := getattr(part, name, None)) is not None:
                bounds[name] = _number(bound)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']} to {bounds['le']}"
    if bounds:
        return ", ".join(f"{words[name]} {bounds[name]}" for name in words if name in bounds)
    return complaint


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _number(value: Any) -> str:
    return _time(value) if isinstance(value, timedelta) else f"{value:,}"


def _time(value: timedelta) -> str:
    """As the environment has it: `24:00:00`, `7 days, 0:00:00`."""
    hours, rest = divmod(int(value.total_seconds()), 3600)
    if hours and hours % 24 == 0:
        return f"P{hours // 24}D"
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _shown(default: Any) -> str:
    if default is PydanticUndefined or default is None:
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, timedelta):
        return _time(default)
    if isinstance(default, frozenset):
        return "[" + ", ".join(f'"{one}"' for one in sorted(default)) + "]"
    return str(default)


_LOGIN: Final = re.compile(r"(?<=://).*(?=@)", re.DOTALL)
"""Up to the last @: a password may have one, though it should be written %40."""
_PARAMETER: Final = re.compile(r"(pass\w*=)[^&]*", re.IGNORECASE)


def redacted(setting: Setting, value: str) -> str:
    """The value without what is secret in it."""
    if setting.secret:
        return "***" if value else ""
    if not setting.has_password:
        return value
    return _PARAMETER.sub(r"\1***", _LOGIN.sub(_without_password, value))


def _without_password(login: re.Match[str]) -> str:
    user, colon, _ = login[0].partition(":")
    return f"{user}:***" if colon else user
