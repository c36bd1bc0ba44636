"""Making accounts, their trees and what is sold to them what a catalog declares."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from enforcer.adapters.definitions import tables as t
from enforcer.adapters.definitions.work import chunks
from enforcer.catalog.model import (
    MOST_ENTITLEMENTS,
    EntitlementSpec,
    SubscriptionSpec,
    Where,
    identity,
    needs_anchor,
)
from enforcer.core.model import CreditsTerms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enforcer.adapters.definitions.work import Work
    from enforcer.catalog.model import AccountSpec, NodeSpec

__all__ = ["Trees"]

_AT_ONCE = 200
"""How many accounts are read together."""


@dataclass(slots=True)
class _Stored:
    """What the database has of some accounts, before they change."""

    accounts: dict[str, Any] = field(default_factory=dict)
    """By key."""
    nodes: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    """By account, then key."""
    owners: dict[str, Any] = field(default_factory=dict)
    """Nodes of other accounts that have one of the declared keys, by key."""
    subscriptions: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    """By node, then key."""
    entitlements: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    """By node, then key."""


class Trees:
    """`buckets`: new accounts go to the one that has the fewest."""

    def __init__(self, work: Work, buckets: int) -> None:
        self._work, self._db, self._buckets = work, work.db, buckets
        self._filled: Counter[int] | None = None
        self._removed: set[int] = set()

    async def declare(self, accounts: Sequence[AccountSpec]) -> None:
        """Store the accounts; nothing of them is left that is not declared."""
        for some in chunks(accounts, _AT_ONCE):
            stored = await self._read(some)
            for account in some:
                await self._account(account, stored)

    async def _read(self, accounts: Sequence[AccountSpec]) -> _Stored:
        work, stored = self._work, _Stored()
        mine = select(t.accounts).where(t.accounts.c.tenant == work.tenant)
        # Not locked: the lock on the tenant holds off whoever else would change them, and rows of accounts are locked in
        # the order of their numbers alone, so that nobody waits in a circle with whoever notes projections.
        for row in await work.rows(mine, t.accounts.c.key, [account.key for account in accounts]):
            stored.accounts[row.key] = row
        ids = [row.id for row in stored.accounts.values()]
        for row in await work.rows(select(t.nodes), t.nodes.c.account_id, ids):
            stored.nodes[row.account_id][row.key] = row
        keys = [node.key for account in accounts for node in account.nodes]
        nodes = select(t.nodes).where(t.nodes.c.tenant == work.tenant)
        for row in await work.rows(nodes, t.nodes.c.key, keys):
            stored.owners[row.key] = row
        for table, kept in (
            (t.subscriptions, stored.subscriptions),
            (t.entitlements, stored.entitlements),
        ):
            for row in await work.rows(select(table), table.c.account_id, ids):
                kept[row.node_id][row.key] = row
        return stored

    async def _account(self, account: AccountSpec, stored: _Stored) -> None:
        known = stored.accounts.get(account.key)
        root = account.nodes[0]
        if known is None and self._taken(account.key, None, stored):
            self._work.issue(root.where, f"{account.key!r} is a node of another account")
            return
        account_id = await self._new_account(account.key) if known is None else known.id
        ids = await self._nodes(account_id, account, stored)
        for node in account.nodes:
            if node.key in ids:
                await self._node_terms(account_id, ids[node.key], node, stored)

    def _taken(self, key: str, account_id: int | None, stored: _Stored) -> bool:
        owner = stored.owners.get(key)
        return (
            owner is not None and owner.account_id != account_id and owner.id not in self._removed
        )

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
            .values(tenant=self._work.tenant, key=key, bucket=bucket, epoch=0)
            .returning(t.accounts.c.id)
        )
        assert number is not None
        self._work.touched.add(number)
        return int(number)

    async def _nodes(
        self, account_id: int, account: AccountSpec, stored: _Stored
    ) -> dict[str, int]:
        """Store the tree; return the nodes' numbers by key. Nodes that are not declared any more go."""
        work, before = self._work, stored.nodes.pop(account_id, {})
        ids: dict[str, int] = {}
        for node in account.nodes:
            values = {
                "parent_id": ids.get(node.parent),
                "name": node.name,
                "suspended": node.suspended,
            }
            old = before.pop(node.key, None)
            if old is not None:
                ids[node.key] = old.id
                if any(getattr(old, name) != value for name, value in values.items()):
                    await self._db.execute(
                        update(t.nodes).where(t.nodes.c.id == old.id).values(**values)
                    )
                    work.touched.add(account_id)
                    work.changed("updated", "node", node.key)
                continue
            if self._taken(node.key, account_id, stored):
                work.issue(node.where, f"{node.key!r} is a node of another account")
                continue
            number = await self._db.scalar(
                insert(t.nodes)
                .values(tenant=work.tenant, account_id=account_id, key=node.key, **values)
                .returning(t.nodes.c.id)
            )
            assert number is not None
            ids[node.key] = int(number)
            work.touched.add(account_id)
            work.changed("created", "node" if node.parent else "account", node.key)
        await self.remove(account_id, list(before.values()))
        return ids

    async def remove(self, account_id: int, rows: list[Any]) -> None:
        """Remove nodes of an account; those below them have to go with them or have other parents by now."""
        if not rows:
            return
        self._work.touched.add(account_id)
        for some in chunks([row.id for row in rows]):
            self._removed.update(some)
            for table in (t.entitlements, t.subscriptions):
                await self._db.execute(delete(table).where(table.c.node_id.in_(some)))
            await self._db.execute(
                update(t.nodes).where(t.nodes.c.id.in_(some)).values(parent_id=None)
            )
        for some in chunks([row.id for row in rows]):
            await self._db.execute(delete(t.nodes).where(t.nodes.c.id.in_(some)))
        for row in rows:
            root = row.parent_id is None
            self._work.changed("removed", "account" if root else "node", row.key)

    async def _node_terms(
        self, account_id: int, node_id: int, node: NodeSpec, stored: _Stored
    ) -> None:
        """A node's subscriptions and entitlements are exactly those declared."""
        work = self._work
        for spec in node.entitlements:
            work.know_feature(spec)
        wanted = {spec.key: ("", spec) for spec in node.entitlements}
        for subscription in node.subscriptions:
            items = work.items.get(subscription.plan)
            if items is None:
                work.issue(
                    subscription.where,
                    f"unknown plan {subscription.plan!r}; declare it under `plans`",
                )
                continue
            if subscription.anchor() is None and any(needs_anchor(item) for item in items):
                work.issue(
                    subscription.where,
                    f"needs a `start` or an `anchor`: periods of plan {subscription.plan!r} begin "
                    "with the subscription (`anchor: start`)",
                )
            for spec in subscription.entitlements(items):
                wanted[spec.key] = subscription.key, spec
        await self._subscriptions(account_id, node_id, node, stored.subscriptions.pop(node_id, {}))
        before = stored.entitlements.pop(node_id, {})
        await self.entitlements(account_id, node_id, node.key, wanted, before)

    async def _subscriptions(
        self, account_id: int, node_id: int, node: NodeSpec, before: dict[str, Any]
    ) -> None:
        for subscription in node.subscriptions:
            values = {"plan": subscription.plan, "definition": subscription.to_json()}
            old = before.pop(subscription.key, None)
            if old is None:
                await self._db.execute(
                    insert(t.subscriptions).values(
                        tenant=self._work.tenant,
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
            self._work.changed(action, "subscription", f"{node.key}/{subscription.key}")
        for key in before:
            await self._db.execute(
                delete(t.subscriptions).where(
                    t.subscriptions.c.node_id == node_id, t.subscriptions.c.key == key
                )
            )
            self._work.changed("removed", "subscription", f"{node.key}/{key}")

    async def entitlements(
        self,
        account_id: int,
        node_id: int,
        node_key: str,
        wanted: dict[str, tuple[str, EntitlementSpec]],
        before: dict[str, Any],
    ) -> None:
        """Put what is `wanted`, by key with the subscription it comes from, in the place of `before`."""
        work = self._work
        for key, (origin, spec) in wanted.items():
            definition = spec.to_json()
            old = before.pop(key, None)
            if old is not None and (old.definition, old.feature) == (definition, spec.feature):
                continue
            work.touched.add(account_id)
            work.changed(
                "created" if old is None else "updated", "entitlement", f"{node_key}/{key}"
            )
            number, grants = None, {}
            if old is not None:
                work.end(old.id)
                same_count = identity(old.definition) == identity(definition)
                if same_count and old.feature == spec.feature:
                    number, grants = old.id, old.grants
            if isinstance(spec.terms, CreditsTerms):
                grants = {
                    grant.key: grants.get(grant.key) or await work.number()
                    for grant in spec.terms.grants
                }
            work.begin(
                id=number or await work.number(),
                account_id=account_id,
                node_id=node_id,
                key=key,
                feature=spec.feature,
                definition=definition,
                grants=grants,
                source=origin,
            )
        for key, row in before.items():
            work.end(row.id)
            work.touched.add(account_id)
            work.changed("removed", "entitlement", f"{node_key}/{key}")

    async def renew(self, plans: set[str], named: set[str]) -> None:
        """Give subscribers of changed plans the new terms, but for the accounts of `named`, which have them."""
        work = self._work
        query = (
            select(t.subscriptions, t.nodes.c.key.label("node"), t.accounts.c.key.label("account"))
            .join(t.nodes, t.nodes.c.id == t.subscriptions.c.node_id)
            .join(t.accounts, t.accounts.c.id == t.subscriptions.c.account_id)
            .where(t.subscriptions.c.tenant == work.tenant)
        )
        found = await work.rows(query, t.subscriptions.c.plan, plans)
        rows = [row for row in found if row.account not in named]
        before: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
        ids = {row.node_id for row in rows}
        for row in await work.rows(select(t.entitlements), t.entitlements.c.node_id, ids):
            before[row.node_id, row.source][row.key] = row
        for row in rows:
            subscription = SubscriptionSpec.from_json(row.key, row.plan, row.definition)
            items = work.items[row.plan]
            if subscription.anchor() is None and any(needs_anchor(item) for item in items):
                work.issue(
                    Where(1, f"plans (customer {row.node!r})"),
                    f"the subscription {row.key!r} has no start: periods of plan {row.plan!r} "
                    "cannot begin with it (`anchor: start`)",
                )
            wanted = {spec.key: (row.key, spec) for spec in subscription.entitlements(items)}
            await self.entitlements(
                row.account_id, row.node_id, row.node, wanted, before[row.node_id, row.key]
            )

    # -- what only the whole of an account shows

    async def check(self) -> None:
        """A path from a node up to its root has one seat mode for a feature; a node not too many limits of one."""
        work = self._work
        wheres = {
            node.key: node.where for account in work.catalog.accounts for node in account.nodes
        }
        for some in chunks(sorted(work.touched), _AT_ONCE):
            nodes = {
                row.id: row for row in await work.rows(select(t.nodes), t.nodes.c.account_id, some)
            }
            modes: dict[int, dict[str, set[str]]] = {number: {} for number in nodes}
            sizes: Counter[tuple[int, str]] = Counter()
            query = select(
                t.entitlements.c.node_id,
                t.entitlements.c.feature,
                t.entitlements.c.definition,
                t.entitlements.c.grants,
            )
            for row in await work.rows(query, t.entitlements.c.account_id, some):
                sizes[row.node_id, row.feature] += len(row.grants) or 1
                if row.definition["model"] == "concurrent":
                    mode = row.definition["terms"]["mode"]
                    modes[row.node_id].setdefault(row.feature, set()).add(mode)
            for number, message in [*_too_many(sizes), *_mixed(nodes, modes)]:
                key = nodes[number].key
                work.issue(wheres.get(key) or Where(1, f"plans (customer {key!r})"), message)


def _too_many(sizes: Counter[tuple[int, str]]) -> list[tuple[int, str]]:
    return [
        (
            number,
            (
                f"has {count} limits of {feature!r} with those of its plans, at most "
                f"{MOST_ENTITLEMENTS}"
            ),
        )
        for (number, feature), count in sizes.items()
        if count > MOST_ENTITLEMENTS
    ]


def _mixed(nodes: dict[int, Any], modes: dict[int, dict[str, set[str]]]) -> list[tuple[int, str]]:
    found = []
    for number, node in nodes.items():
        for feature, own in modes[number].items():
            together, above = set(own), node.parent_id
            while above is not None:
                together |= modes[above].get(feature, set())
                above = nodes[above].parent_id
            if len(together) > 1:
                found.append(
                    (
                        number,
                        (
                            f"has seats of {feature!r} in the modes {', '.join(sorted(together))}, "
                            "with those of its plans and of the nodes above it; a feature has one"
                        ),
                    )
                )
    return found
