"""Every alert fires when it should and is silent when it should be, by `promtool test rules`."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.prometheus import DEPLOY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RULES = DEPLOY / "prometheus" / "rules"
ENFORCER = 'job="metergate-enforcer",instance="a:8080"'
METER = 'job="metergate-meter",instance="m:9464"'
RELAY = 'job="metergate-relay",instance="r:9464"'
CHECK = 'method="enforcer.v1.EnforcerService/Check"'
MANY = "x200"
ABSENT = "MetergateAbsent"


@dataclass(frozen=True)
class Case:
    """Series that make the alert fire by `at`, and series that are near it and do not. Values in promtool's notation.

    `step` lies between two values, and between two evaluations: what looks back for days need not look each minute,
    but within the five minutes for which Prometheus takes a value as present.
    """

    fires: Mapping[str, str]
    silent: Mapping[str, str]
    at: str = "30m"
    step: str = "1m"


def traffic(failing: float, of: int = 1000) -> dict[str, str]:
    """`of` checks a minute, of which so many get no answer."""
    return {
        f"enforcer_decisions_total{{{ENFORCER},mode='ENFORCE',reason='ALLOWED',model='quota'}}": (
            f"0+{of - failing:g}{MANY}"
        ),
        f"enforcer_check_faults_total{{{ENFORCER},code='UNAVAILABLE'}}": f"0x{MANY[1:]}",
        f"enforcer_rpcs_total{{{ENFORCER},{CHECK},code='UNAVAILABLE'}}": f"0+{failing:g}{MANY}",
        f"enforcer_rpcs_total{{{ENFORCER},{CHECK},code='OK'}}": f"0+{of - failing:g}{MANY}",
    }


def over(series: dict[str, str]) -> dict[str, str]:
    """The same, but nothing fails any more after 50 minutes."""
    return {
        name: values.replace("0+100x200", "0+100x50 5000x150") for name, values in series.items()
    }


def faults(failing: float, of: int = 1000) -> dict[str, str]:
    """The same, of single checks in batches."""
    return {
        f"enforcer_decisions_total{{{ENFORCER},mode='ENFORCE',reason='ALLOWED',model='quota'}}": (
            f"0+{of - failing:g}{MANY}"
        ),
        f"enforcer_check_faults_total{{{ENFORCER},code='INTERNAL'}}": f"0+{failing:g}{MANY}",
    }


def late(slow: float, of: int = 1000) -> dict[str, str]:
    """`of` checks a minute, of which so many take longer than 10 ms."""
    return {
        f"enforcer_rpc_seconds_bucket{{{ENFORCER},{CHECK},le='0.01'}}": f"0+{of - slow:g}{MANY}",
        f"enforcer_rpc_seconds_count{{{ENFORCER},{CHECK}}}": f"0+{of}{MANY}",
    }


def steady(series: str, value: float) -> dict[str, str]:
    """A gauge that stands still."""
    return {series: f"{value:g}x200"}


def grows(series: str, by: float) -> dict[str, str]:
    """A counter that grows by so much each minute."""
    return {series: f"0+{by:g}x200"}


def once(series: str) -> dict[str, str]:
    """A counter that grew by two a quarter of an hour ago, nothing before and nothing since."""
    return {series: "0x14 2x100"}


def emergency(outcome: str) -> str:
    return f"enforcer_emergency_checks_total{{{ENFORCER},outcome='{outcome}'}}"


def denials(denied: float, of: float) -> dict[str, str]:
    kind = f"{ENFORCER},mode='ENFORCE',model='quota'"
    return {
        f"enforcer_decisions_total{{{kind},reason='QUOTA_EXCEEDED'}}": f"0+{denied:g}x200",
        f"enforcer_decisions_total{{{kind},reason='ALLOWED'}}": f"0+{of - denied:g}x200",
    }


def outbox(age: float) -> dict[str, str]:
    """Looked at each minute; the oldest record is so many seconds old."""
    return {
        f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}": "1000000+60x200",
        f"enforcer_outbox_oldest_timestamp_seconds{{{ENFORCER}}}": f"{1000000 - age:g}+60x200",
    }


OVER_USE = f"enforcer_emergency_over_use_units_total{{{ENFORCER}}}"
REVIEW = f"meter_records_for_review_total{{{METER}}}"
DEAD = f"meter_dead_letters_total{{{METER}}}"
WINDOWS = f"meter_windows_not_recomputed_total{{{METER}}}"
TICKS = f"enforcer_tick_errors_total{{{ENFORCER}}}"
COUNTING = f"enforcer_emergency_counting_errors_total{{{ENFORCER}}}"
OPENED = f"enforcer_breaker_transitions_total{{{ENFORCER},state='OPEN'}}"
ROLLUP = f"meter_rollup_failures_total{{{METER},reason='WAREHOUSE_UNAVAILABLE'}}"
RELAYED = f"relay_failures_total{{{RELAY}}}"
REFUSED = f"enforcer_rpcs_total{{{ENFORCER},{CHECK},code='RESOURCE_EXHAUSTED'}}"
FRESH = f"meter_fresh_timestamp_seconds{{{METER}}}"
HELD = f"meter_bucket_held{{{METER},bucket='3'}}"
GAPS = f"enforcer_audit_gaps{{{ENFORCER},bucket='3'}}"
DRIFT = f"enforcer_audit_drift_counters{{{ENFORCER},bucket='3'}}"
DEPENDENCY = f"%s_dependency_up{{{METER},dependency='redis'}}"
SCRIPT = f"enforcer_script_seconds_bucket{{{ENFORCER},le='%s'}}"


def scripts(fast: float) -> dict[str, str]:
    """A thousand script calls a minute, of which so many take less than 50 ms, and all less than 100."""
    return {
        SCRIPT % "0.05": f"0+{fast:g}x200",
        SCRIPT % "0.1": "0+1000x200",
        SCRIPT % "+Inf": "0+1000x200",
    }


CASES: dict[str, list[Case]] = {
    "MetergateChecksUnanswered": [
        Case(traffic(15), traffic(5), "70m"),
        Case(faults(15), faults(5), "70m"),
        # What went wrong is over for half an hour: the short windows end the alert.
        Case(traffic(100), over(traffic(100)), "85m"),
        # Six times too fast for six hours.
        Case(traffic(7), traffic(4), "7h", "4m"),
    ],
    "MetergateChecksUnansweredSlowly": [
        Case(traffic(3.5), traffic(0.5), "8h", "4m"),
        Case(traffic(1.5), traffic(0.8), "8h", "4m"),
    ],
    "MetergateChecksLate": [
        Case(late(200), late(50), "70m"),
        Case(late(70), late(50), "7h", "4m"),
    ],
    "MetergateChecksLateSlowly": [
        Case(late(35), late(5), "8h", "4m"),
        Case(late(15), late(8), "8h", "4m"),
    ],
    "MetergateDown": [
        Case(
            {'up{job="metergate-meter",instance="m:9464"}': "0x200"},
            {"up{job='metergate'}": "1x200"},
        ),
        # Down for a minute only; of another system.
        Case(
            {'up{job="metergate"}': "1x10 0x200"},
            {"up{job='metergate'}": "1x28 0x9", "up{job='other'}": "0x200"},
        ),
    ],
    "MetergateAbsent": [
        Case(
            steady(f"meter_build_info{{{METER}}}", 1),
            steady(f"meter_build_info{{{METER}}}", 1)
            | steady(f"enforcer_build_info{{{ENFORCER}}}", 1),
        ),
        Case(
            steady(f"enforcer_build_info{{{ENFORCER}}}", 1),
            steady(f"meter_build_info{{{METER}}}", 1)
            | steady(f"enforcer_build_info{{{ENFORCER}}}", 1),
        ),
    ],
    "MetergateNotReady": [
        Case(steady(f"enforcer_ready{{{ENFORCER}}}", 0), steady(f"enforcer_ready{{{ENFORCER}}}", 1))
    ],
    "MetergateDependencyAway": [
        Case(steady(DEPENDENCY % "enforcer", 0), steady(DEPENDENCY % "enforcer", 1)),
        Case(steady(DEPENDENCY % "meter", 0), {DEPENDENCY % "meter": "1x27 0x9"}),  # restarts
        Case(steady(DEPENDENCY % "relay", 0), steady(DEPENDENCY % "relay", 1)),
    ],
    "MetergateBreakerOpen": [
        Case(
            steady(f"enforcer_breaker_state{{{ENFORCER}}}", 2),
            steady(f"enforcer_breaker_state{{{ENFORCER}}}", 1),
        )
    ],
    "MetergateBreakerTurns": [Case(grows(OPENED, 0.5), grows(OPENED, 0.05))],
    "MetergateScriptsSlow": [Case(scripts(900), scripts(999))],
    "MetergateOverloaded": [Case(grows(REFUSED, 120), grows(REFUSED, 30))],
    "MetergateTicksFail": [Case(grows(TICKS, 60), grows(TICKS, 1))],
    "MetergateEmergencyUse": [
        Case(grows(emergency("allowed"), 1), grows(emergency("fail_closed"), 1))
    ],
    "MetergateEmergencyExhausted": [
        Case(grows(emergency("exhausted"), 1), grows(emergency("allowed"), 1))
    ],
    "MetergateNoJournal": [
        Case(grows(emergency("no_journal"), 1), grows(emergency("allowed"), 1)),
        Case(grows(emergency("journal_failed"), 1), steady(emergency("journal_failed"), 7)),
    ],
    "MetergateCountingStuck": [Case(grows(COUNTING, 1), grows(COUNTING, 0.1))],
    "MetergateEmergencyOverUse": [Case(once(OVER_USE), steady(OVER_USE, 5))],
    "MetergateOutboxDeep": [
        Case(
            steady(f"enforcer_outbox_records{{{ENFORCER}}}", 2e6),
            steady(f"enforcer_outbox_records{{{ENFORCER}}}", 9e5),
        )
    ],
    "MetergateOutboxOld": [
        Case(outbox(400), outbox(100)),
        # An enforcer that looks at nothing says 0.
        Case(
            outbox(400),
            steady(f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}", 0)
            | steady(f"enforcer_outbox_oldest_timestamp_seconds{{{ENFORCER}}}", 0),
        ),
    ],
    # Time begins at 0 in these tests.
    "MetergateOutboxUnwatched": [
        Case(
            steady(f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}", 60),
            {f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}": "0+60x200"},
        ),
        Case(
            steady(f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}", 60),
            steady(f"enforcer_stock_timestamp_seconds{{{ENFORCER}}}", 0),
        ),
    ],
    "MetergateReportsStale": [
        Case({FRESH: "0+60x10 600x200"}, {FRESH: "0+60x200"}),
        # Of several rollups the stalest counts; one that knows nothing yet does not.
        Case(
            {FRESH: "0+60x200", FRESH.replace("m:9464", "n:9464"): "0+60x10 600x200"},
            {FRESH: "0+60x200", FRESH.replace("m:9464", "n:9464"): "0x200"},
        ),
    ],
    "MetergateRollupBehind": [
        Case(
            steady(f"meter_lag_records{{{METER}}}", 2e6),
            steady(f"meter_lag_records{{{METER}}}", 5e5),
        )
    ],
    "MetergateRollupFails": [Case(grows(ROLLUP, 1), grows(ROLLUP, 0.2))],
    "MetergateRelayFails": [Case(grows(RELAYED, 1), grows(RELAYED, 0.2))],
    "MetergateBucketHeld": [Case(steady(HELD, 1), steady(HELD, 0))],
    "MetergateGapFound": [Case(steady(GAPS, 1), steady(GAPS, 0))],
    "MetergateDrift": [Case(steady(DRIFT, 2), steady(DRIFT, 0))],
    "MetergateAuditLate": [
        Case(
            steady(f"enforcer_audit_age_seconds{{{ENFORCER}}}", 90_000),
            steady(f"enforcer_audit_age_seconds{{{ENFORCER}}}", 3_600),
        )
    ],
    "MetergateRecordsSetAside": [Case(once(REVIEW), steady(REVIEW, 5))],
    "MetergateDeadLetters": [Case(once(DEAD), steady(DEAD, 5))],
    "MetergateWindowsNotRecomputed": [Case(once(WINDOWS), steady(WINDOWS, 5))],
    "MetergateMostDenied": [
        Case(denials(90, 120), denials(40, 120), "60m"),
        # A denial every minute of a system that hardly anybody asks.
        Case(denials(90, 120), denials(1, 1), "60m"),
    ],
}


def alerts() -> list[str]:
    """Names, as the file of alerts has them."""
    lines = (RULES / "alerts.yml").read_text().splitlines()
    return [line.partition("alert: ")[2] for line in lines if "- alert: " in line]


def world(step: str) -> dict[str, Any]:
    """All cases side by side, each under a job of its own, as rules keep jobs apart."""
    series: list[dict[str, str]] = []
    questions: list[dict[str, Any]] = []
    for alert, cases in CASES.items():
        for case in cases:
            if case.step != step or alert == ABSENT:
                continue
            for samples, fires in ((case.fires, True), (case.silent, False)):
                job = f"metergate-{len(questions)}"
                series += [
                    {
                        "series": re.sub(r"job=.metergate[^,}]*", f'job="{job}"', name),
                        "values": values,
                    }
                    for name, values in samples.items()
                ]
                questions.append(question(alert, case.at, f',job="{job}"', fires=fires))
    return {"interval": step, "input_series": series, "promql_expr_test": questions}


def absences() -> list[dict[str, Any]]:
    """What is nowhere has no job: a world for each case."""
    return [
        {
            "interval": case.step,
            "input_series": [
                {"series": name, "values": values} for name, values in samples.items()
            ],
            "promql_expr_test": [question(ABSENT, case.at, "", fires=fires)],
        }
        for case in CASES[ABSENT]
        for samples, fires in ((case.fires, True), (case.silent, False))
    ]


def question(alert: str, at: str, where: str, *, fires: bool) -> dict[str, Any]:
    expr = f'count(ALERTS{{alertname="{alert}",alertstate="firing"{where}}}) > 0 or vector(0)'
    return {
        "expr": expr,
        "eval_time": at,
        "exp_samples": [{"labels": "{}", "value": 1 if fires else 0}],
    }


def run(
    promtool: str, folder: Path, step: str, tests: list[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    file = folder / f"every-{step}.json"
    document = {
        "rule_files": [str(path) for path in sorted(RULES.glob("*.yml"))],
        "evaluation_interval": step,
        "tests": tests,
    }
    file.write_text(json.dumps(document))  # YAML includes JSON
    return subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )


def test_every_alert_has_its_cases() -> None:
    assert sorted(CASES) == sorted(alerts())
    assert {case.step for cases in CASES.values() for case in cases} == {"1m", "4m"}


@pytest.mark.parametrize("step", ["1m", "4m"])
def test_each_alert_fires_when_it_should_and_only_then(
    step: str, promtool: str, tmp_path: Path
) -> None:
    tests = [world(step), *(absences() if step == "1m" else ())]
    done = run(promtool, tmp_path, step, tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_configuration_are_sound(promtool: str) -> None:
    for words in (
        ["check", "rules", "--lint-fatal", *map(str, sorted(RULES.glob("*.yml")))],
        ["check", "config", str(RULES.parent / "prometheus.yml")],
    ):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
