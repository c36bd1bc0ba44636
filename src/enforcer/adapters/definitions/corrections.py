"""The list of corrections, seals and the review in the definitions' database."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from enforcer.adapters.definitions import tables as t
from enforcer.core.parcels import Draw, Parcel
from enforcer.errors import DefinitionsUnavailableError
from enforcer.ports.corrections import (
    Intent,
    KeyTaken,
    Listed,
    Place,
    ReviewItem,
    SealRule,
    Settlement,
    State,
)
from meter.core.records import RecordType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from enforcer.adapters.definitions.sql import SqlDefinitions

__all__ = ["SqlCorrections"]

DAY_MS = 86_400_000
_WAITING = "waiting"
_CHUNK = 400


def _parcels_to(parcels: Iterable[Parcel]) -> list[Any]:
    return [[one.quantity, one.overage, one.chains] for one in parcels]


def _parcels_from(values: Iterable[Any]) -> tuple[Parcel, ...]:
    return tuple(
        Parcel(quantity, overage, tuple(tuple(Draw(*draw) for draw in chain) for chain in chains))
        for quantity, overage, chains in values
    )


def _place(generation: int | None, sequence: int | None) -> Place | None:
    return None if generation is None or sequence is None else Place(generation, sequence)


def _listed(row: Any) -> Listed:
    more = row.definition
    intent = Intent(
        tenant=row.tenant,
        bucket=row.bucket,
        kind=RecordType(row.kind),
        scope=row.scope,
        key=row.key,
        fingerprint=row.fingerprint,
        actor=row.actor,
        reason=row.reason,
        account=more["account"],
        customer=row.customer,
        feature=more["feature"],
        meter=more["meter"],
        at_ms=row.at_ms,
        quantity=row.quantity,
        dimensions=more["dimensions"],
        target=_place(row.target_generation, row.target_sequence),
        version=row.version,
        parcels=_parcels_from(more["parcels"]),
        counts=more["counts"],
    )
    return Listed(
        row.id,
        row.number,
        row.listed_ms,
        intent,
        row.sealed,
        State(row.state),
        _place(row.generation, row.sequence),
        row.outcome.get("overage", 0),
        _parcels_from(row.outcome.get("after", ())),
        row.outcome.get("refused", ""),
    )


def _month_end(at_ms: int) -> int:
    """The end of the calendar month in UTC that a time lies in."""
    day = datetime.fromtimestamp(at_ms / 1000, UTC)
    following = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * 1000


class SqlCorrections:
    """Implements `enforcer.ports.corrections.Corrections` in the database of `definitions`."""

    def __init__(
        self,
        definitions: SqlDefinitions,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.definitions = definitions
        self._transaction, self._now_ms = definitions.transaction, now_ms

    async def by_keys(self, tenant: str, keys: Sequence[tuple[str, str]]) -> Sequence[Listed]:
        found: list[Listed] = []
        async with self._transaction() as connection:
            for at in range(0, len(keys), _CHUNK):
                rows = await connection.execute(
                    select(t.corrections).where(
                        t.corrections.c.tenant == tenant,
                        tuple_(t.corrections.c.scope, t.corrections.c.key).in_(
                            list(keys[at : at + _CHUNK])
                        ),
                    )
                )
                found += [_listed(row) for row in rows]
        return found

    async def latest(self, bucket: int, target: Place) -> tuple[int, Listed | None]:
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(t.corrections)
                .where(
                    t.corrections.c.bucket == bucket,
                    t.corrections.c.target_generation == target.generation,
                    t.corrections.c.target_sequence == target.sequence,
                )
                .order_by(t.corrections.c.version.desc())
            )
            found = [_listed(row) for row in rows]
        counting = (one for one in found if one.state is not State.REFUSED)
        return (found[0].intent.version if found else 0), next(counting, None)

    async def add(self, intents: Sequence[Intent], rule: SealRule) -> None:
        try:
            async with self._transaction(write=True) as connection:
                await self._add(connection, intents, rule)
        except DefinitionsUnavailableError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise KeyTaken from error
            raise

    async def _add(
        self, connection: AsyncConnection, intents: Sequence[Intent], rule: SealRule
    ) -> None:
        """Under the tenant's lock, so that a seal is seen by all that come after it."""
        now, tenants = self._now_ms(), {intent.tenant for intent in intents}
        for tenant in sorted(tenants):
            await connection.execute(
                select(t.tenants.c.key).where(t.tenants.c.key == tenant).with_for_update()
            )
        rows = []
        months: dict[tuple[str, str, int], bool] = {}
        # In one order, against deadlocks: the numbers of a bucket are held until all of this is there.
        for bucket in sorted({intent.bucket for intent in intents}):
            here = [intent for intent in intents if intent.bucket == bucket]
            number = await self._numbers(connection, bucket, len(here))
            for intent in here:
                number += 1
                month = intent.tenant, intent.account, _month_end(intent.at_ms)
                if month not in months:
                    months[month] = await _sealed(connection, *month[:2], intent.at_ms, rule, now)
                rows.append(_row(intent, number, now, sealed=months[month]))
        await connection.execute(insert(t.corrections), rows)

    @staticmethod
    async def _numbers(connection: AsyncConnection, bucket: int, count: int) -> int:
        """Take `count` numbers of the bucket; return the one before them."""
        name = f"corrections/{bucket}"
        into = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        await connection.execute(into(t.numbers).values(name=name, last=0).on_conflict_do_nothing())
        last = await connection.scalar(
            select(t.numbers.c.last).where(t.numbers.c.name == name).with_for_update()
        )
        before = int(last or 0)
        await connection.execute(
            update(t.numbers).where(t.numbers.c.name == name).values(last=before + count)
        )
        return before

    async def pending(self, bucket: int, most: int) -> tuple[int, Sequence[Listed]]:
        async with self._transaction() as connection:
            rows = (
                await connection.execute(
                    select(t.corrections)
                    .where(
                        t.corrections.c.bucket == bucket,
                        t.corrections.c.state == State.PENDING,
                    )
                    .order_by(t.corrections.c.number)
                    .limit(most)
                )
            ).all()
            if rows:
                return rows[0].number - 1, [_listed(row) for row in rows]
            last = await connection.scalar(
                select(t.numbers.c.last).where(t.numbers.c.name == f"corrections/{bucket}")
            )
        return int(last or 0), []

    async def settle(self, bucket: int, settlements: Sequence[Settlement]) -> None:
        async with self._transaction(write=True) as connection:
            for one in settlements:
                await connection.execute(
                    update(t.corrections)
                    .where(
                        t.corrections.c.bucket == bucket,
                        t.corrections.c.number == one.number,
                        t.corrections.c.state == State.PENDING,
                    )
                    .values(
                        state=one.state.value,
                        generation=one.place.generation if one.place else None,
                        sequence=one.place.sequence if one.place else None,
                        outcome={
                            "overage": one.overage,
                            "after": _parcels_to(one.after),
                            "refused": one.refused,
                        },
                    )
                )

    async def unfinished(self) -> Sequence[int]:
        async with self._transaction() as connection:
            return list(
                await connection.scalars(
                    select(t.corrections.c.bucket)
                    .where(t.corrections.c.state == State.PENDING)
                    .distinct()
                )
            )

    async def page(
        self, tenant: str, customer: str, record: tuple[int, Place] | None, before: int, most: int
    ) -> Sequence[Listed]:
        c = t.corrections.c
        query = select(t.corrections).where(c.tenant == tenant).order_by(c.id.desc()).limit(most)
        if customer:
            query = query.where(c.customer == customer)
        if record is not None:
            bucket, (generation, sequence) = record
            query = query.where(
                c.bucket == bucket,
                or_(
                    (c.target_generation == generation) & (c.target_sequence == sequence),
                    (c.generation == generation) & (c.sequence == sequence),
                ),
            )
        if before:
            query = query.where(c.id < before)
        async with self._transaction() as connection:
            return [_listed(row) for row in await connection.execute(query)]

    # -- seals

    async def seal(self, tenant: str, account: str, start_ms: int, end_ms: int, actor: str) -> bool:
        async with self._transaction(write=True) as connection:
            await connection.execute(
                select(t.tenants.c.key).where(t.tenants.c.key == tenant).with_for_update()
            )
            known = await connection.scalar(
                select(t.seals.c.sealed_ms).where(
                    t.seals.c.tenant == tenant,
                    t.seals.c.account == account,
                    t.seals.c.start_ms == start_ms,
                    t.seals.c.end_ms == end_ms,
                )
            )
            if known is not None:
                return False
            await connection.execute(
                insert(t.seals).values(
                    tenant=tenant,
                    account=account,
                    start_ms=start_ms,
                    end_ms=end_ms,
                    actor=actor,
                    sealed_ms=self._now_ms(),
                )
            )
            month = datetime.fromtimestamp(start_ms / 1000, UTC)
            await self._log(
                connection, tenant, actor, "sealed", "period", f"{account}/{month:%Y-%m}"
            )
        return True

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
                at_ms=self._now_ms(), tenant=tenant, actor=actor, action=action, kind=kind, key=key
            )
        )

    # -- review

    async def put_in_review(self, tenant: str, items: Sequence[ReviewItem]) -> set[str]:
        async with self._transaction(write=True) as connection:
            into = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            for item in items:
                await connection.execute(
                    into(t.review)
                    .values(
                        tenant=tenant,
                        key=item.key,
                        event=item.event,
                        why=item.why,
                        actor=item.actor,
                        at_ms=self._now_ms(),
                        state=_WAITING,
                    )
                    .on_conflict_do_nothing()
                )
            waiting: set[str] = set()
            keys = [item.key for item in items]
            for at in range(0, len(keys), _CHUNK):
                waiting.update(
                    await connection.scalars(
                        select(t.review.c.key).where(
                            t.review.c.tenant == tenant,
                            t.review.c.state == _WAITING,
                            t.review.c.key.in_(keys[at : at + _CHUNK]),
                        )
                    )
                )
        return waiting

    async def review(self, tenant: str, after: int, most: int) -> Sequence[ReviewItem]:
        async with self._transaction() as connection:
            rows = await connection.execute(
                select(t.review)
                .where(
                    t.review.c.tenant == tenant,
                    t.review.c.state == _WAITING,
                    t.review.c.id > after,
                )
                .order_by(t.review.c.id)
                .limit(most)
            )
            return [_item(row) for row in rows]

    async def review_item(self, tenant: str, number: int) -> ReviewItem | None:
        async with self._transaction() as connection:
            row = (
                await connection.execute(
                    select(t.review).where(
                        t.review.c.tenant == tenant,
                        t.review.c.id == number,
                        t.review.c.state == _WAITING,
                    )
                )
            ).first()
        return None if row is None else _item(row)

    async def resolve(
        self, tenant: str, number: int, *, accepted: bool, reason: str, actor: str
    ) -> bool:
        state = "accepted" if accepted else "discarded"
        async with self._transaction(write=True) as connection:
            moved = await connection.execute(
                update(t.review)
                .where(
                    t.review.c.tenant == tenant,
                    t.review.c.id == number,
                    t.review.c.state == _WAITING,
                )
                .values(state=state)
            )
            if moved.rowcount:
                key = f"{number}: {reason}"
                await self._log(connection, tenant, actor, state, "review", key)
        return bool(moved.rowcount)


