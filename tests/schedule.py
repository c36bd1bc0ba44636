"""Which tests with servers run where, and when: those that share a dear server one after the other, the longest first.

Each process of pytest starts its own servers of a session. A Kafka and a whole gateway take ten seconds of a processor
each to start: so the files that want one of them are given to one process. And what takes long is begun first: a long
file that is begun last is waited for by everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

__all__ = ["ORDER", "Scheduling", "in_order", "piece_of"]

ORDER: Final[Sequence[Sequence[str]]] = (
    (  # Kafka
        "chaos/test_crash_points.py",
        "chaos/test_fail_open_kafka.py",
        "chaos/test_rolling_restart.py",
        "contract/journal/test_journal.py",
        "e2e/test_image.py",
        "e2e/test_kafka.py",
        "e2e/test_traces.py",
        "integration/enforcer/test_fail_open_kafka.py",
        "integration/meter/test_kafka.py",
        "integration/meter/test_rebalance.py",
    ),
    (  # a gateway that is left as it was found
        "e2e/test_main_job.py",
        "e2e/test_prometheus.py",
        "e2e/test_up.py",
        "e2e/test_allowances.py",
        "e2e/test_client.py",
        "e2e/test_client_allowances.py",
        "e2e/test_client_docs.py",
        "e2e/test_corrections.py",
        "e2e/test_events.py",
        "e2e/test_logs.py",
        "e2e/test_replay.py",
    ),
    ("chaos/test_losses.py",),
    ("integration/meter/test_rollup.py",),
    ("integration/enforcer/test_corrections.py",),
    ("chaos/test_kills.py",),
    ("integration/meter/test_aggregates.py",),
    (  # ClickHouse over HTTP
        "contract/meter/test_stores.py",
        "integration/meter/test_app.py",
        "integration/meter/test_shares.py",
    ),
    ("e2e/test_loadtests.py",),
    ("chaos/test_fail_open.py",),
    ("integration/meter/test_retention.py",),
    ("e2e/test_envoy_filter.py",),
    ("e2e/test_starts.py",),
    ("e2e/test_backup.py",),
    ("chaos/test_faults.py",),
    ("integration/meter/test_series.py",),
    ("integration/enforcer/test_corrections_model.py",),
    ("integration/enforcer/counters/test_redis.py",),
    ("integration/enforcer/test_fail_open.py",),
    ("conformance/test_life.py",),
    ("integration/enforcer/client/test_leases.py",),
)
"""Files by what they share, what takes longest first. What is not among them comes behind, each file by itself."""
_PLACES: Final = {
    f"tests/{file}": (place, within)
    for place, files in enumerate(ORDER)
    for within, file in enumerate(files)
}
_BEHIND: Final = (len(ORDER), 0)


def in_order(items: list[pytest.Item]) -> None:
    """Sort what was collected; the tests of a file stay as they are."""
    items.sort(key=lambda item: _PLACES.get(item.nodeid.partition("::")[0], _BEHIND))


def piece_of(test: str) -> str:
    """Tests with the same are run by one process, in their order."""
    file = test.partition("::")[0]
    place, _ = _PLACES.get(file, _BEHIND)
    return "+".join(ORDER[place]) if place < len(ORDER) else file


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """`--dist loadfile`, with files that belong together as one."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        # By the number of tests: files with one that takes minutes came last.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return piece_of(nodeid)
