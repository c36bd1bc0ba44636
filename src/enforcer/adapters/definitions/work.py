"""What one application of a catalog collects, so that it is written in a few large steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from enforcer.adapters.definitions import tables as t
from enforcer.catalog.read import Issue
from enforcer.errors import InternalError
from enforcer.ports.definitions import Change

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeVar

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from enforcer.catalog.model import Catalog, EntitlementSpec, Where

    T = TypeVar("T")

__all__ = ["Work", "chunks"]

CHUNK = 5_000
"""How many values a statement names at most: databases take about 32,000."""
_LARGEST_NUMBER = 2**32 - 1
_LIMITS = "limits"


def chunks(values: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """The values in parts of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


class Work:
    """Of one catalog on one open transaction.

    Whoever applies holds the tenant's lock: what is read here, nobody else changes before the transaction ends.
    """

    def __init__(self, db: AsyncConnection, catalog: Catalog) -> None:
        self.db = db
        self.catalog = catalog
        self.tenant = catalog.tenant
        self.changes: list[Change] = []
        self.issues: list[Issue] = []
        self.touched: set[int] = set()
        """Accounts that get a new epoch."""
        self.features: set[str] = set()
        """Keys of all that may be named."""
        self.items: dict[str, tuple[EntitlementSpec, ...]] = {}
        """Of all plans that may be named."""
        self._ended: list[int] = []
        self._begun: list[dict[str, Any]] = []
        self._number: int | None = None

    def changed(self, action: str, kind: str, key: str) -> None:
        """Note a change: for the answer and the audit log."""
        self.changes.append(Change(action, kind, key))

    def issue(self, where: Where, message: str) -> None:
        """Note what is wrong; nothing of the file will count."""
        self.issues.append(Issue(self.catalog.file_name, where.line, where.field, message))

    def know_feature(self, spec: EntitlementSpec) -> None:
        """Note an issue for a feature that nobody has declared."""
        if spec.feature not in self.features:
            self.issue(spec.where, f"unknown feature {spec.feature!r}; declare it under `features`")

    async def number(self) -> int:
        """A number for a counter that was never used before, of entitlements and grants together.

        `flush` saves the last one: nobody else takes numbers while this transaction holds the row.
        """
        if self._number is None:
            into = postgresql.insert if self.db.dialect.name == "postgresql" else sqlite.insert
            await self.db.execute(
                into(t.numbers).values(name=_LIMITS, last=0).on_conflict_do_nothing()
            )
            last = await self.db.scalar(
                select(t.numbers.c.last).where(t.numbers.c.name == _LIMITS).with_for_update()
            )
            self._number = int(last or 0)
        if self._number >= _LARGEST_NUMBER:
            raise InternalError("all numbers of limits are used up")
        self._number += 1
        return self._number

    def end(self, entitlement_id: int) -> None:
        """Delete an entitlement, when flushed."""
        self._ended.append(entitlement_id)

    def begin(self, **values: Any) -> None:
        """Insert an entitlement, when flushed; after all that ends, so that it may have the same key."""
        self._begun.append({"tenant": self.tenant, **values})

    async def flush(self) -> None:
        """Write the entitlements that begin and end."""
        for ids in chunks(self._ended):
            await self.db.execute(delete(t.entitlements).where(t.entitlements.c.id.in_(ids)))
        for rows in chunks(self._begun):
            await self.db.execute(insert(t.entitlements), list(rows))
        self._ended, self._begun = [], []
        if self._number is not None:
            await self.db.execute(
                update(t.numbers).where(t.numbers.c.name == _LIMITS).values(last=self._number)
            )

    async def rows(
        self, query: Any, column: ColumnElement[Any], values: Iterable[Any]
    ) -> list[Any]:
        """All rows of `query` whose `column` has one of the values."""
        found: list[Any] = []
        for some in chunks(list(values)):
            found += await self.db.execute(query.where(column.in_(some)))
        return found

    async def raise_epochs(self) -> None:
        """By one for each account, however much of it has changed; in one order, against deadlocks."""
        if self.touched:
            await self.db.execute(
                update(t.accounts)
                .where(t.accounts.c.id == bindparam("account"))
                .values(epoch=t.accounts.c.epoch + 1),
                [{"account": number} for number in sorted(self.touched)],
            )

    async def log(self, actor: str, at_ms: int) -> None:
        """Write the audit log."""
        if self.changes:
            entry = {"at_ms": at_ms, "tenant": self.tenant, "actor": actor}
            await self.db.execute(
                insert(t.audit_log), [{**entry, **change._asdict()} for change in self.changes]
            )
