"""Making the database what a catalog declares, in one transaction, touching only what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from enforcer.adapters.definitions import tables as t
from enforcer.adapters.definitions.trees import Trees
from enforcer.adapters.definitions.work import Work
from enforcer.catalog.model import EntitlementSpec, Where
from enforcer.catalog.read import refuse
from enforcer.ports.definitions import Applied, Touched

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from enforcer.catalog.model import Catalog

__all__ = ["Application", "pending"]


async def pending(connection: AsyncConnection, tenant: str | None = None) -> tuple[Touched, ...]:
    """Accounts with an epoch that the counters are not known to have; of all tenants without `tenant`."""
    query = (
        select(t.accounts.c.id, t.accounts.c.bucket, t.accounts.c.epoch)
        .where(t.accounts.c.projected < t.accounts.c.epoch)
        .order_by(t.accounts.c.id)
    )
    if tenant is not None:
        query = query.where(t.accounts.c.tenant == tenant)
    return tuple(Touched(*row) for row in await connection.execute(query))


class Application:
    """One catalog being applied on an open transaction."""

    def __init__(
        self, connection: AsyncConnection, catalog: Catalog, actor: str, buckets: int, now_ms: int
    ) -> None:
        self._db, self._catalog, self._actor, self._now = connection, catalog, actor, now_ms
        self._tenant = catalog.tenant
        self._work = Work(connection, catalog)
        self._trees = Trees(self._work, buckets)

    async def run(self) -> Applied:
        """Everything in the order in which one thing refers to another.

        The lock on the tenant comes first: what is read after it, no other application changes.
        """
        work, catalog = self._work, self._catalog
        known = await self._db.scalar(
            select(t.tenants.c.key).where(t.tenants.c.key == self._tenant).with_for_update()
        )
        if known is None:
            work.issue(Where(1, "tenant"), f"there is no tenant {self._tenant!r}")
            raise refuse(work.issues)
        changed_features = await self._products_and_features()
        changed_plans = await self._plans()
        await self._trees.declare(catalog.accounts)
        await self._trees.renew(changed_plans, {account.key for account in catalog.accounts})
        await work.flush()
        if catalog.prune:
            await self._prune()
        await self._touch_users_of(changed_features)
        await self._trees.check()
        if work.issues:
            raise refuse(work.issues)
        await self._raise_revision()
        await work.raise_epochs()
        await work.log(self._actor, self._now)
        return Applied(tuple(work.changes), await pending(self._db, self._tenant))

    # -- products, features, plans

    async def _products_and_features(self) -> set[str]:
        """Store them; return the features whose customers have to be decided anew."""
        stored = {
            row.key: row.releases
            for row in await self._db.execute(
                select(t.products).where(t.products.c.tenant == self._tenant)
            )
        }
        changed_products = set()
        for product in self._catalog.products:
            old = stored.get(product.key)
            if old == product.releases:
                continue
            changed_products.add(product.key)
            values = {"tenant": self._tenant, "key": product.key, "releases": product.releases}
            if old is None:
                await self._db.execute(insert(t.products).values(**values))
            else:
                await self._db.execute(
                    update(t.products)
                    .where(t.products.c.tenant == self._tenant, t.products.c.key == product.key)
                    .values(releases=product.releases)
                )
            self._work.changed("created" if old is None else "updated", "product", product.key)
        known = {
            row.key: row.definition
            for row in await self._db.execute(
                select(t.features).where(t.features.c.tenant == self._tenant)
            )
        }
        changed = {key for key, old in known.items() if old.get("product") in changed_products}
        for feature in self._catalog.features:
            definition = feature.to_json()
            old = known.get(feature.key)
            if old == definition:
                continue
            if old is None:
                await self._db.execute(
                    insert(t.features).values(
                        tenant=self._tenant, key=feature.key, definition=definition
                    )
                )
            else:
                changed.add(feature.key)
                await self._db.execute(
                    update(t.features)
                    .where(t.features.c.tenant == self._tenant, t.features.c.key == feature.key)
                    .values(definition=definition)
                )
            self._work.changed("created" if old is None else "updated", "feature", feature.key)
        declared = {feature.key for feature in self._catalog.features}
        self._work.features = declared if self._catalog.prune else declared | known.keys()
        products = {product.key for product in self._catalog.products}
        if not self._catalog.prune:
            products |= stored.keys()
        for feature in self._catalog.features:
            if feature.product and feature.product not in products:
                self._work.issue(
                    feature.where,
                    f"unknown product {feature.product!r}; declare it under `products`",
                )
        return changed

    async def _plans(self) -> set[str]:
        """Store them; return those that are new or differ."""
        stored = {
            row.key: row
            for row in await self._db.execute(
                # `items` is a method of rows.
                select(
                    t.plans.c.key, t.plans.c.version, t.plans.c["items"].label("contents")
                ).where(t.plans.c.tenant == self._tenant)
            )
        }
        if not self._catalog.prune:
            self._work.items = {
                key: tuple(EntitlementSpec.from_json(*item) for item in row.contents)
                for key, row in stored.items()
            }
        changed = set()
        for plan in self._catalog.plans:
            for item in plan.items:
                self._work.know_feature(item)
            items = [[item.key, item.feature, item.to_json()] for item in plan.items]
            self._work.items[plan.key] = plan.items
            old = stored.get(plan.key)
            if old is not None and old.contents == items:
                continue
            changed.add(plan.key)
            if old is None:
                await self._db.execute(
                    insert(t.plans).values(
                        tenant=self._tenant, key=plan.key, version=1, items=items
                    )
                )
            else:
                await self._db.execute(
                    update(t.plans)
                    .where(t.plans.c.tenant == self._tenant, t.plans.c.key == plan.key)
                    .values(version=old.version + 1, items=items)
                )
            self._work.changed("created" if old is None else "updated", "plan", plan.key)
        return changed

    # -- what others are concerned by

    async def _prune(self) -> None:
        """Remove what the file does not name. An account keeps its row, and so its number, bucket and epoch."""
        named = {account.key for account in self._catalog.accounts}
        rest: dict[int, list[Any]] = {}
        for row in await self._db.execute(
            select(t.nodes, t.accounts.c.key.label("account"))
            .join(t.accounts, t.accounts.c.id == t.nodes.c.account_id)
            .where(t.nodes.c.tenant == self._tenant)
            .order_by(t.nodes.c.id)
        ):
            if row.account not in named:
                rest.setdefault(row.account_id, []).append(row)
        for account_id, nodes in rest.items():
            await self._trees.remove(account_id, nodes)
        for table, kind, kept in (
            (t.plans, "plan", {plan.key for plan in self._catalog.plans}),
            (t.features, "feature", {feature.key for feature in self._catalog.features}),
            (t.products, "product", {product.key for product in self._catalog.products}),
        ):
            mine = table.c.tenant == self._tenant
            for key in sorted(await self._db.scalars(select(table.c.key).where(mine))):
                if key not in kept:
                    await self._db.execute(delete(table).where(mine, table.c.key == key))
                    self._work.changed("removed", kind, key)

    async def _raise_revision(self) -> None:
        """After any change of products and features, so that what was read of them before is read again."""
        if any(change.kind in ("product", "feature") for change in self._work.changes):
            await self._db.execute(
                update(t.tenants)
                .where(t.tenants.c.key == self._tenant)
                .values(revision=t.tenants.c.revision + 1)
            )

    async def _touch_users_of(self, features: Iterable[str]) -> None:
        mine = select(t.entitlements.c.account_id).where(t.entitlements.c.tenant == self._tenant)
        rows = await self._work.rows(mine.distinct(), t.entitlements.c.feature, features)
        self._work.touched.update(row.account_id for row in rows)