def _item(row: Any) -> ReviewItem:
    return ReviewItem(row.id, row.key, row.event, row.why, row.actor, row.at_ms)


async def _sealed(
    connection: AsyncConnection, tenant: str, account: str, at_ms: int, rule: SealRule, now_ms: int
) -> bool:
    if rule.days and _month_end(at_ms) + rule.days * DAY_MS <= now_ms:
        return True
    found = await connection.scalar(
        select(t.seals.c.sealed_ms)
        .where(
            t.seals.c.tenant == tenant,
            t.seals.c.account.in_(["", account]),
            t.seals.c.start_ms <= at_ms,
            t.seals.c.end_ms > at_ms,
        )
        .limit(1)
    )
    return found is not None


def _row(intent: Intent, number: int, now_ms: int, *, sealed: bool) -> dict[str, Any]:
    return {
        "tenant": intent.tenant,
        "bucket": intent.bucket,
        "number": number,
        "kind": intent.kind.value,
        "scope": intent.scope,
        "key": intent.key,
        "fingerprint": intent.fingerprint,
        "actor": intent.actor,
        "reason": intent.reason,
        "listed_ms": now_ms,
        "customer": intent.customer,
        "definition": {
            "account": intent.account,
            "feature": intent.feature,
            "meter": intent.meter,
            "dimensions": dict(intent.dimensions),
            "parcels": _parcels_to(intent.parcels),
            "counts": intent.counts,
        },
        "at_ms": intent.at_ms,
        "quantity": intent.quantity,
        "target_generation": intent.target.generation if intent.target else None,
        "target_sequence": intent.target.sequence if intent.target else None,
        "version": intent.version,
        "sealed": sealed,
        "state": State.PENDING.value,
        "outcome": {},
    }
