"""A test that never ends, as `make test` runs it: the run does end, is red, and tells the test and where it waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = """[pytest]
asyncio_default_fixture_loop_scope = function
timeout = 1
teardown_timeout = 1
"""
OTHERS = "def test_a(): pass\ndef test_b(): pass\n"
ENDLESS = """
from threading import Event
import pytest

@pytest.fixture
def hung():
    yield
    wait_in_teardown()

def wait_in_teardown():
    Event().wait()

def test_hangs(hung):
    Event().wait()
"""


def test_a_run_ends_though_a_test_does_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.endless"]\n')
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    for name in "abc":
        (tmp_path / f"test_{name}.py").write_text(OTHERS)
    (tmp_path / "test_d.py").write_text(ENDLESS)
    found = re.search(r"pytest -n \$\(SERVERS\) (.*?) --ignore", (ROOT / "Makefile").read_text())
    assert found
    own = ["-p", "no:cacheprovider", "-p", "no:locust", "-n", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *own, *found[1].split(), "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 6 passed" in done.stdout
    assert "FAILED test_d.py::test_hangs - Failed: Timeout (>1.0s)" in done.stdout
    assert "crashed while running 'test_d.py::test_hangs'" in done.stdout
    assert "in wait_in_teardown" in done.stderr
