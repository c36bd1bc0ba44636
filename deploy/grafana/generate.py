"""Write the Grafana dashboards in dashboards/ from the description below: `make pages`.

The result is committed; `--check` (part of `make lint`) writes nothing and fails when it is not current. What is written
here is what somebody thought about: titles, queries, units. The rest of Grafana's JSON is the same for every panel.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

FOLDER = Path(__file__).resolve().parent / "dashboards"
COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
CHECK: Final = 'method="enforcer.v1.EnforcerService/Check"'
RATE: Final = "[$__rate_interval]"
JOB: Final = 'job=~"$job"'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and how its series are called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit` in Grafana's names; a `stat` is one number; `limits` colour it from green to orange and red."""

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 8
    limits: tuple[float, float] | None = None
    stacked: bool = False

    @property
    def height(self) -> int:
        """In Grafana's rows."""
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`name` is its file and its uid; `rows` are panels under a heading. `known_by` is a metric that its jobs have."""

    name: str
    title: str
    about: str
    known_by: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...] = field(default=())


def one(expr: str, legend: str = "") -> tuple[Query, ...]:
    """A panel's only query."""
    return (Query(expr, legend),)


def quantiles(metric: str, matchers: str, by: str = "") -> tuple[Query, ...]:
    """Median, 95th and 99th percentile of a histogram of seconds."""
    more, legend = (f", {by}", f"{{{{{by}}}}} ") if by else ("", "")
    buckets = f"sum by (le{more}) (rate({metric}_bucket{{{matchers}}}{RATE}))"
    parts = (0.99,) if by else (0.5, 0.95, 0.99)
    return tuple(
        Query(f"histogram_quantile({part}, {buckets})", f"{legend}p{part * 100:.0f}")
        for part in parts
    )


