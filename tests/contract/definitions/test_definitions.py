"""What every adapter of the definitions has to do: one body over SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, select, update

from enforcer.adapters.definitions import tables
from enforcer.adapters.definitions.sql import SqlDefinitions
from enforcer.catalog.parse import parse
from enforcer.core.events import EventMeter
from enforcer.core.model import (
    BooleanTerms,
    ConcurrentTerms,
    ConfigTerms,
    CreditsTerms,
    LicenseType,
    Period,
    PeriodUnit,
    QuotaTerms,
    RateTerms,
)
from enforcer.errors import (
    CatalogInvalidError,
    DefinitionsUnavailableError,
    MetergateError,
    MisconfiguredError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from enforcer.core.model import Customer, Entitlement
    from enforcer.ports.definitions import Applied

BUCKETS = 4

CATALOG = """
version: 1
tenant: demo
products:
  - {key: studio, releases: {"1.0": 2025-01-01}}
features:
  - {key: calls, product: studio}
  - {key: seats}
plans:
  - key: basic
    items:
      - {feature: calls, model: rate, limit: 10, per: 1s}
accounts:
  - key: acme
    entitlements:
      - {feature: calls, model: quota, limit: 100, per: day}
    subscriptions:
      - {plan: basic, start: 2026-01-01}
    nodes:
      - key: acme-team
        entitlements:
          - {feature: seats, model: concurrent, seats: 2}
        nodes:
          - {key: acme-team-ann}
  - key: globex
