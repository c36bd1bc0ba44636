"""How many files a process may have open: as many as it is ever allowed, as servers ask for."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["allow_many_files"]


def allow_many_files() -> None:
    """Raise the soft limit to the hard one. Usual is 1,024, which a thousand connections use up.

    Its small default is meant for programs that use `select`; nothing here does with a file of a high number.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on every platform

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says "unlimited" and does not take it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
