"""The Lua scripts, made whole: layouts and numbers are filled in from the modules that define them."""

from __future__ import annotations

import re
from importlib.resources import files

from enforcer.core.corrections import OVERFLOW
from enforcer.core.memory import REAPED_AT_ONCE
from enforcer.core.program import DENIED, FIELDS, RING_SLOTS, SHADOW, VERSION, Family, Reason, Shape
from meter.core.records import SIDE, Body, RecordType, encode_body
from meter.core.records import VERSION as RECORD_VERSION

__all__ = ["SERVER_CLOCK", "script"]

SERVER_CLOCK = (
    "local CLOCK do local t = redis.call('TIME') "
    "CLOCK = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) end"
)
"""Lua that sets CLOCK, ms since 1970. Tests put a clock of their own in its place."""

_NAMES: dict[str, object] = {
    "VERSION": VERSION,
    "RECORD_VERSION": RECORD_VERSION,
    "FIELDS": ", ".join(f"[{family.value}] = {FIELDS[family]}" for family in Family),
    "RING_SLOTS": ", ".join(f"[{family.value}] = {count}" for family, count in RING_SLOTS.items()),
    "FAMILIES": ", ".join(str(family.value) for family in Family),
    "SHAPES": ", ".join(str(shape.value) for shape in Shape),
    "DENIED": DENIED,
    "SHADOW": SHADOW,
    "REASONS": ", ".join(f"[{reason.value}] = '{reason.name}'" for reason in Reason),
    "ALLOWED": Reason.ALLOWED.value,
    "BATCH_DENIED": Reason.BATCH_DENIED.value,
    "REAPED": REAPED_AT_ONCE,
    "SIDE": SIDE,
    "OVERFLOW": OVERFLOW,
    "NOBODY": f"'{encode_body(Body(t='', a='', c='', f='', m='')).decode()}'",
    **{kind.name: kind.value for kind in RecordType},
}


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def script(name: str, run_id: str, clock: str = SERVER_CLOCK) -> str:
    """The text of `decide`, `hold`, `open` or `mend` for the server process `run_id`.

    The run id is part of the text and so of its SHA: only the very process that the script was loaded on knows it. A
    restarted server, a promoted replica or another server answers NOSCRIPT, and the handshake comes first.
    """
    parts = [_text("common.lua")] if name in ("decide", "hold") else []
    if name == "hold":
        parts.append(_text("correct.lua"))
    parts.append(_text(f"{name}.lua"))
    names = {**_NAMES, "CLOCK": clock, "RUN": run_id}
    return re.sub(r"@([A-Z_]+)@", lambda match: str(names[match[1]]), "".join(parts))
