"""What watches a deployment speaks of metrics that there are, and of pages that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from enforcer.metrics import CATALOGUE

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "rules"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
NAME = re.compile(r"\b(?:job(?:_reason)?:)?(?:enforcer|meter|relay)_[a-z0-9_]+(?::[a-z0-9_]+)?")
WINDOWS = ["5m", "30m", "1h", "2h", "6h", "1d", "3d"]


def load(patch: pytest.MonkeyPatch, script: str) -> ModuleType:
    """A script as a module: its folder is no package."""
    name = f"script_{Path(script).stem}"
    found = importlib.util.spec_from_file_location(name, ROOT / script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    patch.setitem(sys.modules, name, module)
    found.loader.exec_module(module)
    return module


def rules(file: str) -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load((RULES / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exposed() -> set[str]:
    """Names of all series."""
    names = {metric.name for part in CATALOGUE for metric in part}
    for metric in (one for part in CATALOGUE for one in part if one.kind == "histogram"):
        names |= {f"{metric.name}{end}" for end in ("_bucket", "_sum", "_count")}
    return names


def expressions() -> list[tuple[str, str]]:
    """Of rules and dashboards, each with the place where it stands."""
    found = [
        (rule.get("alert") or rule["record"], rule["expr"])
        for file in ("alerts.yml", "recording.yml")
        for rule in rules(file)
    ]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [
                (f"{path.stem}: {panel['title']}", one["expr"]) for one in panel.get("targets", ())
            ]
    return found


def test_every_expression_asks_for_what_there_is() -> None:
    known = exposed() | {rule["record"] for rule in rules("recording.yml")}
    asked = {(place, name) for place, expr in expressions() for name in NAME.findall(expr)}
    assert len(asked) > 100
    assert {(place, name) for place, name in asked if name not in known} == set()


def test_what_is_recorded_is_used() -> None:
    used = {name for _, expr in expressions() for name in NAME.findall(expr)}
    assert {rule["record"] for rule in rules("recording.yml")} <= used


def test_every_metric_is_on_a_dashboard() -> None:
    """But for what tells apart: versions, and when something was looked at."""
    shown = {name for place, expr in expressions() for name in NAME.findall(expr)}
    for rule in rules("recording.yml"):
        shown |= set(NAME.findall(rule["expr"]))
    names = {metric.name for part in CATALOGUE for metric in part}
    unseen = {
        name
        for name in names
        if not shown & {name, f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    }
    assert unseen == {"relay_build_info"}


def test_each_alert_has_its_section_in_the_runbook() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    sections = {
        parts.partition("\n")[0]: parts.partition("\n")[2] for parts in text.split("\n## ")[1:]
    }
    alerts = rules("alerts.yml")
    assert {rule["alert"] for rule in alerts} == {name for name in sections if " " not in name}
    for rule in alerts:
        notes, section = rule["annotations"], sections[rule["alert"]]
        assert notes["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert notes["summary"]
        assert notes["description"].endswith(".")
        assert all(f"**{part}**" in section for part in ("Means", "Look")), rule["alert"]
        assert re.search(r"\*\*[Dd]o\*\*", section), rule["alert"]
    linked = set(re.findall(r"\]\(#([a-z-]+)\)", text))
    assert linked <= {name.lower().replace(" ", "-") for name in sections}


@pytest.mark.parametrize("metric", ["enforcer_check_failures", "enforcer_checks_late"])
def test_the_windows_of_an_objective_differ_in_nothing_else(metric: str) -> None:
    found: dict[str, set[str]] = {}
    for rule in rules("recording.yml"):
        name, _, window = rule["record"].rpartition("rate")
        if metric in name and window in WINDOWS:
            expr = rule["expr"].replace(f"[{window}]", "[W]").replace(f"rate{window}", "rateW")
            found.setdefault(name, set()).add(expr)
            assert len(NAME.findall(expr)) > 0
    recorded = {rule["record"] for rule in rules("recording.yml")}
    assert {f"job:{metric}:ratio_rate{window}" for window in WINDOWS} <= recorded
    assert {name: len(exprs) for name, exprs in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["targets"]


def test_the_pages_that_are_made_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = load(monkeypatch, "deploy/metrics_page.py")
    dashboards = load(monkeypatch, "deploy/grafana/generate.py")
    assert metrics.PAGE.read_text() == metrics.page(), "run make pages"
    made = dashboards.files()
    assert set(made) == set(DASHBOARDS)
    assert {path: path.read_text() for path in made} == made, "run make pages"
