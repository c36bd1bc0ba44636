"""What is tallied appears in the exposition, once, and under a bounded number of names."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from enforcer.core.commands import Decision, Stock, decided
from enforcer.core.program import Chain, Kind, Program, Reason, Shape, View
from enforcer.core.rules import Mode
from enforcer.metrics import CATALOGUE, ENFORCER, Metrics
from meter.metrics import Metrics as MeterMetrics
from meter.metrics import RelayMetrics

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 'enforcer_rpc_seconds_bucket{le="%s",method="a.B/Check"}'
WORKER = """
import asyncio
from enforcer.metrics import Metrics
metrics = Metrics()
metrics.call("a.B/Check", "OK", 0.1)
metrics.ready.set(0)
metrics.settle()
"""
METER = """
from prometheus_client import CollectorRegistry
from meter.metrics import Metrics, RelayMetrics
registry = CollectorRegistry()
Metrics(registry).rolled.inc(7)
Metrics(registry=CollectorRegistry()).fresh.set(1000)
RelayMetrics(registry).waiting.set(3)
"""


def values(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def shown(metrics: Metrics) -> dict[str, float]:
    return values(asyncio.run(metrics.text()))


def program(account: int = 1, *views: View, **more: Any) -> Program:
    fields: dict[str, Any] = {
        "tenant": "demo",
        "customer": f"c{account}",
        "feature": "f",
        "account_id": account,
        "account_key": f"a{account}",
        "bucket": 0,
        "epoch": 1,
        "start": 0,
        "end": 0,
        "verdict": Reason.ALLOWED,
        "levels": (),
        "chains": (Chain(views, Reason.QUOTA_EXCEEDED, supply=True),) if views else (),
        "suffix": "",
        "denial_body": b"",
        "labels": {},
    }
    return Program(**(fields | more))


def decision(granted: int = 1, reason: Reason = Reason.ALLOWED, overage: int = 0) -> Decision:
    return decided(reason, granted, 0, now=0, generation=1, sequence=1, overage=overage)


QUOTA = View(Shape.COUNT, Kind.QUOTA, 1, 0, 0, 10)


def test_calls_decisions_and_batches_are_counted_once_however_often_they_are_read() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.0005, 0.004, 99.0):
        metrics.call("a.B/Check", "OK", seconds)
    metrics.call("a.B/Check", "UNAVAILABLE", 0.004)
    for _ in range(3):
        metrics.decision(program(1, QUOTA), Mode.ENFORCE, decision())
    metrics.batched(64, 0.002)
    metrics.batched(65, 0.002)
    for _ in range(2):
        found = shown(metrics)
        assert found['enforcer_rpcs_total{code="OK",method="a.B/Check"}'] == 4
        assert found['enforcer_rpcs_total{code="UNAVAILABLE",method="a.B/Check"}'] == 1
        assert [found[SECONDS % bound] for bound in ("0.0005", "0.005", "2.5", "+Inf")] == [
            2,
            4,
            4,
            5,
        ]
        assert found['enforcer_rpc_seconds_sum{method="a.B/Check"}'] == sum(
            (0.0001, 0.0005, 0.004, 99.0, 0.004)
        )
        name = 'enforcer_decisions_total{mode="ENFORCE",model="quota",reason="ALLOWED"}'
        assert found[name] == 3
        assert found['enforcer_batch_checks_bucket{le="64.0"}'] == 1
        assert found['enforcer_batch_checks_bucket{le="128.0"}'] == 2
        assert found["enforcer_script_seconds_count"] == 2
    metrics.call("a.B/Check", "OK", 0.004)
    assert shown(metrics)['enforcer_rpcs_total{code="OK",method="a.B/Check"}'] == 5


@pytest.mark.parametrize(
    ("views", "more", "model"),
    [
        ((QUOTA,), {}, "quota"),
        ((View(Shape.COUNT, Kind.CREDITS, 1, 0, 0, 10), QUOTA), {}, "credits"),
        ((View(Shape.MONEY, Kind.PAYG, 1, 0, 0, 10),), {}, "payg"),
        ((View(Shape.THROTTLE, Kind.TIER, 1, 0, 0, 10),), {}, "tiered"),
        ((), {}, "boolean"),
        ((), {"config": "1080"}, "config"),
        ((QUOTA,), {"verdict": Reason.EXPIRED}, "none"),
    ],
)
def test_a_decision_is_counted_under_the_model_that_gives(
    views: tuple[View, ...], more: dict[str, Any], model: str
) -> None:
    metrics = Metrics()
    metrics.decision(program(1, *views, **more), Mode.ENFORCE, decision())
    name = f'enforcer_decisions_total{{mode="ENFORCE",model="{model}",reason="ALLOWED"}}'
    assert shown(metrics)[name] == 1


@pytest.mark.parametrize(
    ("kind", "shape", "model"),
    [(Kind.SEATS, Shape.SEATS, "concurrent"), (Kind.RATE, Shape.BUCKET, "rate")],
)
def test_a_program_of_constraints_alone_is_counted_under_what_constrains(
    kind: Kind, shape: Shape, model: str
) -> None:
    chains = (Chain((View(shape, kind, 1, 0, 0, 10),), Reason.RATE_LIMITED),)
    metrics = Metrics()
    metrics.decision(program(1, chains=chains), Mode.CHECK_ONLY, decision())
    name = f'enforcer_decisions_total{{mode="CHECK_ONLY",model="{model}",reason="ALLOWED"}}'
    assert shown(metrics)[name] == 1


def test_what_goes_past_a_limit_is_counted_in_units() -> None:
    metrics = Metrics()
    metrics.decision(program(), Mode.ENFORCE, decision(5, overage=2))
    metrics.decision(program(), Mode.RECORD_ONLY, decision(9, overage=9))
    metrics.decision(program(), Mode.RECORD_ONLY, decision(1, overage=1))
    found = shown(metrics)
    assert found['enforcer_over_use_units_total{mode="ENFORCE"}'] == 2
    assert found['enforcer_over_use_units_total{mode="RECORD_ONLY"}'] == 10


def by_account(metrics: Metrics) -> dict[str, float]:
    """Allowed decisions of each account that has a name."""
    return {
        name.partition('account="')[2].partition('"')[0]: value
        for name, value in shown(metrics).items()
        if name.startswith("enforcer_account_decisions_total") and "allowed" in name
    }


def test_the_heaviest_accounts_are_named_and_the_rest_is_counted_together() -> None:
    metrics = Metrics(accounts=2)

    def ask(account: int, times: int) -> None:
        for _ in range(times):
            metrics.decision(program(account), Mode.ENFORCE, decision())

    ask(1, 60)
    ask(2, 30)
    for account in range(3, 13):
        ask(account, 1)
    assert by_account(metrics) == {"other": 100}, "nobody is named on sight"
    metrics.weigh()
    ask(1, 5)
    ask(2, 5)
    ask(3, 5)
    assert by_account(metrics) == {"demo/a1": 5, "demo/a2": 5, "other": 105}
    metrics.weigh()
    ask(3, 1000)
    metrics.weigh()
    ask(3, 1)
    assert by_account(metrics) == {"demo/a1": 5, "demo/a2": 5, "other": 1106}, "names never grow"


def test_an_account_that_asks_little_does_not_take_a_name() -> None:
    metrics = Metrics(accounts=10)
    for account in range(100):
        metrics.decision(program(account), Mode.ENFORCE, decision())
    metrics.weigh()
    metrics.decision(program(7), Mode.ENFORCE, decision())
    assert by_account(metrics) == {"other": 101}


def test_an_account_that_the_settings_name_is_named_from_its_first_decision() -> None:
    metrics = Metrics(accounts=0, named=["demo/a7"])
    metrics.decision(program(7), Mode.ENFORCE, decision())
    metrics.decision(program(7), Mode.ENFORCE, decision(0, Reason.QUOTA_EXCEEDED))
    metrics.decision(program(8), Mode.ENFORCE, decision())
    found = shown(metrics)
    name = 'enforcer_account_decisions_total{account="%s",outcome="%s"}'
    assert found[name % ("demo/a7", "allowed")] == 1
    assert found[name % ("demo/a7", "denied")] == 1
    assert found[name % ("other", "allowed")] == 1
    assert found[name % ("other", "denied")] == 0


def test_an_empty_outbox_is_as_old_as_the_look_at_it() -> None:
    metrics = Metrics()
    name = "enforcer_outbox_oldest_timestamp_seconds"
    metrics.taken_stock(Stock(2, 5_500, 1, 0), 9.0)
    assert shown(metrics)[name] == 5.5
    metrics.taken_stock(Stock(0, None, 1, 0), 11.0)
    assert shown(metrics)[name] == 11.0


def test_processes_that_share_a_folder_answer_for_each_other(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = ""
    for code in (WORKER, METER, WORKER + "print(asyncio.run(metrics.text()).decode())"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        said = done.stdout
    found = values(said.encode())
    assert found['enforcer_rpcs_total{code="OK",method="a.B/Check"}'] == 2
    assert found[SECONDS % "0.1"] == 2
    assert found["meter_records_rolled_total"] == 7
    assert len(list(tmp_path.glob("gauge_livemin_*.db"))) == 1, "the dead are forgotten"
    assert "relay_outbox_records" not in found, "what a dead process said of itself is no more true"


def test_every_metric_that_a_process_has_is_in_the_catalogue_and_the_other_way_round() -> None:
    registry = Metrics().registry
    meter = CollectorRegistry()
    MeterMetrics(meter)
    RelayMetrics(meter)
    shown = {
        (family.name + "_total" * (family.type == "counter"), family.type, family.documentation)
        for one in (registry, meter)
        for family in one.collect()
    }
    assert shown == {
        (metric.name, metric.kind, metric.about) for part in CATALOGUE for metric in part
    }


@pytest.mark.parametrize("part", CATALOGUE, ids=lambda part: part.prefix)
def test_names_follow_the_conventions_of_prometheus(part: Any) -> None:
    """Base units, `_total` for counters alone, help, no label that grows with customers."""
    for metric in part:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not set(metric.name.split("_")) & {"ms", "milliseconds", "minutes", "kb", "percent"}
        assert metric.about.endswith("."), metric.name
        assert metric.most <= 65_536, metric.name
        for label in metric.labels:
            assert label.name not in {"customer", "feature", "holder", "key"}
            assert not label.values or len(label.values) == label.most


def test_what_is_watched_for_an_increase_begins_at_nothing() -> None:
    found = shown(Metrics())
    assert found['enforcer_breaker_transitions_total{state="OPEN"}'] == 0
    assert found['enforcer_emergency_checks_total{outcome="allowed"}'] == 0
    assert found['enforcer_over_use_units_total{mode="RECORD_ONLY"}'] == 0
    assert len(list(ENFORCER)) == len({metric.name for metric in ENFORCER})
