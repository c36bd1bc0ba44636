"""Rules for all tests: fixtures load from tests/fixtures, and CI accepts no skip.

Hypothesis profiles: `quick` by default, `ci` where METERGATE_REQUIRE_ALL=1; HYPOTHESIS_PROFILE=thorough searches longer,
such as before a release. CI throws the same dice every time, so that what is green stays green; everybody's own runs
throw new ones. No deadlines: a server in the loop, or a busy machine, makes single examples slow for reasons that are
not the code's.
"""

from __future__ import annotations

import gc
import os
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from meter.open_files import allow_many_files
from tests import fixtures
from tests.schedule import Scheduling, in_order

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = [
    "pytester",
    "tests.endless",
    *sorted(f"{fixtures.__name__}.{module.name}" for module in iter_modules(fixtures.__path__)),
]

REQUIRE_ALL = "METERGATE_REQUIRE_ALL"

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("quick", deadline=None, max_examples=50, suppress_health_check=SLOW)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=200,
    suppress_health_check=SLOW,
    print_blob=True,
    derandomize=True,
    database=None,
)
settings.register_profile(
    "thorough", deadline=None, max_examples=2_000, suppress_health_check=SLOW, print_blob=True
)

settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get(REQUIRE_ALL) == "1" else "quick")
)

# A process of tests has ClickHouse's engine within it, and a thousand connections.
allow_many_files()


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that names its reason, where everything has to run."""
    if os.environ.get(REQUIRE_ALL) != "1" or report.outcome != "skipped":
        return
    if hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{REQUIRE_ALL}=1 allows no skip, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Watch for tests that skip, in a mark, a fixture or their body."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Watch for files that skip as a whole, such as by importorskip."""
    report = yield
    _fail_if_skipped(report)
    return report


def pytest_collection_finish() -> None:
    """What is there now stays: looking through it for garbage again and again costs a twelfth of the unit tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first."""
    in_order(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Of `--dist loadfile`; nothing: pytest-xdist's own."""
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
