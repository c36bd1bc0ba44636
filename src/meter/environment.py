"""Where settings come from beside the environment, and what libraries find in it: imported before it is known what runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["SECRETS_DIR", "no_json", "secrets_folder"]

SECRETS_DIR = "METERGATE_SECRETS_DIR"

# gRPC's library in C writes to stderr past all loggers, and reads this once, when `grpc` is imported: settings
# are what both programs import first. What fails it tells its callers, too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def secrets_folder() -> Path | None:
    """Where the files of settings are that are not to be in the environment; None without METERGATE_SECRETS_DIR.

    Raise `ValueError` in words for people when it names no folder.
    """
    named = os.environ.get(SECRETS_DIR)
    if not named:
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{SECRETS_DIR}: there is no such folder, or it cannot be read")
    return Path(named)


def no_json(error: ValueError) -> str:
    """Which setting is not even JSON, of those that have to be: pydantic's `SettingsError` in words for people."""
    found = re.search(r'field "(\w+)"', str(error))
    return f"METERGATE_{found[1].upper()}: must be JSON" if found else str(error)
