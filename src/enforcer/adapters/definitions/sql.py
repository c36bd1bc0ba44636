"""The definitions in SQL: reading customers, callers and generations. Applying catalogs is in `apply`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets as random
import sqlite3
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import and_, event, insert, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from enforcer.adapters.definitions import tables as t
from enforcer.adapters.definitions.apply import Application, pending
from enforcer.adapters.definitions.work import chunks
from enforcer.catalog.model import EntitlementSpec
from enforcer.core.events import EventMeter, path_of
from enforcer.core.model import Customer, Entitlement, Feature, Node
from enforcer.core.rebuild import Account
from enforcer.errors import DefinitionsUnavailableError, MisconfiguredError
from enforcer.ports.definitions import Applied, Caller, LimitName, Touched
from meter.adapters.sql.files import OPTIONS
from meter.adapters.sql.refusals import is_database_error, refusal, wrong_option
from meter.adapters.sql.schema import Fit, Schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import Connection

    from enforcer.catalog.model import Catalog

__all__ = ["ROLES", "SqlDefinitions"]

_log = structlog.get_logger(__name__)
ROLES = ("check", "admin")
_LEASE_SECRET = "leases"  # noqa: S105 - the name of a secret
_TRIES = 250
_PATIENCE = {"timeout": 5, "command_timeout": 30}
"""How long PostgreSQL may take to connect and to answer, in seconds: the driver's own bounds are a minute and none."""


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
        remote = parsed.get_backend_name() == "postgresql"
        options = _PATIENCE if remote else OPTIONS
        engine = create_async_engine(
            parsed, pool_pre_ping=remote, connect_args=options, hide_parameters=True
        )
    except (ArgumentError, ImportError) as error:
        raise MisconfiguredError(
            "METERGATE_DATABASE_URL must be sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)

        @event.listens_for(engine.sync_engine, "connect")
        def durable(connection: Any, _: Any) -> None:
            # Transactions are begun by hand: sqlite3 itself begins one only before the first write, so that what was
            # read before would not belong to it.
            connection.isolation_level = None
            cursor = connection.cursor()
            for pragma in ("busy_timeout=10000", "synchronous=FULL", "foreign_keys=ON"):
                cursor.execute(f"PRAGMA {pragma}")
            _write_ahead(cursor)
            cursor.close()

        @event.listens_for(engine.sync_engine, "begin")
        def begin(connection: Connection) -> None:
            write = connection.get_execution_options().get("write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _write_ahead(cursor: Any) -> None:
    """Turn the write-ahead log on.

    A database that is new to several processes is locked by the one that does it, and SQLite does not wait for this
    lock.
    """
    for _ in range(_TRIES):
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] == "wal":
            return
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            time.sleep(0.02)
    raise DefinitionsUnavailableError("the definitions' database stays locked by another process")


_SCHEMA: Final = Schema(Path(__file__).parent / "migrations", "alembic_version", "schema_needs")


def _away(error: Exception) -> DefinitionsUnavailableError:
    why = refusal(error)
    found = DefinitionsUnavailableError(
        f"the definitions' database does not answer: {why or type(error).__name__}"
    )
    found.refused = bool(why)
    return found


def _look_at(fit: Fit, what: str) -> None:
    """Raise unless this version can work on the schema."""
    if fit is Fit.TOO_NEW:
        raise MisconfiguredError(f"METERGATE_DATABASE_URL: {what}")
    if fit is Fit.BEHIND:
        # Not for ever, perhaps: who migrates may not have come to it yet.
        error = DefinitionsUnavailableError(f"definitions: {what}")
        error.refused = True
        raise error
    if fit is Fit.NEWER:
        _log.warning("the schema is newer", database="definitions", what=what)


class SqlDefinitions:
    """Implements `enforcer.ports.definitions.Definitions` at `url`. Call `migrate` once before anything else.

    `buckets` is the deployment's number of buckets: new accounts go to the one with the fewest.
    """

    def __init__(self, url: str, buckets: int) -> None:
        self._engine = _engine(url)
        self._postgres = self._engine.dialect.name == "postgresql"
        self._buckets = buckets
        self._fits = False

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the database; writers one after the other. The first one looks at the schema."""
        async with self._begun(write=write) as connection:
            if not self._fits:
                _look_at(*await connection.run_sync(_SCHEMA.fit))
                self._fits = True
            yield connection

    @asynccontextmanager
    async def _begun(self, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
        options: dict[str, Any] = {"write": write}
        if self._postgres:
            options["isolation_level"] = "READ COMMITTED" if write else "REPEATABLE READ"
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(**options)
                async with connection.begin():
                    yield connection
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise _away(error) from error
        except Exception as error:
            if is_database_error(error):
                raise _away(error) from error
            if what := wrong_option(error):
                raise MisconfiguredError(f"METERGATE_DATABASE_URL: {what}") from error
            raise

    def transaction(self, *, write: bool = False) -> AbstractAsyncContextManager[AsyncConnection]:
        """For what other modules of this adapter keep in the same database."""
        return self._transaction(write=write)

    async def migrate(self) -> None:
        """Bring the schema up to date. Safe to call from several processes: one does it, the others wait.

        Raise `MisconfiguredError` when a newer version has made a schema of it that this one cannot work on.
        """
        async with self._begun(write=True) as connection:
            if self._postgres:
                await connection.execute(text("SELECT pg_advisory_xact_lock(7268901)"))
            fit, what = await connection.run_sync(_SCHEMA.fit)
            if fit is Fit.BEHIND:
                await connection.run_sync(_SCHEMA.upgrade)
            else:
                _look_at(fit, what)

    async def ask(self) -> None:
        """Return when the database answers, with a schema that this version can work on."""
        async with self._transaction() as connection:
            await connection.execute(select(1))

    # -- reading

    async def resolve(self, tenant: str, customer: str) -> Customer | None:
        (found,) = await self.resolve_all([(tenant, customer)])
        return found

    async def resolve_all(self, names: Sequence[tuple[str, str]]) -> list[Customer | None]:
        wanted: dict[str, list[str]] = {}
        for tenant, key in set(names):
            if _storable(key):
                wanted.setdefault(tenant, []).append(key)
        # Not pairs of both: SQLite would look for those through all nodes.
        named = [and_(t.nodes.c.tenant == one, t.nodes.c.key.in_(wanted[one])) for one in wanted]
        if not named:
            return [None] * len(names)
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(t.nodes, t.accounts.c.bucket, t.accounts.c.epoch, t.tenants.c.revision)
                .join(t.accounts, t.accounts.c.id == t.nodes.c.account_id)
                .join(t.tenants, t.tenants.c.key == t.nodes.c.tenant)
                .where(or_(*named))
            )
            found = {(row.tenant, row.key): row for row in rows}
            nodes: dict[int, Any] = {row.id: row for row in found.values()}
            above = {row.parent_id for row in nodes.values()} - nodes.keys() - {None}
            while above:
                more = await connection.execute(select(t.nodes).where(t.nodes.c.id.in_(above)))
                rows_above = {row.id: row for row in more}
                nodes |= rows_above
                above = {row.parent_id for row in rows_above.values()} - nodes.keys() - {None}
            entitlements: dict[int, list[Entitlement]] = {number: [] for number in nodes}
            for one in await connection.execute(
                select(t.entitlements)
                .where(t.entitlements.c.node_id.in_(list(nodes)))
                .order_by(t.entitlements.c.id)
            ):
                spec = EntitlementSpec.from_json(one.key, one.feature, one.definition)
                entitlements[one.node_id].append(spec.numbered(one.id, one.grants))
        made = {
            row.id: Node(row.id, row.key, row.suspended, tuple(entitlements[row.id]))
            for row in nodes.values()
        }

        def customer(row: Any) -> Customer:
            path = [row]
            while path[-1].parent_id is not None:
                path.append(nodes[path[-1].parent_id])
            return Customer(
                tenant=row.tenant,
                account_id=row.account_id,
                account_key=path[-1].key,
                bucket=row.bucket,
                epoch=row.epoch,
                path=tuple(made[node.id] for node in path),
                revision=row.revision,
            )

        return [customer(found[name]) if name in found else None for name in names]

    async def feature(self, tenant: str, key: str) -> Feature | None:
        if not _storable(key):
            return None
        async with self._transaction() as connection:
            row = (
                await connection.execute(
                    select(t.features).where(t.features.c.tenant == tenant, t.features.c.key == key)
                )
            ).first()
            if row is None:
                return None
            product = row.definition.get("product")
            releases = await connection.scalar(
                select(t.products.c.releases).where(
                    t.products.c.tenant == tenant, t.products.c.key == product
                )
            )
        return Feature(row.id, key, key, releases or {}, row.definition.get("emergency", 0))

    async def accounts(self, bucket: int, after: int, most: int) -> list[Account]:
        async with self._transaction() as connection:
            found = (
                await connection.execute(
                    select(t.accounts)
                    .where(t.accounts.c.bucket == bucket, t.accounts.c.id > after)
                    .order_by(t.accounts.c.id)
                    .limit(most)
                )
            ).all()
            ids = [row.id for row in found]
            entitlements: dict[int, list[Any]] = defaultdict(list)
            for one in await connection.execute(
                select(t.entitlements)
                .where(t.entitlements.c.account_id.in_(ids))
                .order_by(t.entitlements.c.id)
            ):
                spec = EntitlementSpec.from_json(one.key, one.feature, one.definition)
                entitlements[one.node_id].append(spec.numbered(one.id, one.grants))
            nodes: dict[int, list[Node]] = defaultdict(list)
            for one in await connection.execute(
                select(t.nodes).where(t.nodes.c.account_id.in_(ids)).order_by(t.nodes.c.id)
            ):
                node = Node(one.id, one.key, one.suspended, tuple(entitlements[one.id]))
                nodes[one.account_id].append(node)
            features: dict[str, dict[str, int]] = defaultdict(dict)
            for one in await connection.execute(
                select(t.features).where(t.features.c.tenant.in_({row.tenant for row in found}))
            ):
                features[one.tenant][one.key] = one.id
        return [
            Account(row.id, row.tenant, tuple(nodes[row.id]), features[row.tenant]) for row in found
        ]

    async def event_meters(self, tenant: str) -> list[EventMeter]:
        query = (
            select(t.features.c.key, t.features.c.definition)
            .where(t.features.c.tenant == tenant)
            .order_by(t.features.c.id)
        )
        async with self._transaction() as connection:
            rows = (await connection.execute(query)).all()
        return [
            EventMeter(
                feature=row.key,
                event_type=row.definition["event_type"],
                value=path_of(row.definition["value_property"]),
                dimensions=tuple(
                    (name, path_of(place) or ())
                    for name, place in sorted(row.definition["group_by"].items())
                ),
                sums=row.definition["meter"] == "sum",
            )
            for row in rows
            if row.definition.get("event_type")
        ]

    async def caller(self, api_key: str) -> Caller | None:
        digest = hashlib.sha256(api_key.encode(errors="replace")).digest()
        async with self._transaction() as connection:
            row = (
                await connection.execute(
                    select(t.api_keys).where(
                        t.api_keys.c.digest == digest, t.api_keys.c.revoked_ms.is_(None)
                    )
                )
            ).first()
        return None if row is None else Caller(row.tenant, row.id, row.role)

    async def descendants(self, tenant: str, customers: list[str]) -> list[str]:
        below = (
            select(t.nodes.c.id, t.nodes.c.key)
            .where(t.nodes.c.tenant == tenant, t.nodes.c.key.in_(filter(_storable, customers)))
            .cte("below", recursive=True)
        )
        below = below.union(
            select(t.nodes.c.id, t.nodes.c.key).where(t.nodes.c.parent_id == below.c.id)
        )
        async with self._transaction() as connection:
            keys = await connection.scalars(select(below.c.key).distinct())
            return sorted(keys)

    async def limits(
        self, tenant: str, ids: Collection[int], features: Collection[str]
    ) -> dict[int, LimitName]:
        query = (
            select(t.entitlements, t.nodes.c.key.label("node"))
            .join(t.nodes, t.nodes.c.id == t.entitlements.c.node_id)
            .where(
                t.entitlements.c.tenant == tenant,
                t.entitlements.c.feature.in_(filter(_storable, features)),
            )
        )
        found: dict[int, LimitName] = {}
        async with self._transaction() as connection:
            for row in await connection.execute(query):
                found[row.id] = LimitName(row.node, row.key)
                for grant, number in row.grants.items():
                    found[number] = LimitName(row.node, f"{row.key}/{grant}")
        return {number: name for number, name in found.items() if number in ids}

    async def seat_limits(self, ids: Collection[int]) -> dict[int, str]:
        found: dict[int, str] = {}
        async with self._transaction() as connection:
            for some in chunks(sorted(ids)):
                query = select(
                    t.entitlements.c.id, t.entitlements.c.tenant, t.entitlements.c.definition
                ).where(t.entitlements.c.id.in_(some))
                for row in await connection.execute(query):
                    if row.definition["model"] == "concurrent":
                        found[row.id] = row.tenant
        return found

    async def aggregations(self, tenant: str, feature: str = "") -> dict[str, tuple[str, str]]:
        if not _storable(feature):
            return {}
        query = select(t.features.c.key, t.features.c.definition).where(
            t.features.c.tenant == tenant
        )
        if feature:
            query = query.where(t.features.c.key == feature)
        async with self._transaction() as connection:
            rows = (await connection.execute(query)).all()
        return {
            row.key: (row.definition["meter"], row.definition.get("unique_by", ""))
            for row in rows
            if row.definition["meter"] != "sum"
        }

    async def account_epoch(self, tenant: str, account_id: int) -> int | None:
        async with self._transaction() as connection:
            epoch: int | None = await connection.scalar(
                select(t.accounts.c.epoch).where(
                    t.accounts.c.tenant == tenant, t.accounts.c.id == account_id
                )
            )
        return epoch

    # -- what a deployment is given once

    async def last_generation(self, bucket: int) -> int:
        async with self._transaction() as connection:
            last = await connection.scalar(
                select(t.generations.c.last).where(t.generations.c.bucket == bucket)
            )
        return last or 0

    async def was_opened(self, bucket: int) -> bool:
        async with self._transaction() as connection:
            opened = await connection.scalar(
                select(t.generations.c.opened).where(t.generations.c.bucket == bucket)
            )
        return bool(opened)

    async def confirm_opened(self, bucket: int) -> None:
        async with self._transaction(write=True) as connection:
            await connection.execute(
                update(t.generations).where(t.generations.c.bucket == bucket).values(opened=True)
            )

    async def next_generation(self, bucket: int, at_least: int) -> int:
        for _ in range(100):
            last = await self.last_generation(bucket)
            given = max(last, at_least) + 1
            try:
                async with self._transaction(write=True) as connection:
                    if not last:
                        await connection.execute(
                            insert(t.generations).values(bucket=bucket, last=given)
                        )
                        return given
                    moved = await connection.execute(
                        update(t.generations)
                        .where(t.generations.c.bucket == bucket, t.generations.c.last == last)
                        .values(last=given)
                    )
                    if moved.rowcount == 1:
                        return given
            except DefinitionsUnavailableError as error:
                if not isinstance(error.__cause__, IntegrityError):
                    raise
            await asyncio.sleep(0.01)
        raise DefinitionsUnavailableError("generations are being given out too fast")

    async def lease_secret(self) -> bytes:
        for _ in range(2):
            async with self._transaction() as connection:
                found = await connection.scalar(
                    select(t.secrets.c.value).where(t.secrets.c.name == _LEASE_SECRET)
                )
            if found is not None:
                return bytes(found)
            try:
                async with self._transaction(write=True) as connection:
                    await connection.execute(
                        insert(t.secrets).values(name=_LEASE_SECRET, value=random.token_bytes(32))
                    )
            except DefinitionsUnavailableError as error:
                if not isinstance(error.__cause__, IntegrityError):
                    raise
        raise DefinitionsUnavailableError("the deployment's secret could not be made")

    async def ensure_tenant(self, tenant: str, name: str = "") -> None:
        """Make the tenant unless it is there; one that is keeps its name."""
        async with self._transaction(write=True) as connection:
            into = postgresql.insert if self._postgres else sqlite.insert
            await connection.execute(
                into(t.tenants).values(key=tenant, name=name or tenant).on_conflict_do_nothing()
            )

    async def create_api_key(self, tenant: str, role: str, actor: str = "bootstrap") -> str:
        """Make an API key of a role in `ROLES`, on behalf of `actor` in the audit log.

        The key is returned this once; only its digest is kept. Raise `MisconfiguredError` for an unknown role or
        tenant.
        """
        if role not in ROLES:
            raise MisconfiguredError(f"role must be one of {', '.join(ROLES)}, not {role!r}")
        name = random.token_hex(4)
        key = f"mg_{name}_{random.token_urlsafe(32)}"
        async with self._transaction(write=True) as connection:
            known = await connection.scalar(
                select(t.tenants.c.key).where(t.tenants.c.key == tenant)
            )
            if known is None:
                raise MisconfiguredError(f"there is no tenant {tenant!r}; make it first")
            await connection.execute(
                insert(t.api_keys).values(
                    id=name,
                    tenant=tenant,
                    digest=hashlib.sha256(key.encode()).digest(),
                    role=role,
                    created_ms=_now_ms(),
                )
            )
            await self._log(connection, tenant, actor, "created", "api_key", name)
        return key

    async def note(self, tenant: str, actor: str, action: str, kind: str, key: str) -> None:
        async with self._transaction(write=True) as connection:
            await self._log(connection, tenant, actor, action, kind, key)

    async def _log(
        self,
        connection: AsyncConnection,
        tenant: str,
        actor: str,
        action: str,
        kind: str,
        key: str,
    ) -> None:
        await connection.execute(
            insert(t.audit_log).values(
                at_ms=_now_ms(),
                tenant=tenant,
                actor=actor,
                action=action,
                kind=kind,
                key=key,
            )
        )

    async def revoke_api_key(self, tenant: str, key_id: str, actor: str = "bootstrap") -> bool:
        """End a tenant's key by its public id. False: there is none that is valid."""
        async with self._transaction(write=True) as connection:
            ended = await connection.execute(
                update(t.api_keys)
                .where(
                    t.api_keys.c.tenant == tenant,
                    t.api_keys.c.id == key_id,
                    t.api_keys.c.revoked_ms.is_(None),
                )
                .values(revoked_ms=_now_ms())
            )
            if ended.rowcount:
                await self._log(connection, tenant, actor, "removed", "api_key", key_id)
        return bool(ended.rowcount)

    # -- changing

    async def apply(self, catalog: Catalog, *, actor: str, dry_run: bool = False) -> Applied:
        async with self._transaction(write=True) as connection:
            application = Application(connection, catalog, actor, self._buckets, _now_ms())
            applied = await application.run()
            if dry_run:
                await connection.rollback()
        return Applied(applied.changes, ()) if dry_run else applied

    async def pending(self) -> tuple[Touched, ...]:
        async with self._transaction() as connection:
            return await pending(connection)

    async def projected(self, accounts: Iterable[Touched]) -> None:
        async with self._transaction(write=True) as connection:
            # In one order, as `Work.raise_epochs` has it, against deadlocks.
            for account in sorted(accounts):
                await connection.execute(
                    update(t.accounts)
                    .where(
                        t.accounts.c.id == account.account_id,
                        t.accounts.c.projected < account.epoch,
                    )
                    .values(projected=account.epoch)
                )


def _storable(text: str) -> bool:
    """Whether a database could hold it: what none can hold is nobody's key."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
