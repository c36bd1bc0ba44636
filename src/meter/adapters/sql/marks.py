"""Marks and manifests in SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from meter.adapters.sql import sharing
from meter.adapters.sql.files import OPTIONS
from meter.adapters.sql.refusals import is_database_error, refusal, wrong_option
from meter.adapters.sql.schema import Fit, Schema
from meter.adapters.sql.tables import accepted_gaps, manifests, marks
from meter.core.sequence import START, Gap, Position, Range
from meter.errors import FencedError, MarksUnavailableError, MisconfiguredError
from meter.ports.marks import Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from meter.ports.marks import Standing

__all__ = ["SqlMarks"]

_log = structlog.get_logger(__name__)
KEPT = 1_000
"""How many applied manifests stay, to look things up."""
STILL_PAUSE = 0.05


class _StillError(Exception):
    """No slice may be claimed now."""


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
        options = OPTIONS if parsed.get_backend_name() == "sqlite" else {}
        engine = create_async_engine(
            parsed, pool_pre_ping=True, connect_args=options, hide_parameters=True
        )
    except (ArgumentError, ImportError) as error:
        raise MisconfiguredError(
            "METERGATE_METER_DATABASE_URL: must be sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)

        @event.listens_for(engine.sync_engine, "connect")
        def durable(connection: Any, _: Any) -> None:
            cursor = connection.cursor()
            # A claim has to be on disk before the slice is: FULL syncs every commit.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


_SCHEMA: Final = Schema(
    Path(__file__).parent / "migrations", "meter_alembic_version", "meter_schema_needs"
)


def _away(error: Exception) -> MarksUnavailableError:
    why = refusal(error)
    return MarksUnavailableError(f"marks: {why or error}", refused=bool(why))


class SqlMarks:
    """Marks and manifests at `url`. Call `migrate` before anything else."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise FencedError("another process has created a mark at the same time") from error
        except (SQLAlchemyError, OSError) as error:
            raise _away(error) from error
        except Exception as error:
            if is_database_error(error):
                raise _away(error) from error
            if what := wrong_option(error):
                raise MisconfiguredError(f"METERGATE_METER_DATABASE_URL: {what}") from error
            raise

    async def migrate(self) -> None:
        """Bring the schema up to date. Safe to call from several processes: one does it, the others wait.

        Raise `MisconfiguredError` when a newer version has made a schema of it that this one cannot work on.
        """
        async with self._transaction() as connection:
            if self._engine.dialect.name == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(7268902)"))
            fit, what = await connection.run_sync(_SCHEMA.fit)
            if fit is Fit.TOO_NEW:
                raise MisconfiguredError(f"METERGATE_METER_DATABASE_URL: {what}")
            if fit is Fit.NEWER:
                _log.warning("the schema is newer", database="marks", what=what)
            await connection.run_sync(_SCHEMA.upgrade)

    async def ask(self) -> None:
        """Return when the database answers. Raise `MarksUnavailableError`."""
        async with self._transaction() as connection:
            await connection.execute(select(1))

    async def load(self, buckets: Iterable[int]) -> Mapping[int, Position]:
        wanted = list(buckets)
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(marks.c.bucket, marks.c.generation, marks.c.sequence).where(
                    marks.c.bucket.in_(wanted)
                )
            )
            found = {row.bucket: Position(row.generation, row.sequence) for row in rows}
        return {bucket: found.get(bucket, START) for bucket in wanted}

    async def claim(
        self,
        moves: Mapping[int, tuple[Position, Position]],
        ranges: Sequence[Range],
        repeats: Mapping[int, int],
    ) -> Manifest:
        while True:
            try:
                return await self._claim(moves, ranges, repeats)
            except _StillError:
                await asyncio.sleep(STILL_PAUSE)

    async def _claim(
        self,
        moves: Mapping[int, tuple[Position, Position]],
        ranges: Sequence[Range],
        repeats: Mapping[int, int],
    ) -> Manifest:
        token = uuid.uuid4().hex
        async with self._transaction() as connection:
            for bucket, (old, new) in sorted(moves.items()):
                await _move(connection, bucket, old, new, repeats.get(bucket, 0))
            # After the first write: from there on SQLite lets nobody else write.
            if await sharing.is_still(connection):
                raise _StillError
            number = await connection.scalar(
                insert(manifests)
                .values(token=token, ranges=json.dumps(ranges), applied=False)
                .returning(manifests.c.number)
            )
        assert number is not None
        return Manifest(number, token, tuple(ranges))

    async def accept(
        self, gap: Gap, old: Position | None, ranges: Sequence[Range], actor: str
    ) -> None:
        behind = Position(gap.generation, gap.last - 1)
        async with self._transaction() as connection:
            if old is not None:
                await _move(connection, gap.bucket, old, behind, 0)
            await connection.execute(
                insert(accepted_gaps).values(
                    bucket=gap.bucket,
                    generation=gap.generation,
                    first=gap.first,
                    last=gap.last,
                    actor=actor,
                )
            )
            if ranges:
                await connection.execute(
                    insert(manifests).values(
                        token=uuid.uuid4().hex, ranges=json.dumps(ranges), applied=False
                    )
                )

    async def accepted(self, buckets: Iterable[int]) -> Sequence[Gap]:
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(accepted_gaps)
                .where(accepted_gaps.c.bucket.in_(list(buckets)))
                .order_by(*accepted_gaps.primary_key.columns)
            )
            return [
                Gap(row.bucket, row.generation, row.first, row.last, "accepted") for row in rows
            ]

    async def applied(self, manifest: Manifest) -> None:
        async with self._transaction() as connection:
            await connection.execute(
                update(manifests).where(manifests.c.number == manifest.number).values(applied=True)
            )
            await connection.execute(
                delete(manifests).where(
                    manifests.c.number <= manifest.number - KEPT, manifests.c.applied
                )
            )

    async def unapplied(self, buckets: Iterable[int] | None = None) -> Sequence[Manifest]:
        wanted = None if buckets is None else set(buckets)
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(manifests.c.number, manifests.c.token, manifests.c.ranges)
                .where(manifests.c.applied.is_(False))
                .order_by(manifests.c.number)
            )
            found = [
                Manifest(
                    row.number, row.token, tuple(Range(*part) for part in json.loads(row.ranges))
                )
                for row in rows
            ]
        if wanted is None:
            return found
        return [one for one in found if wanted.intersection(part.bucket for part in one.ranges)]

    async def repeats(self, buckets: Iterable[int]) -> int:
        async with self._transaction() as connection:
            total = await connection.scalar(
                select(func.coalesce(func.sum(marks.c.repeats), 0)).where(
                    marks.c.bucket.in_(list(buckets))
                )
            )
        return int(total or 0)

    async def report(self, member: str, standing: Standing) -> None:
        async with self._transaction() as connection:
            await sharing.write_report(connection, member, standing)

    async def standing(self, buckets: Iterable[int] | None = None) -> Standing:
        async with self._transaction() as connection:
            return await sharing.read_standing(connection, buckets)

    async def keep_still(self, holder: str, seconds: float) -> bool:
        async with self._transaction() as connection:
            return await sharing.keep_still(connection, holder, seconds)

    async def keep_on(self, holder: str, seconds: float) -> bool:
        async with self._transaction() as connection:
            return await sharing.keep_on(connection, holder, seconds)

    async def let_go(self, holder: str, rest: float) -> None:
        async with self._transaction() as connection:
            await sharing.let_go(connection, holder, rest)

    async def close(self) -> None:
        """End all connections."""
        await self._engine.dispose()


async def _move(
    connection: AsyncConnection, bucket: int, old: Position, new: Position, repeats: int
) -> None:
    """Compare-and-set of one mark; the caller's transaction makes it all or nothing."""
    if old == START:
        exists = await connection.scalar(select(marks.c.bucket).where(marks.c.bucket == bucket))
        if exists is None:
            await connection.execute(
                insert(marks).values(
                    bucket=bucket,
                    generation=new.generation,
                    sequence=new.sequence,
                    repeats=repeats,
                )
            )
            return
    done = await connection.execute(
        update(marks)
        .where(
            marks.c.bucket == bucket,
            marks.c.generation == old.generation,
            marks.c.sequence == old.sequence,
        )
        .values(
            generation=new.generation,
            sequence=new.sequence,
            repeats=marks.c.repeats + repeats,
        )
    )
    if done.rowcount != 1:
        raise FencedError(
            f"the mark of bucket {bucket} is not at {old.generation}-{old.sequence}: "
            "another process rolls it up"
        )
