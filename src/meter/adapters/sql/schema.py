"""Numbered schemas of an SQL database: brought up to date, and held against what this version knows.

A migration that old versions can live with (a new table, a new column with a default) leaves the number in the table of
needs as it is. One that they cannot live with raises it to its own number: docs/upgrade.md has the rule. So an older
version goes on beside a newer one while an upgrade rolls, and refuses a schema that it would spoil.
"""

from __future__ import annotations

from enum import Enum, auto
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import inspect, text

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

__all__ = ["Fit", "Schema"]


class Fit(Enum):
    """How a database's schema fits this version."""

    GOOD = auto()
    NEWER = auto()
    """Made by a newer version, and nothing that this one needs is gone."""
    BEHIND = auto()
    """None or an old one: it has to be migrated first."""
    TOO_NEW = auto()
    """Made by a newer version, and of no use to this one."""


class Schema(NamedTuple):
    """Alembic's `folder` of migrations, the table with the last one's number, and the table with what is needed."""

    folder: Path
    version_table: str
    needs_table: str

    @property
    def known(self) -> str:
        """The number of the newest migration that this version has."""
        return max(file.name[:4] for file in (self.folder / "versions").glob("[0-9]*.py"))

    def found(self, connection: Connection) -> str:
        """The number of the last migration that the database had; empty: none."""
        if not inspect(connection).has_table(self.version_table):
            return ""
        found = connection.scalar(text(f"SELECT version_num FROM {self.version_table}"))  # noqa: S608
        return str(found or "")

    def needs(self, connection: Connection) -> str:
        """The number that a version has to know at least to work on the database; empty: any."""
        if not inspect(connection).has_table(self.needs_table):
            return ""
        found = connection.scalar(text(f"SELECT needs FROM {self.needs_table}"))  # noqa: S608
        return str(found or "")

    def fit(self, connection: Connection) -> tuple[Fit, str]:
        """How the database fits, and what is to be said about it."""
        found, known = self.found(connection), self.known
        if found == known:
            return Fit.GOOD, ""
        if found < known:
            is_at = f"schema {found}" if found else "no schema yet"
            return Fit.BEHIND, (
                f"the database has {is_at}, this version needs {known}: run `metergate migrate`"
            )
        needs = self.needs(connection)
        this = f"this version ({version_of('metergate')}) knows schema {known} at most"
        if needs and needs <= known:
            return Fit.NEWER, f"the database has schema {found}, {this}: they work together"
        least = (
            f"needs a version that knows {needs or found}" if needs else "was made by a newer one"
        )
        return Fit.TOO_NEW, (
            f"the database has schema {found} and {least}; {this}. Start the newer version again, or "
            "restore the backup made before the upgrade (docs/upgrade.md)"
        )

    def upgrade(self, connection: Connection) -> None:
        """Bring it up to date, unless it is or a newer version has done more."""
        if self.fit(connection)[0] is not Fit.BEHIND:
            return
        # Takes longer to import than all else here, and is seldom needed.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(self.folder))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
