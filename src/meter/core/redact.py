"""Secrets out of texts that people read: logs, errors, settings as they are shown.

Two ways together. What a process knows to be secret (its own passwords and tokens) is found wherever it stands. What it
cannot know (a client's API key, the password in somebody's URL) is found by its form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HIDDEN", "Redactor", "passwords_in", "redacted", "secret_name", "shown"]

HIDDEN: Final = "[redacted]"
SHORTEST: Final = 6
"""Characters. A shorter secret would be found in the middle of words; its form finds it all the same."""

_NAMES = (
    r"passw(?:or)?d|passphrase|pwd|secret|token(?!s)|api[_-]?key|authorization|credential|cookie"
    r"|private[_-]?key|x-metergate-internal"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
# All of them look at a bounded length from each place, so that no text takes long.
_FORMS: Final = (
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,8192}?(?:-----END [A-Z ]{0,40}-----|\Z)", re.DOTALL), HIDDEN),
    # user:password@ in a URL; a password may have any sign that is not a blank or a quote
    (re.compile(r"(?<=://)([^\s/:@'\"<>]{0,256}):[^\s'\"<>]{1,1024}@"), rf"\1:{HIDDEN}@"),
    # API keys, whose first part is public
    (re.compile(r"\bmg_[A-Za-z0-9]{1,64}(?:_[A-Za-z0-9_-]{1,256})?"), f"mg_{HIDDEN}"),
    # what is signed for holders of leases, reservations and allowances (`enforcer.core.tokens`)
    (re.compile(r"\bmAG[a-z][A-Za-z0-9_-]{30,1024}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{1,4096}(?:\.[A-Za-z0-9_-]{0,4096})?"), HIDDEN),
    (re.compile(r"\b(bearer|basic)(\s{1,4})[A-Za-z0-9._~+/=-]{8,4096}", re.IGNORECASE), rf"\1\2{HIDDEN}"),
    # name=value, name: value, "name": "value"
    (
        re.compile(
            rf"((?:{_NAMES})[\w-]{{0,40}}\\?[\"']?\]?\s{{0,4}}(?:[:=]|=>|',)\s{{0,4}}(?:b(?=['\"]))?)"
            r"(\\?\"(?:[^\"\\]|\\(?!\").){0,4096}\\?\"|'(?:[^'\\]|\\.){0,4096}'|(?!\[redacted\]|bearer\b|basic\b)[^\s,;&(){}\[\]\"'<>]{1,4096})",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)  # fmt: skip
_URL = re.compile(r"://[^\s/:@'\"<>]{0,256}:([^\s'\"<>]{1,1024})@")


def secret_name(name: str) -> bool:
    """Whether what goes by this name is a secret, whatever it looks like."""
    return _SECRET_NAME.search(name) is not None


def passwords_in(url: str) -> set[str]:
    """The password that a URL has: as it stands there, and as it is meant."""
    found = _URL.search(url)
    return set() if found is None else {found[1], unquote(found[1]), unquote_plus(found[1])}


class Redactor:
    """Hides `known` secrets and what looks like one."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        # Longest first: one may be part of another.
        words = sorted({one for one in known if len(one) >= SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        """The text without them. Twice is as good as once."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for form, instead in _FORMS:
            text = form.sub(instead, text)
        return text


redacted: Final = Redactor()
"""What looks like a secret is hidden."""


def shown(arguments: Iterable[tuple[str | None, Any]]) -> list[tuple[str | None, Any]]:
    """Names and values, such as settings, as they may be shown."""
    return [
        (name, redacted(value) if isinstance(value, str) else value) for name, value in arguments
    ]
