"""Write docs/metrics.md from the catalogue of metrics: `make pages`.

The result is committed; `--check` (part of `make lint`) writes nothing and fails when it is not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from enforcer.metrics import CATALOGUE
from meter.exposition import GaugeOf, HistogramOf, Label, Metric

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
HEAD = """\
# Metrics

Made by `deploy/metrics_page.py` from `src/enforcer/metrics.py` and `src/meter/metrics.py`; do not edit.

An enforcer shows its metrics at `/metrics` of `METERGATE_HTTP_LISTEN`, a meter or relay at that of `METERGATE_METER_METRICS_LISTEN`, in Prometheus' text format. `metergate up` shows those of all its processes at one address, whichever worker answers: see [decision 21](decisions/0021-metrics-of-several-processes.md). Anywhere else each process has an address of its own and Prometheus adds them up; where several enforcers share an address, give them and only them one empty folder in `PROMETHEUS_MULTIPROC_DIR`, else a scrape meets one of them by chance.

Units are seconds, records and the features' own units. What is a time (`_timestamp_seconds`) is in seconds since 1970: `time() -` it is its age, which goes on growing when the process that should move it hangs. No label is a customer; how many label sets a metric has at most in one process stands behind its labels. Rules, alerts and dashboards over these metrics are in [deploy/prometheus](../deploy/prometheus) and [deploy/grafana](../deploy/grafana), what to do when an alert fires in [runbook.md](runbook.md). What a client tells of itself is in [client.md](client.md).

## Watch a gateway

With Prometheus on the same machine as `metergate up`:

```console
$ mkdir deploy/prometheus/targets
$ echo '[{"targets": ["127.0.0.1:8080"]}]' > deploy/prometheus/targets/up.json
$ prometheus --config.file deploy/prometheus/prometheus.yml --storage.tsdb.path .metergate/prometheus --web.listen-address 127.0.0.1:9090
```

The dashboards are files for Grafana's import or provisioning; they ask for a Prometheus data source and for the jobs to show.

## Accounts

`enforcer_account_decisions_total` names accounts up to a bound, and counts all others as `account="other"`. Always named are those of `METERGATE_METRICS_NAMED` (at most 100). Beside them each process names up to `METERGATE_METRICS_ACCOUNTS` (20) accounts by itself: one that made a good part of all decisions of ten seconds, 1 in 40 with 20 names, has a name from then on until the process ends. What it asked before is part of `other`, and another process may name others: the sum over everything is exact, an account's own series is a lower bound. See [decision 22](decisions/0022-accounts-in-metrics.md).
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for part in CATALOGUE:
        parts.append(f"\n## {part.prefix}\n\n{part.about}\n")
        parts.append("\n| metric | type | what |\n|---|---|---|\n")
        parts += [_row(metric) for metric in part]
        parts += _labels([label for metric in part for label in metric.labels])
    return "".join(parts)


def _row(metric: Metric) -> str:
    kind = metric.kind
    if isinstance(metric, GaugeOf) and metric.of == "least":
        kind += ", the least of its processes"
    names = ", ".join(f"`{name}`" for name in metric.names)
    labels = f" Labels: {names} ({metric.most:,} at most)." if names else ""
    bounds = ""
    if isinstance(metric, HistogramOf):
        bounds = f" Buckets up to {', '.join(f'{bound:g}' for bound in metric.bounds)}."
    return f"| `{metric.name}` | {kind} | {metric.about}{labels}{bounds} |\n"


def _labels(labels: list[Label]) -> list[str]:
    rows = ["\n| label | values |\n|---|---|\n"]
    for label in dict.fromkeys(labels):
        values = ": " + ", ".join(f"`{value}`" for value in label.values) if label.values else ""
        rows.append(f"| `{label.name}` | {label.about}{values} |\n")
    return rows


def main() -> int:
    """Exit status: 0, or 1 when `--check` finds the page out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if not current")
    if parser.parse_args().check:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        sys.stderr.write("docs/metrics.md is not current: run make pages\n")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
