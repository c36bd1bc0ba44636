"""Connections to SQLite's files, for both packages."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

__all__ = ["OPTIONS", "LettingGo"]


class LettingGo(sqlite3.Connection):
    """Closing it ends its transaction, whatever still refers to one of its cursors.

    SQLite keeps a closed connection with its locks for as long as one of its statements is not over. A call that is
    cancelled between a SELECT and its rows leaves such a statement to the garbage collector, which may come minutes
    later: until then nobody could write.
    """

    def close(self) -> None:
        """Roll back, then close."""
        if self.in_transaction:
            self.rollback()
        super().close()


OPTIONS: Final[dict[str, Any]] = {"factory": LettingGo}
"""Arguments for the driver."""
