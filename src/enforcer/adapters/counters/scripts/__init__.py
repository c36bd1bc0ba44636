"""The Lua scripts, made whole: layouts and numbers are filled in from the modules that define them."""

from __future__ import annotations

import re
from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from enforcer.core.allowances import GRACE_MS, SHARE
from enforcer.core.corrections import OVERFLOW
from enforcer.core.memory import REAPED_AT_ONCE
from enforcer.core.program import DENIED, FIELDS, RING_SLOTS, SHADOW, VERSION, Family, Reason, Shape
from meter.core.cluster import ELSEWHERE
from meter.core.records import SIDE, Body, RecordType, encode_body
from meter.core.records import VERSION as RECORD_VERSION

__all__ = ["LIBRARIES", "SERVER_CLOCK", "Library", "library", "prefix_of", "script"]

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
    "SHARE": SHARE,
    "GRACE": GRACE_MS,
    "OVERFLOW": OVERFLOW,
    "ELSEWHERE": ", ".join(f"'{words}'" for words in ELSEWHERE),
    "NOBODY": f"'{encode_body(Body(t='', a='', c='', f='', m='')).decode()}'",
    **{kind.name: kind.value for kind in RecordType},
}


LIBRARIES = "metergate_"
"""What the names of libraries begin with."""

_BLOCKS = (("program", "rules", "quick", "decide"), ("correct", "hold"))
"""Files of the library that share their local names, behind those of `common.lua`."""


class Library(NamedTuple):
    """The functions of one server process: the library's name and text, and what its functions are called."""

    name: str
    text: str
    decide: str
    hold: str


def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _filled(text: str, **more: str) -> str:
    names = {**_NAMES, **more}
    return re.sub(r"@([A-Z_]+)@", lambda match: str(names[match[1]]), text)


def script(name: str, run_id: str, clock: str = SERVER_CLOCK) -> str:
    """The text of `open` or `mend` for the server process `run_id`."""
    return _filled(_text(name), CLOCK=clock, RUN=run_id)


def prefix_of(run_id: str) -> str:
    """What the names of a server process's libraries begin with."""
    return f"{LIBRARIES}{run_id[:16]}{run_id[40:48]}_"


_WHOLE = ", prefix .. '!'"
"""A key that is never there. Where slots may move it is read along: a node that has only part of a bucket refuses that."""

_REIGN = " .. match(call('INFO', 'replication'), 'master_replid:(%w+)')"
"""What a server's run id is followed by in a cluster: another one each time that it becomes a primary."""


def library(run_id: str, clock: str = SERVER_CLOCK, *, cluster: bool = False) -> Library:
    """The functions that checks and what is held are decided by, for the server process `run_id`.

    The run id is part of the text, and the text of the name: only the very process that it was loaded on executes it.
    Whatever else has a copy, a replica that was promoted or a server restarted on its data, answers NOSCRIPT, and the
    handshake comes first. On a node of a `cluster` no step begins on a bucket that is not there as a whole.
    """
    blocks = ("do\n" + "".join(_text(part) for part in block) + "end\n" for block in _BLOCKS)
    text = _text("library").replace("@PARTS@\n", _text("common") + "".join(blocks))
    whole = _WHOLE if cluster else ""
    reign = _REIGN if cluster else ""
    text = text.replace("@LIBRARY@", "%LIBRARY%")
    text = _filled(text, CLOCK=clock, RUN=run_id, WHOLE=whole, REIGN=reign)
    name = prefix_of(run_id) + sha256(text.encode()).hexdigest()[:16]
    return Library(name, text.replace("%LIBRARY%", name), f"decide_{name}", f"hold_{name}")