def summed(metric: str, by: str, matchers: str = JOB) -> str:
    """A counter's growth a second by a label."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}{RATE}))"


FAULTS: Final = "DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN"

GATEWAY = Dashboard(
    "metergate-gateway",
    "Metergate: gateway",
    "Checks: how many, how fast, how they end, and what Redis has to do with it.",
    "enforcer_build_info",
    (
        (
            "At a glance",
            (
                Panel(
                    "Decisions",
                    "Checks that got an answer, allowed or denied.",
                    one(f'sum(rate(enforcer_decisions_total{{{JOB},mode!="PEEK"}}{RATE}))'),
                    "reqps",
                    "stat",
                    4,
                ),
                Panel(
                    "Without an answer",
                    "Share of checks that failed. 0.1 % is what the objective allows.",
                    one(f"max(job:enforcer_check_failures:ratio_rate5m{{{JOB}}}) or vector(0)"),
                    "percentunit",
                    "stat",
                    4,
                    (0.001, 0.01),
                ),
                Panel(
                    "Check, 99th percentile",
                    "Of unary checks, from arrival to answer.",
                    (quantiles("enforcer_rpc_seconds", f"{JOB},{CHECK}")[2],),
                    "s",
                    "stat",
                    4,
                    (0.005, 0.01),
                ),
                Panel(
                    "Denied",
                    "Share of decisions.",
                    one(f"max(job:enforcer_denials:ratio_rate5m{{{JOB}}}) or vector(0)"),
                    "percentunit",
                    "stat",
                    4,
                    (0.2, 0.5),
                ),
                Panel(
                    "Ready",
                    "Addresses of enforcers that can decide, of those that are scraped.",
                    one(f"sum(enforcer_ready{{{JOB}}}) / count(enforcer_ready{{{JOB}}})"),
                    "percentunit",
                    "stat",
                    4,
                ),
                Panel(
                    "Breaker",
                    "The worst of all enforcers: 0 calls to Redis pass, 1 a probe has succeeded, 2 they are held back.",
                    one(f"max(enforcer_breaker_state{{{JOB}}})"),
                    "none",
                    "stat",
                    4,
                    (1, 2),
                ),
            ),
        ),
        (
            "Calls",
            (
                Panel(
                    "Calls by method",
                    "Finished calls a second.",
                    one(summed("enforcer_rpcs_total", "method"), "{{method}}"),
                    "reqps",
                ),
                Panel(
                    "Errors by status",
                    "Whole calls, and single checks of batches and streams. Refusals are no errors.",
                    (
                        Query(
                            summed("enforcer_rpcs_total", "code", f'{JOB},code!="OK"')
                            + " or vector(0)",
                            "calls {{code}}",
                        ),
                        Query(
                            summed("enforcer_check_faults_total", "code") + " > 0 or vector(0)",
                            "checks {{code}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Duration of a check",
                    "Unary checks, from arrival to answer.",
                    quantiles("enforcer_rpc_seconds", f"{JOB},{CHECK}"),
                    "s",
                ),
                Panel(
                    "Duration by method",
                    "99th percentile. Of streams: how long they last.",
                    quantiles("enforcer_rpc_seconds", JOB, "method"),
                    "s",
                ),
                Panel(
                    "Budget: how fast it is used up",
                    "Share without an answer over the share that is allowed; 1 uses up the budget of 30 days in 30 days.",
                    tuple(
                        Query(
                            f"job:enforcer_check_failures:ratio_rate{window}{{{JOB}}} / 0.001",
                            window,
                        )
                        for window in ("5m", "1h", "6h", "3d")
                    ),
                    "none",
                ),
                Panel(
                    "Budget of being in time",
                    "Share of checks later than 10 ms over the 1 % that is allowed.",
                    tuple(
                        Query(
                            f"job:enforcer_checks_late:ratio_rate{window}{{{JOB}}} / 0.01", window
                        )
                        for window in ("5m", "1h", "6h", "3d")
                    ),
                    "none",
                ),
            ),
        ),
        (
            "Decisions",
            (
                Panel(
                    "By reason",
                    "Why it was decided so.",
                    one(summed("enforcer_decisions_total", "reason"), "{{reason}}"),
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "By licence model",
                    "What was drawn from first.",
                    one(summed("enforcer_decisions_total", "model"), "{{model}}"),
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "By mode",
                    "How was asked; PEEK is GetBalance.",
                    one(summed("enforcer_decisions_total", "mode"), "{{mode}}"),
                    "reqps",
                    stacked=True,
                ),
            ),
        ),
        (
            "Redis",
            (
                Panel(
                    "Script calls",
                    "From sending to reply.",
                    quantiles("enforcer_script_seconds", JOB),
                    "s",
                ),
                Panel(
                    "Checks in a script call",
                    "Mean. Grows with load: checks that wait travel together.",
                    one(
                        f"sum(rate(enforcer_batch_checks_sum{{{JOB}}}{RATE}))"
                        f" / (sum(rate(enforcer_batch_checks_count{{{JOB}}}{RATE})) > 0) or vector(0)",
                        "checks",
                    ),
                    "none",
                ),
                Panel(
                    "Script calls a second",
                    "By address of the enforcer.",
                    one(summed("enforcer_script_seconds_count", "instance"), "{{instance}}"),
                    "ops",
                ),
                Panel(
                    "Breaker",
                    "0 calls pass, 1 a probe has succeeded, 2 they are held back.",
                    one(f"max by (instance) (enforcer_breaker_state{{{JOB}}})", "{{instance}}"),
                    "none",
                ),
                Panel(
                    "Servers that it works with",
                    "1 where all enforcers find it in order, 0 where one does not: its /readyz says why.",
                    one(f"min by (dependency) (enforcer_dependency_up{{{JOB}}})", "{{dependency}}"),
                    "none",
                ),
                Panel(
                    "Ticks",
                    "Records of expiries and merged denials; ticks that failed.",
                    (
                        Query(f"sum(rate(enforcer_tick_records_total{{{JOB}}}{RATE}))", "records"),
                        Query(f"sum(rate(enforcer_tick_errors_total{{{JOB}}}{RATE}))", "failed"),
                    ),
                    "ops",
                ),
                Panel(
                    "Held",
                    "Live leases; reservations and allowances.",
                    (
                        Query(f"max(enforcer_leases{{{JOB}}})", "leases"),
                        Query(f"max(enforcer_reservations{{{JOB}}})", "reservations"),
                    ),
                ),
            ),
        ),
        (
            "While Redis is away, and Envoys",
            (
                Panel(
                    "Checks without counters",
                    "What failure policies made of them.",
                    one(summed("enforcer_emergency_checks_total", "outcome"), "{{outcome}}"),
                    "reqps",
                ),
                Panel(
                    "Counted afterwards",
                    "Uses that were allowed without counters and are counted now, and units of them past a limit.",
                    (
                        Query(
                            f"sum(rate(enforcer_emergency_counted_total{{{JOB}}}{RATE}))", "uses"
                        ),
                        Query(
                            f"sum(rate(enforcer_emergency_over_use_units_total{{{JOB}}}{RATE}))",
                            "units past a limit",
                        ),
                        Query(
                            f"sum(rate(enforcer_emergency_counting_errors_total{{{JOB}}}{RATE}))",
                            "had to stop",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Tenants over their share",
                    "Calls that were not taken, by which share was used up.",
                    one(summed("enforcer_tenant_refusals_total", "limit"), "{{limit}}"),
                    "reqps",
                ),
                Panel(
                    "Descriptors of Envoys",
                    "By what became of them.",
                    one(summed("enforcer_ratelimit_descriptors_total", "outcome"), "{{outcome}}"),
                    "reqps",
                ),
            ),
        ),
    ),
)

PIPELINE = Dashboard(
    "metergate-pipeline",
    "Metergate: pipeline",
    "Records on their way from the outboxes to the reports, and whether all of them arrive.",
    "meter_build_info|enforcer_build_info|relay_build_info",
    (
        (
            "At a glance",
            (
                Panel(
                    "Waiting in Redis",
                    "Records in all outboxes.",
                    one(f"max(enforcer_outbox_records{{{JOB}}})"),
                    "short",
                    "stat",
                    4,
                    (100_000, 1_000_000),
                ),
                Panel(
                    "Oldest of them",
                    "As of the last look.",
                    one(f"max(job:enforcer_outbox_age_seconds:max{{{JOB}}})"),
                    "s",
                    "stat",
                    4,
                    (60, 300),
                ),
                Panel(
                    "Reports lack the last",
                    "Since the moment up to which everything is rolled up.",
                    one(f"max(job:meter_freshness_seconds:max{{{JOB}}})"),
                    "s",
                    "stat",
                    4,
                    (30, 120),
                ),
                Panel(
                    "Held buckets",
                    "They wait at a gap in their sequence.",
                    one(f"sum(max by (bucket) (meter_bucket_held{{{JOB}}})) or vector(0)"),
                    "none",
                    "stat",
                    4,
                    (1, 1),
                ),
                Panel(
                    "Gaps",
                    "Open ones, by the audit.",
                    one(f"sum(max by (bucket) (enforcer_audit_gaps{{{JOB}}}))"),
                    "none",
                    "stat",
                    4,
                    (1, 1),
                ),
                Panel(
                    "Drift",
                    "Counters that differ from their records.",
                    one(f"sum(max by (bucket) (enforcer_audit_drift_counters{{{JOB}}}))"),
                    "none",
                    "stat",
                    4,
                    (1, 1),
                ),
            ),
        ),
        (
            "Outboxes and relay",
            (
                Panel(
                    "Depth of the outboxes",
                    "By an enforcer, and by each relay.",
                    (
                        Query(f"max(enforcer_outbox_records{{{JOB}}})", "outboxes"),
                        Query(
                            f"max by (instance) (relay_outbox_records{{{JOB}}})",
                            "relay {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Age of the oldest record",
                    "As of the last look.",
                    one(f"max by (job) (job:enforcer_outbox_age_seconds:max{{{JOB}}})", "{{job}}"),
                    "s",
                ),
                Panel(
                    "Relayed",
                    "Records stored in Kafka and trimmed, and rounds that failed.",
                    (
                        Query(summed("relay_records_total", "instance"), "{{instance}}"),
                        Query(
                            summed("relay_failures_total", "instance"), "failed rounds {{instance}}"
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Storing in Kafka",
                    "From handing records over until they are stored.",
                    quantiles("relay_publish_seconds", JOB),
                    "s",
                ),
                Panel(
                    "Servers that they work with",
                    "1 where all rollups, or relays, find it in order, 0 where one does not: its /readyz says why.",
                    (
                        Query(
                            f"min by (dependency) (meter_dependency_up{{{JOB}}})",
                            "rollup: {{dependency}}",
                        ),
                        Query(
                            f"min by (dependency) (relay_dependency_up{{{JOB}}})",
                            "relay: {{dependency}}",
                        ),
                    ),
                    "none",
                ),
                Panel(
                    "Buckets of each relay",
                    "Their sum is the number of buckets, or more while they are dealt anew.",
                    one(f"max by (instance) (relay_buckets{{{JOB}}})", "{{instance}}"),
                    "none",
                    stacked=True,
                ),
            ),
        ),
        (
            "Rollup",
            (
                Panel(
                    "Records",
                    "Read from the log, rolled up, and come again.",
                    (
                        Query(f"sum(rate(meter_records_read_total{{{JOB}}}{RATE}))", "read"),
                        Query(f"sum(rate(meter_records_rolled_total{{{JOB}}}{RATE}))", "rolled up"),
                        Query(f"sum(rate(meter_record_repeats_total{{{JOB}}}{RATE}))", "repeats"),
                    ),
                    "ops",
                ),
                Panel(
                    "Not rolled up yet",
                    "Records in the log: the rollup's lag.",
                    one(f"max by (instance) (meter_lag_records{{{JOB}}})", "{{instance}}"),
                ),
                Panel(
                    "Age of the reports",
                    "Since the moment up to which everything is rolled up.",
                    one(f"job:meter_freshness_seconds:max{{{JOB}}}", "{{job}}"),
                    "s",
                ),
                Panel(
                    "Stages of a flush",
                    "Share of time in each stage; `read` is mostly waiting.",
                    one(summed("meter_flush_seconds_sum", "stage"), "{{stage}}"),
                    "percentunit",
                    stacked=True,
                ),
                Panel(
                    "Failures",
                    "Flushes that began again from the durable marks.",
                    one(summed("meter_rollup_failures_total", "reason"), "{{reason}}"),
                    "ops",
                ),
                Panel(
                    "Set aside",
                    "Records for review, messages that are no records, windows that could not be worked out anew.",
                    (
                        Query(
                            f"sum(rate(meter_records_for_review_total{{{JOB}}}{RATE}))", "review"
                        ),
                        Query(
                            f"sum(rate(meter_dead_letters_total{{{JOB}}}{RATE}))", "dead letters"
                        ),
                        Query(
                            f"sum(rate(meter_windows_not_recomputed_total{{{JOB}}}{RATE}))",
                            "windows",
                        ),
                    ),
                    "ops",
                ),
            ),
        ),
        (
            "Audit and reports",
            (
                Panel(
                    "What the audit finds",
                    "Zero, or something is to be done.",
                    (
                        Query(
                            f"sum(max by (bucket) (enforcer_audit_drift_counters{{{JOB}}}))",
                            "drift",
                        ),
                        Query(f"sum(max by (bucket) (enforcer_audit_gaps{{{JOB}}}))", "gaps"),
                        Query(
                            f"sum(max by (bucket) (meter_bucket_held{{{JOB}}})) or vector(0)",
                            "held",
                        ),
                    ),
                    "none",
                ),
                Panel(
                    "Age of the audit",
                    "Since the bucket was compared that has waited longest.",
                    one(f"max by (job) (enforcer_audit_age_seconds{{{JOB}}})", "{{job}}"),
                    "s",
                ),
                Panel(
                    "Questions to the meter",
                    "Calls a second by method and status.",
                    one(summed("meter_rpcs_total", "method, code"), "{{method}} {{code}}"),
                    "reqps",
                ),
                Panel(
                    "Duration of questions",
                    "99th percentile.",
                    quantiles("meter_rpc_seconds", JOB, "method"),
                    "s",
                ),
                Panel(
                    "Raw days dropped",
                    "In the last day.",
                    one(f"sum(increase(meter_raw_partitions_dropped_total{{{JOB}}}[1d]))", "days"),
                    "none",
                ),
            ),
        ),
    ),
)

SOLD: Final = 'model!="none"'
DENIED: Final = 'mode!="PEEK",reason!="ALLOWED"'
BUSINESS = Dashboard(
    "metergate-business",
    "Metergate: business",
    "Who uses what, what is refused, and what goes past the limits. Money and exact sums are in the reports.",
    "enforcer_build_info",
    (
        (
            "At a glance",
            (
                Panel(
                    "Allowed",
                    "Checks a second.",
                    one(
                        f'sum(rate(enforcer_decisions_total{{{JOB},reason="ALLOWED",mode!="PEEK"}}{RATE}))'
                    ),
                    "reqps",
                    "stat",
                    6,
                ),
                Panel(
                    "Denied",
                    "Checks a second.",
                    one(
                        f"sum(rate(enforcer_decisions_total{{{JOB},{DENIED}}}{RATE})) or vector(0)"
                    ),
                    "reqps",
                    "stat",
                    6,
                ),
                Panel(
                    "Live leases",
                    "Of all customers. The many leases of a named user are one seat.",
                    one(f"max(enforcer_leases{{{JOB}}})"),
                    "short",
                    "stat",
                    6,
                ),
                Panel(
                    "Past the limits",
                    "Units in the last hour: sold as overage, or recorded.",
                    one(f"sum(increase(enforcer_over_use_units_total{{{JOB}}}[1h]))"),
                    "short",
                    "stat",
                    6,
                ),
            ),
        ),
        (
            "Accounts",
            (
                Panel(
                    "The ten that ask most",
                    "Accounts that have a name in metrics; all others are `other`.",
                    one(
                        f"topk(10, {summed('enforcer_account_decisions_total', 'account')})",
                        "{{account}}",
                    ),
                    "reqps",
                    "bargauge",
                    12,
                ),
                Panel(
                    "The ten that are denied most",
                    "Who may want to buy more.",
                    one(
                        "topk(10, "
                        + summed(
                            "enforcer_account_decisions_total",
                            "account",
                            f'{JOB},outcome="denied"',
                        )
                        + ")",
                        "{{account}}",
                    ),
                    "reqps",
                    "bargauge",
                    12,
                ),
                Panel(
                    "Decisions by account",
                    "Over time.",
                    one(
                        summed("enforcer_account_decisions_total", "account"),
                        "{{account}}",
                    ),
                    "reqps",
                    width=24,
                    stacked=True,
                ),
            ),
        ),
        (
            "Licence models",
            (
                Panel(
                    "Allowed by model",
                    "What was drawn from first.",
                    one(
                        summed(
                            "enforcer_decisions_total",
                            "model",
                            f'{JOB},reason="ALLOWED",mode!="PEEK"',
                        ),
                        "{{model}}",
                    ),
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Denied by reason",
                    "What customers run into.",
                    one(
                        summed("enforcer_decisions_total", "reason", f"{JOB},{DENIED}")
                        + " or vector(0)",
                        "{{reason}}",
                    ),
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Share denied by model",
                    "Of the decisions of each model. `none`, where nothing entitles, is left out: all of it is denied.",
                    one(
                        f"{summed('enforcer_decisions_total', 'model', f'{JOB},{DENIED},{SOLD}')}"
                        f" / ({summed('enforcer_decisions_total', 'model')} > 0) or vector(0)",
                        "{{model}}",
                    ),
                    "percentunit",
                ),
                Panel(
                    "Past the limits",
                    "Units a second by mode: sold overage and overdraft, and what RECORD_ONLY recorded past a limit.",
                    one(summed("enforcer_over_use_units_total", "mode"), "{{mode}}"),
                    "ops",
                ),
                Panel(
                    "Past the limits in an outage",
                    "Units allowed without counters that went past a limit.",
                    one(
                        f"sum(rate(enforcer_emergency_over_use_units_total{{{JOB}}}{RATE}))",
                        "units",
                    ),
                    "ops",
                ),
                Panel(
                    "Leases, reservations and allowances",
                    "Held at the moment.",
                    (
                        Query(f"max(enforcer_leases{{{JOB}}})", "leases"),
                        Query(f"max(enforcer_reservations{{{JOB}}})", "reservations, allowances"),
                    ),
                ),
            ),
        ),
    ),
)

DASHBOARDS: Final = (GATEWAY, PIPELINE, BUSINESS)


def as_json(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana loads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for heading, row in dashboard.rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": heading,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            }
        )
        top, left, height = top + 1, 0, 0
        for panel in row:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            panels.append(_panel(panel, len(panels) + 1, left, top))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["metergate"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "links": [
            {
                "title": "Metergate",
                "type": "dashboards",
                "tags": ["metergate"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": _variables(dashboard.known_by)},
        "annotations": {"list": []},
        "panels": panels,
    }


def _variables(known_by: str) -> list[dict[str, Any]]:
    series = f'{{__name__=~"{known_by}"}}' if "|" in known_by else known_by
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
        },
        {
            "name": "job",
            "label": "Job",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values({series}, job)", "refId": "jobs"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panel(panel: Panel, number: int, left: int, top: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.limits is not None:
        colours = zip(("green", "orange", "red"), (None, *panel.limits), strict=True)
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for colour, value in colours],
        }
    options: dict[str, Any] = {
        "tooltip": {"mode": "multi", "sort": "desc"},
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    }
    if panel.kind == "timeseries":
        stacking = "normal" if panel.stacked else "none"
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": stacking, "group": "A"},
        }
    else:
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
            "orientation": "horizontal",
        }
        if panel.kind == "stat":
            options |= {"colorMode": "value" if panel.limits else "none", "graphMode": "area"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or panel.title,
                "editorMode": "code",
                "range": panel.kind == "timeseries",
                "instant": panel.kind != "timeseries",
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def files() -> dict[Path, str]:
    """What stands in which file."""
    return {
        FOLDER / f"{dashboard.name}.json": json.dumps(as_json(dashboard), indent=2) + "\n"
        for dashboard in DASHBOARDS
    }


def main() -> int:
    """Exit status: 0, or 1 when `--check` finds a file out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if not current")
    if parser.parse_args().check:
        stale = [
            path for path, text in files().items() if not path.is_file() or path.read_text() != text
        ]
        stale += set(FOLDER.glob("*.json")) - files().keys()
        for path in stale:
            sys.stderr.write(
                f"deploy/grafana/dashboards/{path.name} is not current: run make pages\n"
            )
        return bool(stale)
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
