"""Making the database what a catalog declares, in one transaction, touching only what differs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from enforcer.adapters.definitions import tables as t
from enforcer.catalog.model import (
    MOST_ENTITLEMENTS,
    EntitlementSpec,
    SubscriptionSpec,
    Where,
    identity,
    needs_anchor,
)
from enforcer.catalog.read import Issue, refuse
from enforcer.core.model import CreditsTerms
from enforcer.errors import InternalError
from enforcer.ports.definitions import Applied, Change, Touched

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from enforcer.catalog.model import AccountSpec, Catalog, NodeSpec

__all__ = ["Application", "pending"]

_LARGEST_NUMBER = 2**32 - 1


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
        self._db, self._catalog, self._actor = connection, catalog, actor
        self._buckets, self._now = buckets, now_ms
        self._tenant = catalog.tenant
        self._changes: list[Change] = []
        self._touched: set[int] = set()
        self._issues: list[Issue] = []
        self._filled: Counter[int] | None = None
        self._features: set[str] = set()
        self._items: dict[str, tuple[EntitlementSpec, ...]] = {}

    async def run(self) -> Applied:
        """Everything in the order in which one thing refers to another.

        The lock on the tenant comes first: what is read after it, no other application changes.
        """
        known = await self._db.scalar(
            select(t.tenants.c.key).where(t.tenants.c.key == self._tenant).with_for_update()
        )
        if known is None:
            raise refuse(
                [
                    Issue(
                        self._catalog.file_name, 1, "tenant", f"there is no tenant {self._tenant!r}"
                    )
                ]
            )
        changed_features = await self._products_and_features()
        changed_plans = await self._plans()
        for account in self._catalog.accounts:
            await self._account(account)
        await self._renew_subscriptions(changed_plans)
        if self._catalog.prune:
            await self._prune()
        await self._touch_users_of(changed_features)
        await self._check_paths()
        if self._issues:
            raise refuse(self._issues)
        await self._raise_epochs()
        for change in self._changes:
            await self._db.execute(
                insert(t.audit_log).values(
                    at_ms=self._now, tenant=self._tenant, actor=self._actor, **change._asdict()
                )
            )
        return Applied(tuple(self._changes), await pending(self._db, self._tenant))

    def _changed(self, action: str, kind: str, key: str) -> None:
        self._changes.append(Change(action, kind, key))

    def _issue(self, where: Where, message: str) -> None:
        self._issues.append(Issue(self._catalog.file_name, where.line, where.field, message))

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
            self._changed("created" if old is None else "updated", "product", product.key)
        known = {
            row.key: row.definition
            for row in await self._db.execute(
                select(t.features).where(t.features.c.tenant == self._tenant)
            )
        }
        changed = {key for key, old in known.items() if old.get("product") in changed_products}
        for feature in self._catalog.features:
            definition = {
                "product": feature.product,
                "meter": feature.meter,
                "unit": feature.unit,
                "on_outage": feature.on_outage,
            }
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
            self._changed("created" if old is None else "updated", "feature", feature.key)
        declared = {feature.key for feature in self._catalog.features}
        self._features = declared if self._catalog.prune else declared | known.keys()
        products = {product.key for product in self._catalog.products}
        if not self._catalog.prune:
            products |= stored.keys()
        for feature in self._catalog.features:
            if feature.product and feature.product not in products:
                self._issue(
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
            self._items = {
                key: tuple(EntitlementSpec.from_json(*item) for item in row.contents)
                for key, row in stored.items()
            }
        changed = set()
        for plan in self._catalog.plans:
            for item in plan.items:
                self._know_feature(item)
            items = [[item.key, item.feature, item.to_json()] for item in plan.items]
            self._items[plan.key] = plan.items
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
            self._changed("created" if old is None else "updated", "plan", plan.key)
        return changed

    def _know_feature(self, spec: EntitlementSpec) -> None:
        if spec.feature not in self._features:
            self._issue(
                spec.where, f"unknown feature {spec.feature!r}; declare it under `features`"
            )

    # -- accounts

    async def _account(self, account: AccountSpec) -> None:
        row = (
            await self._db.execute(
                select(t.accounts)
                .where(t.accounts.c.tenant == self._tenant, t.accounts.c.key == account.key)
                .with_for_update()
            )
        ).first()
        if row is None:
            taken = await self._db.scalar(
                select(t.nodes.c.key).where(
                    t.nodes.c.tenant == self._tenant, t.nodes.c.key == account.key
                )
            )
            if taken is not None:
                self._issue(account.nodes[0].where, f"{account.key!r} is a node of another account")
                return
            account_id = await self._new_account(account.key)
        else:
            account_id = row.id
        ids = await self._nodes(account_id, account)
        for node in account.nodes:
            if node.key in ids:
                await self._node_terms(account_id, ids[node.key], node)

    async def _new_account(self, key: str) -> int:
        """In the bucket with the fewest accounts."""
        if self._filled is None:
            rows = await self._db.execute(
                select(t.accounts.c.bucket, func.count()).group_by(t.accounts.c.bucket)
            )
            self._filled = Counter({row[0]: row[1] for row in rows})
        filled = self._filled
        bucket = min(range(self._buckets), key=lambda number: (filled[number], number))
        filled[bucket] += 1
        number = await self._db.scalar(
            insert(t.accounts)
            .values(tenant=self._tenant, key=key, bucket=bucket, epoch=0)
            .returning(t.accounts.c.id)
        )
        assert number is not None
        self._touched.add(number)
        return int(number)

    async def _nodes(self, account_id: int, account: AccountSpec) -> dict[str, int]:
        """Store the tree; return the nodes' numbers by key. Nodes that are not declared any more go."""
        stored = {
            row.key: row
            for row in await self._db.execute(
                select(t.nodes).where(t.nodes.c.account_id == account_id)
            )
        }
        ids: dict[str, int] = {}
        for node in account.nodes:
            parent = ids.get(node.parent)
            values = {"parent_id": parent, "name": node.name, "suspended": node.suspended}
            old = stored.pop(node.key, None)
            if old is not None:
                ids[node.key] = old.id
                if any(getattr(old, name) != value for name, value in values.items()):
                    await self._db.execute(
                        update(t.nodes).where(t.nodes.c.id == old.id).values(**values)
                    )
                    self._touched.add(account_id)
                    self._changed("updated", "node", node.key)
                continue
            taken = await self._db.scalar(
                select(t.nodes.c.id).where(
                    t.nodes.c.tenant == self._tenant, t.nodes.c.key == node.key
                )
            )
            if taken is not None:
                self._issue(node.where, f"{node.key!r} is a node of another account")
                continue
            number = await self._db.scalar(
                insert(t.nodes)
                .values(tenant=self._tenant, account_id=account_id, key=node.key, **values)
                .returning(t.nodes.c.id)
            )
            assert number is not None
            ids[node.key] = int(number)
            self._touched.add(account_id)
            self._changed("created", "node" if node.parent else "account", node.key)
        await self._remove_nodes(account_id, list(stored.values()))
        return ids

    async def _remove_nodes(self, account_id: int, rows: list[Any]) -> None:
        if not rows:
            return
        ids = [row.id for row in rows]
        for table in (t.entitlements, t.subscriptions):
            await self._db.execute(delete(table).where(table.c.node_id.in_(ids)))
        await self._db.execute(update(t.nodes).where(t.nodes.c.id.in_(ids)).values(parent_id=None))
        await self._db.execute(delete(t.nodes).where(t.nodes.c.id.in_(ids)))
        self._touched.add(account_id)
        for row in rows:
            root = row.parent_id is None
            self._changed("removed", "account" if root else "node", row.key)

    async def _node_terms(self, account_id: int, node_id: int, node: NodeSpec) -> None:
        """A node's subscriptions and entitlements are exactly those declared."""
        for spec in node.entitlements:
            self._know_feature(spec)
        wanted = {spec.key: ("", spec) for spec in node.entitlements}
        for subscription in node.subscriptions:
            items = self._items.get(subscription.plan)
            if items is None:
                self._issue(
                    subscription.where,
                    f"unknown plan {subscription.plan!r}; declare it under `plans`",
                )
                continue
            if subscription.anchor() is None and any(needs_anchor(item) for item in items):
                self._issue(
                    subscription.where,
                    f"needs a `start` or an `anchor`: periods of plan {subscription.plan!r} begin "
                    "with the subscription (`anchor: start`)",
                )
            for spec in subscription.entitlements(items):
                wanted[spec.key] = subscription.key, spec
        await self._subscriptions(account_id, node_id, node)
        await self._entitlements(account_id, node_id, node.key, wanted, None)

    async def _subscriptions(self, account_id: int, node_id: int, node: NodeSpec) -> None:
        stored = {
            row.key: row
            for row in await self._db.execute(
                select(t.subscriptions).where(t.subscriptions.c.node_id == node_id)
            )
        }
        for subscription in node.subscriptions:
            values = {"plan": subscription.plan, "definition": subscription.to_json()}
            old = stored.pop(subscription.key, None)
            if old is None:
                await self._db.execute(
                    insert(t.subscriptions).values(
                        tenant=self._tenant,
                        account_id=account_id,
                        node_id=node_id,
                        key=subscription.key,
                        **values,
                    )
                )
            elif (old.plan, old.definition) != (values["plan"], values["definition"]):
                await self._db.execute(
                    update(t.subscriptions)
                    .where(
                        t.subscriptions.c.node_id == node_id,
                        t.subscriptions.c.key == subscription.key,
                    )
                    .values(**values)
                )
            else:
                continue
            action = "created" if old is None else "updated"
            self._changed(action, "subscription", f"{node.key}/{subscription.key}")
        for key in stored:
            await self._db.execute(
                delete(t.subscriptions).where(
                    t.subscriptions.c.node_id == node_id, t.subscriptions.c.key == key
                )
            )
            self._changed("removed", "subscription", f"{node.key}/{key}")

    async def _entitlements(
        self,
        account_id: int,
        node_id: int,
        node_key: str,
        wanted: dict[str, tuple[str, EntitlementSpec]],
        source: str | None,
    ) -> None:
        """Make a node's entitlements those of `wanted`; with `source`, only those of that subscription."""
        query = select(t.entitlements).where(t.entitlements.c.node_id == node_id)
        if source is not None:
            query = query.where(t.entitlements.c.source == source)
        stored = {row.key: row for row in await self._db.execute(query)}
        for key, (origin, spec) in wanted.items():
            definition = spec.to_json()
            old = stored.pop(key, None)
            same = old is not None and (old.definition, old.feature) == (definition, spec.feature)
            if same:
                continue
            self._touched.add(account_id)
            self._changed(
                "created" if old is None else "updated", "entitlement", f"{node_key}/{key}"
            )
            number, grants = None, {}
            if old is not None:
                await self._db.execute(delete(t.entitlements).where(t.entitlements.c.id == old.id))
                kept = identity(old.definition) == identity(definition)
                if kept and old.feature == spec.feature:
                    number, grants = old.id, old.grants
            if isinstance(spec.terms, CreditsTerms):
                grants = {
                    grant.key: grants.get(grant.key) or await self._number()
                    for grant in spec.terms.grants
                }
            await self._db.execute(
                insert(t.entitlements).values(
                    id=number or await self._number(),
                    tenant=self._tenant,
                    account_id=account_id,
                    node_id=node_id,
                    key=key,
                    feature=spec.feature,
                    definition=definition,
                    grants=grants,
                    source=origin,
                )
            )
        for key, row in stored.items():
            await self._db.execute(delete(t.entitlements).where(t.entitlements.c.id == row.id))
            self._touched.add(account_id)
            self._changed("removed", "entitlement", f"{node_key}/{key}")

    async def _number(self) -> int:
        """A number for a counter that was never used before."""
        last = await self._db.scalar(
            update(t.numbers)
            .where(t.numbers.c.name == "limits")
            .values(last=t.numbers.c.last + 1)
            .returning(t.numbers.c.last)
        )
        if last is None:
            await self._db.execute(insert(t.numbers).values(name="limits", last=1))
            return 1
        if last > _LARGEST_NUMBER:
            raise InternalError("all numbers of limits are used up")
        return int(last)

    # -- what others are concerned by

    async def _renew_subscriptions(self, changed_plans: set[str]) -> None:
        """Subscribers of a changed plan that this file does not name have its new terms, too."""
        named = {account.key for account in self._catalog.accounts}
        rows = await self._db.execute(
            select(t.subscriptions, t.nodes.c.key.label("node"), t.accounts.c.key.label("account"))
            .join(t.nodes, t.nodes.c.id == t.subscriptions.c.node_id)
            .join(t.accounts, t.accounts.c.id == t.subscriptions.c.account_id)
            .where(
                t.subscriptions.c.tenant == self._tenant,
                t.subscriptions.c.plan.in_(changed_plans),
            )
        )
        for row in list(rows):
            if row.account in named:
                continue
            subscription = SubscriptionSpec.from_json(row.key, row.plan, row.definition)
            wanted = {
                spec.key: (row.key, spec)
                for spec in subscription.entitlements(self._items[row.plan])
            }
            await self._entitlements(row.account_id, row.node_id, row.node, wanted, row.key)

    async def _prune(self) -> None:
        """Remove what the file does not name. An account keeps its row, and so its number, bucket and epoch."""
        named = [account.key for account in self._catalog.accounts]
        for row in list(
            await self._db.execute(
                select(t.accounts).where(
                    t.accounts.c.tenant == self._tenant, t.accounts.c.key.not_in(named)
                )
            )
        ):
            nodes = list(
                await self._db.execute(select(t.nodes).where(t.nodes.c.account_id == row.id))
            )
            await self._remove_nodes(row.id, nodes)
        for table, kind, kept in (
            (t.plans, "plan", [plan.key for plan in self._catalog.plans]),
            (t.features, "feature", [feature.key for feature in self._catalog.features]),
            (t.products, "product", [product.key for product in self._catalog.products]),
        ):
            gone = await self._db.scalars(
                delete(table)
                .where(table.c.tenant == self._tenant, table.c.key.not_in(kept))
                .returning(table.c.key)
            )
            for key in sorted(gone):
                self._changed("removed", kind, key)

    async def _touch_users_of(self, features: Iterable[str]) -> None:
        wanted = sorted(features)
        if not wanted:
            return
        rows = await self._db.scalars(
            select(t.entitlements.c.account_id)
            .where(t.entitlements.c.tenant == self._tenant, t.entitlements.c.feature.in_(wanted))
            .distinct()
        )
        self._touched.update(rows)

    async def _raise_epochs(self) -> None:
        """By one for each account, however much of it has changed; in one order, against deadlocks."""
        for number in sorted(self._touched):
            await self._db.execute(
                update(t.accounts)
                .where(t.accounts.c.id == number)
                .values(epoch=t.accounts.c.epoch + 1)
            )

    # -- what only the whole of an account shows

    async def _check_paths(self) -> None:
        """A path from a node up to its root has one seat mode for a feature; a node not too many limits of one."""
        for account_id in sorted(self._touched):
            nodes = {
                row.id: row
                for row in await self._db.execute(
                    select(t.nodes).where(t.nodes.c.account_id == account_id)
                )
            }
            modes: dict[int, dict[str, set[str]]] = {number: {} for number in nodes}
            sizes: Counter[tuple[int, str]] = Counter()
            for row in await self._db.execute(
                select(t.entitlements).where(t.entitlements.c.account_id == account_id)
            ):
                sizes[row.node_id, row.feature] += len(row.grants) or 1
                mode = row.definition["terms"].get("mode")
                if row.definition["model"] == "concurrent":
                    modes[row.node_id].setdefault(row.feature, set()).add(mode)
            for (number, feature), count in sizes.items():
                if count > MOST_ENTITLEMENTS:
                    self._issue(
                        self._place(nodes[number].key),
                        f"has {count} limits of {feature!r} with those of its plans, "
                        f"at most {MOST_ENTITLEMENTS}",
                    )
            self._check_modes(nodes, modes)

    def _check_modes(self, nodes: dict[int, Any], modes: dict[int, dict[str, set[str]]]) -> None:
        for number, node in nodes.items():
            for feature, own in modes[number].items():
                above = node.parent_id
                found = set(own)
                while above is not None:
                    found |= modes[above].get(feature, set())
                    above = nodes[above].parent_id
                if len(found) > 1:
                    self._issue(
                        self._place(node.key),
                        f"has seats of {feature!r} in the modes {', '.join(sorted(found))}, with "
                        "those of its plans and of the nodes above it; a feature has one",
                    )

    def _place(self, node_key: str) -> Where:
        """Where the file has a node; at the plans, by which alone others are changed, if it has not."""
        for account in self._catalog.accounts:
            for node in account.nodes:
                if node.key == node_key:
                    return node.where
        return Where(1, f"plans (customer {node_key!r})")
