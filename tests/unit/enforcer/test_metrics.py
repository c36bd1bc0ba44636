"""What is tallied appears in the exposition, once."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from enforcer.core.program import Reason
from enforcer.core.rules import Mode
from enforcer.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 'enforcer_rpc_seconds_bucket{le="%s",method="a.B/Check"}'
WORKER = """
from enforcer.metrics import Metrics
metrics = Metrics()
metrics.call("a.B/Check", "OK", 0.1)
metrics.ready.set(0)
metrics.settle()
"""


def values(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_calls_decisions_and_batches_are_counted_once_however_often_they_are_read() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.0005, 0.004, 99.0):
        metrics.call("a.B/Check", "OK", seconds)
    metrics.call("a.B/Check", "UNAVAILABLE", 0.004)
    for _ in range(3):
        metrics.decision(Mode.ENFORCE, Reason.ALLOWED)
    metrics.batched(64, 0.002)
    metrics.batched(65, 0.002)
    for _ in range(2):
        found = values(metrics.text())
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
        assert found['enforcer_decisions_total{mode="ENFORCE",reason="ALLOWED"}'] == 3
        assert found['enforcer_batch_checks_bucket{le="64.0"}'] == 1
        assert found['enforcer_batch_checks_bucket{le="128.0"}'] == 2
        assert found["enforcer_script_seconds_count"] == 2
    metrics.call("a.B/Check", "OK", 0.004)
    assert values(metrics.text())['enforcer_rpcs_total{code="OK",method="a.B/Check"}'] == 5


def test_workers_that_share_a_folder_answer_for_each_other(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    said = ""
    for code in (WORKER, WORKER, WORKER + "print(metrics.text().decode())"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        said = done.stdout
    found = values(said.encode())
    assert found['enforcer_rpcs_total{code="OK",method="a.B/Check"}'] == 3
    assert found[SECONDS % "0.1"] == 3
    assert len(list(tmp_path.glob("gauge_livemin_*.db"))) == 1, "the dead are forgotten"
