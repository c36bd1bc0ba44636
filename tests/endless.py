"""A process of tests that hangs is ended, and says where each of its threads is.

pytest-timeout's alarm comes once. A test that is cut off by it may leave behind what its teardown, or the end of its
event loop, then waits for; nothing would end that.
"""

from __future__ import annotations

import faulthandler
import os
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "pytest_addoption",
    "pytest_configure",
    "pytest_exception_interact",
    "pytest_runtest_protocol",
    "pytest_unconfigure",
]

_STDERR: Final = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Beside the `timeout` of pytest-timeout."""
    parser.addini(
        "teardown_timeout",
        "Seconds that a test may take beyond its timeout, and its teardown once it has failed",
        default="90",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the stream that people see: while tests run, theirs goes elsewhere."""
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        config.stash[_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close it."""
    os.close(config.stash[_STDERR])


def _watch(config: pytest.Config, timeout: float = 0.0) -> None:
    seconds = timeout + float(config.getini("teardown_timeout"))
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_STDERR])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch over a test with its fixtures."""
    marker = item.get_closest_marker("timeout")
    timeout = float(marker.args[0] if marker else item.config.getini("timeout"))
    _watch(item.config, timeout)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Watch on: pytest has stopped to, for the sake of a debugger."""
    if isinstance(node, pytest.Item):
        _watch(node.config)