""".lstrip()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite+aiosqlite:///{tmp_path}/definitions.db"


@pytest.fixture
async def open_definitions(url: str) -> AsyncIterator[Callable[[], SqlDefinitions]]:
    """Opens the same database as another process would."""
    opened: list[SqlDefinitions] = []

    def make() -> SqlDefinitions:
        opened.append(SqlDefinitions(url, BUCKETS))
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


@pytest.fixture
async def definitions(open_definitions: Callable[[], SqlDefinitions]) -> SqlDefinitions:
    made = open_definitions()
    await made.migrate()
    await made.ensure_tenant("demo", "Demo")
    await made.ensure_tenant("other")
    return made


async def declare(definitions: SqlDefinitions, text: str = CATALOG, **options: bool) -> Applied:
    """Apply and note the projection, as the gateway does."""
    applied = await definitions.apply(parse(text, "c.yaml"), actor="tester", **options)
    await definitions.projected(applied.touched)
    return applied


async def customer(definitions: SqlDefinitions, key: str = "acme") -> Customer:
    found = await definitions.resolve("demo", key)
    assert found is not None
    return found


async def entitlement(definitions: SqlDefinitions, key: str, node: str = "acme") -> Entitlement:
    found = await customer(definitions, node)
    (one,) = [one for one in found.path[0].entitlements if one.key == key]
    return one


async def epochs(definitions: SqlDefinitions, *keys: str) -> list[int]:
    return [(await customer(definitions, key)).epoch for key in keys]


async def contents(definitions: SqlDefinitions) -> dict[str, list[str]]:
    """Every row of every table."""
    async with definitions._transaction() as connection:
        return {
            table.name: sorted(repr(row) for row in await connection.execute(select(table)))
            for table in tables.metadata.sorted_tables
        }


# -- the schema


async def test_migrating_twice_and_at_the_same_time_is_safe(
    open_definitions: Callable[[], SqlDefinitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(open_definitions().migrate() for _ in range(4)))
    monkeypatch.setattr("alembic.command.upgrade", None)  # nothing is left for it to do
    await open_definitions().migrate()


async def test_the_migrations_make_the_tables_that_the_code_uses(
    definitions: SqlDefinitions,
) -> None:
    async with definitions._transaction() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
        )
    assert differences == []


# -- reading


async def test_a_customer_comes_with_all_above_it_and_the_epoch(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    found = await customer(definitions, "acme-team-ann")
    assert [node.key for node in found.path] == ["acme-team-ann", "acme-team", "acme"]
    assert (found.tenant, found.account_key, found.epoch) == ("demo", "acme", 1)
    assert len({node.id for node in found.path}) == 3
    assert [one.feature for one in found.path[1].entitlements] == ["seats"]
    assert [one.key for one in found.path[2].entitlements] == ["calls:quota", "basic/calls:rate"]
    quota = found.path[2].entitlements[0]
    assert quota.terms == QuotaTerms(100, Period(PeriodUnit.DAY))
    assert await definitions.account_epoch("demo", found.account_id) == 1


async def test_a_tenant_does_not_see_another_ones_definitions(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    found = await customer(definitions)
    assert await definitions.resolve("other", "acme") is None
    assert await definitions.feature("other", "calls") is None
    assert await definitions.descendants("other", ["acme"]) == []
    assert await definitions.account_epoch("other", found.account_id) is None
    await declare(definitions, CATALOG.replace("tenant: demo", "tenant: other"))
    other = await definitions.resolve("other", "acme")
    assert other is not None
    assert other.account_id != found.account_id
    assert {one.id for one in other.path[0].entitlements}.isdisjoint(
        one.id for one in found.path[0].entitlements
    )


async def test_several_at_once_are_what_each_is_by_itself(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    await declare(definitions, CATALOG.replace("tenant: demo", "tenant: other"))
    names = [
        *(("demo", "acme-team-ann"), ("other", "acme"), ("demo", "nobody"), ("demo", "acme")),
        *(("demo", "globex"), ("other", "acme-team"), ("demo", "a\0b"), ("demo", "acme-team-ann")),
    ]
    found = await definitions.resolve_all(names)
    assert found == [await definitions.resolve(*name) for name in names]
    assert [one is None for one in found] == [False, False, True, *[False] * 3, True, False]
    assert found[0] is not None
    assert [node.key for node in found[0].path] == ["acme-team-ann", "acme-team", "acme"]
    assert await definitions.resolve_all([]) == []
    assert await definitions.resolve_all([("demo", "nobody")]) == [None]


async def test_sqlite_finds_several_by_its_indexes(definitions: SqlDefinitions) -> None:
    """Postgres chooses by what is in the tables."""
    if definitions._postgres:
        return
    await declare(definitions)
    asked: list[tuple[str, Any]] = []
    engine = definitions._engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *of: asked.append((of[2], of[3])))
    await definitions.resolve_all([("demo", "acme-team-ann"), ("demo", "acme"), ("other", "acme")])
    async with definitions.transaction() as connection:
        for statement, values in [one for one in asked if one[0].startswith("SELECT")]:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            steps = [str(row["detail"]) for row in plan.mappings()]
            assert [one for one in steps if one.startswith("SCAN")] == [], statement
    assert len(asked) > 3


@pytest.mark.parametrize(
    "key", ["nobody", "", "a\0b", "\ud800", "'; DROP TABLE nodes; --", "é" * 500]
)
async def test_what_no_catalog_has_is_nobody(definitions: SqlDefinitions, key: str) -> None:
    assert await definitions.resolve("demo", key) is None
    assert await definitions.feature("demo", key) is None
    assert await definitions.caller(key) is None
    assert await definitions.descendants("demo", [key]) == []


async def test_a_feature_knows_its_products_releases(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    calls = await definitions.feature("demo", "calls")
    seats = await definitions.feature("demo", "seats")
    assert calls is not None
    assert seats is not None
    assert calls.releases == {"1.0": 1_735_689_600_000}
    assert seats.releases == {}
    assert calls.id != seats.id


async def test_what_events_feed_is_told_by_tenant(definitions: SqlDefinitions) -> None:
    await declare(
        definitions,
        "version: 1\ntenant: demo\nfeatures:\n  - {key: n}\n"
        "  - {key: tokens, event_type: prompt, value_property: $.a.b, group_by: {m: $.m, k: $.k}}\n"
        "  - {key: prompts, meter: count, event_type: prompt}\n",
    )
    assert await definitions.event_meters("demo") == [
        EventMeter("tokens", "prompt", ("a", "b"), (("k", ("k",)), ("m", ("m",))), sums=True),
        EventMeter("prompts", "prompt", None, (), sums=False),
    ]
    assert await definitions.event_meters("other") == []


async def test_meters_that_do_not_sum_are_told_by_feature(definitions: SqlDefinitions) -> None:
    await declare(
        definitions,
        "version: 1\ntenant: demo\nfeatures:\n  - {key: gb, meter: max}\n  - {key: n}\n"
        "  - {key: mau, meter: unique, unique_by: user}\n",
    )
    every = {"gb": ("max", ""), "mau": ("unique", "user")}
    assert await definitions.aggregations("demo") == every
    assert await definitions.aggregations("demo", "gb") == {"gb": ("max", "")}
    assert await definitions.aggregations("demo", "n") == {}
    assert await definitions.aggregations("demo", "\0") == {}
    assert await definitions.aggregations("other") == {}
    await declare(definitions, "version: 1\ntenant: demo\nfeatures: [{key: mau, meter: count}]")
    assert await definitions.aggregations("demo", "mau") == {"mau": ("count", "")}


async def test_descendants_are_the_nodes_and_all_below_them(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    assert await definitions.descendants("demo", ["acme"]) == ["acme", "acme-team", "acme-team-ann"]
    assert await definitions.descendants("demo", ["acme-team", "globex", "acme-team-ann"]) == [
        "acme-team",
        "acme-team-ann",
        "globex",
    ]
    assert await definitions.descendants("demo", []) == []


async def test_every_kind_of_terms_comes_back_as_declared(definitions: SqlDefinitions) -> None:
    text = (
        "version: 1\ntenant: demo\nfeatures: [{key: f}]\naccounts:\n  - key: a\n    entitlements:\n"
        "      - {feature: f, key: '1', model: config, value: '1080'}\n"
        "      - {feature: f, key: '2', model: config, value: true}\n"
        "      - {feature: f, key: '3', model: boolean, license: trial, end: 2027-01-01, grace: 2d}\n"
        "      - {feature: f, key: '4', model: concurrent, seats: 8, overdraft_factor: 1.25}\n"
        "      - {feature: f, key: '5', model: credits, grants: [{key: g, amount: 9007199254740991}]}\n"
        "      - {feature: f, key: '6', model: rate, limit: 5, per: 1s, shadow: true, fallback: true}\n"
    )
    await declare(definitions, text)
    (node,) = (await customer(definitions, "a")).path
    terms = [one.terms for one in node.entitlements]
    assert {type(one) for one in terms} == {
        ConfigTerms, BooleanTerms, ConcurrentTerms, CreditsTerms, RateTerms,
    }  # fmt: skip
    by_key = {one.key: one for one in node.entitlements}
    assert by_key["1"].terms == ConfigTerms("1080")
    assert by_key["2"].terms == ConfigTerms(value=True)
    assert by_key["3"].license_type is LicenseType.TRIAL
    assert by_key["3"].validity.grace_ms == 2 * 86_400_000
    assert by_key["6"].shadow
    assert by_key["6"].fallback
    declared = parse(text, "c.yaml").accounts[0].nodes[0].entitlements
    for spec in declared:
        if not isinstance(spec.terms, CreditsTerms):
            assert by_key[spec.key].terms == spec.terms
    credit = by_key["5"].terms
    assert isinstance(credit, CreditsTerms)
    assert credit.grants[0].amount == 2**53 - 1
    ids = [one.id for one in node.entitlements] + [credit.grants[0].id]
    assert len(set(ids)) == len(ids)


# -- applying


async def test_applying_twice_changes_nothing(definitions: SqlDefinitions) -> None:
    first = await declare(definitions)
    assert ("created", "account", "acme") in first.changes
    assert ("created", "node", "acme-team-ann") in first.changes
    assert [one.epoch for one in first.touched] == [1, 1]
    before = await customer(definitions, "acme-team-ann")
    again = await declare(definitions)
    assert again.changes == ()
    assert again.touched == ()
    assert await customer(definitions, "acme-team-ann") == before


async def test_many_changes_of_an_account_raise_its_epoch_by_one(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    text = CATALOG.replace("limit: 100,", "limit: 200,").replace("seats: 2", "seats: 3")
    applied = await declare(definitions, text.replace("limit: 10,", "limit: 20,"))
    found = await customer(definitions)
    assert applied.touched == ((found.account_id, found.bucket, 2),)
    assert await epochs(definitions, "acme", "globex") == [2, 1]


async def test_a_changed_limit_keeps_its_counter(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    before = await entitlement(definitions, "calls:quota")
    await declare(definitions, CATALOG.replace("limit: 100,", "limit: 200,"))
    after = await entitlement(definitions, "calls:quota")
    assert after.id == before.id
    assert after.terms == QuotaTerms(200, Period(PeriodUnit.DAY))


@pytest.mark.parametrize(
    "terms",
    [
        "model: quota, limit: 100, per: week",
        "model: quota, limit: 100, per: day, zone: Europe/Berlin",
        "model: quota, limit: 100, per: day, anchor: 2026-01-01",
        "model: quota, limit: 100, per: day, rolling: true",
        "model: payg, per: day, key: 'calls:quota'",
    ],
)
async def test_a_count_of_other_things_begins_at_zero(
    definitions: SqlDefinitions, terms: str
) -> None:
    await declare(definitions)
    before = await entitlement(definitions, "calls:quota")
    await declare(definitions, CATALOG.replace("model: quota, limit: 100, per: day", terms))
    after = await entitlement(definitions, "calls:quota")
    assert after.id > before.id
    await declare(definitions)
    assert (await entitlement(definitions, "calls:quota")).id > after.id


async def test_another_currency_does_not_inherit_what_was_spent(
    definitions: SqlDefinitions,
) -> None:
    text = CATALOG.replace(
        "model: quota, limit: 100, per: day",
        "model: payg, per: day, price: {amount: 1, currency: EUR}, spend_cap: 5",
    )
    await declare(definitions, text)
    before = await entitlement(definitions, "calls:payg")
    await declare(definitions, text.replace("spend_cap: 5", "spend_cap: 9"))
    assert (await entitlement(definitions, "calls:payg")).id == before.id
    await declare(definitions, text.replace("EUR", "USD"))
    assert (await entitlement(definitions, "calls:payg")).id > before.id


async def test_grants_keep_their_numbers_by_key(definitions: SqlDefinitions) -> None:
    def with_grants(*grants: str) -> str:
        return CATALOG.replace(
            "model: quota, limit: 100, per: day",
            f"model: credits, grants: [{', '.join(grants)}]",
        )

    async def numbers() -> dict[str, int]:
        terms = (await entitlement(definitions, "calls:credits")).terms
        assert isinstance(terms, CreditsTerms)
        return {grant.key: grant.id for grant in terms.grants}

    await declare(definitions, with_grants("{key: a, amount: 5}", "{key: b, amount: 5}"))
    first = await numbers()
    await declare(definitions, with_grants("{key: b, amount: 9}", "{key: c, amount: 5}"))
    second = await numbers()
    assert second["b"] == first["b"]
    assert second["c"] > max(first.values())
    await declare(definitions, with_grants("{key: a, amount: 5}", "{key: b, amount: 9}"))
    assert (await numbers())["a"] > second["c"]


async def test_what_an_account_no_longer_names_ends_and_its_number_is_not_used_again(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    before = await customer(definitions, "acme-team")
    line = "      - {feature: calls, model: quota, limit: 100, per: day}\n"
    applied = await declare(definitions, CATALOG.replace(f"    entitlements:\n{line}", "", 1))
    assert applied.changes == (("removed", "entitlement", "acme/calls:quota"),)
    await declare(definitions)
    used = {one.id for node in before.path for one in node.entitlements}
    assert (await entitlement(definitions, "calls:quota")).id > max(used)


async def test_a_removed_node_goes_with_all_below_it(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    start, end = CATALOG.index("    nodes:"), CATALOG.index("  - key: globex")
    applied = await declare(definitions, CATALOG[:start] + CATALOG[end:])
    assert set(applied.changes) == {
        ("removed", "node", "acme-team"),
        ("removed", "node", "acme-team-ann"),
    }
    assert await definitions.resolve("demo", "acme-team-ann") is None
    assert await epochs(definitions, "acme") == [2]


async def test_a_node_can_move_within_its_account_and_keeps_its_number(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    before = await customer(definitions, "acme-team-ann")
    moved = CATALOG.replace(
        "        nodes:\n          - {key: acme-team-ann}\n", "      - {key: acme-team-ann}\n"
    )
    await declare(definitions, moved)
    after = await customer(definitions, "acme-team-ann")
    assert [node.key for node in after.path] == ["acme-team-ann", "acme"]
    assert after.path[0].id == before.path[0].id


async def test_suspending_a_node_is_a_change_of_its_account(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    text = CATALOG.replace("- key: acme-team\n", "- key: acme-team\n        suspended: true\n")
    await declare(definitions, text)
    found = await customer(definitions, "acme-team-ann")
    assert [node.suspended for node in found.path] == [False, True, False]
    assert found.epoch == 2


async def test_a_changed_plan_concerns_subscribers_that_the_file_does_not_name(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    before = await entitlement(definitions, "basic/calls:rate")
    head = CATALOG[: CATALOG.index("accounts:")]
    applied = await declare(definitions, head.replace("limit: 10,", "limit: 20,"))
    assert ("updated", "plan", "basic") in applied.changes
    after = await entitlement(definitions, "basic/calls:rate")
    assert after.terms == RateTerms(20, 1000)
    assert after.id == before.id
    assert await epochs(definitions, "acme", "globex") == [2, 1]
    assert (await entitlement(definitions, "calls:quota")).terms == QuotaTerms(
        100, Period(PeriodUnit.DAY)
    )


async def test_a_plan_that_gains_and_loses_items_does_so_for_all_subscribers(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions)
    before = await customer(definitions)
    head = CATALOG[: CATALOG.index("      - {feature: calls, model: rate")]
    applied = await declare(definitions, f"{head}      - {{feature: seats, model: boolean}}\n")
    assert set(applied.changes) == {
        ("updated", "plan", "basic"),
        ("created", "entitlement", "acme/basic/seats:boolean"),
        ("removed", "entitlement", "acme/basic/calls:rate"),
    }
    after = await customer(definitions)
    assert [one.key for one in after.path[0].entitlements] == [
        "calls:quota",
        "basic/seats:boolean",
    ]
    assert after.path[0].entitlements[0] == before.path[0].entitlements[0]
    assert await epochs(definitions, "acme", "globex") == [2, 1]


async def test_what_a_file_cannot_mean_for_subscribers_elsewhere_is_refused(
    definitions: SqlDefinitions,
) -> None:
    await declare(definitions, CATALOG.replace("{plan: basic, start: 2026-01-01}", "{plan: basic}"))
    head = CATALOG[: CATALOG.index("      - {feature: calls, model: rate")]
    with pytest.raises(CatalogInvalidError, match="has no start") as refused:
        await declare(
            definitions,
            f"{head}      - {{feature: calls, model: quota, limit: 1, per: day, anchor: start}}\n",
        )
    assert str(refused.value).startswith("c.yaml:1: plans (customer 'acme'): ")
    assert await epochs(definitions, "acme") == [1]


@pytest.mark.parametrize(
    ("old", "new", "concerned"),
    [
        ('"1.0": 2025-01-01', '"1.0": 2025-01-02', [2, 1]),
        ("{key: calls, product: studio}", "{key: calls, product: studio, meter: count}", [2, 1]),
        ("tenant: demo\n", "tenant: demo\n# only a comment\n", [1, 1]),
    ],
)
async def test_a_changed_feature_concerns_the_accounts_that_have_it(
    definitions: SqlDefinitions, old: str, new: str, concerned: list[int]
) -> None:
    await declare(definitions)
    await declare(definitions, CATALOG.replace(old, new))
    assert await epochs(definitions, "acme", "globex") == concerned
    assert (await customer(definitions)).revision == concerned[0]


async def test_a_subscription_gives_its_plan_its_time_its_licence_and_its_anchor(
    definitions: SqlDefinitions,
) -> None:
    text = CATALOG.replace(
        "model: rate, limit: 10, per: 1s",
        "model: quota, limit: 10, per: month, anchor: start, start: 2026-06-01, grace: 1d",
    ).replace(
        "{plan: basic, start: 2026-01-01}",
        "{plan: basic, key: mine, license: trial, start: 2026-01-31, end: 2026-12-01, grace: 3d}",
    )
    await declare(definitions, text)
    found = await entitlement(definitions, "mine/calls:quota")
    assert found.license_type is LicenseType.TRIAL
    assert found.validity.start_ms == 1_780_272_000_000
    assert found.validity.end_ms == 1_796_083_200_000
    assert found.validity.grace_ms == 3 * 86_400_000
    assert isinstance(found.terms, QuotaTerms)
    assert found.terms.period.anchor_ms == 1_769_817_600_000
    await declare(definitions, text.replace("key: mine,", "key: mine, anchor: 2026-02-15,"))
    moved = await entitlement(definitions, "mine/calls:quota")
    assert isinstance(moved.terms, QuotaTerms)
    assert moved.terms.period.anchor_ms == 1_771_113_600_000


async def test_nothing_is_removed_unless_the_file_says_prune(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    rest = "version: 1\ntenant: demo\nfeatures: [{key: calls}]\naccounts: [{key: globex}]\n"
    applied = await declare(definitions, rest)
    assert applied.changes == (("updated", "feature", "calls"),)
    before = await customer(definitions)
    assert len(before.path[0].entitlements) == 2
    applied = await declare(definitions, rest + "prune: true\n")
    assert set(applied.changes) == {
        ("removed", "account", "acme"),
        ("removed", "node", "acme-team"),
        ("removed", "node", "acme-team-ann"),
        ("removed", "plan", "basic"),
        ("removed", "feature", "seats"),
        ("removed", "product", "studio"),
    }
    assert await definitions.resolve("demo", "acme") is None
    assert (await definitions.account_epoch("demo", before.account_id)) == before.epoch + 1
    assert await definitions.feature("demo", "seats") is None
    assert (await declare(definitions, rest + "prune: true\n")).changes == ()
    # It comes back with its number and bucket, a later epoch, and new counters.
    applied = await declare(definitions)
    assert ("created", "account", "acme") in applied.changes
    after = await customer(definitions)
    assert (after.account_id, after.bucket) == (before.account_id, before.bucket)
    assert after.epoch == before.epoch + 2
    assert after.path[0].id > before.path[0].id


async def test_accounts_go_to_the_bucket_with_the_fewest_and_stay_there(
    definitions: SqlDefinitions, url: str
) -> None:
    accounts = ", ".join(f"{{key: a{number}}}" for number in range(2 * BUCKETS))
    applied = await declare(definitions, f"version: 1\ntenant: demo\naccounts: [{accounts}]\n")
    buckets = [one.bucket for one in applied.touched]
    assert sorted(buckets) == sorted([*range(BUCKETS), *range(BUCKETS)])
    other = SqlDefinitions(url, 1)
    await declare(other, "version: 1\ntenant: demo\naccounts: [{key: a3, name: Renamed}]\n")
    await other.close()
    assert (await customer(definitions, "a3")).bucket == buckets[3]


async def test_a_dry_run_tells_the_changes_and_makes_none(definitions: SqlDefinitions) -> None:
    before = await contents(definitions)
    tried = await declare(definitions, dry_run=True)
    assert tried.touched == ()
    assert await definitions.resolve("demo", "acme") is None
    assert await contents(definitions) == before
    done = await declare(definitions)
    assert done.changes == tried.changes
    before = await contents(definitions)
    rest = "version: 1\ntenant: demo\nprune: true\naccounts: [{key: new}]\n"
    tried = await declare(definitions, rest, dry_run=True)
    assert ("removed", "account", "acme") in tried.changes
    assert await contents(definitions) == before
    assert (await declare(definitions, rest)).changes == tried.changes


async def test_a_change_stays_pending_until_it_was_projected(definitions: SqlDefinitions) -> None:
    catalog = parse(CATALOG, "c.yaml")
    applied = await definitions.apply(catalog, actor="tester")
    # The process ended before projecting: whoever repeats the call, or starts, finds the rest.
    again = await definitions.apply(catalog, actor="tester")
    assert again.changes == ()
    assert again.touched == applied.touched == await definitions.pending()
    await definitions.projected(applied.touched[:1])
    assert await definitions.pending() == applied.touched[1:]
    # An older report does not cover a newer change.
    await definitions.apply(
        parse(CATALOG.replace("limit: 100", "limit: 99"), "c.yaml"), actor="tester"
    )
    await definitions.projected(applied.touched)
    assert [one.epoch for one in await definitions.pending()] == [2]
    await definitions.projected(await definitions.pending())
    await definitions.projected(applied.touched)
    assert await definitions.pending() == ()


async def test_applications_at_the_same_time_follow_one_after_the_other(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    await declare(definitions)
    texts = [CATALOG.replace("limit: 100,", f"limit: {number},") for number in range(101, 109)]
    others = [open_definitions() for _ in texts]
    applied = await asyncio.gather(*(declare(*pair) for pair in zip(others, texts, strict=True)))
    assert sorted(max(one.epoch for one in each.touched) for each in applied) == list(range(2, 10))
    assert await epochs(definitions, "acme") == [9]


async def test_files_of_several_accounts_at_the_same_time_all_take_effect(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    await declare(definitions)
    acme = CATALOG[: CATALOG.index("  - key: globex")].replace("limit: 100,", "limit: 200,")
    globex = (
        "version: 1\ntenant: demo\naccounts:\n  - key: globex\n"
        "    subscriptions: [{plan: basic, start: 2026-01-01}]\n"
    )
    others = [open_definitions() for _ in range(2)]
    catalogs = [parse(text, "c.yaml") for text in (acme, globex)]
    applied = await asyncio.gather(
        *(
            other.apply(catalog, actor="tester")
            for other, catalog in zip(others, catalogs, strict=True)
        )
    )
    assert [change.key for one in applied for change in one.changes] == [
        "acme/calls:quota",
        "globex/basic",
        "globex/basic/calls:rate",
    ]
    assert (await entitlement(definitions, "calls:quota")).terms == QuotaTerms(
        200, Period(PeriodUnit.DAY)
    )
    assert (await entitlement(definitions, "basic/calls:rate", "globex")).terms == RateTerms(
        10, 1000
    )
    assert await epochs(definitions, "acme", "globex") == [2, 2]


async def test_two_files_of_one_account_at_the_same_time_have_epochs_of_their_own(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    await declare(definitions)
    plan = CATALOG[: CATALOG.index("accounts:")].replace("limit: 10,", "limit: 20,")
    account = CATALOG[: CATALOG.index("plans:")] + CATALOG[CATALOG.index("accounts:") :].replace(
        "limit: 100,", "limit: 200,"
    )
    others = [open_definitions() for _ in range(2)]
    applied = await asyncio.gather(
        *(declare(*pair) for pair in zip(others, (plan, account), strict=True))
    )
    assert {change.key for one in applied for change in one.changes} == {
        "basic",
        "acme/basic/calls:rate",
        "acme/calls:quota",
    }
    assert (await entitlement(definitions, "basic/calls:rate")).terms == RateTerms(20, 1000)
    quota = (await entitlement(definitions, "calls:quota")).terms
    assert quota == QuotaTerms(200, Period(PeriodUnit.DAY))
    assert await epochs(definitions, "acme", "globex") == [3, 1]


async def test_applying_and_noting_projections_never_wait_for_each_other_in_a_circle(
    postgres_url: str,
) -> None:
    """PostgreSQL alone locks row by row: everyone has to take accounts in one order."""
    names = "version: 1\ntenant: demo\naccounts: [{key: z, name: %d}, {key: a, name: %d}]\n"
    text = names.replace("%d", "'%d'")
    definitions, other = (
        SqlDefinitions(postgres_url, BUCKETS),
        SqlDefinitions(postgres_url, BUCKETS),
    )
    try:
        await definitions.migrate()
        await definitions.ensure_tenant("demo")
        first, second = (await declare(definitions, text % (1, 1))).touched
        await declare(definitions, text % (2, 1))
        noted = update(tables.accounts).values(projected=1)
        async with other._transaction(write=True) as connection:
            await connection.execute(noted.where(tables.accounts.c.id == first.account_id))
            applying = asyncio.create_task(declare(definitions, text % (3, 3)))
            await asyncio.wait([applying], timeout=0.5)
            await connection.execute(noted.where(tables.accounts.c.id == second.account_id))
        assert len((await applying).touched) == 2
    finally:
        await definitions.close()
        await other.close()


async def test_projections_are_noted_in_the_order_of_the_accounts(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    accounts = ", ".join(f"{{key: a{number}}}" for number in range(20))
    catalog = parse(f"version: 1\ntenant: demo\naccounts: [{accounts}]\n", "c.yaml")
    touched = (await definitions.apply(catalog, actor="tester")).touched
    orders = [touched, touched[::-1]] * 3
    others = [open_definitions() for _ in orders]
    await asyncio.gather(
        *(other.projected(order) for other, order in zip(others, orders, strict=True))
    )
    assert await definitions.pending() == ()


async def test_tenants_that_apply_at_the_same_time_never_share_a_number(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    tenants = [f"t{number}" for number in range(5)]
    for tenant in tenants:
        await definitions.ensure_tenant(tenant)
    texts = [CATALOG.replace("tenant: demo", f"tenant: {tenant}") for tenant in tenants]
    others = [open_definitions() for _ in texts]
    await asyncio.gather(*(declare(*pair) for pair in zip(others, texts, strict=True)))
    ids = []
    for tenant in tenants:
        found = await definitions.resolve(tenant, "acme-team")
        assert found is not None
        ids += [one.id for node in found.path for one in node.entitlements]
    assert sorted(ids) == list(range(1, 3 * len(tenants) + 1))


async def test_a_catalog_of_many_accounts_is_applied_like_a_small_one(
    definitions: SqlDefinitions,
) -> None:
    accounts = "".join(
        f"  - {{key: a{number}, entitlements: [{{feature: f, model: quota, limit: 5, per: day}}],"
        f" nodes: [{{key: a{number}-x}}]}}\n"
        for number in range(450)
    )
    text = f"version: 1\ntenant: demo\nfeatures: [{{key: f}}]\naccounts:\n{accounts}"
    assert len((await declare(definitions, text)).changes) == 1 + 3 * 450
    assert (await declare(definitions, text)).changes == ()
    changed = await declare(definitions, text.replace("limit: 5", "limit: 6"))
    assert len(changed.touched) == 450
    assert {one.epoch for one in changed.touched} == {2}


async def test_a_reader_never_sees_new_terms_with_an_old_epoch(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    await declare(definitions)
    reader, seen = open_definitions(), set()
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            found = await customer(reader)
            terms = found.path[0].entitlements[0].terms
            assert isinstance(terms, QuotaTerms)
            seen.add((found.epoch, terms.limit))

    reading = asyncio.create_task(read())
    for epoch in range(2, 22):
        await declare(definitions, CATALOG.replace("limit: 100,", f"limit: {epoch * 1000},"))
    done.set()
    await reading
    assert seen <= {(1, 100)} | {(epoch, epoch * 1000) for epoch in range(2, 22)}
    assert len(seen) > 1


# -- what only the database can find wrong


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("{feature: calls, model: quota", "{feature: cals, model: quota", 15, "unknown feature 'cals'"),
        ("{plan: basic, ", "{plan: basik, ", 17, "unknown plan 'basik'"),
        ("{key: calls, product: studio}", "{key: calls, product: studoi}", 6, "unknown product"),
        ("key: globex", "key: globex\n    nodes: [{key: taken}]", 25, "is a node of another account"),
        ("key: globex", "key: globex\n  - key: taken", 25, "is a node of another account"),
        ("tenant: demo", "tenant: nobody", 1, "there is no tenant 'nobody'"),
        (
            "{key: acme-team-ann}",
            "{key: ann, entitlements: [{feature: seats, model: concurrent, seats: 1, mode: named}]}",
            23,
            "has seats of 'seats' in the modes floating, named",
        ),
        (
            "model: rate, limit: 10, per: 1s}",
            "model: quota, limit: 1, per: day, anchor: start}",
            17,
            None,
        ),
    ],
)  # fmt: skip
async def test_issues_name_the_line_and_leave_everything_as_it_was(
    definitions: SqlDefinitions, old: str, new: str, line: int, message: str | None
) -> None:
    taken = "version: 1\ntenant: demo\naccounts: [{key: x, nodes: [{key: taken}]}]\n"
    await declare(definitions, taken)
    text = CATALOG.replace(old, new, 1)
    if message is None:
        text = text.replace("basic, start: 2026-01-01", "basic")
        message = "needs a `start` or an `anchor`"
    with pytest.raises(CatalogInvalidError, match=message) as refused:
        await declare(definitions, text)
    assert f"c.yaml:{line}: " in str(refused.value)
    assert await definitions.resolve("demo", "acme") is None
    assert await definitions.feature("demo", "calls") is None
    assert await epochs(definitions, "x") == [1]


async def test_all_issues_are_told_at_once(definitions: SqlDefinitions) -> None:
    text = CATALOG.replace("feature: calls", "feature: nope").replace("plan: basic", "plan: nope")
    with pytest.raises(CatalogInvalidError) as refused:
        await declare(definitions, text)
    assert refused.value.metadata["issues"] == "3"


async def test_a_plan_cannot_give_a_node_too_many_limits(definitions: SqlDefinitions) -> None:
    await declare(definitions)
    items = "\n".join(
        f"      - {{feature: calls, key: k{number}, model: quota, limit: 1, per: day}}"
        for number in range(31)
    )
    text = CATALOG[: CATALOG.index("accounts:")] + items + "\n"
    head, tail = text.split("per: 1s}\n")
    with pytest.raises(CatalogInvalidError, match=r"has 33 limits of 'calls'.*at most 32"):
        await declare(definitions, f"{head}per: 1s}}\n{tail}")
    assert await epochs(definitions, "acme") == [1]


# -- callers


async def test_an_api_key_names_its_tenant_and_role(definitions: SqlDefinitions) -> None:
    keys = {role: await definitions.create_api_key("demo", role) for role in ("check", "admin")}
    for role, key in keys.items():
        assert key.startswith("mg_")
        found = await definitions.caller(key)
        assert found is not None
        assert (found.tenant, found.role) == ("demo", role)
        assert key.split("_")[1] == found.key_id
    assert await definitions.caller(keys["check"][:-1]) is None
    assert await definitions.caller("mg_0_0") is None


async def test_a_key_is_nowhere_in_the_database(definitions: SqlDefinitions, url: str) -> None:
    key = await definitions.create_api_key("demo", "admin")
    await declare(definitions)
    rows = await contents(definitions)
    assert len(rows["api_keys"]) == 1
    assert key.split("_", 2)[2] not in repr(rows)
    assert repr(hashlib.sha256(key.encode()).digest()) in rows["api_keys"][0]
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite+aiosqlite:///")
        dump = "".join(sqlite3.connect(path).iterdump())
        assert key.split("_", 2)[2] not in dump


async def test_a_revoked_key_is_nobody_s(definitions: SqlDefinitions) -> None:
    key = await definitions.create_api_key("demo", "check")
    name = key.split("_")[1]
    assert not await definitions.revoke_api_key("other", name)
    assert await definitions.caller(key) is not None
    assert await definitions.revoke_api_key("demo", name)
    assert await definitions.caller(key) is None
    assert not await definitions.revoke_api_key("demo", name)


async def test_a_key_needs_a_known_role_and_tenant(definitions: SqlDefinitions) -> None:
    with pytest.raises(MisconfiguredError, match="role must be one of check, admin"):
        await definitions.create_api_key("demo", "root")
    with pytest.raises(MisconfiguredError, match="there is no tenant 'nobody'"):
        await definitions.create_api_key("nobody", "check")


async def test_the_audit_log_says_who_did_what(definitions: SqlDefinitions) -> None:
    await definitions.create_api_key("demo", "check", actor="operator")
    await declare(definitions)
    async with definitions._transaction() as connection:
        rows = (await connection.execute(select(tables.audit_log).order_by("id"))).all()
    assert (rows[0].actor, rows[0].action, rows[0].kind) == ("operator", "created", "api_key")
    entries = {(row.actor, row.action, row.kind, row.key) for row in rows[1:]}
    assert ("tester", "created", "entitlement", "acme/calls:quota") in entries
    assert all(row.at_ms > 1_700_000_000_000 and row.tenant == "demo" for row in rows)


async def test_a_tenant_is_made_once(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    others = [open_definitions() for _ in range(4)]
    await asyncio.gather(*(other.ensure_tenant("new", "New") for other in others))
    await definitions.ensure_tenant("new", "Renamed")
    async with definitions._transaction() as connection:
        query = select(tables.tenants.c.name).where(tables.tenants.c.key == "new")
        assert list(await connection.scalars(query)) == ["New"]


# -- what a deployment is given once


async def test_generations_are_never_given_out_twice(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    assert await definitions.last_generation(3) == 0
    assert await definitions.next_generation(3, 0) == 1
    assert await definitions.next_generation(3, 10) == 11
    assert await definitions.next_generation(3, 4) == 12
    assert await definitions.last_generation(3) == 12
    assert await definitions.last_generation(2) == 0
    others = [open_definitions() for _ in range(5)]
    given = await asyncio.gather(*(one.next_generation(5, 0) for one in others for _ in range(4)))
    assert sorted(given) == list(range(1, 21))


async def test_generations_at_the_same_time_are_all_above_what_was_asked_for(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    others = [open_definitions() for _ in range(4)]
    asked = [100 * (number % 5) for number in range(20)]
    given = await asyncio.gather(
        *(others[place % 4].next_generation(1, least) for place, least in enumerate(asked))
    )
    assert all(number > least for number, least in zip(given, asked, strict=True))
    assert len(set(given)) == 20
    assert await definitions.last_generation(1) == max(given)


async def test_a_bucket_was_opened_once_that_is_confirmed(definitions: SqlDefinitions) -> None:
    await definitions.next_generation(3, 0)
    assert not await definitions.was_opened(3)
    await definitions.confirm_opened(3)
    assert await definitions.was_opened(3)
    await definitions.next_generation(3, 0)
    assert await definitions.was_opened(3)
    assert not await definitions.was_opened(4)


async def test_the_lease_secret_is_one_for_all(
    definitions: SqlDefinitions, open_definitions: Callable[[], SqlDefinitions]
) -> None:
    others = [open_definitions() for _ in range(4)]
    secrets = await asyncio.gather(*(other.lease_secret() for other in others))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
    assert await definitions.lease_secret() == secrets[0]


# -- faults


async def test_a_database_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    for url in (
        f"postgresql+asyncpg://metergate@/none?host={tmp_path}",
        f"sqlite+aiosqlite:///{tmp_path}",
    ):
        away = SqlDefinitions(url, BUCKETS)
        with pytest.raises(DefinitionsUnavailableError) as refused:
            await away.resolve("demo", "acme")
        assert refused.value.retryable
        await away.close()
    # aiosqlite's thread says good-bye to the loop after a failed connect: the loop has to be there.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)


async def test_a_call_that_is_cancelled_before_it_has_its_rows_leaves_no_lock(
    tmp_path: Path,
) -> None:
    definitions = SqlDefinitions(f"sqlite+aiosqlite:///{tmp_path / 'definitions.db'}", BUCKETS)
    await definitions.migrate()
    kept: list[object] = []

    async def cut_off() -> None:
        async with definitions.transaction(write=True) as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            # As a cycle of exception and frames keeps it: a statement that is not over.
            kept.append(await driver.execute("SELECT 1 UNION SELECT 2"))
            await (
                connection.invalidate()
            )  # as SQLAlchemy does with the connection of a cancelled call
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cut_off()
    async with asyncio.timeout(5):  # SQLite itself waits for 10 s
        await definitions.ensure_tenant("demo")
    assert kept
    await definitions.close()


def test_a_wrong_url_names_the_setting() -> None:
    for url in ("nonsense", "mysql+nothing://x/y"):
        with pytest.raises(MetergateError, match="METERGATE_DATABASE_URL"):
            SqlDefinitions(url, BUCKETS)
